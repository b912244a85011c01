"""`load_model`: from a bundle on disk to a model that runs, whatever kind of bundle it is."""

from __future__ import annotations

import torch

from napari_seg.bundles.model import Model
from napari_seg.bundles.precision import Precision, compute_dtype
from napari_seg.bundles.spec import Bundle
from napari_seg.bundles.trust import check_runnable


def load_model(bundle: Bundle, device: str, precision: Precision = "auto") -> Model:
    """Return a bundle's network with its weights, its preprocessing and its inferer.

    Args:
        bundle: a trusted bundle.
        device: torch's name of a device.
        precision: the requested precision.

    Raises:
        EnvironmentFault: `environment.precision`, the device has no such precision.
        BundleError: `bundle.untrusted`; `bundle.config` or `bundle.nnunet`, the inference config or the plans can't be
            used; `bundle.weights` or `bundle.weights_unsafe`, the weights are missing, do not fit the network, or are
            no plain data.
    """
    check_runnable(bundle)
    torch_device = torch.device(device)
    dtype = compute_dtype(precision, torch_device)
    if bundle.kind == "nnunet":
        from napari_seg.bundles.nnunet.load import load_nnunet

        return load_nnunet(bundle, torch_device, dtype)
    from napari_seg.bundles.monai import load_monai  # importing MONAI takes seconds

    return load_monai(bundle, torch_device, dtype)
