"""Networks and data lists of this bundle, named by its configs through `_target_`.

The package works on its own: it needs MONAI, ignite and torch, and nothing of napari-seg.
"""

from pathlib import Path

from segnets.data import datalist, images
from segnets.deeplab import DeepLabV3, DeepLabV3Plus
from segnets.ensemble import Ensemble
from segnets.fcn import FCN
from segnets.multiview import MultiView
from segnets.unet import UNet

__all__ = ["FCN", "DeepLabV3", "DeepLabV3Plus", "Ensemble", "MultiView", "UNet", "bundle_root", "datalist", "images"]


def bundle_root() -> str:
    """The folder that holds this bundle's `configs/`, `models/` and `segnets/`."""
    return str(Path(__file__).resolve().parents[1])
