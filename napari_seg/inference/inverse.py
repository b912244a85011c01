"""The way back from the network's grid to the scan's, whatever put the scan on the network's grid."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

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

        It is linear, but along `nearest_axes` the nearest value is taken.
        """

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
