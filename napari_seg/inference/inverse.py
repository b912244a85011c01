"""The way back from the network's grid to the scan's, whatever put the scan on the network's grid."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from napari_seg.geometry import Grid

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class Inverse(ABC):
    """The way from the network's grid back to the grid that the preprocessing was shown.

    Attributes:
        grid: the network's grid, in the scan's world.
        shown: the grid that the preprocessing was shown, in the scan's world: the scan's own, or a part of it.
    """

    grid: Grid
    shown: Grid

    @property
    @abstractmethod
    def is_resampling(self) -> bool:
        """True if interpolation between the two grids, with edges repeated, inverts the preprocessing.

        It is linear, but along `nearest_axes` the nearest value is taken. Where the preprocessing crops, values are 0
        beyond `zero_faces` and outside of `covered`.
        """

    @property
    def covered(self) -> Grid:
        """The part of `shown` that the preprocessing resampled; it cropped the rest before."""
        return self.shown

    @property
    def zero_faces(self) -> NDArray[np.bool_]:
        """(3, 2) first and last face along each axis of the network's grid that the preprocessing cropped there."""
        return np.zeros((3, 2), dtype=bool)

    @property
    def is_cropped(self) -> bool:
        """True if the preprocessing cropped, before or after it resampled."""
        return self.covered is not self.shown or bool(self.zero_faces.any())

    @property
    def nearest_axes(self) -> tuple[int, ...]:
        """Axes of the network's grid along which the nearest value is taken."""
        return ()

    @abstractmethod
    def values(self, values: torch.Tensor, *, nearest: bool) -> torch.Tensor:
        """Return values (C, I, J, K) of the network's grid on the grid that the preprocessing was shown.

        Args:
            values: on the network's grid.
            nearest: take the nearest value instead of interpolating.
        """

    @abstractmethod
    def values_bytes(self, channels: int) -> int:
        """Return the additional memory in bytes of `values`."""
