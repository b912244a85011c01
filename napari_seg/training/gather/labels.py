"""Read the label maps of a pair onto the grid of its scan, and give every name one value in all cases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_seg.errors import InputError, Notice
from napari_seg.formats.image2d import is_image2d, read_label_image2d
from napari_seg.formats.in_worker import read_in_worker
from napari_seg.formats.label_maps import on_grid, read_label_maps
from napari_seg.formats.scan import Scan
from napari_seg.formats.tiff_stack import read_label_stack
from napari_seg.geometry import Grid
from napari_seg.training.choices import IGNORE
from napari_seg.training.gather.colours import read_colours
from napari_seg.training.gather.pair import Pair
from napari_seg.training.gather.polygons import read_polygons
from napari_seg.volume import Segment, Segmentation, Volume, as_labels, distinct_color, labels_in, smallest_label_type

MAX_SHIFT = 0.1
"""Largest distance of a label map's corners from those of the scan's grid, in voxels, as in `segnets.data.faults`."""

MAX_VALUE = 65535
MAX_SHARED = 200
"""Number of combinations of structures in one case that get a value of their own."""


@dataclass(frozen=True)
class CaseLabels:
    """Label map of a case on the grid of its scan.

    Attributes:
        array: (I, J, K), unsigned.
        names: label -> name; a label without a name is absent.
        shared: label -> names of the structures that all have its voxels.
        listed: names of all structures of its files, also of those without voxels; empty if the files name none.
        notices: doubts.
    """

    array: NDArray[np.unsignedinteger]
    names: dict[int, str]
    shared: dict[int, tuple[str, ...]] = field(default_factory=dict)
    listed: tuple[str, ...] = ()
    notices: tuple[Notice, ...] = ()


def read_labels(pair: Pair, volume: Volume, *, header_names: bool = True) -> CaseLabels:
    """Read the label maps of a pair as one.

    Voxels that several structures share get a label of their own, so that nothing is lost; `write` decides for the
    whole data set what it means.

    Args:
        pair: the pair.
        volume: its scan.
        header_names: see `read_label_map`.

    Raises:
        InputError: as `read_label_maps`; `geometry.other_grid`, a label map lies elsewhere; `labels.same_name`, two
            files hold a structure with the same name; `labels.unnamed_beside_named`, the file of a single structure
            holds several values; `labels.type`, a value is too large.
    """
    layers: list[Segmentation] = []
    for number, path in enumerate(pair.labels):
        maps = _read(path, pair, volume, header_names)
        if (highest := max((int(one.array.max(initial=0)) for one in maps), default=0)) > MAX_VALUE:
            text = f"{path.name} has the value {highest}; expected values up to {MAX_VALUE}; renumber its structures"
            raise InputError("labels.type", text)
        if pair.structures:
            found = {label for one in maps for label in labels_in(one.array) if label}
            if len(pair.labels) == 1 and len(found) > 1:
                text = f"{path.name} holds {len(found)} values, and files of other cases hold one structure each"
                raise InputError("labels.unnamed_beside_named", f"{text}; name the values in labels.json")
            segment = Segment(1, pair.structures[number], distinct_color(1))
            maps = [replace(one, array=(one.array > 0).astype(np.uint8), segments=(segment,)) for one in maps]
        layers += [_on_scan(one, volume.grid, path) for one in maps]
    notices = tuple(dict.fromkeys(notice for layer in layers for notice in layer.notices))
    listed = tuple(dict.fromkeys(segment.name for layer in layers for segment in layer.segments))
    if len(layers) == 1:
        (layer,) = layers
        return CaseLabels(layer.array, {s.label: s.name for s in layer.segments}, listed=listed, notices=notices)
    array, together_of, overlap = _combined(layers)
    if overlap:
        text = f"{overlap} voxels belong to very many combinations of structures; each went to the smallest structure"
        notices = (*notices, Notice("labels.overlap_resolved", text))
    names = {label: together[0] for label, together in together_of.items() if len(together) == 1}
    shared = {label: together for label, together in together_of.items() if len(together) > 1}
    return CaseLabels(array, names, shared, listed, notices)


def _read(path: Path, pair: Pair, volume: Volume, header_names: bool) -> list[Segmentation]:
    if pair.frame is not None:
        return [_frame(path, pair.frame)]
    if pair.colours:
        array = read_in_worker(partial(read_colours, colours=pair.colours), [path])
        segments = tuple(Segment(n, name, colour) for n, (colour, name) in enumerate(pair.colours) if n and name)
        return [Segmentation(array, volume.grid if array.shape == volume.grid.shape else _grid(array), segments)]
    if pair.is_stack:
        labels = as_labels(read_in_worker(read_label_stack, [path]), path.name)
        return [Segmentation(labels, volume.grid if labels.shape == volume.grid.shape else _grid(labels), ())]
    images = list(pair.images[pair.drawn_on][1].files)
    if path.suffix.lower() == ".json":
        return [read_polygons(path, images[0], volume.grid)]
    return read_label_maps(path, volume.grid, images=images, header_names=header_names)


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


def _combined(
    layers: Sequence[Segmentation],
) -> tuple[NDArray[np.unsignedinteger], dict[int, tuple[str, ...]], int]:
    """Return one label map of several, in which voxels of several structures have labels of their own.

    Returns:
        The labels; label -> names of the structures with these voxels, the largest first; and the number of voxels that
        went to the smallest of their structures, because there were too many combinations.

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
    ordered = sorted(entries, key=lambda one: (-one[0], one[1]))
    array = np.zeros(layers[0].array.shape, smallest_label_type(len(ordered) + MAX_SHARED))
    together_of: dict[int, tuple[str, ...]] = {value: (name,) for value, (_, name, _, _) in enumerate(ordered, 1)}
    values: dict[tuple[str, ...], int] = {together: value for value, together in together_of.items()}
    overlap = 0
    for value, (_, name, label, layer) in enumerate(ordered, 1):
        inside = layer.array == label
        before = array[inside]
        array[inside] = value
        for other in labels_in(before):
            if other == 0:
                continue
            together = (*together_of[other], name)
            if together not in values and len(values) >= len(ordered) + MAX_SHARED:
                overlap += int(np.count_nonzero(before == other))
                continue
            number = values.setdefault(together, len(values) + 1)
            together_of[number] = together
            array[inside] = np.where(before == other, number, array[inside])
    used = set(labels_in(array))
    return array, {value: together for value, together in together_of.items() if value in used}, overlap


