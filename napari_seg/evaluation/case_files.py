"""List the label maps and scans at a path, and name their cases."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from napari_seg.errors import printable
from napari_seg.formats.endings import nifti_ending
from napari_seg.formats.image2d import is_image2d
from napari_seg.formats.walk import files_below

_CERTAINTY_MAPS = tuple(f"{suffix}_{kind}" for suffix in ("_seg", "_dseg") for kind in ("confidence", "entropy"))
"""Endings of the names of maps that `predict` writes into the folder of its label maps."""


def label_maps(path: Path, *, with_folders: bool = False) -> list[Path]:
    """Return the label maps, or scans, at a path: its NIfTI files, or its 2D images if it contains no NIfTI file.

    If a folder has none, those of the folders below it are returned.

    Args:
        path: a file, which is returned, or a folder.
        with_folders: also return those of the folders below it if it has some itself.
    """
    if path.is_file():
        return [path]
    visible = [file for file in sorted(path.iterdir()) if not file.name.startswith(".")]
    if not with_folders and (found := _volumes_or_images(visible)):
        return found
    files, _ = files_below(path, lambda file: bool(nifti_ending(file)))
    return _volumes_or_images(files)


def _volumes_or_images(files: Sequence[Path]) -> list[Path]:
    # `predict` writes previews and confidence maps into the same folder
    maps = [file for file in files if nifti_ending(file) and not stem(file).endswith(_CERTAINTY_MAPS)]
    return maps or [file for file in files if is_image2d(file)]


def share_folders(one: Path, other: Path) -> bool:
    """Return whether two folders have folders of one name with label maps, as those that `predict` mirrors."""
    if not (one.is_dir() and other.is_dir()):
        return False
    names = []
    for path in (one, other):
        with os.scandir(path) as entries:
            names.append({entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir()})
    return any(label_maps(one / name) and label_maps(other / name) for name in names[0] & names[1])


def name_below(file: Path, root: Path) -> str:
    """Return the path of a file below a folder, with "/" and without ending, in the form of `normal`."""
    folders = file.relative_to(root).parts[:-1] if file != root else ()
    return "/".join([*map(normal, folders), stem(file)])


def path_below(file: Path, root: Path) -> str:
    """Return the path of a file below a folder, with "/"; its name if the folder is the file."""
    return file.name if file == root else file.relative_to(root).as_posix()


def stem(path: Path) -> str:
    """Return a file name without ending, in the form of `normal`."""
    return normal(path.name.removesuffix(nifti_ending(path) or path.suffix))


def normal(name: str) -> str:
    """Return a name that UTF-8 can encode, normalised: file systems store an accent as one character or as two."""
    return unicodedata.normalize("NFC", printable(name))


def case_names(name: str) -> list[str]:
    """Return the names that the case of a label map may have, the longest first."""
    case = name.removesuffix("_seg")
    return [name, case, case.removesuffix("_0000")]


def case_of_result(name: str) -> str:
    """Return the name of the case of a result, as for `case_names`, that has no reference."""
    return case_names(name)[-1] if name.endswith("_seg") else name


def by_name(files: Iterable[Path], root: Path, suffix: str = "") -> dict[str, list[Path]]:
    """Return the files of each name below a folder, see `name_below`, without suffix."""
    found: dict[str, list[Path]] = {}
    for file in files:
        found.setdefault(name_below(file, root).removesuffix(suffix), []).append(file)
    return found
