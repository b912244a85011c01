"""Preparation of the network's image by MONAI's transforms, and the way back from the network's grid to the scan's.

The scan is resampled once on the grid that the bundle's transforms require. Where these transforms do nothing else to
the grid but crop the foreground, the way back is interpolation between two grids, which the engine does while windows
are computed (`Inverse.is_resampling`). Otherwise MONAI inverts the transforms.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_seg.bundles.causes import is_of_memory
from napari_seg.bundles.dimensions import REFERENCE_KEYS
from napari_seg.bundles.spec import Bundle
from napari_seg.errors import BundleError, EnvironmentFault, NapariSegError
from napari_seg.geometry import Grid, index_affine, parallel_axes, resample
from napari_seg.inference.inverse import Inverse
from napari_seg.memory import check_fits, limited_to, resident_bytes
from napari_seg.volume import Segmentation, Volume

if TYPE_CHECKING:
    import torch
    from monai.transforms import Compose

INVERSE_BYTES = 64
"""Memory in bytes for each voxel of the scan while MONAI inverts one channel; most are float64 coordinates."""

COORDINATE_BYTES = 16
"""Memory in bytes for each voxel while MONAI interpolates at coordinates, as it does for Spacingd; at least."""

MIN_CHECKED_BYTES = 2**26
"""Results of transforms up to this size are not checked against the budget; what follows needs more anyway."""


@dataclass(frozen=True, eq=False)
class TransformsInverse(Inverse):
    """The way from the network's grid back to the grid that the bundle's transforms were shown.

    Attributes:
        preprocessing: the transforms.
        traced: MetaTensor without content that holds what the transforms have done to the image.
        key: key of the image inside the transforms.
        is_2d: whether the transforms were shown (C, I, J).
        to_scan_world: 4 x 4, from the world of the transforms to the scan's.
    """

    preprocessing: Compose
    traced: Any
    key: str
    is_2d: bool = False
    to_scan_world: NDArray[np.float64] = field(default_factory=lambda: np.eye(4))

    @property
    def is_resampling(self) -> bool:
        """True if linear interpolation between the two grids inverts the transforms, see `Inverse`."""
        before, resampled, after = self._operations
        # a crop after the resampling is the last operation, so that its faces are those of the network's grid
        known = [{"Orientation", "CropForeground"}, {"Orientation"}, {"Orientation", "CropForeground"}]
        for part, names in zip((before, after[:-1], after[-1:]), known, strict=True):
            if {operation.get("class") for operation in part} - names:
                return False
        if any(map(_pads, (*before, *after))) or not (resampled is None or _is_linear(resampled)):
            return False
        is_parallel = parallel_axes(index_affine(self.grid, self.shown), self.shown.shape) is not None
        return not self.is_cropped or (is_parallel and not self.is_2d)

    @property
    def covered(self) -> Grid:
        """The part of `shown` that was resampled, see `Inverse`."""
        before, resampled, _ = self._operations
        if not any(operation.get("class") == "CropForeground" for operation in before):
            return self.shown
        if resampled is None:
            return self.grid
        affine = np.asarray(resampled["extra_info"]["src_affine"], dtype=np.float64)
        return _grid(resampled["orig_size"], self.to_scan_world @ affine)

    @property
    def zero_faces(self) -> NDArray[np.bool_]:
        """The faces of the network's grid that were cropped after the resampling, see `Inverse`."""
        *_, after = self._operations
        if not after or after[-1].get("class") != "CropForeground":
            return super().zero_faces
        return np.reshape(after[-1]["extra_info"]["cropped"], (-1, 2)) > 0

    @property
    def _operations(self) -> tuple[list[Any], Any, list[Any]]:
        """Traced operations on the grid: before the first resampling, that one (None: none), and after it."""
        operations = list(self.traced.applied_operations)
        names = [operation.get("class") for operation in operations]
        if "SpatialResample" not in names:
            return operations, None, []
        n = names.index("SpatialResample")
        return operations[:n], operations[n], operations[n + 1 :]

    def values(self, values: torch.Tensor, *, nearest: bool) -> torch.Tensor:
        """Return values of the network's grid on the grid that the transforms were shown, as MONAI does."""
        import torch
        from monai.data import MetaTensor
        from monai.transforms import Invertd

        if not self.traced.applied_operations:
            return values
        invert = Invertd("pred", self.preprocessing, self.key, nearest_interp=nearest, to_tensor=True)
        inverted = torch.empty((len(values), *self.shown.shape), dtype=torch.float32)
        for channel, out in zip(values.cpu().float(), inverted, strict=True):
            shown = channel[..., 0] if self.is_2d else channel
            found = invert({self.key: self.traced, "pred": MetaTensor(shown[None])})["pred"].as_tensor()[0]
            out.copy_(found[..., None] if self.is_2d else found)
        return inverted

    def values_bytes(self, channels: int) -> int:
        """Return the additional memory in bytes of `values`."""
        return (4 * channels + INVERSE_BYTES) * prod(self.shown.shape) if self.traced.applied_operations else 0


