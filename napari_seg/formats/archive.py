"""Unpack archives (zip, tar) into temporary folders that are removed at the end of the process.

Archives are not trusted: names must not lead out of the folder, links and devices are left out, and unpacking stops
when the files exceed the available space.
"""

from __future__ import annotations

import atexit
import bz2
import gzip
import lzma
import re
import shutil
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

from napari_seg.errors import InputError
from napari_seg.formats.atomic import is_disk_full, not_written
from napari_seg.formats.temporary import TemporaryFolder
from napari_seg.formats.walk import LeftOut

MAX_FREE_FRACTION = 0.5
"""Maximum fraction of the free space for temporary files that an archive may fill."""

MAX_FILES = 1_000_000

MAX_TAIL_BYTES = 1 << 30
"""Maximum number of bytes after the last file of a tar archive."""

_DAMAGE = (
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    ValueError,
    IndexError,
)

_CHUNK_BYTES = 1 << 20

_unpacked: dict[tuple[Path, int, int], tuple[Path, TemporaryFolder, int]] = {}


def unpacked(archive: Path) -> Path:
    """Return a folder with the unpacked files of an archive; repeated calls return the same folder.

    Raises:
        InputError: `archive.unsafe`, a name leads out of the archive; `archive.same_name`, two files have one name;
            `archive.too_large`; `archive.encrypted`; `file.unreadable`; `file.truncated`, it is truncated or damaged.
    """
    with _damage_named(archive):
        status = archive.stat()
        key = (archive.absolute(), status.st_size, status.st_mtime_ns)
        if key not in _unpacked:
            temporary = TemporaryFolder()
            folder = temporary.path / archive.name  # its name appears in messages
            try:
                folder.mkdir()
                max_bytes = int(MAX_FREE_FRACTION * shutil.disk_usage(folder).free)
                links = _unpack(archive, folder, MAX_FILES, max_bytes)
            except BaseException:
                temporary.cleanup()
                raise
            _unpacked[key] = folder, temporary, links
        return _unpacked[key][0]


def unpack(archive: Path, folder: Path, max_files: int, max_bytes: int) -> int:
    """Unpack all files of an archive into an empty folder, and return the number of links and devices left out.

    Args:
        archive: a zip or tar file.
        folder: an existing folder; if an error is raised, what it holds is incomplete.
        max_files: limit of the number of members.
        max_bytes: limit of the bytes of all files.

    Raises:
        InputError: as for `unpacked`.
        OutputError: `output.disk_full`.
    """
    with _damage_named(archive):
        try:
            return _unpack(archive, folder, max_files, max_bytes)
        except OSError as error:
            if is_disk_full(error):
                raise not_written(f"the files of {archive.name}", error) from error
            raise


def size_of_zip(archive: Path) -> tuple[int, int]:
    """Return the number of members of a zip, and the bytes that they unpack to: no more will be unpacked.

    Raises:
        InputError: `file.truncated`, it is damaged; `file.unreadable`.
    """
    with _damage_named(archive), zipfile.ZipFile(archive) as files:
        members = files.infolist()
    return len(members), sum(member.file_size for member in members)


def names_in_zip(archive: Path) -> list[str]:
    """Return the names of the files in a zip.

    Raises:
        InputError: as for `size_of_zip`.
    """
    with _damage_named(archive), zipfile.ZipFile(archive) as files:
        return [member.filename for member in files.infolist() if not member.is_dir()]


@contextmanager
def _damage_named(archive: Path) -> Iterator[None]:
    """Turn the errors of the libraries into errors that name the archive."""
    try:
        yield
    except InputError:
        raise
    except _DAMAGE as error:
        reason = type(error).__name__
        raise InputError(
            "file.truncated", f"{archive.name} is truncated or damaged ({reason}); copy or export it again"
        ) from error
    except (NotImplementedError, RuntimeError) as error:  # zipfile raises them for unknown methods and for passwords
        text = f"{archive.name} is encrypted, or compressed in an uncommon way; unpack it first"
        raise InputError("archive.encrypted", text) from error
    except OSError as error:
        raise InputError("file.unreadable", f"{archive.name} can't be unpacked: {error.strerror or error}") from error


