"""Provide the networks, data lists and training that the configs of this bundle name with `_target_`.

A config names what is not a network by its module, such as `segnets.data.images`: importing a network then imports
nothing that only trains.

The package is self-contained: it needs MONAI, ignite and torch, but not napari-seg.
"""

from pathlib import Path

from segnets.deeplab import DeepLabV3, DeepLabV3Plus
from segnets.ensemble import Ensemble
from segnets.fcn import FCN
from segnets.multiview import MultiView
from segnets.nnunet_unet import NnunetUNet
from segnets.unet import UNet

__all__ = ["FCN", "DeepLabV3", "DeepLabV3Plus", "Ensemble", "MultiView", "NnunetUNet", "UNet", "bundle_root"]


def bundle_root() -> str:
    """Return the folder of this bundle, with `configs/`, `models/` and `segnets/`."""
    return str(Path(__file__).resolve().parents[1])
