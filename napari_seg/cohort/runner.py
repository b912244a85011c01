"""Segment many scans, one after the other; an error of one scan does not stop the others."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, Literal

from napari_seg.bundles.spec import Bundle
from napari_seg.bundles.trust import check_runnable, command_of_monai
from napari_seg.cohort.case import Case
from napari_seg.cohort.results import Measured, OutputFolder, targets
from napari_seg.errors import BundleError, Cancelled, NapariSegError, Notice
from napari_seg.formats.atomic import is_disk_full, not_written
from napari_seg.formats.channels import ChannelSet
from napari_seg.formats.image2d import COLOURS
from napari_seg.formats.kinds import DICOM_FORMATS, FormatName, check_memory_for
from napari_seg.inference.options import SegmentOptions
from napari_seg.memory import limited_to, resident_bytes
from napari_seg.progress import Progress

if TYPE_CHECKING:
    from napari_seg.formats.scan import ReadOptions, Scan

_CODES_OF_ALL_SCANS = (
    "bundle.config",
    "bundle.foreign_expression",
    "bundle.foreign_target",
    "bundle.link",
    "bundle.metadata",
    "bundle.nnunet",
    "bundle.no_postprocessing",
    "bundle.postprocessing",
    "bundle.structures",
    "bundle.task",
    "bundle.too_large",
    "bundle.torchscript",
    "bundle.trust_changed",
    "bundle.unknown",
    "bundle.unreadable",
    "bundle.untrusted",
    "bundle.weights",
    "bundle.weights_unsafe",
    "environment.backend",
    "environment.device",
    "environment.precision",
    "environment.template",
    "output.disk_full",
)


@dataclass(frozen=True)
class CaseResult:
    """Result of one scan.

    Attributes:
        name: name of the case, unique in the run.
        status: "done" or "failed".
        code: error code; "" if done.
        message: error message, one line.
        source: file or folder of the scan, relative to the folder of the inputs.
        labels: file of the label map; None if failed.
        overlay: file of the preview; None if failed.
        volumes_ml: segment name -> volume in ml.
        confidence: segment name -> mean probability; segments without voxels are absent.
        notices: warnings about the scan or the result.
        seconds: time from opening the scan to writing the last file.
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
        """Return plain values for JSON."""
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
    options: SegmentOptions | None = None,
    reading: ReadOptions | None = None,
    also: Sequence[FormatName] = (),
    statistics: Measured | None = None,
    overwrite: bool = False,
    on_case: Callable[[int, str], None] | None = None,
    on_result: Callable[[CaseResult], None] | None = None,
    progress: Progress | None = None,
) -> list[CaseResult]:
    """Segment the cases and return one result for each, in their order.

    A case that fails leaves `<name>_failed.json` and does not stop the others.

    Args:
        cases: cases from `find_cases`.
        output_dir: output folder, created if missing; nothing is written outside it.
        bundle: bundle to run.
        options: options of `segment`.
        reading: keyword arguments of `Scan.read`.
        also: formats to write in addition to NIfTI; DICOM formats apply to DICOM scans only.
        statistics: structures whose volume and mean intensity are written to `<name>_seg_statistics.json`.
        overwrite: replace all files with the names of the results; otherwise only unchanged results of an earlier run
            for the same scan are replaced.
        on_case: called with number and name of a case before its scan is opened.
        on_result: called with each result.
        progress: as for `segment`; if it raises `Cancelled`, the run ends and finished cases are kept.

    Raises:
        OutputError: `output.folder`, the folder can't be created or written to; `output.disk_full`.
        BundleError: the bundle is untrusted, incomplete or expects other channels, so that no scan can be segmented.
        EnvironmentFault: the device or the template is missing.
        Cancelled: `progress` raised it.
    """
    check_runnable(bundle)
    cases, options = list(cases), options or SegmentOptions()
    _check_channels(bundle, cases)
    _check_dimensions(bundle, cases)
    results: list[CaseResult] = []
    # while another process reads the first scan; torch imports nothing of this program that could be half imported
    Thread(target=import_module, args=("torch",)).start()
    with OutputFolder(output_dir) as output:
        for number, case in enumerate(cases):
            if on_case is not None:
                on_case(number, case.name)
            results.append(
                _run_case(case, output, bundle, options, reading or {}, also, statistics, overwrite, progress)
            )
            if results[-1].status == "failed":
                output.write_failure(case, results[-1].code, results[-1].message)
            if on_result is not None:
                on_result(results[-1])
    return results


