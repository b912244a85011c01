"""Work on the folders of the store: one program at a time, moved and removed whole, with digests of what they hold."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from napari_seg.bundles.litter import is_litter
from napari_seg.bundles.places import kept_folder, store_root
from napari_seg.errors import StoreError
from napari_seg.formats.atomic import not_written
from napari_seg.formats.exclusive import exclusive


@dataclass(frozen=True)
class Damage:
    """A file of an installed model that is not what was installed.

    Attributes:
        file: path relative to the model's folder.
        fault: "missing", "changed" or "added".
    """

    file: str
    fault: str


def parts_folder() -> Path:
    """Return the folder for what stopped downloads have fetched so far; it need not exist."""
    return store_root() / ".part"


@contextmanager
def locked(part: Path, name: str) -> Iterator[None]:
    """Keep other programs from a folder for parts.

    Args:
        part: the folder.
        name: what is installed, for the user.

    Raises:
        StoreError: `store.busy`, another program uses it now.
    """
    in_use = StoreError("store.busy", f"another program is installing {name!r}; wait for it")
    with exclusive(part.with_name(f"{part.name}.lock"), in_use):
        yield


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turn the errors of a disk into errors that name a folder.

    Raises:
        OutputError: `output.disk_full`, `output.not_written`.
    """
    try:
        yield
    except OSError as error:
        raise not_written(str(error.filename or target), error) from error


def move(root: Path, target: Path, part: Path) -> None:
    """Rename a complete folder into its place; a folder that is there moves away first.

    Args:
        root: the complete folder.
        target: its place.
        part: folder for parts, which is removed afterwards.
    """
    replaced = part / f"replaced-{uuid4().hex}"
    if target.exists():
        target.rename(replaced)
    try:
        root.rename(target)
    except OSError:
        if replaced.exists():
            replaced.rename(target)
        raise


def delete(folder: Path) -> int:
    """Remove a folder, and return its size; at no time does its name stand for a half of it."""
    if folder.is_symlink():  # someone's own folder, linked into the store, stays
        folder.unlink()
        return 0
    size = size_of(folder)
    hidden = parts_folder() / f"removed-{uuid4().hex}"
    hidden.parent.mkdir(parents=True, exist_ok=True)
    folder.rename(hidden)
    shutil.rmtree(hidden)
    return size


def delete_kept(digests: Iterable[str]) -> int:
    """Remove the weights that were kept of checkpoints with these digests, and return their size."""
    kept = [path for path in (kept_folder() / f"{one}.safetensors" for one in digests) if path.is_file()]
    size = sum(path.stat().st_size for path in kept)
    for path in kept:
        path.unlink()
    return size


def digests_of(root: Path) -> dict[str, str]:
    """Return the SHA-256 of each file, except for what Python compiles and what file managers leave."""
    found = {}
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root)
        if path.is_file() and "__pycache__" not in relative.parts and not is_litter(path):
            with path.open("rb") as file:
                found[relative.as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def damages(noted: dict[str, str], found: dict[str, str]) -> list[Damage]:
    """Return the files whose digests differ, in the order of their paths.

    Args:
        noted: digest of each file when it was installed.
        found: digest of each file now.
    """
    return [
        Damage(file, "missing" if file not in found else "added" if file not in noted else "changed")
        for file in sorted({*noted, *found})
        if noted.get(file) != found.get(file)
    ]


def size_of(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(os.lstat(path).st_size for path in folder.rglob("*") if not path.is_dir())
