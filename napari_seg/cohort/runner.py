"""Runs a bundle over many scans, one after the other, and keeps what went wrong with any of them."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from napari_seg.bundles.spec import Bundle
from napari_seg.bundles.trust import check_runnable, command_of_monai
from napari_seg.cohort.discover import Case
from napari_seg.cohort.results import OF_DICOM, Format, OutputFolder, targets
from napari_seg.errors import BundleError, Cancelled, NapariSegError, Notice
from napari_seg.formats.atomic import is_disk_full, not_written
from napari_seg.formats.image2d import COLOURS
from napari_seg.localise import Progress
from napari_seg.memory import held_bytes, limited_to

if TYPE_CHECKING:
    from napari_seg.formats import Reading
    from napari_seg.inference.segment import Options

_CODES_THAT_CONCERN_ALL = (
    "bundle.config",
    "bundle.untrusted",
    "bundle.weights",
    "environment.backend",
    "environment.device",
    "environment.precision",
    "environment.template",
    "output.disk_full",
)


@dataclass(frozen=True)
class CaseResult:
    """What became of one scan.

    Attributes:
        name: the scan's, unique in the run.
        status: "done" or "failed".
        code: of the error that stopped it; "" if done.
        message: of that error, one line.
        source: the scan's file or folder, below the inputs' folder.
        labels: the label map's file; None if failed.
        overlay: the picture's file.
        volumes_ml: segment name -> ml.
        confidence: segment name -> mean probability; a segment without voxels is absent.
        notices: doubts about the scan or the result.
        seconds: from opening the scan to the last file.
    """

    name: str
    status: Literal["done", "failed"]
    code: str = ""
    message: str = ""
    source: str = ""
    labels: Path | None = None
    overlay: Path | None = None
    volumes_ml: dict[str, float] = field(default_factory=dict)
    confidence: dict[str, float] = field(default_factory=dict)
    notices: tuple[Notice, ...] = ()
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "name": self.name,
            "status": self.status,
            "code": self.code,
            "message": self.message,
            "source": self.source,
            "labels": None if self.labels is None else str(self.labels),
            "overlay": None if self.overlay is None else str(self.overlay),
            "volumes_ml": {name: round(ml, 4) for name, ml in self.volumes_ml.items()},
            "confidence": {name: round(mean, 4) for name, mean in self.confidence.items()},
            "notices": [{"code": notice.code, "message": notice.message} for notice in self.notices],
            "seconds": round(self.seconds, 2),
        }


def run_cohort(
    cases: Iterable[Case],
    output_dir: Path,
    bundle: Bundle,
    *,
    options: Options | None = None,
    reading: Reading | None = None,
    also: Sequence[Format] = (),
    overwrite: bool = False,
    on_case: Callable[[int, str], None] | None = None,
    on_result: Callable[[CaseResult], None] | None = None,
    progress: Progress | None = None,
) -> list[CaseResult]:
    """One result a case, in the cases' order; one that fails leaves `<name>_failed.json` and does not stop the others.

    Args:
        cases: what `find_cases` gave.
        output_dir: made if it is not there; nothing is written outside it.
        bundle: which structures to find.
        options: for `segment`.
        reading: for `Scan.read`.
        also: formats to write beside NIfTI; those of DICOM only for DICOM scans.
        overwrite: replace whatever has the results' names; without it, only results that an earlier run gave for
            the same scan and nobody touched since.
        on_case: called with the scan's number and name before it is opened.
        on_result: called with what became of each scan, once that is known.
        progress: as for `segment`; raising `Cancelled` from it ends the run, finished cases stay.

    Raises:
        OutputError: `output.folder`, the folder can't be made or written to; `output.disk_full`: computing on would
            be for nothing.
        BundleError: the bundle is untrusted or incomplete, or expects other channels: no scan could be done.
        EnvironmentFault: the machine lacks the device or the template.
        Cancelled: `progress` raised it.
    """
    check_runnable(bundle)
    cases = list(cases)
    _check_channels(bundle, cases)
    results: list[CaseResult] = []
    with OutputFolder(output_dir) as output:
        for number, case in enumerate(cases):
            if on_case is not None:
                on_case(number, case.name)
            results.append(_run_case(case, output, bundle, options or {}, reading or {}, also, overwrite, progress))
            if results[-1].status == "failed":
                output.write_failure(case, results[-1].code, results[-1].message)
            if on_result is not None:
                on_result(results[-1])
    return results


def _check_channels(bundle: Bundle, cases: Sequence[Case]) -> None:
    """Refuse, once and before any work, a bundle that none of the scans can give its channels.

    Raises:
        BundleError: `bundle.channels`.
    """
    given = {n for case in cases for n in ((1, COLOURS) if case.scan.format == "picture" else (1,))}
    if given and bundle.in_channels not in given:
        raise BundleError(
            "bundle.channels",
            f"bundle {bundle.root.name!r} expects {bundle.in_channels} channels; so far napari-seg reads "
            f"scans of one channel and 2D images of 1 or {COLOURS}; run it with MONAI: {command_of_monai(bundle)}",
        )


def _run_case(
    case: Case,
    output: OutputFolder,
    bundle: Bundle,
    options: Options,
    reading: Reading,
    also: Sequence[Format],
    overwrite: bool,
    progress: Progress | None,
) -> CaseResult:
    from napari_seg.formats.label_maps import check_writing
    from napari_seg.inference import segment

    start = time.perf_counter()
    try:
        if not overwrite:
            output.refuse_others_files(case)
        memory_bytes = options.get("memory_bytes")
        within: Reading = {"memory_bytes": memory_bytes, **reading}
        volume = case.scan.read(**within, channels=bundle.in_channels)
        with limited_to(None if memory_bytes is None else memory_bytes - held_bytes()):
            check_writing(volume.grid.shape, [kind for kind in also if case.scan.format == "dicom" or kind == "nrrd"])
        segmentation = segment(volume, bundle, progress=progress, **options)
        if case.scan.format != "dicom" and (missing := [kind for kind in also if kind in OF_DICOM]):
            also = [kind for kind in also if kind not in missing]
            text = f"{case.name} is no DICOM series, so it gets no {' and no '.join(missing)}"
            segmentation = replace(segmentation, notices=(*segmentation.notices, Notice("output.no_dicom", text)))
        segmentation = output.write_case(case, volume, segmentation, bundle, also, options)
    except Cancelled:
        raise
    except NapariSegError as error:
        if error.code in _CODES_THAT_CONCERN_ALL:
            raise
        return _failed(case, error.code, error.message, start)
    except MemoryError:
        return _failed(case, "environment.memory", "not enough memory for this scan", start)
    except OSError as error:
        if is_disk_full(error):
            raise not_written(case.name, error) from error
        return _failed(case, "file.unreadable", f"the operating system says: {error.strerror or error}", start)
    except Exception as error:  # our own mistake must not cost the other scans
        where = traceback.extract_tb(error.__traceback__)[-1]  # its words may quote what must stay private
        kind = f"{type(error).__name__} in {Path(where.filename).name}, line {where.lineno}"
        message = f"this should not have happened: {kind}; please report it"
        return _failed(case, "internal.error", message, start)
    volumes = segmentation.volumes_ml()
    labels, overlay, _ = targets(output.path, case.name)
    return CaseResult(
        name=case.name,
        status="done",
        source=case.source,
        labels=labels,
        overlay=overlay,
        volumes_ml={s.name: volumes[s.label] for s in segmentation.segments},
        confidence={s.name: segmentation.confidence[s.label] for s in segmentation.segments if volumes[s.label] > 0},
        notices=segmentation.notices,
        seconds=time.perf_counter() - start,
    )


def _failed(case: Case, code: str, message: str, start: float) -> CaseResult:
    return CaseResult(case.name, "failed", code, message, case.source, seconds=time.perf_counter() - start)
