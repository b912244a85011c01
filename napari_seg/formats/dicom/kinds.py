"""Compare the kinds of images in a series: orientation, size, pixel spacing and image type."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_seg.formats.dicom.private_words import words

ORIENTATION_TOLERANCE = 1e-3
"""Maximum difference of direction cosines, and relative difference of pixel spacings, within one volume."""

EVEN_TOLERANCE = 0.1
"""Maximum difference of the distances of slices that count as one stack, relative to their mean."""

MAX_NAME = 40
"""Maximum length of the part of a name that comes from image types."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Properties that all slices of one volume share.

    Attributes:
        orientation: six direction cosines, of rows and columns; None if each frame has its own.
        rows: number of rows.
        columns: number of columns.
        spacing_mm: distance between rows and between columns; None if each frame has its own.
        image_type: all values of DICOM's ImageType or FrameType.
    """

    orientation: tuple[float, ...] | None
    rows: int
    columns: int
    spacing_mm: tuple[float, ...] | None
    image_type: tuple[str, ...]

    def difference(self, other: Kind) -> str:
        """Return the first difference: "orientation", "size", "spacing" or "image_type"; "" for the same kind."""
        if not _is_near(self.orientation, other.orientation, relative=False):
            return "orientation"
        if (self.rows, self.columns) != (other.rows, other.columns):
            return "size"
        if not _is_near(self.spacing_mm, other.spacing_mm, relative=True):
            return "spacing"
        return "" if self.image_type == other.image_type else "image_type"


def _is_near(one: Sequence[float] | None, other: Sequence[float] | None, *, relative: bool) -> bool:
    if one is None or other is None or one == other:
        return one == other
    return all(
        abs(a - b) <= ORIENTATION_TOLERANCE * (abs(b) if relative else 1) for a, b in zip(one, other, strict=True)
    )


def is_one_stack(positions: ArrayLike, orientation: Sequence[float] | NDArray[np.float64]) -> bool:
    """Return whether slices lie at equal distances along their normal, each at a position of its own.

    Args:
        positions: (N, 3) in mm.
        orientation: six direction cosines, of rows and columns.
    """
    depths = np.sort(np.reshape(positions, (-1, 3)) @ np.cross(*np.reshape(orientation, (2, 3))))
    gaps = np.diff(depths)
    return bool(gaps.size and gaps.min() > 0 and np.ptp(gaps) <= EVEN_TOLERANCE * gaps.mean())


def names_of_kinds(kinds: Sequence[Kind]) -> list[str]:
    """Return a different name for each kind, fit for a file name, such as `M_FFE` and `PHASE_MAP_P`.

    The name holds only what differs: first the image types, then the planes, sizes and spacings if still needed.
    """
    planes = [plane_of(kind.orientation) for kind in kinds]
    sizes = [f"{kind.columns}x{kind.rows}" for kind in kinds]
    spacings = [f"{min(kind.spacing_mm or (0.0,)):.3g}mm".replace(".", "p") for kind in kinds]
    names = [""] * len(kinds)
    for parts in (_differing_types([kind.image_type for kind in kinds]), planes, sizes, spacings):
        if len(set(names)) < len(names) and len(set(parts)) > 1:
            names = [f"{name}_{part}".strip("_") for name, part in zip(names, parts, strict=True)]
    if len(set(names)) < len(names):
        names = [f"{name}_{n}".lstrip("_") for n, name in enumerate(names, start=1)]
    return names


def _differing_types(types: Sequence[tuple[str, ...]]) -> list[str]:
    """Return for each image type its values that not all have in common, joined; at least one value each."""
    plain = [["".join(words(value)) for value in one] for one in types]
    columns = list(zip_longest(*plain, fillvalue=""))
    differing = [n for n, column in enumerate(columns) if len(set(column)) > 1]
    if differing and any(not any(columns[n][m] for n in differing) for m in range(len(types))):
        differing.insert(0, differing[0] - 1)  # AXIAL and AXIAL_ADD rather than nothing and ADD
    return [
        "_".join(columns[n][m] for n in differing if n >= 0 and columns[n][m])[:MAX_NAME] for m in range(len(types))
    ]


def plane_of(orientation: Sequence[float] | None) -> str:
    """Return the nearest plane of slices: axial, coronal or sagittal; "" if it is unknown.

    Args:
        orientation: six direction cosines, of rows and columns.
    """
    if orientation is None:
        return ""
    normal = np.cross(orientation[:3], orientation[3:])
    return ("sagittal", "coronal", "axial")[int(np.abs(normal).argmax())]
