"""Write the files of each result into the output folder: all of them or none, also if the run is killed.

A case has three files: `<name>_seg.nii.gz`, the label map on the scan's own grid; `<name>_seg.png`, a preview; and
`<name>_seg.json`, the record with names, colours, volumes and confidences of the segments and their origin. On request
it also has confidence maps, statistics and the labels in other formats. A failed case has `<name>_failed.json` instead.

A case is written in three steps. First, its files are written into a hidden folder of the run. Second, the files that
they replace are moved into that folder, the record first. Third, the new files are moved to the output folder, the
record last. So the hidden folder always shows how far a run came: while it contains the new record, the case is
incomplete, and all moves are undone. The same function undoes them after an error and, at the start of the next run,
after a kill; a lock marks the hidden folders of running processes.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, cast

from filelock import FileLock, Timeout

from napari_seg.bundles.spec import Bundle
from napari_seg.cohort.case import Case
from napari_seg.cohort.naming import CONFIDENCE_MAPS, FAILED, SUFFIX
from napari_seg.errors import Notice, OutputError
from napari_seg.formats.atomic import atomic_write, make_output_folder, not_written
from napari_seg.formats.channels import ChannelSet
from napari_seg.formats.kinds import LABEL_FORMATS, RUN_FORMATS, FormatName
from napari_seg.formats.record import failure_record, read_record, result_record, write_record
from napari_seg.volume import Segmentation, Volume

if TYPE_CHECKING:
    from napari_seg.inference.options import SegmentOptions

STATISTICS = "statistics"

Measured = Literal["complete", "all"]
"""Structures that statistics are written of: those that do not touch the border of the scan, or all."""

_HIDDEN = ".unfinished-"
_LOCK = "lock"
_REPLACED = "replaced"
_IDENTITY_ROUNDS = 50_000


class OutputFolder:
    """Output folder of a run; a context manager that creates a hidden folder for unfinished files and removes it.

    Args:
        path: the output folder; created if missing.

    Raises:
        OutputError: `output.folder`, the folder can't be created or written to; `output.disk_full`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Self:
        make_output_folder(self.path)
        try:
            for hidden in self.path.glob(f"{_HIDDEN}*"):
                _recover(hidden, self.path)
            self._hidden, self._lock = _locked_folder(self.path)
        except OSError as error:
            raise not_written(str(self.path), error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()
        if not (self._hidden / _REPLACED).exists():  # otherwise files could not be moved back; the next run tries again
            shutil.rmtree(self._hidden, ignore_errors=True)

    def write_case(
        self,
        case: Case,
        volume: Volume,
        segmentation: Segmentation,
        bundle: Bundle,
        also: Sequence[FormatName] = (),
        options: SegmentOptions | None = None,
        statistics: Measured | None = None,
    ) -> Segmentation:
        """Write the files of one result, all or none: label map, preview, record, and what else was requested.

        A format that can't store this result is not written, and the returned segmentation has a notice about it.

        Args:
            case: name and source of the scan.
            volume: the scan.
            segmentation: the segmentation of the scan.
            bundle: the bundle that made it.
            also: formats to write in addition to NIfTI.
            options: options of the run; the record contains those that change labels.
            statistics: structures whose volume and intensity are written; None: none.

        Raises:
            OutputError: `output.not_written`, a folder has the name of a file, or a file is locked; `output.disk_full`;
                `output.not_equal`, a file reads back with other content. Existing files are kept.
        """
        from napari_seg.evaluation.overlay import draw_overlay
        from napari_seg.evaluation.structure_statistics import structure_statistics
        from napari_seg.formats.nifti import write_map

        labels, overlay, record = targets(self._hidden, case.name)
        try:
            _move_back(self._hidden, self.path)  # if that failed after the last case
            for leftover in self._hidden.iterdir():
                if leftover.is_file() and leftover.name != _LOCK:
                    leftover.unlink()
            write_map(segmentation.array, segmentation.grid, labels)
            draw_overlay(volume, segmentation, overlay, title=case.name)
            digests = {}
            for kind, path in _other_targets(self._hidden, case.name).items():
                if kind in also:
                    name = cast("FormatName", kind)
                    if notice := _write_other_format(segmentation, name, path, volume, bundle):
                        segmentation = replace(segmentation, notices=(*segmentation.notices, notice))
                        continue
                elif kind in CONFIDENCE_MAPS and segmentation.confidence_maps is not None:
                    write_map(getattr(segmentation.confidence_maps, kind), segmentation.grid, path)
                elif kind == STATISTICS and statistics is not None:
                    figures = structure_statistics(volume, segmentation, include_incomplete=statistics == "all")
                    if notice := _incomplete(segmentation, figures):
                        segmentation = replace(segmentation, notices=(*segmentation.notices, notice))
                    atomic_write(path, json.dumps(figures, indent=4))
                else:
                    continue
                digests[kind] = _sha256(path)
            made_by = (bundle.name, bundle.version)
            identity = _identity(case)
            known = result_record(volume, segmentation, source=case.source, identity=identity, made_by=made_by)
            if isinstance(case.scan, ChannelSet):
                known["channels"] = {name: scan.name for name, scan in case.scan.channels}
            known["options"] = {} if options is None else options.resolved(bundle).to_record()
            known["options"]["tta"] = known["options"].get("tta") or bundle.tta
            known |= {"sha256": _sha256(labels), "overlay_sha256": _sha256(overlay), "beside": digests}
            write_record(record, known)
            _move_into_place(self._hidden, self.path, case.name)
        except OSError as error:
            raise not_written(f"the results of {case.name}", error) from error
        return segmentation

    def write_failure(self, case: Case, code: str, message: str) -> None:
        """Write the reason of a failure next to the results; do nothing if that can't be written."""
        path = failure_path(self.path, case.name)
        if path.exists() and read_record(path) is None:
            return
        with suppress(OSError):
            write_record(path, failure_record(case.source, code, message))

    def refuse_others_files(self, case: Case) -> None:
        """Refuse to replace files that a person changed, that another program wrote, or that belong to another scan.

        Raises:
            OutputError: `output.exists`.
        """
        labels, overlay, record_path = targets(self.path, case.name)
        others = _other_targets(self.path, case.name)
        existing = [path for path in (labels, overlay, record_path, *others.values()) if path.exists()]
        if not existing:
            return
        record = read_record(record_path) or {}
        if not _is_identity(str(record.get("identity", "")), case):
            reason = "belongs to another scan, to this scan before it was moved, or to another program"
        elif labels.exists() and record.get("sha256") != _sha256(labels):
            reason = "was changed after it was written"
        elif changed := [
            p for kind, p in others.items() if p.exists() and _other_digests(record).get(kind) != _sha256(p)
        ]:
            existing, reason = changed, "was changed after it was written, or written by another program"
        else:
            return
        raise OutputError(
            "output.exists", f"{existing[0].name} already exists and {reason}; move it away or pass --overwrite"
        )


def targets(folder: Path, name: str) -> tuple[Path, Path, Path]:
    """Return the paths of a case's label map, preview and record."""
    return (
        folder / f"{name}{SUFFIX}.nii.gz",
        folder / f"{name}{SUFFIX}.png",
        folder / f"{name}{SUFFIX}.json",
    )


def failure_path(folder: Path, name: str) -> Path:
    """Return the path of the record of a failed case."""
    return folder / f"{name}{FAILED}.json"


def _other_targets(folder: Path, name: str) -> dict[str, Path]:
    """Return the paths of a case's confidence maps, its statistics and its labels in other formats."""
    maps = {kind: folder / f"{name}{SUFFIX}_{kind}.nii.gz" for kind in CONFIDENCE_MAPS}
    maps[STATISTICS] = folder / f"{name}{SUFFIX}_{STATISTICS}.json"
    return maps | {kind: folder / LABEL_FORMATS[kind].file_name(name) for kind in RUN_FORMATS}


def _write_other_format(
    segmentation: Segmentation, kind: FormatName, path: Path, volume: Volume, bundle: Bundle
) -> Notice | None:
    """Write the labels in another format than NIfTI; return a notice if the format can't store them."""
    from napari_seg.formats.kinds import write_as

    try:
        write_as(kind, segmentation, path, scan=volume.source, algorithm=(bundle.name, bundle.version))
    except OutputError as error:
        if error.code in ("output.disk_full", "output.not_written"):
            raise
        return Notice(error.code, f"{path.name} is left out: {error.message}")
    return None


def _incomplete(segmentation: Segmentation, figures: dict[str, dict[str, float]]) -> Notice | None:
    """Return a notice that names the structures that were found and have zeros in the statistics; None without one."""
    counts = segmentation.voxel_counts()
    names = [one.name for one in segmentation.segments if counts[one.label] and not figures[one.name]["volume"]]
    if not names:
        return None
    shown = ", ".join(names[:5]) + f" and {len(names) - 5} more" * (len(names) > 5)
    text = (
        f"the statistics have zeros for {len(names)} structures that touch the border of the scan ({shown}), as "
        "TotalSegmentator's do; --statistics-all measures them too"
    )
    return Notice("result.at_border", text)


def _locked_folder(folder: Path) -> tuple[Path, FileLock]:
    """Create a hidden folder and lock it, so that other runs see that this one is running."""
    while True:
        hidden = Path(tempfile.mkdtemp(dir=folder, prefix=_HIDDEN))
        lock = FileLock(hidden / _LOCK)
        try:
            with suppress(NotImplementedError):  # a file system without locks, where no run recovers anything
                lock.acquire(timeout=0)
        except (Timeout, FileNotFoundError):  # another run removed it before it was locked
            continue
        if hidden.is_dir():
            return hidden, lock


def _recover(hidden: Path, output: Path) -> None:
    """Undo the incomplete moves of a killed run, and remove its hidden folder."""
    if hidden.is_symlink() or not hidden.is_dir():
        return
    lock = FileLock(hidden / _LOCK)
    try:
        lock.acquire(timeout=0)
    except (Timeout, NotImplementedError, FileNotFoundError):
        return
    try:
        _move_back(hidden, output)
    finally:
        lock.release()
    shutil.rmtree(hidden, ignore_errors=True)


def _move_into_place(hidden: Path, output: Path, name: str) -> None:
    """Move the finished files of a case to the output folder, replacing those of an earlier result."""
    labels, overlay, record = targets(output, name)
    others, before = _other_targets(output, name), _other_digests(read_record(record) or {})
    new = [path for path in (labels, overlay, *others.values()) if (hidden / path.name).exists()]
    old = [path for path in (record, *new) if path.exists()]
    # other formats of the replaced labels are removed with them
    old += [path for kind, path in others.items() if kind in before and path not in new and path.exists()]
    failure = failure_path(output, name)
    old += [failure] if read_record(failure) is not None else []
    if folder := next((path for path in old if path.is_dir()), None):
        raise OutputError(
            "output.not_written", f"{folder.name} is a folder; expected a file or nothing; move it away or rename it"
        )
    replaced = hidden / _REPLACED
    replaced.mkdir(exist_ok=True)
    try:
        for path in old:
            os.replace(path, replaced / path.name)
        for path in (*new, record):
            os.replace(hidden / path.name, path)
    except BaseException:
        _move_back(hidden, output)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def _move_back(hidden: Path, output: Path) -> None:
    """Undo `_move_into_place`, however far it or an earlier undo came; do nothing if it was complete."""
    replaced = hidden / _REPLACED
    for record in hidden.glob(f"*{SUFFIX}.json"):
        known, name = read_record(record) or {}, record.name.removesuffix(f"{SUFFIX}.json")
        labels, overlay, _ = targets(output, name)
        digests = {labels: known.get("sha256"), overlay: known.get("overlay_sha256")}
        digests |= {path: _other_digests(known).get(kind) for kind, path in _other_targets(output, name).items()}
        for path, digest in digests.items():
            # keep a file that a person changed in the meantime
            if digest and not (hidden / path.name).exists() and path.is_file() and _sha256(path) == digest:
                os.replace(path, hidden / path.name)
        for path in replaced.iterdir() if replaced.is_dir() else ():
            if not (output / path.name).exists():
                os.replace(path, output / path.name)
    shutil.rmtree(replaced, ignore_errors=True)


def _other_digests(record: dict[str, Any]) -> dict[str, Any]:
    digests = record.get("beside")
    return digests if isinstance(digests, dict) else {}


def _identity(case: Case, salt: str = "") -> str:
    """Return a text that identifies the path of a scan without revealing it.

    Paths contain names, and a plain digest of a path can be found by trying names. This digest is salted, so that it
    differs between records, and slow to compute, so that trying takes long.
    """
    salt = salt or secrets.token_hex(8)
    digest = hashlib.pbkdf2_hmac("sha256", os.fsencode(case.place), salt.encode(), _IDENTITY_ROUNDS, 16)
    return f"{salt}-{digest.hex()}"


def _is_identity(identity: str, case: Case) -> bool:
    salt, _, _ = identity.partition("-")
    return bool(salt) and hmac.compare_digest(identity.encode(), _identity(case, salt).encode())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
