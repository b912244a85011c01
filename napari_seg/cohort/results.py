"""The files of each result in an output folder: all of them or none, whatever ends the run.

A case has three files: `<name>_seg.nii.gz` on the scan's own grid, `<name>_seg.png` to judge it by, and
`<name>_seg.json` with the names, colours, volumes and confidences of its segments and what they came from; and, where
they are requested, maps of its certainty and the labels in other formats. A case that failed has `<name>_failed.json`
until it is done.

They are finished in a hidden folder of the run first. Then the files that they replace move into that folder, the
record first, and the new ones move out of it, the record last. So the hidden folder tells at any instant how far a run
came: as long as it holds the new record, the run was not done, and what moved is moved back. The same function does so
after an error and, at the start of the next run, after a run that was killed; a lock tells which runs still live.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

from filelock import FileLock, Timeout

from napari_seg.bundles.spec import Bundle
from napari_seg.cohort.discover import CERTAINTY_MAPS, FAILED, SUFFIX, Case
from napari_seg.errors import Notice, OutputError
from napari_seg.formats.atomic import make_output_folder, not_written
from napari_seg.formats.kinds import LABEL_FORMATS, RUN_FORMATS, FormatName
from napari_seg.formats.record import failure_record, read_record, result_record, write_record
from napari_seg.volume import Segmentation, Volume

if TYPE_CHECKING:
    from napari_seg.inference.options import SegmentOptions

_HIDDEN = ".unfinished-"
_LOCK = "lock"
_REPLACED = "replaced"
_IDENTITY_ROUNDS = 50_000


class OutputFolder:
    """The folder of a run's results, with a hidden folder in it where they are made; leaving removes that one.

    Raises:
        OutputError: `output.folder`, it can't be made or written to; `output.disk_full`.
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
        if not (self._hidden / _REPLACED).exists():  # else files could not be moved back; the next run tries again
            shutil.rmtree(self._hidden, ignore_errors=True)

    def write_case(
        self,
        case: Case,
        volume: Volume,
        segmentation: Segmentation,
        bundle: Bundle,
        also: Sequence[FormatName] = (),
        options: SegmentOptions | None = None,
    ) -> Segmentation:
        """Write the files of one result, all or none: three, maps of a known certainty, and other formats.

        A format that can't hold this result is left out, and the segmentation returned with a notice that says so.

        Args:
            case: the scan's name and source.
            volume: the scan.
            segmentation: of it.
            bundle: that made it.
            also: other formats.
            options: that it was made with; those that change labels are written down.

        Raises:
            OutputError: `output.not_written`, a name is taken by a folder, or a file is locked; `output.disk_full`;
                `output.not_equal`, what was written does not read back as it was meant. Files that were there stay.
        """
        from napari_seg.evaluation.overlay import draw_overlay
        from napari_seg.formats.nifti import write_map

        labels, overlay, record = targets(self._hidden, case.name)
        try:
            _move_back(self._hidden, self.path)  # where that failed for the case before
            for leftover in self._hidden.iterdir():
                if leftover.is_file() and leftover.name != _LOCK:
                    leftover.unlink()
            write_map(segmentation.array, segmentation.grid, labels)
            draw_overlay(volume, segmentation, overlay, title=case.name)
            sums = {}
            for kind, path in _targets_beside(self._hidden, case.name).items():
                if kind in also:
                    name = cast("FormatName", kind)
                    if notice := _write_other_format(segmentation, name, path, volume, bundle):
                        segmentation = replace(segmentation, notices=(*segmentation.notices, notice))
                        continue
                elif kind in CERTAINTY_MAPS and segmentation.confidence_maps is not None:
                    write_map(getattr(segmentation.confidence_maps, kind), segmentation.grid, path)
                else:
                    continue
                sums[kind] = _sha256(path)
            made_by = (bundle.name, bundle.version)
            identity = _identity(case)
            known = result_record(volume, segmentation, source=case.source, identity=identity, made_by=made_by)
            known["options"] = {} if options is None else options.to_record()
            known["options"]["tta"] = known["options"].get("tta") or bundle.tta
            known |= {"sha256": _sha256(labels), "overlay_sha256": _sha256(overlay), "beside": sums}
            write_record(record, known)
            _move_into_place(self._hidden, self.path, case.name)
        except OSError as error:
            raise not_written(f"the results of {case.name}", error) from error
        return segmentation

    def write_failure(self, case: Case, code: str, message: str) -> None:
        """Write why a case failed, beside the results; where even that can't be written, nothing."""
        path = failure_path(self.path, case.name)
        if path.exists() and read_record(path) is None:
            return
        with suppress(OSError):
            write_record(path, failure_record(case.source, code, message))

    def refuse_others_files(self, case: Case) -> None:
        """Refuse to replace what a person changed, another program made or another scan gave.

        Raises:
            OutputError: `output.exists`.
        """
        labels, overlay, record_path = targets(self.path, case.name)
        beside = _targets_beside(self.path, case.name)
        there = [path for path in (labels, overlay, record_path, *beside.values()) if path.exists()]
        if not there:
            return
        record = read_record(record_path) or {}
        if not _is_identity(str(record.get("identity", "")), case):
            reason = "belongs to another scan, to this one before it was moved, or to another program"
        elif labels.exists() and record.get("sha256") != _sha256(labels):
            reason = "was changed since it was made"
        elif changed := [p for kind, p in beside.items() if p.exists() and _beside(record).get(kind) != _sha256(p)]:
            there, reason = changed, "was changed since it was made, or made by another program"
        else:
            return
        raise OutputError(
            "output.exists", f"{there[0].name} is there already and {reason}; move it away or pass --overwrite"
        )


