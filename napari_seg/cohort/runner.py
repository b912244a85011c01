"""Runs a bundle over many scans, one after the other, and keeps what went wrong with any of them.

For each scan three files: `<name>_seg.nii.gz` on the scan's own grid, `<name>_seg.png` to judge it by, and
`<name>_seg.json` with the names, colours, volumes and confidences of its segments and what they came from; and, where
they are wanted, maps of its certainty and the labels in other formats.
They are finished in a hidden folder first and then moved into place, so none of them is ever half written.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from napari_seg import __version__
from napari_seg.bundle import Bundle, check_runnable
from napari_seg.cohort.discover import CERTAINTY_MAPS, PROGRAM, SUFFIX, Case, read_record
from napari_seg.errors import Cancelled, NapariSegError, Notice, OutputError
from napari_seg.localise import Progress
from napari_seg.volume import Segmentation, Volume

if TYPE_CHECKING:
    from napari_seg.formats import Reading
    from napari_seg.formats.label_maps import DicomKind
    from napari_seg.inference.segment import Options

logger = logging.getLogger(__name__)

Format = Literal["seg", "labelmap", "rtstruct", "nrrd"]
FORMATS: dict[Format, str] = {
    "seg": f"{SUFFIX}.dcm",
    "labelmap": "_labelmap.dcm",
    "rtstruct": "_contours.dcm",
    "nrrd": ".seg.nrrd",
}
"""What labels can be written as beside NIfTI, and how such a file's name ends."""

_OF_DICOM = ("seg", "labelmap", "rtstruct")

_CHANGE_LABELS = ("device", "backend", "precision", "memory_bytes", "windows", "crop")
"""Options that a result may not be the same without, be it by rounding only."""

_CODES_THAT_CONCERN_ALL = (
    "bundle.config",
    "bundle.untrusted",
    "bundle.weights",
    "environment.backend",
    "environment.device",
    "environment.precision",
    "environment.template",
)


