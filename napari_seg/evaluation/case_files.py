"""List the label maps and scans at a path, and name their cases."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from napari_seg.errors import printable
from napari_seg.evaluation import bids
from napari_seg.formats.endings import nifti_ending
from napari_seg.formats.image2d import is_image2d
from napari_seg.formats.walk import files_below

_CERTAINTY_MAPS = tuple(f"{suffix}_{kind}" for suffix in ("_seg", "_dseg") for kind in ("confidence", "entropy"))
"""Endings of the names of maps that `predict` writes into the folder of its label maps."""

_OF_SCANS = re.compile("(jpeg)?images?(tr|ts|va|val|test)?|imgs?|scans?", re.IGNORECASE)
"""Names of folders of scans in data sets."""

_OWN = ("derivatives", "napari-seg")
"""Folder in which `predict --layout bids` writes."""


def label_maps(
    path: Path, *, has_folders: bool = False, are_references: bool = False, without: Path | None = None
) -> list[Path]:
    """Return the label maps at a path: its NIfTI files, or its 2D images if it contains no NIfTI file.

    If a folder has none, those of the folders below it are returned, without the scans among files in BIDS. References
    are not looked for in folders of scans such as `imagesTr`, unless there are no others. In a data set of BIDS into
    which `predict` has written, its results are the results and not the references.

    Args:
        path: a file, which is returned, or a folder.
        has_folders: also return those of the folders below it if it has some itself.
        are_references: return references and not results.
        without: a folder whose files are left out if it lies below.
    """
    if path.is_file():
        return [path]
    if not has_folders and (found := _volumes_or_images(_visible(path))):
        return found
    files, _ = files_below(path, lambda file: bool(nifti_ending(file)))
    outside = without.resolve() if without is not None else None
    if outside is not None and path.resolve() in outside.parents:
        files = [file for file in files if outside not in file.resolve().parents]
    files = _volumes_or_images(files)
    own, others = ([f for f in files if (f.relative_to(path).parts[:2] == _OWN) == is_own] for is_own in (True, False))
    if are_references:
        no_scans = [f for f in others if not any(map(_OF_SCANS.fullmatch, f.relative_to(path).parts[:-1]))]
        return bids.without_scans(no_scans or others)
    return bids.without_scans(own or files)


def scans_at(path: Path) -> list[Path]:
    """Return the scans at a path, as `label_maps`, without the label maps among files in BIDS."""
    if path.is_file():
        return [path]
    if found := _volumes_or_images(_visible(path)):
        return found
    files, _ = files_below(path, lambda file: bool(nifti_ending(file)))
    return [file for file in _volumes_or_images(files) if not bids.is_label_map(stem(file))]


def _visible(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if not file.name.startswith("."))


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
    folders = PurePosixPath(path_below(file, root)).parts[:-1]
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


def by_name(files: Iterable[Path], root: Path, suffix: str = "") -> dict[str, list[Path]]:
    """Return the files of each name below a folder, see `name_below`, without suffix."""
    found: dict[str, list[Path]] = {}
    for file in files:
        found.setdefault(name_below(file, root).removesuffix(suffix), []).append(file)
    return found
