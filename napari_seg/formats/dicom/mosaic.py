"""Mosaics of Siemens: one stored image tiled from the slices of a volume.

How many slices there are and towards which side they are stacked stands in Siemens' private attributes alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, sqrt
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_seg.errors import InputError
from napari_seg.formats.dicom.headers import Header

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_COUNT, _CSA = ("SIEMENS MR HEADER", 0x0019, 0x0A), ("SIEMENS CSA HEADER", 0x0029, 0x10)
"""Private attributes: who made them, their group, and the last byte of their element."""


@dataclass(frozen=True, eq=False)
class Mosaic:
    """How the slices of a mosaic are stacked.

    Attributes:
        slices: how many.
        normal: (3,) unit vector, in LPS+, from one slice to the next.
        step_mm: between slices.
    """

    slices: int
    normal: NDArray[np.float64]
    step_mm: float

    @property
    def tiles_per_side(self) -> int:
        return ceil(sqrt(self.slices))


def mosaic_of(header: Header) -> Mosaic:
    """Return how the slices of a mosaic are stacked, as Siemens' header says; never guessed.

    Args:
        header: of the file.

    Raises:
        InputError: `series.mosaic`, the header does not say it.
    """
    count, normal = _count_and_normal(header)
    step = header.tags.get("SpacingBetweenSlices") or header.tags.get("SliceThickness")
    step_mm = float(step) if isinstance(step, (int, float)) else 0.0
    if not count or normal is None or not step_mm > 0:
        missing = "towards which side they are stacked" if normal is None else "how far apart they lie"
        missing = missing if count else "how many there are"
        raise InputError(
            "series.mosaic",
            f"{header.label} is a mosaic, one image tiled from many slices, and its header does not say {missing} "
            "(Siemens' private attributes are missing or contradict each other); export it unmosaicked, or as NIfTI "
            "from the original files",
        )
    return Mosaic(count, normal, step_mm)


def _count_and_normal(header: Header) -> tuple[int, NDArray[np.float64] | None]:
    """The number of slices, 0 if it is missing or contradicts itself, and the direction in which they are stacked."""
    import pydicom
    from nibabel.nicom import csareader

    dataset = pydicom.dcmread(header.path, stop_before_pixels=True, force=True)
    count, stored = _private(dataset, *_COUNT), _private(dataset, *_CSA)
    if isinstance(count, bytes):  # from a file that names no types
        count = int.from_bytes(count, "little")
    csa = csareader.read(stored) if isinstance(stored, bytes) else None
    if csa is None:
        return int(count or 0), None
    counts = {int(n) for n in (count, csareader.get_n_mosaic(csa)) if n}
    normal = csareader.get_slice_normal(csa)
    return counts.pop() if len(counts) == 1 else 0, None if normal is None else np.asarray(normal, float)


def _private(dataset: Dataset, creator: str, group: int, element: int) -> Any:
    """The value of a private attribute in whichever block its creator took; None if it is missing."""
    try:
        return dataset.private_block(group, creator)[element].value
    except KeyError:
        return None
