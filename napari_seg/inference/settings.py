"""Settings of a run: a checked request with the loaded model. `segment` and `estimate` both start from it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_seg.bundles.spec import Bundle
from napari_seg.bundles.tta import TTA
from napari_seg.bundles.windows import WindowSettings
from napari_seg.errors import BundleError, EnvironmentFault, Notice
from napari_seg.geometry import Grid
from napari_seg.inference.body import Body, find_body
from napari_seg.inference.fitness import check_fit, doubts
from napari_seg.inference.options import SegmentOptions
from napari_seg.localise import is_crop
from napari_seg.memory import default_budget
from napari_seg.progress import Progress, ignore_progress
from napari_seg.volume import Segmentation, Volume, modality_code

if TYPE_CHECKING:
    from napari_seg.bundles.model import Model
    from napari_seg.bundles.precision import Precision


@dataclass(frozen=True)
class RegionSettings:
    """How the regions of a scan are segmented.

    Attributes:
        bundle: the bundle.
        model: its model, loaded.
        options: the options of the run.
        windows: window settings, test-time averaging included; None: the bundle's inferer does not slide windows.
        budget_bytes: highest memory that the process may use.
        body_in: function from the grid of an image to the part of it that can have content; None: all of it can.
        previous: result of the previous stage of a cascade, on the scan's grid; None: there is none.
        takes_values: makes what takes the values of a region, with the arguments of `RegionLabels`; None: that is what
            decides their labels.
        notices: collects what the user must know about how the scan was segmented.
        run: collects how the network was run, for the record: "precision", and "equal_labels" if it was checked.
        began: start of the run, by `time.perf_counter`.
    """

    bundle: Bundle
    model: Model
    options: SegmentOptions
    windows: WindowSettings | None
    budget_bytes: int
    body_in: Callable[[Grid], Body | None] | None = None
    previous: Segmentation | None = None
    takes_values: Callable[..., Any] | None = None
    notices: list[Notice] = field(default_factory=list)
    run: dict[str, Any] = field(default_factory=dict)
    began: float = field(default_factory=time.perf_counter)

    def promised_bytes(self, voxels: int, label_type: np.dtype) -> int:
        """Return the memory that the label map and the required confidence maps use once they are written to.

        Args:
            voxels: number of voxels of the scan.
            label_type: type of the label map.
        """
        return (3 if self.options.confidence_maps else 1) * label_type.itemsize * voxels


def set_up(
    volume: Volume, bundle: Bundle, options: SegmentOptions, progress: Progress = ignore_progress
) -> RegionSettings:
    """Check that a scan, a bundle, this machine and the options fit together, and load the model.

    Args:
        volume: the scan.
        bundle: the bundle.
        options: the options of the run.
        progress: called with the stage "loading".

    Raises:
        BundleError: the bundle is untrusted, incomplete or made for other scans; `bundle.tta`, its network can't be
            averaged as required.
        EnvironmentFault: `environment.device` or `environment.precision`, this machine does not have it.
    """
    began = time.perf_counter()
    options = options.resolved(bundle)
    check_fit(volume, bundle)
    device = resolve_device(options.device, options.precision)
    progress("loading", 0, 1)
    from napari_seg.bundles.load import load_model

    model = load_model(bundle, device, options.precision)
    progress("loading", 1, 1)
    tta = options.tta or bundle.tta
    if tta is None and options.match == "exact" and model.mirror_axes:
        tta = "mirror"
    windows = _window_settings(bundle, model, tta)
    modality = modality_code(volume.modality) or modality_code(bundle.modality)
    is_whole = is_shown_whole(volume, bundle)
    return RegionSettings(
        bundle,
        model,
        options,
        windows,
        default_budget() if options.memory_bytes is None else options.memory_bytes,
        (lambda grid: find_body(volume, grid, modality)) if options.crop and is_whole else None,
        notices=[*model.notices, *doubts(volume, bundle, model, windows if is_whole else None)],
        began=began,
    )


def is_shown_whole(volume: Volume, bundle: Bundle) -> bool:
    """Return whether the network sees the scan as it is, so that no regions have to be located in it."""
    return bundle.localiser is None or is_crop(volume, bundle.localiser)


def resolve_device(device: str, precision: Precision = "auto") -> str:
    """Return torch's name of a device that exists and computes in a precision; "auto" becomes "cuda" or "cpu".

    Raises:
        EnvironmentFault: `environment.device`, there is no such device; `environment.precision`, it does not compute
            in that precision.
    """
    import torch

    from napari_seg.bundles.precision import compute_dtype

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    name, _, number = device.partition(":")
    if name not in ("cpu", "cuda") or (number and not number.isdigit()):
        raise EnvironmentFault("environment.device", f"unknown device {device!r}; expected 'auto', 'cpu' or 'cuda'")
    if name == "cuda" and (not torch.cuda.is_available() or int(number or 0) >= torch.cuda.device_count()):
        raise EnvironmentFault(
            "environment.device", f"there is no device {device!r} here; expected 'auto' or 'cpu' on this machine"
        )
    compute_dtype(precision, torch.device(device))
    return device


def _window_settings(bundle: Bundle, model: Model, tta: TTA | None) -> WindowSettings | None:
    """Return how windows are laid and averaged; None if the bundle's inferer does not slide windows.

    Raises:
        BundleError: `bundle.tta`, the network can't be averaged as required.
    """
    if isinstance(model.inferer, WindowSettings):
        settings: WindowSettings | None = model.inferer
    else:
        from napari_seg.inference.inferer import window_settings

        settings = None if model.spatial_dims == 2 else window_settings(model.inferer)
    if settings is None and tta in ("shifts", "mirror"):
        raise BundleError(
            "bundle.tta",
            f"the inferer of bundle {bundle.root.name!r} is no SlidingWindowInferer over volumes, whose windows can be "
            "averaged; choose --tta none",
        )
    if tta == "mirror" and bundle.localiser and any(region.mirror for region in bundle.localiser.regions):
        raise BundleError(
            "bundle.tta",
            f"the network of bundle {bundle.root.name!r} was trained on one side of the body only, so mirror images "
            "can't be averaged; choose --tta shifts or none",
        )
    if tta == "mirror" and bundle.kind == "nnunet":
        if not model.mirror_axes:
            raise BundleError(
                "bundle.tta",
                f"{bundle.name!r} was trained without mirror images, so they can't be averaged; choose --tta shifts or "
                "none",
            )
        settings = None if settings is None else replace(settings, mirror_axes=model.mirror_axes)
    return None if settings is None else settings.with_tta(tta)
