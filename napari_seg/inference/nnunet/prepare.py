"""Preparation of the network's image as nnU-Net does it, and the way back: crop to what is not 0, normalise, resample.

The rules are those of nnU-Net (https://github.com/MIC-DKFZ/nnUNet, Apache-2.0; Isensee et al., Nature Methods 18,
2021). Here the scan is normalised a few planes at a time while it is resampled, so that the network's image is the only
array of its size.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from napari_seg.bundles.nnunet.configuration import Configuration, Resampling
from napari_seg.bundles.spec import Bundle
from napari_seg.geometry import Grid
from napari_seg.inference.inverse import Inverse
from napari_seg.inference.nnunet.arrangement import Spacing, arranged_grid, arranged_spacing, network_spacing, viewed
from napari_seg.inference.nnunet.normalise import Normaliser
from napari_seg.inference.nnunet.spacing import resampled_channel, resampled_labels, rules_of, separate_axis
from napari_seg.inference.resampling import SLAB_BYTES, Rule
from napari_seg.memory import check_fits, limited_to, resident_bytes
from napari_seg.volume import Segmentation, Volume

if TYPE_CHECKING:
    import torch

MASK_BYTES = 6
"""Memory in bytes for each voxel of the cropped scan while holes of the mask are filled."""

LABEL_BYTES = 28
"""Memory in bytes for each voxel of the network's image while a label map is resampled."""

OPERATOR_BYTES = 29
"""Memory in bytes for each number of the matrix that resamples an axis, while it is made."""

OUTSIDE = -1
"""nnU-Net's label of background outside of the mask."""


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


def prepare_as_nnunet(
    volume: Volume,
    bundle: Bundle,
    configuration: Configuration,
    budget_bytes: int | None = None,
    previous: Segmentation | None = None,
) -> tuple[torch.Tensor, NnunetInverse]:
    """Return the image (C, I, J, K) float32 of an nnU-Net model, and the way back from its grid.

    Args:
        volume: the scan.
        bundle: bundle, for the messages.
        configuration: what the plans say.
        budget_bytes: highest memory that the process may use; None: a safe part of the free memory.
        previous: result of the previous stage of a cascade, on the scan's grid; each of its labels becomes a channel.

    Raises:
        EnvironmentFault: `environment.memory`, the image, or what is needed to make it, does not fit.
        InputError: `data.range`, the values of a scan for a model of colour images are not those of one.
    """
    import torch

    spacing = arranged_spacing(volume, configuration)
    new_spacing = network_spacing(configuration, spacing)
    whole = arranged_grid(volume, configuration)
    shown = whole.box(*box_of_content(viewed(volume.array, volume.grid, whole)))
    shape = _new_shape(configuration, shown.shape, spacing, new_spacing)
    labels = configuration.foreground_labels if previous is not None else ()
    needs_mask = previous is not None or any(one.inside_mask for one in configuration.normalisation)
    image_bytes = 4 * (len(volume.array) + len(labels)) * prod(shape)
    mask_bytes = MASK_BYTES * prod(shown.shape) if needs_mask else 0
    label_bytes = LABEL_BYTES * prod(shape) + 2 * prod(shown.shape) if labels else 0
    with limited_to(None if budget_bytes is None else budget_bytes - resident_bytes()):
        needed = image_bytes + max(mask_bytes, label_bytes, 4 * SLAB_BYTES) + _operator_bytes(shown.shape, shape)
        check_fits(needed, f"preparing this scan for bundle {bundle.root.name!r}")

    channels = viewed(volume.array, volume.grid, shown)
    mask = content_mask(channels) if needs_mask else None
    own_labels: NDArray | None = None
    if previous is not None:
        assert mask is not None
        own_labels = viewed(previous.array, previous.grid, shown).astype(np.int32)
        own_labels[(own_labels == 0) & ~mask] = OUTSIDE
        mask |= own_labels > 0
    image = torch.empty((len(channels) + len(labels), *shape))
    resampling = configuration.resample_image
    alone = separate_axis(resampling, spacing, new_spacing)
    for channel, how, out in zip(channels, configuration.normalisation, image.numpy(), strict=False):
        normaliser = Normaliser.of(channel, how, mask, alone)
        resampled_channel(
            channel,
            shape,
            resampling,
            spacing,
            new_spacing,
            taken=normaliser.planes,
            ranges=normaliser.ranges,
            out=out,
        )
    if own_labels is not None:
        del mask
        own_labels = resampled_labels(own_labels, shape, configuration.resample_labels, spacing, new_spacing)
        for label, out in zip(labels, image.numpy()[len(channels) :], strict=True):
            np.equal(own_labels, label, out=out, casting="unsafe")
    grid = _resized(shown, shape)
    return image, NnunetInverse(grid, shown, configuration.resample_values, new_spacing, spacing)


def _operator_bytes(old: tuple[int, ...], new: tuple[int, ...]) -> int:
    """Return the memory of the matrices that resample, which are small unless an axis gets very many voxels."""
    return sum(OPERATOR_BYTES * m * n for m, n in zip(old, new, strict=True) if m != n)


def _new_shape(
    configuration: Configuration, shape: tuple[int, int, int], spacing: Spacing, new_spacing: Spacing
) -> tuple[int, int, int]:
    if configuration.resample_image.method == "none":
        return shape
    # halves are rounded to even
    i, j, k = (max(1, round(a / b * n)) for n, a, b in zip(shape, spacing, new_spacing, strict=True))
    return i, j, k


def _resized(grid: Grid, shape: tuple[int, int, int]) -> Grid:
    """Return a grid that covers the same box with other voxels."""
    scale = np.divide(grid.shape, shape)
    affine = grid.affine.copy()
    affine[:3, :3] *= scale
    affine[:3, 3] = grid.to_world(scale / 2 - 0.5)
    return Grid(shape, affine)


def box_of_content(channels: NDArray) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Return first and last voxel plus 1 of the box around all voxels that are not 0 in any channel.

    Args:
        channels: (C, I, J, K). If all are 0, the box is all of it.
    """
    box = [slice(None)] * 3
    for axis in range(3):

        def is_empty(n: int, axis: int = axis) -> bool:
            place = [*box]
            place[axis] = slice(n, n + 1)
            return not channels[(slice(None), *place)].any()

        length = channels.shape[1 + axis]
        first = next((n for n in range(length) if not is_empty(n)), 0)
        last = next((n for n in reversed(range(length)) if not is_empty(n)), length - 1)
        box[axis] = slice(first, last + 1)
    i, j, k = box
    return (i.start, j.start, k.start), (i.stop, j.stop, k.stop)


def content_mask(channels: NDArray) -> NDArray[np.bool_]:
    """Return where any channel is not 0, with holes filled: zeros from which no path leads outside.

    Args:
        channels: (C, I, J, K), cropped to their content.
    """
    from scipy.ndimage import label

    mask = np.zeros(channels.shape[1:], bool)
    for channel in channels:
        mask |= channel != 0
    if mask.all():
        return mask
    regions, count = label(~mask)
    is_open = np.zeros(count + 1, bool)
    for axis in range(3):
        for face in (0, -1):
            is_open[np.unique(regions.take(face, axis))] = True
    is_open[0] = False  # the mask itself
    np.logical_not(is_open[regions], out=mask)
    return mask
