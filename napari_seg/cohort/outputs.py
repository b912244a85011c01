"""Files of results: written complete into a hidden folder, then renamed into place, all of a case or none.

A case has three files: `<name>_seg.nii.gz`, the label map on the scan's own grid; `<name>_seg.png`, a preview; and
`<name>_seg.json`, the record with names, colours, volumes and confidences of the segments and their origin. On request
it also has confidence maps, statistics and the labels in other formats.

A worker writes the files of a case into a staging folder of its own, `.napari-seg/<runner>/<case>.<attempt>`. Then the
runner commits them: it moves the files that they replace into the staging folder, notes the new files in the manifest,
and renames them into place. The note is the moment that counts: what was replaced is moved back if a run ends before
it, and what is new is moved forward if a run ends after it, even if it is killed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath

from napari_seg.cohort.case import Case
from napari_seg.cohort.naming import CONFIDENCE_MAPS
from napari_seg.cohort.outcome import OutputFile
from napari_seg.errors import OutputError
from napari_seg.formats.atomic import not_written
from napari_seg.formats.kinds import LABEL_FORMATS, RUN_FORMATS

HIDDEN = ".napari-seg"
"""Folder in the output folder that contains unfinished files while a run goes on."""

STATISTICS = "statistics"

_REPLACED = "replaced"


def result_paths(case: Case) -> dict[str, PurePosixPath]:
    """Return role -> path relative to the output folder of every file that a case can have."""
    stem = f"{case.name}{case.suffix}"
    names = {"labels": f"{stem}.nii.gz", "overlay": f"{stem}.png", "record": f"{stem}.json"}
    names |= {kind: f"{stem}_{kind}.nii.gz" for kind in CONFIDENCE_MAPS}
    names |= {STATISTICS: f"{stem}_{STATISTICS}.json"}
    names |= {kind: LABEL_FORMATS[kind].file_name(case.name) for kind in RUN_FORMATS}
    return {role: case.folder / name for role, name in names.items()}


def staged_file(path: Path, target: PurePosixPath) -> OutputFile:
    """Return what the manifest knows of a complete file in a staging folder, after it has reached the disk.

    Args:
        path: the file.
        target: its path relative to the output folder.
    """
    digest = sha256_of([path])
    _sync(path)
    status = path.stat()
    return OutputFile(str(target), digest, status.st_size, status.st_mtime_ns)


def sha256_of(paths: Iterable[Path]) -> str:
    """Return the SHA-256 of the contents of files, one behind the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def are_unchanged(output: Path, files: Mapping[str, OutputFile]) -> bool:
    """Return whether all files of a result are in place, with their size and time of modification."""

    def is_unchanged(file: OutputFile) -> bool:
        try:
            status = (output / file.path).stat()
        except OSError:
            return False
        return (status.st_size, status.st_mtime_ns) == (file.bytes, file.mtime_ns)

    return bool(files) and all(map(is_unchanged, files.values()))


def check_not_taken(output: Path, case: Case, before: Mapping[str, OutputFile]) -> None:
    """Check that no file of a case replaces one that a person changed or that another program wrote.

    Args:
        output: the output folder.
        case: the case.
        before: files of its earlier result, which may be replaced unless their content changed.

    Raises:
        OutputError: `output.exists`.
    """
    ours = {file.path: file.sha256 for file in before.values()}
    for target in result_paths(case).values():
        path = output / target
        if not os.path.lexists(path):
            continue
        if str(target) not in ours:
            reason = "is not a result of this run"
        elif not path.is_file() or sha256_of([path]) != ours[str(target)]:
            reason = "was changed after it was written"
        else:
            continue
        text = f"{target} already exists and {reason}; move it away or pass --overwrite"
        raise OutputError("output.exists", text)


def commit(
    output: Path,
    staging: Path,
    new: Mapping[str, OutputFile],
    old: Iterable[PurePosixPath],
    note: Callable[[], None],
) -> None:
    """Move the complete files of a case from its staging folder into place.

    Args:
        output: the output folder.
        staging: the staging folder; removed at the end.
        new: files of the case.
        old: paths that are moved away first, if they exist: those of the new files, and other files of an earlier
            result.
        note: notes the new files in the manifest; called when nothing is left in their way.

    Raises:
        OutputError: `output.not_written`, a folder has the name of a file, or a file is locked; what was there is kept
            unless `note` was called.
    """
    replaced = staging / _REPLACED
    try:
        for target in old:
            if os.path.lexists(path := output / target):
                if path.is_dir():
                    text = f"{target} is a folder; expected a file or nothing; move it away or rename it"
                    raise OutputError("output.not_written", text)
                (replaced / target).parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, replaced / target)
        note()
    except BaseException as error:
        move_back(output, staging)
        if isinstance(error, OSError):
            raise not_written(next(iter(new.values())).path, error) from error
        raise
    try:
        move_forward(output, staging, new)
    except OSError as error:
        raise not_written(next(iter(new.values())).path, error) from error


def move_forward(output: Path, staging: Path, new: Mapping[str, OutputFile]) -> bool:
    """Rename the noted files of a case into place, however far an earlier try came; return whether all are there.

    Raises:
        OSError: a file could not be renamed; the next try goes on.
    """
    targets = [(staging / PurePosixPath(file.path).name, output / file.path, file) for file in new.values()]
    for source, target, _ in targets:
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(source, target)
    for folder in {target.parent for _, target, _ in targets}:
        _sync(folder)
    is_complete = all(target.is_file() and target.stat().st_size == file.bytes for _, target, file in targets)
    shutil.rmtree(staging, ignore_errors=True)
    return is_complete


def move_back(output: Path, staging: Path) -> None:
    """Move files that a case would have replaced back to their places."""
    replaced = staging / _REPLACED
    for path in sorted(replaced.rglob("*")):
        target = output / path.relative_to(replaced)
        if path.is_file() and not os.path.lexists(target):
            os.replace(path, target)
    shutil.rmtree(replaced, ignore_errors=True)


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, have reached the disk; some systems can't do it for folders."""
    with suppress(OSError):
        # Windows syncs only files that are open for writing
        handle = os.open(path, os.O_RDONLY if path.is_dir() or os.name != "nt" else os.O_RDWR)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
