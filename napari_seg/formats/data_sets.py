"""Recognise label maps among the scans of a data set by its layout and file names, never by their values."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath
from typing import Any

from napari_seg.formats.archive import shown
from napari_seg.formats.endings import ARCHIVE_ENDINGS, has_ending
from napari_seg.formats.find import Found, Skipped
from napari_seg.formats.scan import Scan

MAX_LIST_BYTES = 1 << 26

_LABELS = "seg|segs|segmentations?|label|labels|labelmaps?|masks?|gt|ground[-_ ]?truth|annotations?|dseg"
_IMAGES = (
    "image|images|imaging|img|imgs|scan|scans|volume|volumes|vol|orig|raw|input|inputs|mri?|cta?|pet|pt"
    "|t1(w|c|ce|gd|n)?|t2(w|f)?|flair|pd|dwi|adc|[0-9]{4}"
)
_LABELS_TR_FOLDER = re.compile("labels(tr|ts|va|val|test)")
"""Folders of label maps in data sets of nnU-Net and the Decathlon."""

_LABEL_FOLDER = re.compile(f"{_LABELS}|segmentation(class|object)")
_IMAGE_FOLDER = re.compile(f"{_IMAGES}|images(tr|ts|va|val|test)|jpegimages")
_BIDS = re.compile(r".*(_(dseg|probseg)|_label-.*)|sub-.*_mask")
_ENDS = re.compile(rf"(?P<rest>.+)[-_. ]({_LABELS})")
_BEGINS = re.compile(rf"({_LABELS})(?P<rest>[-_. ]?[0-9].*|)")


def without_label_maps(found: Found, path: Path) -> Found:
    """Return the content of a folder with the label maps of data sets moved from the scans to the skipped files.

    A file is a label map if dataset.json lists it as one; if it lies in `labelsTr`, or in a folder such as `labels`
    next to a folder with images or a file such as `ct`; if BIDS names it `_dseg`, `_mask` or `_label-`; or if its name
    is the name of an image in the same folder plus a word such as `seg` or `mask`. If the path is a file, it is always
    a scan.

    Args:
        found: content of the path.
        path: a folder, an archive or a file.
    """
    candidates = [scan for scan in found.scans if scan.format in ("nifti", "itk", "image2d")]
    if path.is_file() and not has_ending(path, ARCHIVE_ENDINGS):
        return found
    listed = set(_listed(one.files[0] for one in found.skipped if one.files[0].name == "dataset.json"))
    folders = {folder for scan in found.scans for folder in shown(scan.files[0]).parents}
    images = {folder for folder in folders if _IMAGE_FOLDER.fullmatch(folder.name.casefold())}
    images |= {shown(scan.files[0]) for scan in candidates if _IMAGE_FOLDER.fullmatch(scan.name.casefold())}
    with_images: set[PurePath] = {image.parent for image in images}
    names: dict[PurePath, set[str]] = {}
    for scan in candidates:
        names.setdefault(scan.files[0].parent, set()).add(scan.name.casefold())
    reasons: dict[Scan, str] = {}
    for scan in candidates:
        file = scan.files[0]
        if _normalized(file) in listed:
            reasons[scan] = "dataset.json lists it as a label map"
        elif folder := _label_folder(shown(file), path, with_images):
            reasons[scan] = f"it lies in the folder {folder} of a data set"
        elif _is_named_as_label_map(scan.name.casefold(), names[file.parent]):
            reasons[scan] = "its name is that of a label map"
    text = "looks like a label map ({}); give the path of the file itself to segment it"
    skipped = [
        Skipped(scan.files, "skip.label_map", f"{scan.files[0].name} {text.format(reason)}")
        for scan, reason in reasons.items()
    ]
    order = sorted((*found.skipped, *skipped), key=lambda one: one.files[0])
    return Found(tuple(scan for scan in found.scans if scan not in reasons), tuple(order))


def _listed(files: Iterable[Path]) -> Iterator[str]:
    """Yield the label maps, but not the images, in lists of the formats of the Decathlon and MONAI."""
    for file in files:
        try:
            content: Any = json.loads(file.read_text(encoding="utf-8-sig")) if _is_small(file) else None
        except (OSError, ValueError, RecursionError):
            continue
        lists = [value for value in content.values() if isinstance(value, list)] if isinstance(content, dict) else []
        entries = [entry for entries in lists for entry in entries if isinstance(entry, dict)]
        labels, images = (set(_paths(entry.get(key) for entry in entries)) for key in ("label", "image"))
        for name in labels - images:
            yield _normalized(file.parent / name)


def _normalized(file: Path) -> str:
    """Return a path in Unicode NFC, because lists and file systems encode accents differently."""
    return unicodedata.normalize("NFC", os.path.normpath(file))


def _is_small(file: Path) -> bool:
    return file.is_file() and file.stat().st_size <= MAX_LIST_BYTES


def _paths(values: Iterable[Any]) -> Iterator[str]:
    for value in values:
        for name in value if isinstance(value, list) else [value]:
            if isinstance(name, str):
                yield name.replace("\\", "/")


def _label_folder(file: PurePath, root: PurePath, with_images: set[PurePath]) -> str:
    """Return the name of the folder that makes a file a label map; "" if there is none.

    Args:
        file: path of the candidate.
        root: folder above which only folders of nnU-Net count.
        with_images: folders that contain an image or a folder of images.
    """
    for folder in file.parents:
        name = folder.name.casefold()
        if _LABELS_TR_FOLDER.fullmatch(name):
            return folder.name
        if folder == root:
            break
        if _LABEL_FOLDER.fullmatch(name) and folder.parent in with_images:
            return folder.name
    return ""


def _is_named_as_label_map(name: str, others: set[str]) -> bool:
    """Return whether a name is that of a label map, by itself or compared with the other names in its folder."""
    if _BIDS.fullmatch(name):
        return True
    patterns = []
    if found := _ENDS.fullmatch(name):
        patterns.append(rf"{re.escape(found['rest'])}([-_. ]({_IMAGES}))?")
    if found := _BEGINS.fullmatch(name):
        patterns.append(rf"({_IMAGES}){re.escape(found['rest'])}")
    return any(re.fullmatch(pattern, other) for pattern in patterns for other in others)