def prepare_by_transforms(
    volume: Volume,
    region_grid: Grid | None,
    bundle: Bundle,
    preprocessing: Compose,
    is_2d: bool = False,
    budget_bytes: int | None = None,
    previous: Segmentation | None = None,
) -> tuple[torch.Tensor, TransformsInverse]:
    """Return the image (C, I, J, K) float32 after a bundle's transforms, and the way back from its grid.

    The bundle's leading transforms of orientation and spacing only tell the grid of their result. The scan is
    resampled on it once, which needs no copy of the scan and gives the same image. Other transforms run as they are.

    A region is passed to the transforms as if its axes were the patient's: index axes along +x, +y and +z, first voxel
    at 0. So the transforms (orientation, spacing, crop) apply to the region, and a mirrored or rotated region stays
    mirrored or rotated. A network of 2D images, and its transforms, are shown (C, I, J).

    Args:
        volume: the scan.
        region_grid: grid of the region that the network sees; None: the scan as it is.
        bundle: bundle, for the messages.
        preprocessing: the transforms.
        is_2d: whether the network is one of 2D images.
        budget_bytes: highest memory that the process may use; None: a safe part of the free memory.
        previous: result of the previous stage of a cascade, on the scan's grid; the bundle's own transforms make a
            channel of each of its labels.

    Raises:
        BundleError: `bundle.preprocessing`, the bundle's own code failed on this scan.
        EnvironmentFault: `environment.memory`, the result of a transform does not fit.
        InputError: `geometry.shear`, the transforms return an affine that is no grid.
    """
    import torch
    from monai.data import MetaTensor
    from monai.transforms import Compose

    shown = region_grid or volume.grid
    # MONAI reads a picture without a place in the patient
    is_placed = region_grid is None and volume.source.format != "image2d"
    affine = shown.affine if is_placed else np.diag([*shown.spacing_mm, 1.0])
    shown_affine, to_scan_world = affine, shown.affine @ np.linalg.inv(affine)
    transforms = list(preprocessing.transforms)
    keys = (key for one in transforms for key in getattr(one, "keys", ()))
    key = next((key for key in keys if key not in REFERENCE_KEYS), "image")
    traced: list[Any] = []
    try:
        # one number in memory, however large the scan: these transforms use only shape and affine
        required = MetaTensor(
            torch.zeros(1).expand(len(volume.array), *shown.shape), affine=torch.from_numpy(affine.copy())
        )
        while transforms and not is_2d and _only_resamples(transforms[0], after=traced):
            required = transforms.pop(0)({"image": required}, lazy=True)["image"]
            traced = list(required.pending_operations)
        affine = required.peek_pending_affine().numpy()
        grid = _grid(required.peek_pending_shape(), to_scan_world @ affine)
        # first the label map and then a channel for each of its labels are appended, each time to a copy of the image
        labels = len(volume.array) + 1 + len(bundle.network_segments) if previous is not None else 0
        _check_fits(4 * (len(volume.array) + labels) * prod(grid.shape), "its grid", bundle, budget_bytes)
        array = resample(volume.array, volume.grid, grid).astype(np.float32, copy=False)
        array = array[..., 0] if is_2d else array
        image = MetaTensor(torch.from_numpy(array), affine=torch.from_numpy(affine))
        data: Any = {"image": image}
        if previous is not None:
            own_affine = torch.from_numpy(shown_affine.copy())
            labels_of_torch = previous.array if previous.array.dtype == np.uint8 else previous.array.astype(np.int32)
            data["previous"] = MetaTensor(torch.from_numpy(labels_of_torch)[None], affine=own_affine)
        for transform in Compose(transforms).flatten().transforms:
            _check_fits(_result_bytes(transform, data), type(transform).__name__, bundle, budget_bytes)
            data = Compose([transform])(data)
        image = data["image"]
    except NapariSegError:
        raise
    except Exception as error:  # a bundle's own transforms can raise anything
        if is_of_memory(error):
            text = f"this machine has too little memory for the transforms of bundle {bundle.root.name!r} on this scan"
            raise EnvironmentFault("environment.memory", f"{text}; close other programs, or crop the scan") from error
        raise BundleError(
            "bundle.preprocessing",
            f"the transforms of bundle {bundle.root.name!r} failed on this scan ({type(error).__name__}: {error})",
        ) from error
    if not all(image.shape):
        text = f"the transforms of bundle {bundle.root.name!r} crop all away: they find no foreground in this scan"
        raise BundleError("bundle.preprocessing", f"{text}; look whether it is empty, or choose another model")
    if isinstance(image, MetaTensor):
        plain, affine, traced = image.as_tensor(), image.affine.numpy(), [*traced, *image.applied_operations]
    else:
        plain, affine = image, np.eye(4)
    nothing = MetaTensor(torch.empty(0), affine=torch.from_numpy(affine), applied_operations=traced)
    if is_2d:
        plain = plain[..., None]
        grid = Grid((plain.shape[1], plain.shape[2], 1), grid.affine)  # its place only serves to tell pixels apart
    else:
        grid = _grid(plain.shape[1:], to_scan_world @ affine)
    return plain.float(), TransformsInverse(grid, shown, preprocessing, nothing, key, is_2d, to_scan_world)


