"""Find images and label maps in folders, and pair them by their file names."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Case = dict[str, Any]

VOLUMES = (".nii.gz", ".nii")
IMAGES_2D = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff")
CONVERTIBLE = (".seg.nrrd", ".seg.nhdr", ".nrrd", ".nhdr", ".mha", ".mhd")
"""Endings of volumes that must be converted to NIfTI before a training; napari-seg converts them."""

_SIDECARS = (".json", ".txt", ".tsv", ".csv", ".md", ".bval", ".bvec", ".ini", ".db", ".raw", ".zraw")
"""Endings of files that usually accompany images."""

_LABEL_SUFFIX = re.compile(r"[-_](d?seg|segmentation|labels?|mask|gt|image|img)$", re.IGNORECASE)
_CHANNEL_SUFFIX = re.compile(r"_\d{4}$")


def is_2d_image(path: str | Path) -> bool:
    """Return whether a file's name ends as that of a PNG, JPEG, ..., by which MONAI chooses its reader."""
    return str(path).lower().endswith(IMAGES_2D)


def are_2d_images(cases: Sequence[Case]) -> bool:
    """Return whether there are cases and the label maps of all are 2D images."""
    return bool(cases) and all(is_2d_image(case["label"]) for case in cases)


def image_files(folder: Path, convertible: bool = False) -> list[Path]:
    """Return the volumes in a folder, sorted by name; its 2D images if it has no volume.

    Args:
        folder: the folder.
        convertible: include volumes that must be converted first, unless a volume of the same name need not be.
    """
    found = sorted(p for p in folder.glob("*") if p.name[0] != "." and p.is_file())
    volumes = [path for path in found if path.name.lower().endswith(VOLUMES)]
    if convertible:
        stems = {stem(path) for path in volumes}
        volumes += [path for path in found if is_convertible(path) and stem(path) not in stems]
    return sorted(volumes) or [path for path in found if is_2d_image(path)]


def is_convertible(path: str | Path) -> bool:
    """Return whether a file's name ends as that of a volume that must be converted before a training."""
    return str(path).lower().endswith(CONVERTIBLE)


def count_unread(*folders: Path, convertible: bool = False) -> dict[str, int]:
    """Return ending -> number of files in some folders that `image_files` skips, without usual companions of images."""
    endings: Counter[str] = Counter()
    for folder in folders:
        read = set(image_files(folder, convertible))
        for path in (path for path in folder.glob("*") if path.name[0] != "." and path not in read):
            ending = "".join(path.suffixes[-2:]).lower() if path.suffix.lower() == ".gz" else path.suffix.lower()
            if path.is_dir() and not read:
                endings["folders"] += 1
            elif path.is_dir():
                continue
            elif not read or ending not in _SIDECARS:
                endings[ending or "files without an ending"] += 1
    return dict(endings)


def list_endings(endings: Mapping[str, int]) -> str:
    """Return the counts of `count_unread` as text, such as "20 .nrrd, 3 .mha"."""
    return ", ".join(
        f"{count} {ending}" for ending, count in sorted(endings.items(), key=lambda pair: (-pair[1], pair[0]))
    )


def normalized(name: str) -> str:
    """Return a file name in Unicode form NFC; macOS writes an accent as a character of its own."""
    return unicodedata.normalize("NFC", name)


def places_of(cases: Sequence[Case], root: Path) -> list[tuple[str, ...]]:
    """Return the paths of the images of each case, and of its label map, below the folder of the data set.

    They have / between folders and the Unicode form NFC, so that they are the same on all machines. If some images lie
    elsewhere, as those of a list may, all images have their paths below the folder that they have in common; and so
    have the label maps.

    Args:
        cases: cases with "image" and "label".
        root: the folder.
    """
    places: list[tuple[str, ...]] = [() for _ in cases]
    for key in ("image", "label"):
        files = [path for case in cases for path in _as_list(case[key])]
        below = iter(_below(files, root))
        places = [
            (*place, *(next(below) for _ in _as_list(case[key]))) for place, case in zip(places, cases, strict=True)
        ]
    return places


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _below(files: Sequence[str | Path], root: Path) -> list[str]:
    """Return the paths of files below a folder, or else below the folder that they have in common."""
    paths = [os.path.abspath(file) for file in files]
    base = os.path.abspath(root)
    if not all(Path(path).is_relative_to(base) for path in paths):
        try:
            base = os.path.commonpath([os.path.dirname(path) for path in paths])
        except ValueError:  # on several drives of Windows
            return [normalized(Path(path).as_posix()) for path in paths]
    return [normalized(Path(os.path.relpath(path, base)).as_posix()) for path in paths]


def stem(path: Path) -> str:
    """Return a file's name without its ending, in Unicode form NFC."""
    name = normalized(path.name)
    ending = next((e for e in VOLUMES + IMAGES_2D + CONVERTIBLE if name.lower().endswith(e)), path.suffix)
    return name[: len(name) - len(ending)]


def has_channel_number(path: Path) -> bool:
    """Return whether a file's name ends with nnU-Net's number of a channel, as `case_0001.nii.gz` does."""
    return _CHANNEL_SUFFIX.search(stem(path)) is not None


def without_channel(path: Path) -> str:
    """Return the stem of a file without nnU-Net's number of a channel."""
    return _CHANNEL_SUFFIX.sub("", stem(path))


def group_channels(files: Iterable[Path]) -> dict[str, list[str]]:
    """Return case -> the files of its channels, in their order."""
    cases: dict[str, list[str]] = {}
    for path in files:
        cases.setdefault(without_channel(path), []).append(str(path))
    return cases


def pair(images: Sequence[Path], labels: Sequence[Path]) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
    """Pair images and label maps by name; a suffix such as in `case_seg.png` or `case-mask.nii.gz` is ignored.

    If a label map is named `<case>`, then `<case>_0000`, `<case>_0001`, ... are the channels of its image. Two files of
    one name give two cases of that name, which `segnets.data.check` reports.

    Returns:
        The cases, and the images and label maps without a partner.
    """
    named = {stem(path) for path in labels} | {_case_name(path) for path in labels}
    stems = {stem(path) for path in images}
    pairs: dict[str, tuple[list[Any], list[str]]] = {}
    if any(without_channel(path) in named - stems for path in images):
        for name, paths in group_channels(images).items():
            pairs[name] = ([paths if len(paths) > 1 else paths[0]], [])
    else:
        for path in images:
            pairs.setdefault(_case_name(path), ([], []))[0].append(str(path))
    for path in labels:
        name = stem(path) if stem(path) in pairs else _case_name(path)
        pairs.setdefault(name, ([], []))[1].append(str(path))
    cases: list[Case] = []
    unpaired: list[Case] = []
    for name, (scans, maps) in sorted(pairs.items()):
        if scans and maps:
            cases += [{"name": name, "image": scan, "label": label} for scan in scans for label in maps]
        else:
            unpaired += [{"name": name, "image": scan} for scan in scans] + [{"name": name, "label": m} for m in maps]
    return tuple(cases), tuple(unpaired)


def _case_name(path: Path) -> str:
    return _LABEL_SUFFIX.sub("", stem(path))
