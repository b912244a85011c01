"""The way back from the grid of an nnU-Net model to the scan's."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from napari_seg.bundles.nnunet.configuration import Resampling
from napari_seg.inference.inverse import Inverse
from napari_seg.inference.nnunet.arrangement import Spacing
from napari_seg.inference.nnunet.spacing import resampled_channel, rules_of
from napari_seg.inference.resampling import SLAB_BYTES, Rule

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class NnunetInverse(Inverse):
    """The way from the network's grid back to the voxels of the scan that were not cropped.

    Attributes:
        resampling: of the network's values.
        spacing: voxel sizes of the network's grid, as the plans state them.
        shown_spacing: voxel sizes of the scan, in the order of the network's axes.
    """

    resampling: Resampling
    spacing: Spacing
    shown_spacing: Spacing

    @property
    def rules(self) -> tuple[Rule, Rule, Rule]:
        """Rule of each axis of the network's grid."""
        return rules_of(self.resampling, self.spacing, self.shown_spacing)

    @property
    def is_resampling(self) -> bool:
        """True unless the plans take a spline of a higher order for the network's values."""
        return max(rule.order for rule in self.rules) <= 1

    @property
    def nearest_axes(self) -> tuple[int, ...]:
        """Axes of the network's grid along which the nearest value is taken."""
        return tuple(axis for axis, rule in enumerate(self.rules) if rule.order == 0)

    def values(self, values: torch.Tensor, *, nearest: bool) -> torch.Tensor:
        """Return values (C, I, J, K) of the network's grid on the scan's voxels that were not cropped."""
        import torch

        resampling = Resampling("spline", 0, 0) if nearest else self.resampling
        result = torch.empty((len(values), *self.shown.shape))
        for channel, out in zip(values.cpu().float().numpy(), result.numpy(), strict=True):
            resampled_channel(channel, self.shown.shape, resampling, self.spacing, self.shown_spacing, out=out)
        return result

    def values_bytes(self, channels: int) -> int:
        """Return the additional memory in bytes of `values`."""
        return 4 * channels * prod(self.shown.shape) + 2 * SLAB_BYTES