def left_out_of(archive: Path) -> list[LeftOut]:
    """Return the members of an unpacked archive that are left out, in the form of `files_below`."""
    folder = unpacked(archive)
    links = next(links for one, _, links in _unpacked.values() if one == folder)
    left_out: list[LeftOut] = []
    if links:
        text = f"{links} links, pipes or devices in {archive.name} are not unpacked"
        left_out.append(((archive,), "skip.link", text))
    elif not any(folder.iterdir()):
        left_out.append(((archive,), "skip.empty", f"{archive.name} holds no files"))
    return left_out


def shown(path: Path) -> Path:
    """Return the path for messages: for an unpacked file, the archive followed by the path inside it."""
    for (archive, _, _), (folder, _, _) in _unpacked.items():
        if path.is_relative_to(folder):
            return archive / path.relative_to(folder)
    return path


def origin(path: Path) -> Path:
    """Return the archive that an unpacked file comes from; any other path as it is."""
    for (archive, _, _), (folder, _, _) in _unpacked.items():
        if path.is_relative_to(folder):
            return archive
    return path


@atexit.register
def _forget() -> None:
    for _, temporary, _ in _unpacked.values():
        temporary.cleanup()
    _unpacked.clear()


def path_inside(name: str) -> PurePosixPath | None:
    """Return the path that a member's name stands for; None if it leads out of the folder or names no file."""
    path = PurePosixPath(name.replace("\\", "/"))
    # on Windows, a drive also leads elsewhere as a later part
    has_drive = any(re.match("[A-Za-z]:", part) for part in path.parts)
    if path.is_absolute() or ".." in path.parts or not path.name or has_drive:
        return None
    return path


def _unpack(archive: Path, folder: Path, max_files: int, max_bytes: int) -> int:
    """Unpack all files, and return the number of other members."""
    left_bytes = max_bytes
    links = 0
    for count, (name, stream) in enumerate(_files_of(archive)):
        if count >= max_files:
            raise _too_large(archive)
        if stream is None:
            links += 1
            continue
        path = path_inside(name)
        if path is None:
            text = f"{archive.name} holds a file whose path leads out of the archive; do not trust it"
            raise InputError("archive.unsafe", text)
        target = folder.joinpath(*map(_file_name, path.parts))
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = target.open("xb")
        except FileExistsError:
            text = f"{archive.name} holds two files named {path.name}; unpack it and rename one"
            raise InputError("archive.same_name", text) from None
        with file:
            while chunk := stream.read(_CHUNK_BYTES):
                left_bytes -= len(chunk)
                if left_bytes < 0:
                    raise _too_large(archive)
                file.write(chunk)
    return links


def _file_name(part: str) -> str:
    """Return the name for a part of a path: on Windows without what no name has there; ":" would hide the content."""
    return re.sub(r'[<>:"|?*]', "_", part) if sys.platform == "win32" else part


def _too_large(archive: Path) -> InputError:
    text = f"{archive.name} is larger than the free space for temporary files; unpack it on a larger disk"
    return InputError("archive.too_large", text)


def _files_of(archive: Path) -> Iterator[tuple[str, IO[bytes] | None]]:
    """Yield the name and content of each member; the content of links and devices is None."""
    if archive.name.lower().endswith(".zip"):
        with zipfile.ZipFile(archive) as files:
            for member in files.infolist():
                if member.is_dir():
                    continue
                if member.external_attr >> 28 in (0, 0o10):  # a regular file, or no type is given
                    with files.open(member) as content:
                        yield member.filename, content
                else:
                    yield member.filename, None
        return
    with archive.open("rb") as file:
        magic = file.read(6)
    openers: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
    opener = next((opener for start, opener in openers.items() if magic.startswith(start)), open)
    # the compression is detected here, because tarfile searches a file of zeros to its end for each compression
    with opener(archive, "rb") as unzipped, tarfile.open(fileobj=unzipped, mode="r:") as bundle:
        for entry in bundle:
            if not entry.isdir():
                yield entry.name, bundle.extractfile(entry) if entry.isreg() else None
        # the checksum of a compressed stream is at its very end, after the zeros that end the tar file
        for _ in range(MAX_TAIL_BYTES // _CHUNK_BYTES):
            if not unzipped.read(_CHUNK_BYTES):
                return
        raise _too_large(archive)
