"""Sources of models: understand how one is named, and bring its files into a folder.

FOLDER, FILE.zip          on this machine
"""

from __future__ import annotations

import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from napari_seg.bundles.licence import Licence, read_licence
from napari_seg.bundles.spec import METADATA
from napari_seg.errors import StoreError, one_line
from napari_seg.formats.archive import unpack
from napari_seg.progress import Progress

MAX_FILES = 20_000
"""Limit of the number of files in a bundle; published ones have up to 50."""

MAX_BYTES = 2**36
"""Size limit of a bundle: 64 GiB."""

MAX_RATIO = 200
"""Limit of a zip's unpacked size in units of its own size, where it unpacks to more than `FREE_RATIO_BYTES`."""

FREE_RATIO_BYTES = 2**28

_NOT_COPIED = {"__pycache__", ".git", ".cache", ".DS_Store", "__MACOSX"}

SourceKind = Literal["folder", "zip"]


@dataclass(frozen=True)
class Source:
    """Where a model comes from.

    Attributes:
        kind: how its files are fetched.
        place: path of the folder or zip.
        name: name of the model, by which it is installed and chosen.
    """

    kind: SourceKind
    place: str
    name: str

    def __str__(self) -> str:
        return self.place


@dataclass(frozen=True)
class Fetched:
    """What was fetched.

    Attributes:
        root: the bundle's folder.
        licence: its licence.
        revision: version by which the source names these files; "" if it has none.
    """

    root: Path
    licence: Licence
    revision: str = ""


def parse_source(text: str | Path) -> Source:
    """Return the source that a text names.

    Raises:
        StoreError: `store.source`, it names none; `store.name`, its name can't be a folder's.
    """
    path = Path(text).expanduser()
    try:
        if path.is_dir():
            return Source("folder", str(path.resolve()), safe_name(path.resolve().name))
        if path.is_file() and zipfile.is_zipfile(path):
            return Source("zip", str(path.resolve()), safe_name(re.sub(r"_v[\d.]+$", "", path.stem)))
    except (OSError, ValueError):  # a name that no file system takes
        pass
    raise StoreError(
        "store.source",
        f"found nothing to install at {one_line(text, 200)!r}; expected a bundle's folder or zip",
    )


def safe_name(name: str) -> str:
    """Return a name as every file system takes it: letters, digits, ".", "_" and "-".

    Raises:
        StoreError: `store.name`, nothing is left of it, or some system reserves it.
    """
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._-")[:100].rstrip("._-")
    if not safe or re.fullmatch(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", safe, re.IGNORECASE):
        text = f"a model can't be named {one_line(name, 100)!r}; expected letters and digits; give another with --name"
        raise StoreError("store.name", text)
    return safe


def fetch(source: Source, part: Path, ask: Callable[[Licence], None], progress: Progress) -> Fetched:
    """Bring the files of a source into a folder.

    Args:
        source: where they are.
        part: existing folder, kept apart from the installed models.
        ask: called with the licence before the first byte of weights is downloaded; it raises if the user declines.
        progress: called with the bytes done and in all.

    Raises:
        StoreError: `store.no_bundle`, the source holds none; `store.unsafe`, it holds links or devices;
            `store.too_large`.
        InputError: the zip is damaged, or not to be trusted (`archive.*`, `file.*`).
    """
    files = part / "files"
    shutil.rmtree(files, ignore_errors=True)
    if source.kind == "folder":
        _copy(bundle_in(Path(source.place)), files, progress)
    else:
        _unzip(Path(source.place), files)
    root = bundle_in(files)
    return Fetched(root, read_licence(root, source.name))


def bundle_in(folder: Path) -> Path:
    """Return the folder of the only bundle in a folder: itself, or one directly in it.

    Raises:
        StoreError: `store.no_bundle`, there is none, or more than one.
    """
    if (folder / METADATA).is_file():
        return folder
    found = [path for path in sorted(folder.iterdir()) if (path / METADATA).is_file() and path.name != "__MACOSX"]
    if len(found) == 1:
        return found[0]
    what = "no bundle" if not found else f"{len(found)} bundles"
    text = f"found {what} in {folder.name!r}; expected one folder with {METADATA.as_posix()}"
    raise StoreError("store.no_bundle", text)


def _copy(folder: Path, files: Path, progress: Progress) -> None:
    """Copy a bundle's folder; links inside it become files, and links that lead out of it are refused."""
    paths = list(_files_in(folder))
    if len(paths) > MAX_FILES:
        raise _too_large(folder.name)
    total = sum(path.stat().st_size for path in paths)
    if total > MAX_BYTES:
        raise _too_large(folder.name)
    done = 0
    for path in paths:
        target = files / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        done += target.stat().st_size
        progress("copying", done, total)


def _files_in(folder: Path) -> Iterator[Path]:
    """Yield the files of a bundle's folder.

    Raises:
        StoreError: `store.unsafe`, it holds a link out of the folder or to a folder, a pipe or a device.
    """
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(set(folders) - _NOT_COPIED)
        for name in (*folders, *sorted(set(names) - _NOT_COPIED)):
            path = Path(place, name)
            target = path.resolve()
            if path.is_symlink() and (not target.is_relative_to(folder.resolve()) or not target.is_file()):
                text = f"{path.relative_to(folder)} is a link out of the bundle, or to a folder; copy the file itself"
                raise StoreError("store.unsafe", text)
            if name in folders:
                continue
            if not target.is_file():
                raise StoreError("store.unsafe", f"{path.relative_to(folder)} is no file; remove it from the bundle")
            yield path


def _unzip(archive: Path, files: Path) -> None:
    files.mkdir()
    with zipfile.ZipFile(archive) as packed:
        members = packed.infolist()
    size = sum(member.file_size for member in members)
    is_bomb = size > FREE_RATIO_BYTES and size > MAX_RATIO * archive.stat().st_size
    if is_bomb or size > MAX_BYTES or len(members) > MAX_FILES:
        raise _too_large(archive.name)
    if unpack(archive, files, MAX_FILES):
        raise StoreError("store.unsafe", f"{archive.name} holds links, pipes or devices; expected files alone")


def _too_large(name: str) -> StoreError:
    text = f"{name} holds more than {MAX_FILES} files or {MAX_BYTES // 2**30} GiB, or is packed far too densely"
    return StoreError("store.too_large", f"{text}; expected a bundle; do not trust it")
