"""What the network is shown: a scan sampled once on the grid that the bundle's transforms ask for."""

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
    """The image (C, I, J, K) float32 after a bundle's preprocessing, and where it lies in the scan's world.

    The bundle's leading transforms of orientation and spacing only say which grid they want; the scan is sampled on it
    in one go, which needs no copy of the scan and gives what they would give. All others run as they are.

    A region is shown as if its axes were the patient's: index axes along +x, +y and +z, first voxel at 0. So
    whatever the bundle's transforms do (turn to RAS, change the spacing, crop), they do to the region, and a
    mirrored or turned region stays mirrored or turned.

    Args:
        volume: the scan.
        region_grid: what the network is shown; None: the scan as it is.
        bundle: for the messages.
        model: whose preprocessing it is.

    Raises:
        BundleError: `bundle.preprocessing`, the bundle's own code failed on this scan.
        InputError: `geometry.shear`, the transforms leave a grid that is none.
    """
    import torch
    from monai.data import MetaTensor
    from monai.transforms import Compose

    shown = region_grid or volume.grid
    affine = shown.affine if region_grid is None else np.diag([*shown.spacing_mm, 1.0])
    to_scan_world = shown.affine @ np.linalg.inv(affine)
    transforms = list(model.preprocessing.transforms)
    try:
        # holds one number however large the scan: these transforms look at shape and affine alone
        wanted = MetaTensor(
            torch.zeros(1).expand(len(volume.array), *shown.shape), affine=torch.from_numpy(affine.copy())
        )
        while transforms and _asks_for_a_grid(transforms[0]):
            wanted = transforms.pop(0)({"image": wanted}, lazy=True)["image"]
        affine = wanted.peek_pending_affine().numpy()
        grid = _grid(wanted.peek_pending_shape(), to_scan_world @ affine)
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


def _asks_for_a_grid(transform: Any) -> bool:
    """Whether a transform does no more than linear sampling on another grid, edges repeated."""
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