@dataclass(frozen=True)
class CaseResult:
    """What became of one scan.

    Attributes:
        name: the scan's, unique in the run.
        status: "done" or "failed".
        code: of the error that stopped it; "" if done.
        message: of that error, one line.
        source: the scan's file or folder.
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
    """One result a case, in the cases' order; one that fails leaves no file and does not stop the others.

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
        OutputError: `output.folder`, the folder can't be made or written to.
        BundleError: the bundle is untrusted or incomplete: no scan could be done.
        EnvironmentFault: the machine lacks the device or the template.
        Cancelled: `progress` raised it.
    """
    check_runnable(bundle)
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=output_dir).close()
    except OSError as error:
        raise OutputError(
            "output.folder", f"can't write to {output_dir} ({error.strerror}); choose another folder with -o"
        ) from error
    results: list[CaseResult] = []
    for number, case in enumerate(cases):
        if on_case is not None:
            on_case(number, case.name)
        results.append(_run_case(case, output_dir, bundle, options or {}, reading or {}, also, overwrite, progress))
        if on_result is not None:
            on_result(results[-1])
    return results


def _run_case(
    case: Case,
    output_dir: Path,
    bundle: Bundle,
    options: Options,
    reading: Reading,
    also: Sequence[Format],
    overwrite: bool,
    progress: Progress | None,
) -> CaseResult:
    from napari_seg.inference import segment

    start = time.perf_counter()
    try:
        if not overwrite:
            _refuse_others_files(output_dir, case)
        volume = case.scan.read(**reading, channels=bundle.in_channels)
        segmentation = segment(volume, bundle, progress=progress, **options)
        if case.scan.format != "dicom" and (missing := [kind for kind in also if kind in _OF_DICOM]):
            also = [kind for kind in also if kind not in missing]
            text = f"{case.name} is no DICOM series, so it gets no {' and no '.join(missing)}"
            segmentation = replace(segmentation, notices=(*segmentation.notices, Notice("output.no_dicom", text)))
        write_case(case, volume, segmentation, bundle, output_dir, also, options)
    except Cancelled:
        raise
    except NapariSegError as error:
        if error.code in _CODES_THAT_CONCERN_ALL:
            raise
        return _failed(case, error.code, error.message, start)
    except MemoryError:
        return _failed(case, "environment.memory", "not enough memory for this scan", start)
    except OSError as error:
        return _failed(case, "file.unreadable", f"the operating system says: {error.strerror or error}", start)
    except Exception as error:  # our own mistake must not cost the other scans
        where = traceback.extract_tb(error.__traceback__)[-1]  # its words may quote what must stay private
        kind = f"{type(error).__name__} in {Path(where.filename).name}, line {where.lineno}"
        message = f"this should not have happened: {kind}; please report it"
        return _failed(case, "internal.error", message, start)
    volumes = segmentation.volumes_ml()
    labels, overlay, _ = _targets(output_dir, case.name)
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


def write_case(
    case: Case,
    volume: Volume,
    segmentation: Segmentation,
    bundle: Bundle,
    output_dir: Path,
    also: Sequence[Format] = (),
    options: Options | None = None,
) -> None:
    """Writes the files of one result, all or none: three, two maps where the certainty is known, and other formats.

    Args:
        case: the scan's name and source.
        volume: the scan.
        segmentation: of it.
        bundle: that made it.
        output_dir: where the files go.
        also: other formats.
        options: that it was made with; those that change labels are written down.

    Raises:
        OutputError: `output.not_written`, the disk is full or a name is taken by a folder; `output.not_equal`, what
            was written does not read back as it was meant.
    """
    from napari_seg.evaluation.overlay import draw_overlay
    from napari_seg.formats.label_maps import write_label_map
    from napari_seg.formats.nifti import write_map

    moved: list[Path] = []
    try:
        with tempfile.TemporaryDirectory(dir=output_dir, prefix=".unfinished-") as folder:
            unfinished = _targets(Path(folder), case.name)
            labels, overlay, record = unfinished
            write_map(segmentation.array, segmentation.grid, labels)
            draw_overlay(volume, segmentation, overlay, title=case.name)
            targets = dict(zip(unfinished, _targets(output_dir, case.name), strict=True))
            sums = {}
            for kind, target in _targets_beside(output_dir, case.name).items():
                path = Path(folder, target.name)
                if kind in also:
                    dicom = cast("DicomKind", kind if kind in _OF_DICOM else "seg")
                    algorithm = (bundle.name, bundle.version)
                    write_label_map(segmentation, path, images=volume.files, dicom=dicom, algorithm=algorithm)
                elif kind in CERTAINTY_MAPS and segmentation.certainty is not None:
                    write_map(getattr(segmentation.certainty, kind), segmentation.grid, path)
                else:
                    continue
                targets[path], sums[kind] = target, _sha256(path)
            known = _record(case, volume, segmentation, bundle, labels)
            known["options"] = {name: value for name, value in (options or {}).items() if name in _CHANGE_LABELS}
            text = json.dumps(known | {"beside": sums}, indent=2)
            record.write_text(text + "\n", encoding="utf-8")
            before = read_record(_targets(output_dir, case.name)[2]) or {}
            for path, target in targets.items():
                os.replace(path, target)
                moved.append(target)
    except OSError as error:
        for target in moved:
            target.unlink(missing_ok=True)
        raise OutputError(
            "output.not_written", f"the results of {case.name} could not be written: {error.strerror or error}"
        ) from error
    for kind, target in _targets_beside(output_dir, case.name).items():
        if kind in before.get("beside", {}) and kind not in sums:  # it belongs to labels that are no more
            with suppress(OSError):
                target.unlink(missing_ok=True)


def _record(case: Case, volume: Volume, segmentation: Segmentation, bundle: Bundle, labels: Path) -> dict[str, Any]:
    volumes, voxels = segmentation.volumes_ml(), segmentation.voxel_counts()
    return {
        "program": f"{PROGRAM} {__version__}",
        "source": case.source,
        "identity": case.identity,
        "bundle": {"name": bundle.name, "version": bundle.version},
        "sha256": _sha256(labels),
        "modality": volume.modality,
        "shape": list(segmentation.grid.shape),
        "spacing_mm": [round(s, 6) for s in segmentation.grid.spacing_mm],
        "segments": [
            {
                "label": s.label,
                "name": s.name,
                "color": list(s.color),
                "volume_ml": round(volumes[s.label], 4),
                "voxels": voxels[s.label],
                "confidence": round(segmentation.confidence[s.label], 4)
                if s.label in segmentation.confidence
                else None,
            }
            for s in segmentation.segments
        ],
        "notices": [{"code": notice.code, "message": notice.message} for notice in segmentation.notices],
    }


def _refuse_others_files(output_dir: Path, case: Case) -> None:
    """What a person changed, another program made or another scan gave stays."""
    labels, overlay, record_path = _targets(output_dir, case.name)
    beside = _targets_beside(output_dir, case.name)
    there = [path for path in (labels, overlay, record_path, *beside.values()) if path.exists()]
    if not there:
        return
    record = read_record(record_path) or {}
    if record.get("identity") != case.identity:
        reason = "belongs to another scan, to this one before it was moved, or to another program"
    elif labels.exists() and record.get("sha256") != _sha256(labels):
        reason = "was changed since it was made"
    elif changed := [
        path for kind, path in beside.items() if path.exists() and record.get("beside", {}).get(kind) != _sha256(path)
    ]:
        there, reason = changed, "was changed since it was made, or made by another program"
    else:
        return
    raise OutputError(
        "output.exists", f"{there[0].name} is there already and {reason}; move it away or pass --overwrite"
    )


def _targets(folder: Path, name: str) -> tuple[Path, Path, Path]:
    """Where the label map, the picture and the record of a case go."""
    return (
        folder / f"{name}{SUFFIX}.nii.gz",
        folder / f"{name}{SUFFIX}.png",
        folder / f"{name}{SUFFIX}.json",
    )


def _targets_beside(folder: Path, name: str) -> dict[str, Path]:
    """Where the maps of a case's certainty go, and its labels in other formats."""
    maps = {kind: folder / f"{name}{SUFFIX}_{kind}.nii.gz" for kind in CERTAINTY_MAPS}
    return maps | {kind: folder / f"{name}{ending}" for kind, ending in FORMATS.items()}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