def as_declared(
    labels: CaseLabels, declared: Mapping[str, Sequence[int]], ignored: Sequence[int] = ()
) -> tuple[NDArray[np.unsignedinteger], bool]:
    """Return the labels of a case with the values that its data set declares for their names.

    In a file that names nothing, values stay as they are. Voxels of several structures get the value that belongs to
    all of them; if there are several such values, the one that belongs to the fewest others.

    Args:
        labels: labels of the case.
        declared: name -> values.
        ignored: values that stand for no class; a structure named "ignore" gets the lowest of them.

    Returns:
        The labels, and whether some structures share voxels that have no value of their own, and went to the smallest.

    Raises:
        InputError: `labels.unknown`, a structure is not declared, or has no value of its own.
    """
    if not labels.names and not labels.shared:
        return labels.array, False
    owners: dict[int, set[str]] = {0: {"background"}, **{value: {IGNORE} for value in ignored}}
    for name, values in declared.items():
        for one in values:
            owners.setdefault(one, set()).add(name.casefold())
    table = np.zeros(int(labels.array.max(initial=0)) + 1, int)
    is_resolved = False
    for label in filter(None, labels_in(labels.array)):
        names = labels.shared.get(label, (labels.names.get(label, f"label {label}"),))
        is_known = all(any(name.casefold() in of_value for of_value in owners.values()) for name in names)
        value = _value_of(names, owners) if is_known else None
        if value is None and is_known and len(names) > 1:
            value = _value_of(names[-1:], owners)
            is_resolved = True
        if value is None:
            text = f"found the structure {' and '.join(map(repr, names))}; the data set declares {', '.join(declared)}"
            raise InputError("labels.unknown", f"{text}; rename it, or declare it with a value of its own")
        table[label] = value
    return table.astype(smallest_label_type(int(table.max(initial=0))))[labels.array], is_resolved


def _value_of(names: Sequence[str], owners: Mapping[int, set[str]]) -> int | None:
    """Return the lowest value that belongs to all names and the fewest others; None if there is none or it is unclear.

    Args:
        names: names of structures.
        owners: value -> lower-case names that it belongs to.
    """
    wanted = {name.casefold() for name in names}
    fitting = sorted((len(of_value), value) for value, of_value in owners.items() if wanted <= of_value)
    closest = [value for count, value in fitting if count == fitting[0][0]]
    return closest[0] if closest and all(owners[value] == owners[closest[0]] for value in closest) else None


