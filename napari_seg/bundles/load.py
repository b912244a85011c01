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
        EnvironmentFault: `environment.precision`, the device has no such precision; `environment.memory` or
            `environment.drive`, memory or the drive of the bundle fails for the moment.
        BundleError: `bundle.untrusted`; `bundle.config` or `bundle.nnunet`, the inference config or the plans can't be
            used; `bundle.weights` or `bundle.weights_unsafe`, the weights are missing, do not fit the network, or are
            no plain data.
    """
    try:
        return _load(bundle, torch.device(device), precision)
    except Exception as error:
        from napari_seg.bundles.causes import passing_fault

        if (fault := passing_fault(error, bundle.name)) is None:
            raise
        raise fault from error


def _load(bundle: Bundle, device: torch.device, precision: Precision) -> Model:
    check_runnable(bundle)
    dtype = compute_dtype(precision, device)
    if bundle.kind == "nnunet":
        from napari_seg.bundles.nnunet.load import load_nnunet

        return load_nnunet(bundle, device, dtype)
    from napari_seg.bundles.monai import load_monai  # importing MONAI takes seconds

    return load_monai(bundle, device, dtype)