def _check_channels(bundle: Bundle, cases: Sequence[Case]) -> None:
    """Refuse a bundle whose number of channels none of the scans has, before any other work.

    Raises:
        BundleError: `bundle.channels`.
    """
    if cases and not any(bundle.in_channels in _possible_channels(case.scan, bundle.in_channels) for case in cases):
        raise BundleError(
            "bundle.channels",
            f"bundle {bundle.root.name!r} expects the {bundle.in_channels} channels {', '.join(bundle.channel_names)}; "
            "found scans with another number; name the image of each with --channel NAME=FILE"
            f"{_or_by_monai(bundle)}",
        )


def _check_dimensions(bundle: Bundle, cases: Sequence[Case]) -> None:
    """Refuse a bundle for 2D images if all scans are volumes, before any other work.

    Raises:
        BundleError: `bundle.dimensions`.
    """
    if bundle.spatial_dims == 2 and cases and all(_is_volume(case.scan) for case in cases):
        raise BundleError(
            "bundle.dimensions",
            f"bundle {bundle.root.name!r} segments 2D images, and all scans are volumes; choose a bundle for volumes "
            f"or for their slices{_or_by_monai(bundle)}",
        )


def _or_by_monai(bundle: Bundle) -> str:
    """Return the advice to run a bundle in MONAI; "" for a model that MONAI does not run."""
    return f", or run the bundle with MONAI: {command_of_monai(bundle)}" if bundle.kind == "monai" else ""


def _is_volume(scan: Scan | ChannelSet) -> bool:
    """Return whether a scan has several slices, as far as its files tell without being read."""
    if isinstance(scan, ChannelSet):
        return False
    if scan.format == "nifti":
        from napari_seg.formats.nifti import count_slices

        return count_slices(scan.files[0]) > 1
    return scan.format == "dicom" and len(scan.files) > 1


def _possible_channels(scan: Scan | ChannelSet, wanted: int) -> tuple[int, ...]:
    """Return the numbers of channels that a scan may have, as far as its files tell without being read."""
    if isinstance(scan, ChannelSet):
        return (1, len(scan.channels)) if scan.problem is None else (wanted,)  # reading it raises the problem
    if scan.format == "image2d":
        return 1, COLOURS
    if scan.format == "nifti":
        from napari_seg.formats.nifti import count_volumes

        return 1, count_volumes(scan.files[0])
    return (1,)


def _run_case(
    case: Case,
    output: OutputFolder,
    bundle: Bundle,
    options: SegmentOptions,
    reading: ReadOptions,
    also: Sequence[FormatName],
    statistics: Measured | None,
    overwrite: bool,
    progress: Progress | None,
) -> CaseResult:
    from napari_seg.inference.segment import segment

    start = time.perf_counter()
    try:
        if not overwrite:
            output.refuse_others_files(case)
        memory_bytes = options.memory_bytes
        is_2d = bundle.spatial_dims == 2
        within: ReadOptions = {"memory_bytes": memory_bytes, **reading, "one_slice": is_2d}
        volume = case.scan.read(**within, channels=bundle.in_channels)
        with limited_to(None if memory_bytes is None else memory_bytes - resident_bytes()):
            is_dicom = case.scan.format == "dicom"
            check_memory_for(volume.grid.shape, [kind for kind in also if is_dicom or kind not in DICOM_FORMATS])
        segmentation = segment(volume, bundle, options, progress=progress)
        if not is_dicom and (missing := [kind for kind in also if kind in DICOM_FORMATS]):
            also = [kind for kind in also if kind not in missing]
            text = f"{case.name} is not a DICOM series, so {' and '.join(missing)} can't be written"
            segmentation = replace(segmentation, notices=(*segmentation.notices, Notice("output.no_dicom", text)))
        segmentation = output.write_case(case, volume, segmentation, bundle, also, options, statistics)
    except Cancelled:
        raise
    except NapariSegError as error:
        if error.code in _CODES_OF_ALL_SCANS:
            raise
        return _failed(case, error.code, error.message, start)
    except MemoryError:
        return _failed(case, "environment.memory", "not enough memory for this scan", start)
    except OSError as error:
        if is_disk_full(error):
            raise not_written(case.name, error) from error
        return _failed(case, "file.unreadable", f"the operating system says: {error.strerror or error}", start)
    except Exception as error:  # an error in the program must not stop the other scans
        where = traceback.extract_tb(error.__traceback__)[-1]  # the exception text may contain private data
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
        confidence={
            s.name: segmentation.confidence[s.label]
            for s in segmentation.segments
            if s.label in segmentation.confidence
        },
        notices=segmentation.notices,
        seconds=time.perf_counter() - start,
    )


def _failed(case: Case, code: str, message: str, start: float) -> CaseResult:
    return CaseResult(case.name, "failed", code, message, case.source, seconds=time.perf_counter() - start)