def _check_fits(count: int, cause: str, bundle: Bundle, budget_bytes: int | None) -> None:
    if count > MIN_CHECKED_BYTES:
        with limited_to(None if budget_bytes is None else budget_bytes - resident_bytes()):
            check_fits(count, f"preparing this scan for bundle {bundle.root.name!r} ({cause})")


def _result_bytes(transform: Any, data: Any) -> int:
    """Return a lower bound of the memory in bytes that a transform of MONAI takes; 0 if it is not known beforehand.

    Args:
        transform: a transform, which is not run; a bundle's own is not even asked.
        data: what it will be given.
    """
    import torch
    from monai.data import MetaTensor
    from monai.transforms import Affined, CropForegroundd, LazyTransform, RepeatChanneld, Rotated, Spacingd

    if not type(transform).__module__.startswith("monai.") or not isinstance(data, dict):
        return 0
    arrays = {key: value for key, value in data.items() if isinstance(value, torch.Tensor | np.ndarray)}
    if isinstance(transform, RepeatChanneld):
        return transform.repeater.repeats * sum(arrays[key].nbytes for key in transform.keys if key in arrays)
    if not isinstance(transform, LazyTransform):
        return 0
    shown = dict(data)
    if not isinstance(transform, CropForegroundd):  # the others use only shape and affine
        for key, array in arrays.items():
            affine = array.affine if isinstance(array, MetaTensor) else None
            shown[key] = MetaTensor(torch.zeros(1).expand(*array.shape), affine=affine)
    try:
        found = transform(shown, lazy=True)
    except Exception:  # running it says why
        return 0
    count = 0
    for key, value in found.items():
        if key in arrays and isinstance(value, MetaTensor) and value.pending_operations:
            shape = tuple(int(n) for n in value.peek_pending_shape())
            moves = isinstance(transform, Spacingd | Affined | Rotated) and shape != tuple(value.shape[1:])
            count += (4 * len(value) + COORDINATE_BYTES * moves) * prod(shape)
    return count


def _only_resamples(transform: Any, after: list[Any]) -> bool:
    """Return whether a transform only interpolates linearly on another grid, with edges repeated, and once in all."""
    from monai.transforms import Orientationd, Spacingd

    if type(transform) is Orientationd:
        return True
    linear = type(transform) is Spacingd and not any(transform.align_corners) and not any(transform.scale_extent)
    return (
        linear
        and not any(operation.get("class") == "SpatialResample" for operation in after)
        and {*map(str, transform.mode)} <= {"bilinear", "1"}
        and {*map(str, transform.padding_mode)} == {"border"}
    )


def _is_linear(operation: dict[str, Any]) -> bool:
    """Return whether a traced resampling interpolates linearly with edges repeated."""
    how = operation.get("extra_info", {})
    return (
        str(how.get("mode")) in ("bilinear", "1")
        and how.get("padding_mode") == "border"
        and how.get("align_corners") in (False, None, "none")
    )


def _pads(operation: dict[str, Any]) -> bool:
    """Return whether a traced crop also added voxels around the image, as for a margin beyond its edge."""
    padding = operation.get("extra_info", {}).get("pad_info", {}).get("extra_info", {}).get("padded", ())
    return bool(np.any(padding))


def _grid(shape: Any, affine: Any) -> Grid:
    i, j, k = (int(n) for n in shape)
    return Grid((i, j, k), np.asarray(affine, dtype=np.float64))
