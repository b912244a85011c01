"""Find images and label maps in PASCAL VOC's layout (Everingham et al. 2010), with its lists and class names."""

from __future__ import annotations

import re
from pathlib import Path

from segnets.data.pairing import Case, image_files, pair

_NAME_FILES = ("labelmap.txt", "class_names.txt", "classes.txt", "labels.txt")
_BACKGROUND = ("background", "_background_", "__background__", "bg")
NOT_CLASSES = ("__ignore__", "void", "ignore", "unlabelled", "unlabeled")
"""Names of what stands for no class, in lower case."""
_LISTS = ("trainval", "train", "val")
_VOC_CLASSES = 20


def voc_cases(root: Path) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
    """Return the cases, and label maps without an image; many images there have no label map and are left out.

    If `ImageSets/Segmentation/` lists names in trainval.txt, or in train.txt and val.txt, only these are cases.
    """
    cases, unpaired = pair(image_files(root / "JPEGImages"), image_files(root / "SegmentationClass"))
    folder = root / "ImageSets" / "Segmentation"
    lists = [folder / f"{name}.txt" for name in _LISTS]
    files = [lists[0]] if lists[0].is_file() else [file for file in lists[1:] if file.is_file()]
    if files:
        names = [line.split()[0] for file in files for line in file.read_text("utf-8-sig").splitlines() if line.strip()]
        known = {case["name"] for case in cases}
        cases = tuple(case for case in cases if case["name"] in set(names))
        unpaired = tuple({"name": name} for name in dict.fromkeys(names) if name not in known)
    return cases, tuple(case for case in unpaired if "image" not in case)


def voc_names(root: Path) -> dict[str, tuple[int, ...]]:
    """Return name -> value of the classes, without background; empty if nothing names them.

    The n-th name in labelmap.txt or class_names.txt, or in another usual file, has the value n, counted from 0. A file
    that does not begin with the background begins with the value 1. The 20 classes of the original data sets are those
    of the lists in `ImageSets/Main/`, in alphabetical order.
    """
    for name in _NAME_FILES:
        if (root / name).is_file():
            lines = (root / name).read_text(encoding="utf-8-sig").splitlines()
            words = [re.split(r"[:\t]", line)[0].strip() for line in lines if line.strip() and line[0] != "#"]
            words = [word for word in words if word.lower() not in NOT_CLASSES]
            first = 0 if words and words[0].lower() in _BACKGROUND else 1
            return {word: (n,) for n, word in enumerate(words, first) if n and word}
    lists = sorted((root / "ImageSets" / "Main").glob("*_trainval.txt"))
    if len(lists) == _VOC_CLASSES:
        return {path.name.removesuffix("_trainval.txt"): (n,) for n, path in enumerate(lists, 1)}
    return {}
