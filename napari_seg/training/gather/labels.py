"""Read the label maps of a pair onto the grid of its scan, and give every name one value in all cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from napari_seg.errors import InputError, Notice
from napari_seg.formats.image2d import is_image2d, read_label_image2d
from napari_seg.formats.in_worker import read_in_worker
from napari_seg.formats.label_maps import on_grid, read_label_maps
from napari_seg.formats.scan import Scan
from napari_seg.geometry import Grid
from napari_seg.training.gather.colours import read_colours
from napari_seg.training.gather.pair import Pair
from napari_seg.training.gather.polygons import read_polygons
from napari_seg.volume import Segment, Segmentation, Volume, as_labels, distinct_color, labels_in, smallest_label_type

MAX_SHIFT = 0.1
"""Largest distance of a label map's corners from those of the scan's grid, in voxels, as in `segnets.data.faults`."""

MAX_VALUE = 65535


@dataclass(frozen=True)
class CaseLabels:
    """Label map of a case on the grid of its scan.

    Attributes:
        array: (I, J, K), unsigned.
        names: label -> name; a label without a name is absent.
        notices: doubts.
    """

    array: NDArray[np.unsignedinteger]
    names: dict[int, str]
    notices: tuple[Notice, ...] = ()


def read_labels(pair: Pair, volume: Volume) -> CaseLabels:
    """Read the label maps of a pair as one.

    Where structures share voxels, the smaller one gets them, with a notice, so that a lesion stays visible in its
    organ and an organ in the outline of the body.

    Args:
        pair: the pair.
        volume: its scan.

    Raises:
        InputError: as `read_label_maps`; `geometry.other_grid`, a label map lies elsewhere; `labels.same_name`, two
            files hold a structure with the same name.
    """
    layers: list[Segmentation] = []
    for number, path in enumerate(pair.labels):
        maps = _read(path, pair, volume)
        if pair.structures:
            segment = Segment(1, pair.structures[number], distinct_color(1))
            maps = [replace(one, array=(one.array > 0).astype(np.uint8), segments=(segment,)) for one in maps]
        layers += [_on_scan(one, volume.grid, path) for one in maps]
    notices = tuple(dict.fromkeys(notice for layer in layers for notice in layer.notices))
    if len(layers) == 1:
        (layer,) = layers
        return CaseLabels(layer.array, {one.label: one.name for one in layer.segments}, notices)
    array, names, overlap = _painted(layers)
    if overlap:
        text = f"{overlap} voxels belong to several structures; each went to the smallest of them"
        notices = (*notices, Notice("labels.overlap_resolved", text))
    return CaseLabels(array, names, notices)


def _read(path: Path, pair: Pair, volume: Volume) -> list[Segmentation]:
    if pair.frame is not None:
        return [_frame(path, pair.frame)]
    if pair.colours:
        array = read_in_worker(partial(read_colours, colours=pair.colours), [path])
        segments = tuple(Segment(n, name, colour) for n, (colour, name) in enumerate(pair.colours) if n)
        return [Segmentation(array, volume.grid if array.shape == volume.grid.shape else _grid(array), segments)]
    images = [file for _, scan in pair.images[:1] for file in scan.files]
    if path.suffix.lower() == ".json":
        return [read_polygons(path, images[0], volume.grid)]
    return read_label_maps(path, volume.grid, images=images)


def _frame(path: Path, frame: int) -> Segmentation:
    """Return one frame of a label map of several."""
    if is_image2d(path):
        label = read_in_worker(partial(_read_page, page=frame), [path])
    else:
        label = Scan(path.name, "nifti", (path,)).read(frame, one_slice=True)
    return Segmentation(as_labels(label.array[0], path.name), label.grid, ())


def _read_page(files: Sequence[Path], page: int) -> Volume:
    return read_label_image2d(files[0], page)


def _grid(array: NDArray) -> Grid:
    return Grid((array.shape[0], array.shape[1], array.shape[2]), np.eye(4))


def _on_scan(found: Segmentation, grid: Grid, path: Path) -> Segmentation:
    """Return a label map on the grid of its scan; a rounded affine counts as that of the scan."""
    if found.grid.shape == grid.shape:
        shift_mm = float(np.linalg.norm(found.grid.corners_mm - grid.corners_mm, axis=1).max())
        if shift_mm <= MAX_SHIFT * min(grid.spacing_mm):
            return replace(found, grid=grid)
    return on_grid(found, grid, path)


def _painted(layers: Sequence[Segmentation]) -> tuple[NDArray[np.unsignedinteger], dict[int, str], int]:
    """Paint the segments of several label maps over each other, the largest first.

    Returns:
        The labels, their names, and the number of voxels that were in a segment already.

    Raises:
        InputError: `labels.same_name`.
    """
    entries = []
    for layer in layers:
        known = {segment.label: segment.name for segment in layer.segments}
        counts = np.bincount(layer.array.ravel())
        entries += [
            (int(counts[label]), known.get(label, f"label {label}"), label, layer)
            for label in labels_in(layer.array)
            if label
        ]
    names = [name for _, name, _, _ in entries]
    if twice := next((name for name in names if sum(name.casefold() == n.casefold() for n in names) > 1), None):
        text = f"several files of this case hold the structure {twice!r}; expected one; remove the older one"
        raise InputError("labels.same_name", text)
    array = np.zeros(layers[0].array.shape, smallest_label_type(len(entries)))
    overlap = 0
    named = {}
    for value, (_, name, label, layer) in enumerate(sorted(entries, key=lambda one: (-one[0], one[1])), 1):
        inside = layer.array == label
        overlap += int(np.count_nonzero(array[inside]))
        array[inside] = value
        named[value] = name
    return array, named, overlap


@dataclass
class LabelTable:
    """Values of all names in a data set, in the order in which they were found.

    Attributes:
        values: name -> value.
        is_named: whether any label map names its values; otherwise values stay as they are.
    """

    values: dict[str, int] = field(default_factory=dict)

    def unified(self, labels: CaseLabels) -> NDArray[np.unsignedinteger]:
        """Return the labels of a case with the values of this table, which new names are added to.

        A name keeps its own value if no other name has it. Names are equal regardless of upper and lower case. In a
        file that names nothing, values stay as they are.
        """
        found = [label for label in labels_in(labels.array) if label]
        table = np.arange(int(labels.array.max(initial=0)) + 1)
        for label in found:
            if (name := labels.names.get(label)) is not None:
                table[label] = self._value(name, label)
        for label in found:
            if labels.names and label not in labels.names:
                table[label] = self._value(f"label {label}", label)
        return table.astype(smallest_label_type(int(table.max(initial=0))))[labels.array]

    def _value(self, name: str, own: int) -> int:
        known = {one.casefold(): value for one, value in self.values.items()}
        if name.casefold() not in known:
            taken = set(self.values.values())
            self.values[name] = next(v for v in (own, *range(1, MAX_VALUE)) if v not in taken)
            return self.values[name]
        return known[name.casefold()]


def as_description(values: Mapping[str, int], ignored: Sequence[int] = ()) -> dict[str, int | list[int]]:
    """Return the "labels" of a dataset.json."""
    named: dict[str, int | list[int]] = {"background": 0, **values}
    return named | ({"ignore": ignored[0] if len(ignored) == 1 else list(ignored)} if ignored else {})
