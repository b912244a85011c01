"""Runs a bundle over many scans, one after the other, and keeps what went wrong with any of them.

For each scan three files: `<name>_seg.nii.gz` on the scan's own grid, `<name>_seg.png` to judge it by, and
`<name>_seg.json` with the names, colours, volumes and confidences of its segments and what they came from.
They are finished in a hidden folder first and then moved into place, so none of them is ever half written.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from napari_seg import __version__
from napari_seg.bundle import Bundle
from napari_seg.errors import Cancelled, EnvironmentFault, InputError, NapariSegError, Notice, OutputError
from napari_seg.formats import Scan
from napari_seg.volume import Segmentation, Volume

Progress = Callable[[str, int, int], None]

SUFFIX = "_seg"


@dataclass(frozen=True)
class CaseResult:
    """What became of one scan.

    Attributes:
        name: the scan's, unique in the run.
        status: "done" or "failed".
        code: of the error that stopped it; "" if done.
        message: of that error, one line.
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
            "labels": None if self.labels is None else str(self.labels),
            "overlay": None if self.overlay is None else str(self.overlay),
            "volumes_ml": {name: round(ml, 4) for name, ml in self.volumes_ml.items()},
            "confidence": {name: round(mean, 4) for name, mean in self.confidence.items()},
            "notices": [{"code": notice.code, "message": notice.message} for notice in self.notices],
            "seconds": round(self.seconds, 2),
        }


def run_cohort(
    scans: Iterable[Scan],
    output_dir: Path,
    bundle: Bundle,
    *,
    device: str = "auto",
    overwrite: bool = False,
    on_case: Callable[[int, str], None] | None = None,
    progress: Progress | None = None,
) -> list[CaseResult]:
    """One result a scan, in the scans' order; a scan that fails leaves no file and does not stop the others.

    Args:
        scans: what `find_scans` gave.
        output_dir: made if it is not there; nothing is written outside it.
        bundle: which structures to find.
        device: as for `segment`.
        overwrite: replace files that another program made or a person changed; results of an earlier run that
            nobody touched are always replaced.
        on_case: called with the scan's number and name before it is opened.
        progress: as for `segment`; raising `Cancelled` from it ends the run, finished cases stay.

    Raises:
        OutputError: `output.folder`, the folder can't be made or written to.
        BundleError: the bundle is untrusted or incomplete: no scan could be done.
        EnvironmentFault: the machine lacks the device or the template.
        Cancelled: `progress` raised it.
    """
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=output_dir).close()
    except OSError as error:
        raise OutputError(
            "output.folder", f"can't write to {output_dir} ({error.strerror}); choose another folder with -o"
        ) from error
    results: list[CaseResult] = []
    taken: set[str] = set()
    for number, scan in enumerate(scans):
        name = _unique(scan.name, taken)
        if on_case is not None:
            on_case(number, name)
        results.append(_run_case(scan, name, output_dir, bundle, device, overwrite, progress))
    return results


def _run_case(
    scan: Scan, name: str, output_dir: Path, bundle: Bundle, device: str, overwrite: bool, progress: Progress | None
) -> CaseResult:
    from napari_seg.inference import segment

    start = time.perf_counter()
    try:
        if not overwrite:
            _refuse_foreign_files(output_dir, name)
        volume = scan.read()
        segmentation = segment(volume, bundle, device=device, progress=progress)
        write_case(volume, segmentation, bundle, output_dir, name)
    except (Cancelled, EnvironmentFault):
        raise
    except NapariSegError as error:
        if error.code in ("bundle.untrusted", "bundle.config", "bundle.weights"):
            raise
        return _failed(name, error.code, error.message, start)
    except MemoryError:
        return _failed(name, "environment.memory", "not enough memory for this scan", start)
    except OSError as error:
        return _failed(name, "file.unreadable", f"the operating system says: {error.strerror or error}", start)
    volumes = segmentation.volumes_ml()
    return CaseResult(
        name=name,
        status="done",
        labels=output_dir / f"{name}{SUFFIX}.nii.gz",
        overlay=output_dir / f"{name}{SUFFIX}.png",
        volumes_ml={s.name: volumes[s.label] for s in segmentation.segments},
        confidence={s.name: segmentation.confidence[s.label] for s in segmentation.segments if volumes[s.label] > 0},
        notices=segmentation.notices,
        seconds=time.perf_counter() - start,
    )


def _failed(name: str, code: str, message: str, start: float) -> CaseResult:
    return CaseResult(name, "failed", code, message, seconds=time.perf_counter() - start)


def write_case(volume: Volume, segmentation: Segmentation, bundle: Bundle, output_dir: Path, name: str) -> None:
    """Writes the three files of one result, all or none.

    Raises:
        OutputError: what was written does not read back as it was meant, or the disk is full.
    """
    from napari_seg.evaluation.overlay import draw_overlay
    from napari_seg.formats.nifti import write_nifti

    files = {kind: f"{name}{SUFFIX}{kind}" for kind in (".nii.gz", ".png", ".json")}
    with tempfile.TemporaryDirectory(dir=output_dir, prefix=".unfinished-") as folder:
        unfinished = Path(folder)
        write_nifti(segmentation, unfinished / files[".nii.gz"])
        draw_overlay(volume, segmentation, unfinished / files[".png"], title=name)
        record = _record(volume, segmentation, bundle, unfinished / files[".nii.gz"])
        (unfinished / files[".json"]).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        for file in files.values():
            os.replace(unfinished / file, output_dir / file)


def _record(volume: Volume, segmentation: Segmentation, bundle: Bundle, labels: Path) -> dict[str, Any]:
    volumes, voxels = segmentation.volumes_ml(), segmentation.voxel_counts()
    return {
        "program": f"napari-seg {__version__}",
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


def without_results(scans: Iterable[Scan]) -> list[Scan]:
    """The scans that are no result of an earlier run, for a user whose results lie among the scans."""
    return [scan for scan in scans if not (len(scan.files) == 1 and _is_result(scan.files[0]))]


def _is_result(path: Path) -> bool:
    ending = f"{SUFFIX}.nii.gz"
    return path.name.endswith(ending) and path.with_name(f"{path.name.removesuffix('.nii.gz')}.json").is_file()


def _refuse_foreign_files(output_dir: Path, name: str) -> None:
    """A label map that does not carry the checksum of its own record is somebody's work: it stays."""
    labels, record = output_dir / f"{name}{SUFFIX}.nii.gz", output_dir / f"{name}{SUFFIX}.json"
    if not labels.exists():
        return
    try:
        ours = json.loads(record.read_text(encoding="utf-8"))["sha256"] == _sha256(labels)
    except (OSError, ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        raise InputError(
            "output.exists",
            f"{labels.name} is there already and was changed since or made by another program; move it away or pass "
            "--overwrite",
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unique(name: str, taken: set[str]) -> str:
    """The name, or with a number behind it when another scan of this run has it, in letters of either case."""
    candidate, number = name, 2
    while candidate.casefold() in taken:
        candidate, number = f"{name}_{number}", number + 1
    taken.add(candidate.casefold())
    return candidate
