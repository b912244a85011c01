"""Archives (zip, tar) unpacked into a folder of their own, which goes with the process.

What an archive says of itself is not believed: no name leads out of the folder, links and devices are left out, and
unpacking ends when it has written more than there is room for.
"""

from __future__ import annotations

import atexit
import bz2
import gzip
import lzma
import re
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from napari_seg.errors import InputError
from napari_seg.formats.temporary import TemporaryFolder
from napari_seg.formats.walk import LeftOut

FREE_SHARE = 0.5
"""Of the free space where temporary files go, what an archive may fill."""

MOST_FILES = 1_000_000

MOST_TAIL_BYTES = 1 << 30
"""Of what may follow the last file of a tar archive."""

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
    """A folder with the files of an archive; the same one if it was unpacked before.

    Raises:
        InputError: `archive.unsafe`, a name leads out of the archive; `archive.same_name`, two files have one name;
            `archive.too_large`; `archive.encrypted`; `file.unreadable`; `file.truncated`, it is cut or damaged.
    """
    try:
        status = archive.stat()
        key = (archive.absolute(), status.st_size, status.st_mtime_ns)
        if key not in _unpacked:
            temporary = TemporaryFolder()
            folder = temporary.path / archive.name  # as messages call it
            try:
                folder.mkdir()
                links = _unpack(archive, folder)
            except BaseException:
                temporary.cleanup()
                raise
            _unpacked[key] = folder, temporary, links
        return _unpacked[key][0]
    except InputError:
        raise
    except _DAMAGE as error:
        reason = type(error).__name__
        raise InputError(
            "file.truncated", f"{archive.name} is cut or damaged ({reason}); copy or export it again"
        ) from error
    except (NotImplementedError, RuntimeError) as error:  # what zipfile raises for methods and passwords it lacks
        text = f"{archive.name} is encrypted, or compressed in an uncommon way; unpack it first"
        raise InputError("archive.encrypted", text) from error
    except OSError as error:
        raise InputError("file.unreadable", f"{archive.name} can't be unpacked: {error.strerror or error}") from error


def left_out_of(archive: Path) -> list[LeftOut]:
    """Return what of an unpacked archive is left out, as `files_below` does for a folder."""
    folder = unpacked(archive)
    links = next(links for one, _, links in _unpacked.values() if one == folder)
    told: list[LeftOut] = []
    if links:
        text = f"{links} links, pipes or devices in {archive.name} are not unpacked"
        told.append(((archive,), "skip.link", text))
    elif not any(folder.iterdir()):
        told.append(((archive,), "skip.empty", f"{archive.name} holds no files"))
    return told


def shown(path: Path) -> Path:
    """What a person would name: of a file that was unpacked, the archive and the name in it."""
    for (archive, _, _), (folder, _, _) in _unpacked.items():
        if path.is_relative_to(folder):
            return archive / path.relative_to(folder)
    return path


@atexit.register
def _forget() -> None:
    for _, temporary, _ in _unpacked.values():
        temporary.cleanup()
    _unpacked.clear()


def _unpack(archive: Path, folder: Path) -> int:
    """Unpack all files, and return how many members are no files."""
    room = int(FREE_SHARE * shutil.disk_usage(folder).free)
    links = 0
    for count, (name, stream) in enumerate(_files_of(archive)):
        if count >= MOST_FILES:
            raise _too_large(archive)
        if stream is None:
            links += 1
            continue
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or not path.name or re.match("[A-Za-z]:", name):
            text = f"{archive.name} holds a file whose name leads out of the archive; it is not to be trusted"
            raise InputError("archive.unsafe", text)
        target = folder.joinpath(*path.parts)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = target.open("xb")
        except FileExistsError:
            text = f"{archive.name} holds two files of the name {path.name}; unpack it and rename one"
            raise InputError("archive.same_name", text) from None
        with file:
            while chunk := stream.read(_CHUNK_BYTES):
                room -= len(chunk)
                if room < 0:
                    raise _too_large(archive)
                file.write(chunk)
    return links


def _too_large(archive: Path) -> InputError:
    text = f"{archive.name} holds more than there is room for; unpack it yourself where there is room"
    return InputError("archive.too_large", text)


def _files_of(archive: Path) -> Iterator[tuple[str, IO[bytes] | None]]:
    """The name and content of every regular file, one after the other; None for the content of links and devices."""
    if archive.name.lower().endswith(".zip"):
        with zipfile.ZipFile(archive) as files:
            for member in files.infolist():
                if member.is_dir():
                    continue
                if member.external_attr >> 28 in (0, 0o10):  # a file, or nobody says what
                    with files.open(member) as content:
                        yield member.filename, content
                else:
                    yield member.filename, None
        return
    with archive.open("rb") as file:
        magic = file.read(6)
    openers: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
    opener = next((opener for start, opener in openers.items() if magic.startswith(start)), open)
    # not for tarfile to find out: it looks for every compression through all zeros of a file that holds nothing else
    with opener(archive, "rb") as unzipped, tarfile.open(fileobj=unzipped, mode="r:") as bundle:
        for entry in bundle:
            if not entry.isdir():
                yield entry.name, bundle.extractfile(entry) if entry.isreg() else None
        # only at its end does a zipped stream prove to be whole; a tar file ends long before with zeros
        for _ in range(MOST_TAIL_BYTES // _CHUNK_BYTES):
            if not unzipped.read(_CHUNK_BYTES):
                return
        raise _too_large(archive)
