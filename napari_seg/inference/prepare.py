"""Preparation of the network's image, by the preprocessing that the model says, and the way back to the scan's grid."""

from __future__ import annotations

from typing import TYPE_CHECKING

from napari_seg.bundles.nnunet.configuration import Configuration
from napari_seg.bundles.spec import Bundle
from napari_seg.geometry import Grid
from napari_seg.inference.inverse import Inverse
from napari_seg.volume import Segmentation, Volume

if TYPE_CHECKING:
    import torch

    from napari_seg.bundles.model import Model


def prepare(
    volume: Volume,
    region_grid: Grid | None,
    bundle: Bundle,
    model: Model,
    budget_bytes: int | None = None,
    previous: Segmentation | None = None,
) -> tuple[torch.Tensor, Inverse]:
    """Return the image (C, I, J, K) float32 after a model's preprocessing, and the way back from its grid.

    Args:
        volume: the scan.
        region_grid: grid of the region that the network sees; None: the scan as it is.
        bundle: bundle, for the messages.
        model: model with the preprocessing.
        budget_bytes: highest memory that the process may use; None: a safe part of the free memory.
        previous: result of the previous stage of a cascade, on the scan's grid.

    Raises:
        BundleError: `bundle.preprocessing`, the bundle's own code failed on this scan.
        EnvironmentFault: `environment.memory`, the image, or what is needed to make it, does not fit.
        InputError: `geometry.shear`, the bundle's transforms return an affine that is no grid.
    """
    preprocessing = model.preprocessing
    if isinstance(preprocessing, Configuration):
        from napari_seg.inference.nnunet.prepare import prepare_as_nnunet

        assert region_grid is None  # models of nnU-Net have no localiser
        return prepare_as_nnunet(volume, bundle, preprocessing, budget_bytes, previous)
    from napari_seg.inference.transforms import prepare_by_transforms

    is_2d = model.spatial_dims == 2
    return prepare_by_transforms(volume, region_grid, bundle, preprocessing, is_2d, budget_bytes, previous)