@dataclass
class LabelTable:
    """Values of all names in a data set, in the order in which they were found.

    Attributes:
        values: name -> value.
        shared: value of voxels that several structures share -> names of these, as in `values`.
        ignored: values that stand for no class.
    """

    values: dict[str, int] = field(default_factory=dict)
    shared: dict[int, tuple[str, ...]] = field(default_factory=dict)
    ignored: tuple[int, ...] = ()

    def unified(self, labels: CaseLabels) -> NDArray[np.unsignedinteger]:
        """Return the labels of a case with the values of this table, which new names are added to.

        A name keeps its own value if no other name has it. Names are equal regardless of upper and lower case. In a
        file that names nothing, values stay as they are, and so do those that stand for no class.
        """
        found = [label for label in labels_in(labels.array) if label and label not in self.ignored]
        table = np.arange(int(labels.array.max(initial=0)) + 1)
        for label in found:
            if (name := labels.names.get(label)) is not None:
                table[label] = self._value(name, label)
        for label in found:
            if label in labels.shared:
                table[label] = self._shared_value(labels.shared[label])
            elif labels.names and label not in labels.names:
                table[label] = self._value(f"label {label}", label)
        return table.astype(smallest_label_type(int(table.max(initial=0))))[labels.array]

    def _value(self, name: str, own: int) -> int:
        known = self._name_of(name)
        if known is None:
            self.values[name] = self._free(own)
            return self.values[name]
        return self.values[known]

    def _shared_value(self, names: Sequence[str]) -> int:
        for name in names:  # a structure may lie inside another one in all cases
            self._value(name, 1)
        together = tuple(sorted(known for name in names if (known := self._name_of(name)) is not None))
        value = next((value for value, others in self.shared.items() if others == together), None)
        if value is None:
            value = self._free(len(self.values) + 1)
            self.shared[value] = together
        return value

    def _name_of(self, name: str) -> str | None:
        """Return a name as it is in the table, regardless of upper and lower case."""
        return next((known for known in self.values if known.casefold() == name.casefold()), None)

    def _free(self, wanted: int) -> int:
        taken = {*self.values.values(), *self.shared, *self.ignored}
        return next(value for value in (wanted, *range(1, MAX_VALUE)) if value not in taken)

    def as_labels(self) -> dict[str, list[int]]:
        """Return name -> the value of the structure alone."""
        return {name: [value] for name, value in self.values.items()}


MIN_OVERLAP = 0.05
"""Fraction of the smaller of two structures that both share in the whole data set, from which both are regions; less is
the rounding of their borders."""


def described(table: LabelTable, voxels: Mapping[int, int]) -> tuple[dict[str, Any], list[int]]:
    """Return "labels" and, if structures overlap, "regions_class_order" of a dataset.json.

    Structures that share only the rounding of their borders exclude each other: shared voxels go to the smallest.

    Args:
        table: values of the names, and of the voxels that are shared.
        voxels: value -> number of its voxels in all cases.
    """
    shared = {value: together for value, together in table.shared.items() if voxels.get(value)}
    members = {
        name: [value, *(other for other, together in shared.items() if name in together)]
        for name, value in table.values.items()
    }
    sizes = {name: sum(voxels.get(value, 0) for value in values) for name, values in members.items()}
    if any(sizes.values()):  # cases of an older version were not counted; a name may be one of removed cases
        members = {name: values for name, values in members.items() if sizes[name]}
    both: Counter[tuple[str, str]] = Counter()
    for value, together in shared.items():
        for pair in combinations(sorted(together), 2):
            both[pair] += voxels.get(value, 0)
    if any(count >= MIN_OVERLAP * min(sizes[one], sizes[other]) > 0 for (one, other), count in both.items()):
        ordered = sorted(members, key=lambda name: -sizes[name])
        return {name: members[name] for name in ordered}, [table.values[name] for name in ordered]
    painted = {name: [table.values[name]] for name in members}
    for value, together in shared.items():
        painted[min(together, key=lambda name: sizes[name])].append(value)
    return {name: values[0] if len(values) == 1 else values for name, values in painted.items()}, []
