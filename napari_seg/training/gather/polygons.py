"""Pair 2D images with annotations of COCO and labelme, and fill their polygons.

COCO lists the polygons or run lengths of many images in one JSON file; labelme writes a JSON file beside each image. A
pixel belongs to a polygon if its centre lies inside by the even-odd rule; pixel (0, 0) extends from 0 to 1.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from napari_seg.errors import InputError, Notice, one_line
from napari_seg.formats.find import Found
from napari_seg.formats.scan import Scan
from napari_seg.geometry import Grid
from napari_seg.training.gather.dicom import Unpaired
from napari_seg.training.gather.pair import Pair
from napari_seg.volume import Segment, Segmentation, distinct_color, smallest_label_type

MAX_BYTES = 1 << 31
_MAX_VALUE = 65535
"""Highest number of a class that a label map holds; with higher ones, classes are numbered by their names."""
_BACKGROUND = ("_background_", "background", "__ignore__")
_MAX_NAME = 80
_FAULTS = (
    *(KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, OSError, binascii.Error),
    Image.DecompressionBombError,
)
"""Errors of an annotation in another form than expected."""


class Shape(NamedTuple):
    """An annotated object.

    Attributes:
        name: its class.
        value: number of its class in the file; 0 if classes have no numbers.
        mask: (J, I) its pixels; None for points and lines, which enclose none.
    """

    name: str
    value: int
    mask: NDArray[np.bool_] | None


def polygon_pairs(found: Found) -> tuple[list[Pair], Unpaired]:
    """Return the 2D images with an annotation of COCO or labelme, and the annotated images that are missing.

    Args:
        found: content of a folder.
    """
    images = [scan for scan in found.scans if scan.format == "image2d"]
    files = [file for one in found.skipped for file in one.files if file.suffix.lower() == ".json"]
    pairs: list[Pair] = []
    unpaired: Unpaired = []
    for file in files if images else ():
        content = _content(file)
        for named in _annotated_images(content):
            scan = _image_named(named, file, images)
            if scan is None:
                unpaired.append((file, "partner.no_image"))
            else:
                pairs.append(Pair(scan.files[0].stem, (("", scan),), (file,)))
    return pairs, unpaired


def read_polygons(path: Path, image: Path, grid: Grid) -> Segmentation:
    """Return the annotation of one image as a label map; where objects share pixels, the smaller one gets them.

    Args:
        path: JSON file of COCO or labelme.
        image: file of the image.
        grid: grid of the image (I, J, 1).

    Raises:
        InputError: `labels.annotation`, the annotation has another form or size.
    """
    size = grid.shape[1], grid.shape[0]
    try:
        shapes = list(_shapes(_content(path), image, size))
    except _FAULTS as error:
        kind = type(error).__name__
        text = f"the annotation of {image.name} in {path.name} is not as COCO or labelme write it ({kind})"
        raise InputError("labels.annotation", f"{text}; export it again") from error
    names = sorted({shape.name for shape in shapes})
    own = {shape.name: shape.value for shape in shapes}
    are_small = all(0 < value <= _MAX_VALUE for value in own.values())
    is_numbered = are_small and len(set(own.values())) == len(own)
    values = own if is_numbered else {name: n for n, name in enumerate(names, 1)}
    array = np.zeros(size, smallest_label_type(max(values.values(), default=0)))
    overlap = 0
    filled = [(shape.name, shape.mask) for shape in shapes if shape.mask is not None]
    for name, mask in sorted(filled, key=lambda one: -int(one[1].sum())):
        overlap += int(np.count_nonzero((array[mask] != 0) & (array[mask] != values[name])))
        array[mask] = values[name]
    notices = []
    if overlap:
        notices.append(Notice("labels.overlap_resolved", f"{overlap} pixels belong to several classes"))
    if len(filled) < len(shapes):
        notices.append(Notice("labels.not_closed", f"{len(shapes) - len(filled)} points or lines enclose no pixel"))
    segments = tuple(Segment(values[name], name, distinct_color(values[name])) for name in names)
    segments = tuple(sorted(segments, key=lambda segment: segment.label))
    return Segmentation(array.T[..., None], grid, segments, notices=tuple(notices))


def inside(polygon: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return (J, I) the pixels whose centres lie inside a polygon, by the even-odd rule.

    Args:
        polygon: (N, 2) corners x, y.
        size: (J, I).
    """
    rows, columns = size
    flips = np.zeros((rows, columns + 1), np.int32)
    for (x, y), (next_x, next_y) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        low, high = sorted((y, next_y))
        first, last = max(0, int(np.ceil(low - 0.5))), min(rows, int(np.ceil(high - 0.5)))
        crossed = np.arange(first, max(first, last))
        if len(crossed):
            across = x + (crossed + 0.5 - y) * (next_x - x) / (next_y - y)
            np.add.at(flips, (crossed, np.clip(np.ceil(across - 0.5), 0, columns).astype(int)), 1)
    return np.cumsum(flips[:, :-1], axis=1) % 2 == 1


