"""Write and read session files: a zip of `session.json` and one NIfTI file for each layer with voxels of its own.

A file may come from anyone. Only members that `session.json` announces are read, each under a name of our own, and no
more bytes of it than the announced grid has. Nothing in a session is executed.
"""

from __future__ import annotations

import os
import re
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import ValidationError

from napari_seg.errors import InputError, OutputError
from napari_seg.formats.atomic import verified_write
from napari_seg.memory import check_fits, describe_bytes
from napari_seg.plugin.session_file.content import (
    FORMAT,
    MODEL_MEMBERS,
    ImageLayer,
    LabelsLayer,
    SessionContent,
)
from napari_seg.plugin.session_file.endings import ENDING
from napari_seg.version import __version__

CONTENT = "session.json"

MAX_CONTENT_BYTES = 1 << 25

_MAX_HEADER_BYTES = 1 << 12
"""Maximum size of what precedes the voxels in a NIfTI file that we write."""

_MAX_VOXEL_BYTES = 8

_CHUNK_BYTES = 1 << 20

_LEFTOVER = re.compile(rf"\.[0-9a-f]{{32}}{re.escape(ENDING)}")

_LEFTOVER_SECONDS = 3600.0
"""Age of a hidden file above which the program that wrote it has ended."""


def write_session(content: SessionContent, files: Mapping[str, Path], path: Path) -> None:
    """Write a session file, read it back and compare it; only then does it replace an earlier file of its name.

    Args:
        content: content of the session.
        files: NIfTI file of each member of `content.stored()`.
        path: file to write.

    Raises:
        OutputError: `session.too_large`, the prompts take too much room; `output.not_written`; `output.not_equal`;
            `output.disk_full`.
    """
    assert files.keys() == content.stored().keys()
    text = content.model_dump_json().encode()
    if len(text) > MAX_CONTENT_BYTES:
        found = f"the prompts and settings take {describe_bytes(len(text))}"
        raise OutputError("session.too_large", f"{found}; expected at most 32 MiB; clear the prompts and save again")
    _remove_leftovers(path.parent)
    with verified_write(path, ENDING) as hidden:
        with zipfile.ZipFile(hidden, "x", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            archive.writestr(zipfile.ZipInfo(CONTENT), text, zipfile.ZIP_DEFLATED)
            for name, file in files.items():
                archive.write(file, name)
        if read_content(hidden) != content:
            raise OutputError("output.not_equal", f"{path.name} has another content when it is read back; try again")
        with zipfile.ZipFile(hidden) as archive:
            if archive.testzip() is not None:  # reads all, and compares with the digests of what was written
                raise OutputError("output.not_equal", f"{path.name} has other labels when it is read back; try again")
        with hidden.open("r+b") as file_on_disk:  # the disk has it before the earlier file is replaced
            os.fsync(file_on_disk.fileno())


def _remove_leftovers(folder: Path) -> None:
    """Remove what killed programs have left of session files in a folder."""
    with suppress(OSError):
        for file in folder.iterdir():
            if _LEFTOVER.fullmatch(file.name) and time.time() - file.stat().st_mtime > _LEFTOVER_SECONDS:
                file.unlink(missing_ok=True)


def read_content(path: Path) -> SessionContent:
    """Return the checked content of a session file.

    Raises:
        InputError: `session.damaged`, it is no session file or was altered; `session.newer`, a later program wrote it;
            `session.unsafe`, its members are not those of a session; `file.unreadable`.
    """
    with _opened(path) as archive:
        members = _members(archive, path)
        text = b"".join(_read(archive, members[CONTENT], MAX_CONTENT_BYTES, path))
        try:
            content = SessionContent.model_validate_json(text)
        except ValidationError as error:
            raise _reason(error, path) from None  # its text quotes the file
        if extra := members.keys() - content.stored().keys() - {CONTENT}:
            text_of_extra = f"{path.name} holds {len(extra)} files that are no part of a session; do not trust it"
            raise InputError("session.unsafe", text_of_extra)
        for name, layer in content.stored().items():
            if name not in members:
                raise _damaged(path, f"the voxels of layer {name} are missing")
            if not layer.grid.voxels < members[name].file_size <= _limit(layer):
                raise _damaged(path, f"the size of {name} does not fit its grid")
        return content


def extract(path: Path, content: SessionContent, folder: Path, check: Callable[[], object]) -> dict[str, Path]:
    """Write the NIfTI files of a session into an empty folder; return the file of each member.

    What a model had found is left out if it is damaged.

    Args:
        path: session file.
        content: its content, as `read_content` returns it.
        folder: an empty folder.
        check: called often; may raise an error to stop.

    Raises:
        InputError: as `read_content`.
        EnvironmentFault: `environment.memory`, the layers do not fit in memory.
    """
    stored = content.stored()
    files: dict[str, Path] = {}
    with _opened(path) as archive:
        members = _members(archive, path)
        check_fits(2 * sum(members[name].file_size for name in stored), f"opening {path.name}")
        for number, (name, layer) in enumerate(stored.items()):
            files[name] = folder / f"{number}.nii"  # never a name of the file
            try:
                with files[name].open("xb") as file:
                    for chunk in _read(archive, members[name], _limit(layer), path):
                        check()
                        file.write(chunk)
            except (InputError, zipfile.BadZipFile, zlib.error, EOFError):
                if not name.startswith(MODEL_MEMBERS):
                    raise
                del files[name]
    return files


def _limit(layer: LabelsLayer | ImageLayer) -> int:
    return _MAX_HEADER_BYTES + layer.grid.voxels * (4 if isinstance(layer, LabelsLayer) else _MAX_VOXEL_BYTES)


def _members(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    """Return the members by name; each may occur once, as a plain file that is stored or deflated."""
    members: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        is_plain = member.external_attr >> 28 in (0, 0o10) and not member.is_dir()
        is_known = member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) and not member.flag_bits & 1
        if member.filename in members or not is_plain or not is_known:
            raise InputError("session.unsafe", f"{path.name} is not packed as a session is; do not trust it")
        members[member.filename] = member
    if CONTENT not in members:
        raise _damaged(path, f"it has no {CONTENT}")
    return members


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo, limit: int, path: Path) -> Iterator[bytes]:
    """Yield the content of a member in pieces, and stop when it has more bytes than allowed."""
    done = 0
    with archive.open(member) as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            done += len(chunk)
            if done > min(limit, member.file_size):
                raise _damaged(path, f"{member.filename[:40]!r} unpacks to more than it states")
            yield chunk
    if done != member.file_size:
        raise _damaged(path, f"{member.filename[:40]!r} is truncated")


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise _damaged(path, type(error).__name__) from error
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError("file.unreadable", f"{path.name} can't be read: {reason}") from error


def _reason(error: ValidationError, path: Path) -> InputError:
    places = [".".join(map(str, one["loc"][:3])) for one in error.errors(include_input=False, include_url=False)]
    if "format" in places:
        found = f"{path.name} has another format than napari-seg {__version__} reads, which is {FORMAT}"
        text = f"{found}; install the latest napari-seg"
        return InputError("session.newer", text)
    where = ", ".join(place[:60] for place in places[:3])
    return _damaged(path, f"unusable values of {where or 'the whole file'}")


def _damaged(path: Path, reason: str) -> InputError:
    return InputError(
        "session.damaged", f"{path.name} is no session file or is damaged ({reason}); save or copy it again"
    )
