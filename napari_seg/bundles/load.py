"""`load_model`: from a bundle on disk to a model that runs, whatever kind of bundle it is."""

from __future__ import annotations

from collections.abc import Callable

import torch

from napari_seg.bundles.model import Model
from napari_seg.bundles.monai import load_monai
from napari_seg.bundles.precision import Precision, compute_dtype
from napari_seg.bundles.spec import Bundle, BundleKind
from napari_seg.bundles.trust import check_runnable

LOADERS: dict[BundleKind, Callable[[Bundle, torch.device, torch.dtype], Model]] = {"monai": load_monai}
"""A new kind of bundle adds its loader here."""


def load_model(bundle: Bundle, device: str, precision: Precision = "auto") -> Model:
    """Return a bundle's network with its weights, its preprocessing and its inferer.

    Args:
        bundle: a trusted bundle.
        device: torch's name of a device.
        precision: the requested precision.

    Raises:
        EnvironmentFault: `environment.precision`, the device has no such precision.
        BundleError: `bundle.untrusted`; `bundle.config`, the inference config can't be used; `bundle.weights`,
            the weights are missing or do not fit the network.
    """
    check_runnable(bundle)
    torch_device = torch.device(device)
    return LOADERS[bundle.kind](bundle, torch_device, compute_dtype(precision, torch_device))
