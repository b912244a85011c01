"""Runs a bundle's network over a volume and decides the labels on the scan's own grid.

For now the windows are MONAI's: the bundle's inferer runs them and holds the logits of the network's grid.
The way back to the scan goes slab by slab, so that no class is ever held on the scan's grid as a whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_seg.bundle import Bundle, Model
from napari_seg.errors import BundleError, EnvironmentFault, NapariSegError
from napari_seg.geometry import Grid, resample
from napari_seg.volume import Volume

if TYPE_CHECKING:
    import torch

SLAB_VOXELS = 8_000_000
"""Voxels of the scan decided at once; two float32 maps of this many are held."""


@dataclass(frozen=True)
class Logits:
    """What a network says about one region.

    Attributes:
        array: (classes, I, J, K) float32; class 0 is background.
        grid: where (I, J, K) lies, in the scan's world.
    """

    array: NDArray[np.float32]
    grid: Grid

    def confidence(self) -> dict[int, float]:
        """Class -> mean softmax probability over the voxels where that class wins; absent where it never does."""
        shifted = np.exp(self.array - self.array.max(axis=0))
        winners, probability = self.array.argmax(axis=0), 1.0 / shifted.sum(axis=0)
        return {int(c): float(probability[winners == c].mean()) for c in np.unique(winners)}


def run_network(
    volume: Volume, region_grid: Grid | None, bundle: Bundle, model: Model, on_window: Callable[[int, int], None]
) -> Logits:
    """The network's logits over one region of a scan.

    Args:
        volume: the scan.
        region_grid: what the network is shown; None: the scan as it is, with the bundle's own resampling.
        bundle: for the messages.
        model: the bundle's network, preprocessing and inferer.
        on_window: called as (done, total) after every batch of windows; may raise to stop.

    Raises:
        BundleError: `bundle.preprocessing` or `bundle.network`, the bundle's own code failed on this scan.
        EnvironmentFault: `environment.memory`, the device has too little memory for one batch of windows.
        InputError: `geometry.shear`, the bundle's transforms leave a grid that is none.
    """
    import torch

    image, to_scan_world = _prepared(volume, region_grid, bundle, model)
    array = image.as_tensor() if hasattr(image, "as_tensor") else image
    affine = np.asarray(getattr(image, "affine", np.eye(4)), dtype=np.float64)
    grid = Grid(tuple(array.shape[1:]), to_scan_world @ affine)
    batch = array[None].to(model.device, dtype=torch.float32)
    total = _count_windows(grid.shape, model.inferer)
    done = 0

    def network(window: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal done
        logits = model.network(window, *args, **kwargs)
        done += window.shape[0]
        on_window(min(done, total), total)
        return logits

    on_window(0, total)
    try:
        with torch.inference_mode():
            logits = model.inferer(batch, network)
    except NapariSegError:
        raise
    except torch.OutOfMemoryError as error:
        raise EnvironmentFault(
            "environment.memory", f"{model.device} has too little memory for this network's windows; try --device cpu"
        ) from error
    except Exception as error:  # a bundle's own network can raise anything
        raise BundleError(
            "bundle.network",
            f"the network of bundle {bundle.root.name!r} failed on this scan ({type(error).__name__}: {error})",
        ) from error
    classes = 1 + max((segment.label for segment in bundle.network_segments), default=1)
    if logits.shape[2:] != batch.shape[2:] or logits.shape[1] < classes:
        raise BundleError(
            "bundle.network",
            f"the network of bundle {bundle.root.name!r} answered {tuple(logits.shape[1:])} for an image of "
            f"{tuple(batch.shape[2:])}; expected {classes} classes of the image's size",
        )
    return Logits(logits[0].float().cpu().numpy(), grid)


def _prepared(
    volume: Volume, region_grid: Grid | None, bundle: Bundle, model: Model
) -> tuple[torch.Tensor, NDArray[np.float64]]:
    """The image after the bundle's preprocessing, and the affine from the network's world to the scan's.

    A region is shown as if its axes were the patient's: index axes along +x, +y and +z, first voxel at 0. So
    whatever the bundle's transforms do (turn to RAS, change the spacing, crop), they do to the region, and a
    mirrored or turned region stays mirrored or turned.
    """
    import torch
    from monai.data import MetaTensor

    if region_grid is None:
        array, affine, to_scan_world = volume.array, volume.grid.affine, np.eye(4)
    else:
        array = resample(volume.array, volume.grid, region_grid)
        affine = np.diag([*region_grid.spacing_mm, 1.0])
        to_scan_world = region_grid.affine @ np.linalg.inv(affine)
    tensor = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    image = MetaTensor(tensor, affine=torch.from_numpy(affine.copy()))
    try:
        return model.preprocessing({"image": image})["image"], to_scan_world
    except Exception as error:  # a bundle's own transforms can raise anything
        raise BundleError(
            "bundle.preprocessing",
            f"the transforms of bundle {bundle.root.name!r} failed on this scan ({type(error).__name__}: {error})",
        ) from error


def decide(logits: Logits, labels: dict[int, int], label_map: NDArray[np.unsignedinteger], grid: Grid) -> None:
    """Writes the winning class of every voxel of the scan that the region covers into the scan's label map.

    Logits are interpolated linearly to the scan's grid before the decision; voxels that an earlier region
    gave a structure keep it.

    Args:
        logits: of one region.
        labels: class -> label; a class that is not named here counts as background.
        label_map: (I, J, K) on `grid`; changed in place.
        grid: the scan's.
    """
    lookup = np.zeros(logits.array.shape[0], dtype=label_map.dtype)
    for network_class, label in labels.items():
        lookup[network_class] = label
    # only voxels of the scan that lie in the region: its outer faces, carried to the scan's indices
    ends = np.array(logits.grid.shape) - 0.5
    faces = np.stack(np.meshgrid(*[(-0.5, end) for end in ends], indexing="ij"), axis=-1).reshape(8, 3)
    reached = grid.to_index(logits.grid.to_world(faces))
    start = np.maximum(np.floor(reached.min(axis=0)).astype(int), 0)
    stop = np.minimum(np.ceil(reached.max(axis=0)).astype(int) + 1, grid.shape)
    if (stop <= start).any():
        return
    depth = max(1, int(SLAB_VOXELS // np.prod(stop[1:] - start[1:])))
    for first in range(int(start[0]), int(stop[0]), depth):
        last = min(first + depth, int(stop[0]))
        slab = grid.box((first, start[1], start[2]), (last, stop[1], stop[2]))
        best = np.full(slab.shape, -np.inf, dtype=np.float32)
        winner = np.zeros(slab.shape, dtype=label_map.dtype)
        for network_class, label in enumerate(lookup):
            score = resample(logits.array[network_class], logits.grid, slab)
            better = score > best
            best[better] = score[better]
            winner[better] = label
        winner[~_covered(slab, logits.grid)] = 0
        part = label_map[first:last, start[1] : stop[1], start[2] : stop[2]]
        np.copyto(part, winner, where=part == 0)


def _covered(slab: Grid, region: Grid) -> NDArray[np.bool_]:
    """(*slab.shape) which voxels of the slab have their centre inside the region, outer half voxels included."""
    to_region = np.linalg.inv(region.affine) @ slab.affine
    axes = [np.arange(n, dtype=np.float32) for n in slab.shape]
    covered = np.ones(slab.shape, dtype=bool)
    for axis in range(3):
        a, b, c, offset = to_region[axis].astype(np.float32)
        index = a * axes[0][:, None, None] + b * axes[1][None, :, None] + c * axes[2] + offset
        covered &= (index > -0.501) & (index < region.shape[axis] - 0.499)
    return covered


def _count_windows(shape: tuple[int, int, int], inferer: Any) -> int:
    """How many windows MONAI's sliding-window inferer lays over a grid; 1 for an inferer without windows."""
    roi = getattr(inferer, "roi_size", None)
    if roi is None:
        return 1
    rois = [roi] * 3 if isinstance(roi, int) else list(roi)
    overlap = getattr(inferer, "overlap", 0.25)
    overlaps = list(overlap) if isinstance(overlap, list | tuple) else [overlap] * 3
    if len(rois) != 3 or len(overlaps) != 3:  # slice by slice, or some other way: nobody can tell
        return 1
    count = 1
    for size, window, share in zip(shape, rois, overlaps, strict=True):
        if window is None or window <= 0 or window >= size:
            continue
        step = max(1, int(window * (1 - share)))
        count *= ceil((size - window) / step) + 1
    return count
