"""Read the layout of Siemens mosaics: one stored image tiled from the slices of a volume.

Only Siemens' private attributes state the number of slices and the direction in which they are stacked.
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
"""Private attributes: creator, group and last byte of the element."""


@dataclass(frozen=True, eq=False)
class Mosaic:
    """Layout of the slices of a mosaic.

    Attributes:
        slices: number of slices.
        normal: (3,) unit vector from one slice to the next, in LPS+.
        step_mm: distance between slices.
    """

    slices: int
    normal: NDArray[np.float64]
    step_mm: float

    @property
    def tiles_per_side(self) -> int:
        """Return the number of tiles in a row and in a column."""
        return ceil(sqrt(self.slices))


def mosaic_of(header: Header) -> Mosaic:
    """Return the layout of a mosaic that the header states; nothing is guessed.

    Args:
        header: header of the file.

    Raises:
        InputError: `series.mosaic`, the header does not state it.
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
    """Return the number of slices, 0 if it is missing or contradictory, and the direction in which they are stacked."""
    import pydicom
    from nibabel.nicom import csareader

    dataset = pydicom.dcmread(header.path, stop_before_pixels=True, force=True)
    count, stored = _private(dataset, *_COUNT), _private(dataset, *_CSA)
    if isinstance(count, bytes):  # implicit VR
        count = int.from_bytes(count, "little")
    csa = csareader.read(stored) if isinstance(stored, bytes) else None
    if csa is None:
        return int(count or 0), None
    counts = {int(n) for n in (count, csareader.get_n_mosaic(csa)) if n}
    normal = csareader.get_slice_normal(csa)
    return counts.pop() if len(counts) == 1 else 0, None if normal is None else np.asarray(normal, float)


def _private(dataset: Dataset, creator: str, group: int, element: int) -> Any:
    """Return the value of a private attribute, whichever block its creator reserved; None if it is missing."""
    try:
        return dataset.private_block(group, creator)[element].value
    except KeyError:
        return None
