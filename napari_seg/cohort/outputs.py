"""Files of results: written complete into a hidden folder, then renamed into place, all of a case or none.

A case has three files: `<name>_seg.nii.gz`, the label map on the scan's own grid; `<name>_seg.png`, a preview; and
`<name>_seg.json`, the record with names, colours, volumes and confidences of the segments and their origin. On request
it also has confidence maps, statistics and the labels in other formats.

A worker writes the files of a case into a staging folder of its own, `.napari-seg/<runner>/<case>.<attempt>`. Then the
runner commits them: it moves the files that they replace into the staging folder, notes the new files in the manifest,
and renames them into place. A run that ends before the note moves back what was replaced. After the note, the new files
are moved forward, by this run or by the next one. A label map never lies in the output folder without its record, which
tells a search for scans that it is a result.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath

from napari_seg.cohort.case import Case
from napari_seg.cohort.naming import CONFIDENCE_MAPS
from napari_seg.cohort.outcome import OutputFile
from napari_seg.errors import CohortError, OutputError, printable
from napari_seg.formats.atomic import not_written, rename
from napari_seg.formats.kinds import LABEL_FORMATS, RUN_FORMATS

HIDDEN = ".napari-seg"
"""Folder in the output folder that contains unfinished files while a run goes on."""

STATISTICS = "statistics"

_REPLACED = "replaced"


def check_hidden(output: Path) -> None:
    """Check that no link stands in the place of the hidden folder, whose leftovers every run removes.

    Raises:
        OutputError: `output.folder`.
    """
    if os.path.lexists(output / HIDDEN) and not is_own_folder(output / HIDDEN):
        text = f"{output / HIDDEN} is no folder, or a link to one; expected a folder of this program, or nothing"
        raise OutputError("output.folder", f"{text}; remove the link, or choose another folder with -o")


def is_own_folder(path: Path) -> bool:
    """Return whether a path is a folder itself, and neither a link nor a junction to one."""
    return path.is_dir() and not _is_link(path)


def _is_link(path: Path) -> bool:
    """Return whether a path is a link or a junction; links above it do not count."""
    return path.resolve() != path.parent.resolve() / path.name


def check_folders(output: Path, cases: Iterable[Case]) -> None:
    """Check that no link in the output folder stands in the place of a folder of results.

    What lies behind it could not be told from files of the user that a manifest from somebody else names.

    Raises:
        OutputError: `output.folder`.
    """
    for folder in dict.fromkeys(case.folder for case in cases):
        for part in (*reversed(folder.parents[:-1]), folder):
            path = output / part
            if part.name and os.path.lexists(path) and _is_link(path):
                text = f"{path} is a link, and results are written and replaced only in the output folder itself"
                raise OutputError("output.folder", f"{text}; replace the link by a folder, or choose another with -o")


def result_paths(case: Case) -> dict[str, PurePosixPath]:
    """Return role -> path relative to the output folder of every file that a case can have."""
    return {role: case.folder / name for role, name in _result_names(case).items()}


def _result_names(case: Case) -> dict[str, str]:
    """Return role -> name of every file that a case can have."""
    stem = f"{case.name}{case.suffix}"
    names = {"labels": f"{stem}.nii.gz", "overlay": f"{stem}.png", "record": f"{stem}.json"}
    names |= {kind: f"{stem}_{kind}.nii.gz" for kind in CONFIDENCE_MAPS}
    names |= {STATISTICS: f"{stem}_{STATISTICS}.json"}
    names |= {kind: LABEL_FORMATS[kind].file_name(case.name) for kind in RUN_FORMATS}
    return names


def place_below(output: Path, path: str) -> Path:
    """Return the place of a file that a manifest names; it is below the output folder, and no link leads to it.

    The folder may come from somebody else, whose manifest or links must not reach other files of the user.

    Args:
        output: the output folder.
        path: path relative to it, with "/".

    Raises:
        CohortError: `cohort.manifest`.
    """
    relative = PurePosixPath(path)
    is_plain = not relative.is_absolute() and relative.name and ".." not in relative.parts
    if os.name == "nt":  # there, a drive or a backslash leads elsewhere; elsewhere, names may contain them
        is_plain = is_plain and not set(path) & set("\\:")
    place = output / relative
    if not is_plain or place.parent.resolve() != output.resolve() / relative.parent:
        text = (
            f"the manifest of {output} names the file {printable(path)}, which lies elsewhere or behind a link; "
            "expected a file in this folder; choose another output folder, or replace the link by a folder"
        )
        raise CohortError("cohort.manifest", text)
    return place


def staged_file(path: Path, target: PurePosixPath) -> OutputFile:
    """Return what the manifest knows of a complete file in a staging folder, after it has reached the disk.

    Args:
        path: the file.
        target: its path relative to the output folder.
    """
    sync(path)
    digest = sha256_of([path])
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


def is_damaged(path: Path) -> bool:
    """Return whether nobody can have saved a file as it is: it is empty, or compressed and cut off."""
    try:
        if path.stat().st_size == 0:
            return True
        with path.open("rb") as start:
            is_compressed = start.read(2) == b"\x1f\x8b"  # some programs write uncompressed files of that name
        if is_compressed:
            with gzip.open(path) as file:
                while file.read(1 << 20):
                    pass
    except (EOFError, zlib.error):
        return True
    except OSError:  # it can't be looked at, or is no file of gzip
        return False
    return False


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
    folder = output / case.folder
    for name in _result_names(case).values():
        if not os.path.lexists(f"{folder}{os.sep}{name}"):  # a path object for each takes long
            continue
        path, target = folder / name, case.folder / name
        if str(target) not in ours:
            reason = "is not a result of this run"
        elif not path.is_file() or (sha256_of([path]) != ours[str(target)] and not is_damaged(path)):
            reason = "was changed after it was written"
        else:
            continue
        text = f"{target} already exists and {reason}; move it away or pass --overwrite"
        raise OutputError("output.exists", text)


def old_preview(output: Path, case: Case) -> dict[str, OutputFile]:
    """Return the preview of a case that lies in the output folder, by its role: it must not stay next to new labels."""
    path = case.folder / _result_names(case)["overlay"]
    return {"overlay": OutputFile(str(path), "", 0, 0)} if (output / path).is_file() else {}


def commit(
    output: Path,
    staging: Path,
    new: Mapping[str, OutputFile],
    before: Mapping[str, OutputFile],
    note: Callable[[], None],
) -> None:
    """Move the complete files of a case from its staging folder into place.

    Args:
        output: the output folder.
        staging: the staging folder; removed at the end.
        new: role -> file of the case.
        before: role -> file of its earlier result, which goes.
        note: notes the new files in the manifest; called when nothing is left in their way.

    Raises:
        OutputError: `output.not_written`, a file is missing in the staging folder, a folder has the name of a file, or
            a file is locked; what was there is kept.
        CohortError: `cohort.manifest`, a file lies outside of the output folder.
        Unfinished: a file could not be renamed after the note.
    """
    try:
        for file in new.values():
            if not (staging / PurePosixPath(file.path).name).is_file():
                text = f"{PurePosixPath(file.path).name} was removed before it was complete; run again"
                raise OutputError("output.not_written", text)
        _move_away(output, staging, new, before)
        note()
    except BaseException as error:
        move_back(output, staging)
        if isinstance(error, OSError):
            raise not_written(next(iter(new.values())).path, error) from error
        raise
    try:
        is_complete = move_forward(output, staging, new)
    except OSError as error:
        raise Unfinished(error.strerror or type(error).__name__) from error
    if not is_complete:
        raise Unfinished("a file is missing")


class Unfinished(Exception):
    """The files of a case were noted, and not all of them could be renamed; the next try goes on."""


def move_forward(output: Path, staging: Path, new: Mapping[str, OutputFile]) -> bool:
    """Rename the noted files of a case into place, however far an earlier try came; return whether all are there.

    The staging folder is removed if they are.

    Raises:
        OSError: a file could not be renamed.
        CohortError: `cohort.manifest`, a file lies outside of the output folder.
    """
    in_order = sorted(new.items(), key=lambda entry: entry[0] != "record")
    targets = [(staging / PurePosixPath(file.path).name, place_below(output, file.path), file) for _, file in in_order]
    waiting = [(source, target) for source, target, _ in targets if source.is_file()]
    in_place = [entry for entry in targets if entry[:2] not in waiting]
    if not all(target.is_file() and sha256_of([target]) == file.sha256 for _, target, file in in_place):
        return False  # before anything is renamed
    folders = {target.parent for _, target, _ in targets}
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    for source, target in waiting:
        rename(source, target)
    for folder in folders:
        sync(folder)
    shutil.rmtree(staging, ignore_errors=True)
    return True


def move_back(output: Path, staging: Path, new: Mapping[str, OutputFile] | None = None) -> None:
    """Move files that a case would have replaced back to their places.

    Args:
        output: the output folder.
        staging: the staging folder of the case.
        new: files that were noted; those that are in place already go.

    Raises:
        OSError: a file could not be renamed; the next try goes on.
        CohortError: `cohort.manifest`, a file lies outside of the output folder.
    """
    for file in (new or {}).values():
        path = place_below(output, file.path)
        if path.is_file() and sha256_of([path]) == file.sha256:
            path.unlink()
    replaced = staging / _REPLACED
    if not replaced.is_dir():
        return
    paths = sorted(replaced.rglob("*"), key=lambda path: (path.suffix != ".json", path))
    for path in paths:
        relative = path.relative_to(replaced).as_posix()
        target = place_below(output, relative)
        if path.is_file() and not os.path.lexists(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            rename(place_below(staging, f"{_REPLACED}/{relative}"), target)
    shutil.rmtree(replaced, ignore_errors=True)


def _move_away(output: Path, staging: Path, new: Mapping[str, OutputFile], before: Mapping[str, OutputFile]) -> None:
    """Move the files that lie in the way of new ones, and other files of an earlier result, into the staging folder."""
    roles = sorted((*before.items(), *new.items()), key=lambda entry: entry[0] == "record")
    for target in dict.fromkeys(PurePosixPath(file.path) for _, file in roles):
        path, place = place_below(output, str(target)), staging / _REPLACED / target
        if os.path.lexists(path):
            if path.is_dir():
                text = f"{target} is a folder; expected a file or nothing; move it away or rename it"
                raise OutputError("output.not_written", text)
            place.parent.mkdir(parents=True, exist_ok=True)
            rename(path, place)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, have reached the disk.

    Raises:
        OSError: the content of a file did not reach the disk.
    """
    is_folder = path.is_dir()
    if is_folder and os.name == "nt":
        return
    # Windows syncs only files that are open for writing
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    except OSError as error:
        if not is_folder and error.errno not in (errno.EINVAL, errno.ENOTSUP):  # the file system can't do it
            raise
    finally:
        os.close(handle)