@lru_cache(maxsize=2)
def _parsed(path: Path, changed_ns: int) -> Any:
    return json.loads(path.read_text(encoding="utf-8-sig"))


def _content(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file; empty if it is no annotation."""
    try:
        status = path.stat()
        content = _parsed(path, status.st_mtime_ns) if status.st_size <= MAX_BYTES else None
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _is_coco(content: Mapping[str, Any]) -> bool:
    return all(isinstance(content.get(key), list) for key in ("images", "annotations", "categories"))


def _annotated_images(content: Mapping[str, Any]) -> Iterator[str]:
    """Yield the paths of the images that an annotation names, those with objects only."""
    if _is_coco(content):
        annotated = {str(one.get("image_id")) for one in content["annotations"] if isinstance(one, dict)}
        for one in content["images"]:
            if isinstance(one, dict) and str(one.get("id")) in annotated and isinstance(one.get("file_name"), str):
                yield one["file_name"]
    elif isinstance(content.get("shapes"), list) and isinstance(content.get("imagePath"), str):
        yield content["imagePath"]


def _image_named(named: str, file: Path, images: Sequence[Scan]) -> Scan | None:
    """Return the image with a path in an annotation: relative to it, or the only one with this name."""
    path = PurePosixPath(named.replace("\\", "/"))
    exact = [scan for scan in images if scan.files[0] == file.parent / path]
    by_name = [scan for scan in images if scan.files[0].name.casefold() == path.name.casefold()]
    beside = [scan for scan in by_name if scan.files[0].parent == file.parent]
    return next((found[0] for found in (exact, beside, by_name) if len(found) == 1), None)


def _shapes(content: Mapping[str, Any], image: Path, size: tuple[int, int]) -> Iterator[Shape]:
    if not _is_coco(content):
        for shape in content["shapes"]:
            name = one_line(shape["label"], _MAX_NAME)
            if name.casefold() not in _BACKGROUND:
                yield Shape(name, 0, _labelme_mask(shape, size))
        return
    names = {one["id"]: one_line(one["name"], _MAX_NAME) for one in content["categories"]}
    is_shared = Counter(PurePosixPath(one["file_name"].replace("\\", "/")).name for one in content["images"])
    parts = image.parts
    for one in content["images"]:
        path = PurePosixPath(one["file_name"].replace("\\", "/"))
        is_same = path.name == image.name and (is_shared[path.name] == 1 or parts[-len(path.parts) :] == path.parts)
        if is_same and (int(one.get("height", size[0])), int(one.get("width", size[1]))) != size:
            raise ValueError("the image has another size")
        for found in content["annotations"] if is_same else ():
            if found["image_id"] == one["id"]:
                category = int(found["category_id"])
                yield Shape(names[found["category_id"]], category, _coco_mask(found["segmentation"], size))


def _coco_mask(segmentation: Any, size: tuple[int, int]) -> NDArray[np.bool_]:
    if isinstance(segmentation, list):
        mask = np.zeros(size, bool)
        for corners in segmentation:
            mask |= inside(np.reshape(np.asarray(corners, np.float64), (-1, 2)), size)
        return mask
    if tuple(int(n) for n in segmentation["size"]) != size:
        raise ValueError("the run lengths are of another size")
    counts = segmentation["counts"]
    lengths = _run_lengths(counts.encode() if isinstance(counts, str) else counts)
    if sum(lengths) != size[0] * size[1] or min(lengths) < 0:
        raise ValueError("the run lengths are of another size")
    runs = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    return np.reshape(runs, (size[1], size[0])).T  # columns first


def _run_lengths(counts: Sequence[int] | bytes) -> list[int]:
    """Return run lengths; COCO packs them in 5 bits per letter, after the third as differences to the second last."""
    if not isinstance(counts, bytes):
        return [int(n) for n in counts]
    lengths: list[int] = []
    value = shift = 0
    for letter in counts:
        bits = letter - 48
        value |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            if bits & 0x10:
                value -= 1 << shift
            lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
            value = shift = 0
    return lengths


def _labelme_mask(shape: Mapping[str, Any], size: tuple[int, int]) -> NDArray[np.bool_] | None:
    kind = shape.get("shape_type") or "polygon"
    points = np.reshape(np.asarray(shape["points"], np.float64), (-1, 2))
    if kind == "polygon":
        return inside(points, size)
    if kind == "rectangle":
        (x, y), (other_x, other_y) = points
        return inside(np.array([(x, y), (other_x, y), (other_x, other_y), (x, other_y)]), size)
    if kind == "circle":
        center, edge = points
        y, x = np.indices(size) + 0.5
        return (x - center[0]) ** 2 + (y - center[1]) ** 2 <= float(np.sum((edge - center) ** 2))
    if kind == "mask":
        (left, top), _ = points.round().astype(int)
        with Image.open(io.BytesIO(base64.b64decode(shape["mask"])), formats=("PNG",)) as image:
            part = np.asarray(image.convert("L")) > 0
        mask = np.zeros(size, bool)
        mask[top : top + part.shape[0], left : left + part.shape[1]] = part
        return mask
    return None
