"""Read labels that are fractions: the volumes of the structures of a pair, on the grid of its scan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf
from pathlib import Path

import numpy as np

from napari_seg.errors import InputError
from napari_seg.formats.endings import ITK_ENDINGS, NIFTI_ENDINGS, SEG_NRRD_ENDINGS, has_ending
from napari_seg.formats.nifti import count_volumes
from napari_seg.formats.scan import Scan
from napari_seg.geometry import Grid, is_same_lattice, resample
from napari_seg.training.gather.labels import MAX_SHIFT
from napari_seg.training.gather.pair import Pair
from napari_seg.volume import Volume


def named_structures(pairs: Sequence[Pair], labels: Mapping[str, Sequence[int]]) -> tuple[str, ...]:
    """Return the names of the structures that have files of their own, in the order that the data set declares.

    Args:
        pairs: all pairs of the data set; names are equal regardless of upper and lower case.
        labels: name -> values, if the data set declares them; other names come last.
    """
    order = {name.casefold(): min(values) for name, values in labels.items()}
    names = {name.casefold(): name for pair in reversed(pairs) for name in pair.structures}
    return tuple(names[key] for key in sorted(names, key=lambda key: (order.get(key, inf), key)))


def read_fractions(pair: Pair, volume: Volume, names: Sequence[str]) -> Volume:
    """Return the fractions (K, I, J, K) of the structures of a pair.

    Args:
        pair: the pair.
        volume: its scan.
        names: names of the structures, each with a file of its own; one that a pair lacks is 0 everywhere. Empty: the
            file of a pair holds all structures.

    Raises:
        InputError: a file can't be read; `geometry.other_grid`, it lies elsewhere; `label.fractions`, it is no volume,
            or one of a structure holds several; `labels.unnamed_beside_named`, a file names no structure, and those of
            other cases do.
    """
    if names and not pair.structures:
        text = "its label map names no structure, and those of other cases do; name the file after its structure"
        raise InputError("labels.unnamed_beside_named", text)
    found = [_on_scan(_read(path), volume.grid, path) for path in pair.labels]
    if not names:
        return replace(found[0], array=found[0].array.astype(np.float32))
    array = np.zeros((len(names), *volume.grid.shape), np.float32)
    keys = [name.casefold() for name in names]
    for path, structure, of_file in zip(pair.labels, pair.structures, found, strict=True):
        if len(of_file.array) != 1:
            text = f"{path.name} holds {len(of_file.array)} volumes; expected the fractions of one structure"
            raise InputError("label.fractions", text)
        array[keys.index(structure.casefold())] = of_file.array[0]
    return Volume(array, volume.grid)


def _read(path: Path) -> Volume:
    is_nifti = has_ending(path, NIFTI_ENDINGS)
    if has_ending(path, SEG_NRRD_ENDINGS) or not (is_nifti or has_ending(path, ITK_ENDINGS)):
        text = f"{path.name} is no volume of fractions; expected NIfTI, NRRD or MetaImage files with values from 0 to 1"
        raise InputError("label.fractions", text)
    scan = Scan(path.name, "nifti" if is_nifti else "itk", (path,))
    return scan.read(channels=count_volumes(path) if is_nifti else None, one_slice=True)


def _on_scan(found: Volume, grid: Grid, path: Path) -> Volume:
    """Return fractions on the grid of a scan that has the same voxels; a rounded affine counts as that of the scan."""
    if found.grid.shape == grid.shape:
        shift_mm = float(np.linalg.norm(found.grid.corners_mm - grid.corners_mm, axis=1).max())
        if shift_mm <= MAX_SHIFT * min(grid.spacing_mm):
            return replace(found, grid=grid)
    if is_same_lattice(found.grid, grid):
        array = np.stack([resample(one, found.grid, grid, order=0, outside=0) for one in found.array])
        if np.count_nonzero(array) == np.count_nonzero(found.array):
            return replace(found, array=array, grid=grid)
    text = f"{path.name} does not lie on the voxels of the scan; expected the fractions of this very scan"
    raise InputError("geometry.other_grid", text)
