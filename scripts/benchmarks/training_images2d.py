"""Data sets of 2D images of many kinds, for `scripts/training_kinds.py`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.training_sets import (
    PARTS,
    DataSet,
    Kind,
    Scan,
    Scans,
    count_voxels,
    crops,
    of_crops,
    parent_of,
    with_data,
    write_json,
)
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

TILE = 320
"""Columns and rows of the parts of the images of axons."""

AXONS = ("myelin", "axon")
IGNORED = 255
_PAGES = 5
_COLOURS = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0]], np.uint8)
_UNNAMED = ("label 1", "label 2")


def _slices(scans: Scans) -> list[Scan]:
    """Return the axial slices of crops with most labels, as grey images of 8 bits."""
    found = []
    for scan in crops(scans):
        best = int((scan.labels > 0).sum((0, 1)).argmax())
        found.append(replace(scan, image=_grey(scan.image)[..., [best]], labels=scan.labels[..., [best]]))
    return found


def _grey(array: NDArray) -> NDArray[np.uint8]:
    low, high = np.percentile(array, (0.5, 99.5))
    return np.clip((array - low) / max(high - low, 1e-6) * 255, 0, 255).astype(np.uint8)


def _save(array: NDArray, path: Path) -> Path:
    """Write one plane (I, J, 1) or colours (I, J, 3) as an image whose columns are the first axis."""
    pixels = array[..., 0].T if array.shape[-1] == 1 else array.transpose(1, 0, 2)
    Image.fromarray(np.ascontiguousarray(pixels)).save(parent_of(path))
    return path


def _of_images(root: Path, cases: Sequence[Scan], files: Sequence[Path], **others: Any) -> DataSet:
    return of_crops(root, cases, files, **{"affine": None} | others)


def _unnamed(cases: Sequence[Scan]) -> dict[str, Any]:
    return {"names": _UNNAMED, "voxels": count_voxels([scan.labels for scan in cases[:-1]], _UNNAMED)}


def _tiles(scans: Scans) -> list[Scan]:
    """Return parts of the images of axons, the last of another animal; the labels keep their grey levels."""
    found = []
    paths = sorted((scans.axon_sem / "images").glob("*.png"))
    for path in paths:
        is_last = path == paths[-1]
        image, levels = (
            np.asarray(Image.open(file).convert("L")).T for file in (path, scans.axon_sem / "labels" / path.name)
        )
        for number in range(1 if is_last else 2):
            corner = (60 + number * TILE, 60 + number * 60)
            part = (slice(corner[0], corner[0] + TILE), slice(corner[1], corner[1] + TILE))
            name = f"{path.stem}_part{number}"
            found.append(Scan(name, image[part][..., None], levels[part][..., None].astype(np.uint8), np.eye(4)))
    return found


def _classes(levels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.digitize(levels, [64, 192]).astype(np.uint8)


def write_axon_levels(scans: Scans, root: Path) -> DataSet:
    """Write parts of images of axons; the labels have three grey levels with a few odd values, as they were shared."""
    cases, files = _tiles(scans), []
    for scan, folder in with_data(root, cases):
        files = [_save(scan.image, folder / "images" / f"{scan.name}.png")]
        if folder.name == "data":
            _save(scan.labels, folder / "labels" / f"{scan.name}.png")
    cases = [replace(scan, labels=_classes(scan.labels)) for scan in cases]
    options = ("--labels", "myelin=64-191", "axon=192-255")
    return _of_images(root, cases, files, names=AXONS, options=options, **_voxels(cases, AXONS))


def _voxels(cases: Sequence[Scan], names: Sequence[str]) -> dict[str, Any]:
    return {"voxels": count_voxels([scan.labels for scan in cases[:-1]], names)}


def write_axon_colours(scans: Scans, root: Path) -> DataSet:
    """Write parts of images of axons in colours as PASCAL VOC; the borders of classes are 255."""
    cases, files, marked = [replace(one, labels=_classes(one.labels)) for one in _tiles(scans)], [], []
    for scan, folder in with_data(root, cases):
        grey = scan.image[..., 0]
        soft = ndimage.gaussian_filter(grey, 2)
        files = [_save(np.stack([grey, soft, 255 - grey], axis=-1), folder / "JPEGImages" / f"{scan.name}.png")]
        if folder.name == "data":
            plane = scan.labels[..., 0]
            border = ndimage.maximum_filter(plane, 3) != ndimage.minimum_filter(plane, 3)
            labels = np.where(border, IGNORED, plane).astype(np.uint8)[..., None]
            _with_palette(labels, folder / "SegmentationClass" / f"{scan.name}.png")
            marked.append(labels)
    _write_voc_lists(root / "data", cases[:-1], AXONS)
    voxels = count_voxels(marked, AXONS) | {"ignored": sum(int((one == IGNORED).sum()) for one in marked)}
    return _of_images(root, cases, files, names=AXONS, voxels=voxels)


def _with_palette(labels: NDArray, path: Path) -> None:
    image = Image.fromarray(np.ascontiguousarray(labels[..., 0].T), "P")
    image.putpalette([*_COLOURS.ravel().tolist(), *[128] * 759])
    image.save(parent_of(path))


def _write_voc_lists(folder: Path, cases: Sequence[Scan], names: Sequence[str]) -> None:
    listed = parent_of(folder / "ImageSets" / "Segmentation" / "trainval.txt")
    listed.write_text("\n".join(scan.name for scan in cases))
    (folder / "class_names.txt").write_text("\n".join(["background", *names]) + "\n")


def write_voc(scans: Scans, root: Path) -> DataSet:
    """Write slices of crops as JPEG, in the layout of PASCAL VOC."""
    cases, files = _slices(scans), []
    for scan, folder in with_data(root, cases):
        files = [_save(scan.image, folder / "JPEGImages" / f"{scan.name}.jpg")]
        if folder.name == "data":
            _with_palette(scan.labels, folder / "SegmentationClass" / f"{scan.name}.png")
    _write_voc_lists(root / "data", cases[:-1], PARTS)
    return _of_images(root, cases, files)


def write_colour_masks(scans: Scans, root: Path) -> DataSet:
    """Write slices of crops with label maps in colours, which labelmap.txt explains."""
    cases, files = _slices(scans), []
    for scan, folder in with_data(root, cases):
        files = [_save(scan.image, folder / "JPEGImages" / f"{scan.name}.png")]
        if folder.name == "data":
            _save(_COLOURS[scan.labels[..., 0]], folder / "SegmentationClass" / f"{scan.name}.png")
    rows = [f"{name}:{','.join(map(str, c))}::" for name, c in zip(("background", *PARTS), _COLOURS, strict=True)]
    (root / "data" / "labelmap.txt").write_text("\n".join(["# label:color_rgb:parts:actions", *rows]) + "\n")
    return _of_images(root, cases, files)


def write_coco(scans: Scans, root: Path) -> DataSet:
    """Write slices of crops with polygons in COCO's format."""
    cases, files = _slices(scans), []
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (scan, folder) in enumerate(with_data(root, cases)):
        files = [_save(scan.image, folder / "images" / f"{scan.name}.png")]
        if folder.name != "data":
            continue
        width, height = scan.image.shape[:2]
        images.append({"id": number, "file_name": f"{scan.name}.png", "width": width, "height": height})
        for value, _, points in _polygons(scan.labels):
            line = [coordinate for point in points for coordinate in point]
            entry = {"id": len(annotations) + 1, "image_id": number, "category_id": value, "segmentation": [line]}
            annotations.append(entry)
    categories = [{"id": n, "name": name} for n, name in enumerate(PARTS, 1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    write_json(content, root / "data" / "annotations" / "instances.json")
    return _of_images(root, cases, files)


def write_labelme(scans: Scans, root: Path) -> DataSet:
    """Write slices of crops with polygons in labelme's format beside them."""
    cases, files = _slices(scans), []
    for scan, folder in with_data(root, cases):
        files = [_save(scan.image, folder / f"{scan.name}.png")]
        if folder.name == "data":
            shapes = [{"label": n, "points": p, "shape_type": "polygon"} for _, n, p in _polygons(scan.labels)]
            content = {"imagePath": f"{scan.name}.png", "imageData": None, "shapes": shapes}
            write_json(content, folder / f"{scan.name}.json")
    return _of_images(root, cases, files)


def _polygons(labels: NDArray) -> Iterator[tuple[int, str, list[list[float]]]]:
    """Yield value, name and points (x, y) of the outlines of each class; pixels have their corners at whole numbers."""
    import contourpy

    for value, name in enumerate(PARTS, 1):
        mask = np.pad(np.equal(labels[..., 0].T, value).astype(float), 1)
        for line in contourpy.contour_generator(z=mask).lines(0.5):
            assert isinstance(line, np.ndarray)
            if len(line) > 4:
                yield value, name, (line - 0.5).tolist()


def write_pages(scans: Scans, root: Path) -> DataSet:
    """Write TIFF files of several pages, every page annotated; no names."""
    cases, files, of_data = crops(scans), [], []
    labels = cases[0].labels
    for scan, folder in with_data(root, cases):
        best = int((scan.labels > 0).sum((0, 1)).argmax())
        first = min(max(0, best - _PAGES // 2), scan.image.shape[2] - _PAGES)
        image, labels = (array[..., first : first + _PAGES] for array in (_grey(scan.image), scan.labels))
        files = [_save_pages(image, folder / "images" / f"{scan.name}.tif")]
        if folder.name == "data":
            _save_pages(labels, folder / "labels" / f"{scan.name}.tif")
            of_data.append(labels)
    page = _PAGES // 2
    voxels = count_voxels(of_data, _UNNAMED)
    return _of_images(root, cases, files, names=_UNNAMED, voxels=voxels, labels=labels[..., [page]], volume=page)


def _save_pages(array: NDArray, path: Path) -> Path:
    first, *others = [Image.fromarray(np.ascontiguousarray(array[..., n].T)) for n in range(array.shape[2])]
    first.save(parent_of(path), save_all=True, append_images=others)
    return path


def write_gif_and_bmp(scans: Scans, root: Path) -> DataSet:
    """Write slices of crops as BMP, and label maps with the values 100 and 200 as GIF; no names."""
    cases, files = _slices(scans), []
    for scan, folder in with_data(root, cases):
        files = [_save(scan.image, folder / "images" / f"{scan.name}.bmp")]
        if folder.name == "data":
            _save(scan.labels * 100, folder / "labels" / f"{scan.name}.gif")
    names = ("label 100", "label 200")
    return _of_images(root, cases, files, names=names, **_voxels(cases, names))


def write_16_bits(scans: Scans, root: Path) -> DataSet:
    """Write slices of crops as PNG of 16 bits, with label maps `_mask.png` beside them; no names."""
    cases, files = _slices(scans), []
    for scan, folder in with_data(root, cases):
        files = [_save(scan.image.astype(np.uint16) * 200, folder / f"{scan.name}.png")]
        if folder.name == "data":
            _save(scan.labels, folder / f"{scan.name}_mask.png")
    return _of_images(root, cases, files, **_unnamed(cases))


IMAGES_2D: dict[str, Kind] = {
    "axons_voc": Kind("images of axons in colours, PASCAL VOC, borders 255", write_axon_colours),
    "axons_levels": Kind("images of axons, PNG labels of grey levels 0, 127, 255 and odd values", write_axon_levels),
    "voc_jpeg": Kind("slices of T1 crops as JPEG, PASCAL VOC", write_voc),
    "coco": Kind("slices of T1 crops, polygons of COCO", write_coco),
    "labelme": Kind("slices of T1 crops, polygons of labelme", write_labelme),
    "colour_masks": Kind("slices of T1 crops, label maps in colours", write_colour_masks),
    "tiff_pages": Kind("slices of T1 crops as pages of TIFF files", write_pages),
    "gif_bmp": Kind("slices of T1 crops as BMP, labels as GIF", write_gif_and_bmp),
    "png_16_bits": Kind("slices of T1 crops as PNG of 16 bits, labels beside them", write_16_bits),
}
