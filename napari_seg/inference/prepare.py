"""Preparation of the network's image: the scan resampled once on the grid that the bundle's transforms require."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from napari_seg.bundles.spec import Bundle
from napari_seg.errors import BundleError, NapariSegError
from napari_seg.geometry import Grid, resample
from napari_seg.volume import Volume

if TYPE_CHECKING:
    import torch

    from napari_seg.bundles.model import Model


def prepare(volume: Volume, region_grid: Grid | None, bundle: Bundle, model: Model) -> tuple[torch.Tensor, Grid]:
    """Return the image (C, I, J, K) float32 after a bundle's preprocessing, and its grid in the scan's world.

    The bundle's leading transforms of orientation and spacing only tell the grid of their result. The scan is
    resampled on it once, which needs no copy of the scan and gives the same image. Other transforms run as they are.

    A region is passed to the transforms as if its axes were the patient's: index axes along +x, +y and +z, first voxel
    at 0. So the transforms (orientation, spacing, crop) apply to the region, and a mirrored or rotated region stays
    mirrored or rotated.

    Args:
        volume: the scan.
        region_grid: grid of the region that the network sees; None: the scan as it is.
        bundle: bundle, for the messages.
        model: model with the preprocessing.

    Raises:
        BundleError: `bundle.preprocessing`, the bundle's own code failed on this scan.
        InputError: `geometry.shear`, the transforms return an affine that is no grid.
    """
    import torch
    from monai.data import MetaTensor
    from monai.transforms import Compose

    shown = region_grid or volume.grid
    affine = shown.affine if region_grid is None else np.diag([*shown.spacing_mm, 1.0])
    to_scan_world = shown.affine @ np.linalg.inv(affine)
    transforms = list(model.preprocessing.transforms)
    try:
        # one number in memory, however large the scan: these transforms use only shape and affine
        required = MetaTensor(
            torch.zeros(1).expand(len(volume.array), *shown.shape), affine=torch.from_numpy(affine.copy())
        )
        while transforms and _only_resamples(transforms[0]):
            required = transforms.pop(0)({"image": required}, lazy=True)["image"]
        affine = required.peek_pending_affine().numpy()
        grid = _grid(required.peek_pending_shape(), to_scan_world @ affine)
        array = resample(volume.array, volume.grid, grid)
        image = MetaTensor(torch.from_numpy(array.astype(np.float32, copy=False)), affine=torch.from_numpy(affine))
        image = Compose(transforms)({"image": image})["image"]
    except NapariSegError:
        raise
    except Exception as error:  # a bundle's own transforms can raise anything
        raise BundleError(
            "bundle.preprocessing",
            f"the transforms of bundle {bundle.root.name!r} failed on this scan ({type(error).__name__}: {error})",
        ) from error
    plain = image.as_tensor() if isinstance(image, MetaTensor) else image
    return plain.float(), _grid(plain.shape[1:], to_scan_world @ np.asarray(getattr(image, "affine", np.eye(4))))


def _only_resamples(transform: Any) -> bool:
    """Return whether a transform only interpolates linearly on another grid, with edges repeated."""
    from monai.transforms import Orientationd, Spacingd

    if type(transform) is Orientationd:
        return True
    linear = type(transform) is Spacingd and not any(transform.align_corners) and not any(transform.scale_extent)
    return (
        linear
        and {*map(str, transform.mode)} <= {"bilinear", "1"}
        and {*map(str, transform.padding_mode)} == {"border"}
    )


def _grid(shape: Any, affine: Any) -> Grid:
    i, j, k = (int(n) for n in shape)
    return Grid((i, j, k), np.asarray(affine, dtype=np.float64))