def targets(folder: Path, name: str) -> tuple[Path, Path, Path]:
    """Return where the label map, the picture and the record of a case go."""
    return (
        folder / f"{name}{SUFFIX}.nii.gz",
        folder / f"{name}{SUFFIX}.png",
        folder / f"{name}{SUFFIX}.json",
    )


def failure_path(folder: Path, name: str) -> Path:
    """Return where it stands why a case failed."""
    return folder / f"{name}{FAILED}.json"


def _targets_beside(folder: Path, name: str) -> dict[str, Path]:
    """Return where the maps of a case's certainty go, and its labels in other formats."""
    maps = {kind: folder / f"{name}{SUFFIX}_{kind}.nii.gz" for kind in CERTAINTY_MAPS}
    return maps | {kind: folder / LABEL_FORMATS[kind].file_name(name) for kind in RUN_FORMATS}


def _write_other_format(
    segmentation: Segmentation, kind: FormatName, path: Path, volume: Volume, bundle: Bundle
) -> Notice | None:
    """Write the labels in a format beside NIfTI; return the reason if it can't hold them."""
    from napari_seg.formats.kinds import write_as

    try:
        write_as(kind, segmentation, path, scan=volume.source, algorithm=(bundle.name, bundle.version))
    except OutputError as error:
        if error.code in ("output.disk_full", "output.not_written"):
            raise
        return Notice(error.code, f"{path.name} is left out: {error.message}")
    return None


def _locked_folder(folder: Path) -> tuple[Path, FileLock]:
    """Make a new hidden folder, and lock it so that other runs know that this one lives."""
    while True:
        hidden = Path(tempfile.mkdtemp(dir=folder, prefix=_HIDDEN))
        lock = FileLock(hidden / _LOCK)
        try:
            with suppress(NotImplementedError):  # a file system without locks: nobody recovers anything there
                lock.acquire(timeout=0)
        except (Timeout, FileNotFoundError):  # another run took it for one of the dead before it was locked
            continue
        if hidden.is_dir():
            return hidden, lock


def _recover(hidden: Path, output: Path) -> None:
    """Move back what a dead run had moved and not finished, and remove its hidden folder."""
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
    """Give the finished files of a case their names, in place of those of an earlier result."""
    labels, overlay, record = targets(output, name)
    beside, before = _targets_beside(output, name), _beside(read_record(record) or {})
    new = [path for path in (labels, overlay, *beside.values()) if (hidden / path.name).exists()]
    old = [path for path in (record, *new) if path.exists()]
    # what belongs to labels that are no more goes with them
    old += [path for kind, path in beside.items() if kind in before and path not in new and path.exists()]
    failure = failure_path(output, name)
    old += [failure] if read_record(failure) is not None else []
    if folder := next((path for path in old if path.is_dir()), None):
        raise OutputError("output.not_written", f"{folder.name} is a folder there; move it away or rename it")
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
    """Undo `_move_into_place`, however far it or an earlier undoing came; nothing if it came to its end."""
    replaced = hidden / _REPLACED
    for record in hidden.glob(f"*{SUFFIX}.json"):
        known, name = read_record(record) or {}, record.name.removesuffix(f"{SUFFIX}.json")
        labels, overlay, _ = targets(output, name)
        sums = {labels: known.get("sha256"), overlay: known.get("overlay_sha256")}
        sums |= {path: _beside(known).get(kind) for kind, path in _targets_beside(output, name).items()}
        for path, digest in sums.items():
            # what a person made of it meanwhile stays
            if digest and not (hidden / path.name).exists() and path.is_file() and _sha256(path) == digest:
                os.replace(path, hidden / path.name)
        for path in replaced.iterdir() if replaced.is_dir() else ():
            if not (output / path.name).exists():
                os.replace(path, output / path.name)
    shutil.rmtree(replaced, ignore_errors=True)


def _beside(record: dict[str, Any]) -> dict[str, Any]:
    beside = record.get("beside")
    return beside if isinstance(beside, dict) else {}


def _identity(case: Case, salt: str = "") -> str:
    """Return a text that proves that a result belongs to the scan at a place, and hides the place.

    Paths hold names, and a plain digest of a path is found by trying names. This one is salted, so that it differs
    from record to record, and slow to compute, so that trying takes long.
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
