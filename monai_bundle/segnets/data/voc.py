"""Find images and label maps in PASCAL VOC's layout (Everingham et al. 2010), with its lists and class names."""

from __future__ import annotations

import re
from pathlib import Path

from segnets.data.pairing import Case, image_files, pair

_NAME_FILES = ("labelmap.txt", "class_names.txt", "classes.txt", "labels.txt")
_BACKGROUND = ("background", "_background_", "__background__", "bg")
NOT_CLASSES = ("__ignore__", "void", "ignore", "unlabelled", "unlabeled")
"""Names of what stands for no class, in lower case."""
_LISTS = ("trainval", "train", "val", "test")
_VOC_CLASSES = 20


def voc_cases(root: Path) -> tuple[tuple[Case, ...], tuple[Case, ...], dict[str, str]]:
    """Return the cases, label maps without an image, and name -> part of the data set.

    Many images there have no label map and are left out. If `ImageSets/Segmentation/` lists names in trainval.txt, or
    in train.txt and val.txt, only these are cases, and those of test.txt. Those of val.txt are for validation.
    """
    cases, unpaired = pair(image_files(root / "JPEGImages"), image_files(root / "SegmentationClass"))
    listed = {name: _names_in(root / "ImageSets" / "Segmentation" / f"{name}.txt") for name in _LISTS}
    of_test = [name for name in listed["test"] if name not in {*listed["trainval"], *listed["train"], *listed["val"]}]
    names = listed["trainval"] or [*listed["train"], *listed["val"]]
    known = {case["name"] for case in cases}
    names = names and [*names, *(name for name in of_test if name in known)]
    if names:
        cases = tuple(case for case in cases if case["name"] in set(names))
        unpaired = tuple({"name": name} for name in dict.fromkeys(names) if name not in known)
    part_of = {name: "test" for name in of_test} | {name: "validation" for name in listed["val"]}
    has_parts = (listed["train"] and listed["val"]) or not known.isdisjoint(of_test)
    parts = {case["name"]: part_of.get(case["name"], "training") for case in cases} if has_parts else {}
    return cases, tuple(case for case in unpaired if "image" not in case), parts


def _names_in(path: Path) -> list[str]:
    """Return the names in a list of images; empty if there is no such list."""
    lines = path.read_text("utf-8-sig").splitlines() if path.is_file() else []
    return [line.split()[0] for line in lines if line.strip()]


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
