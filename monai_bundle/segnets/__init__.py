"""Networks and data lists of this bundle, named by its configs through `_target_`.

The package works on its own: it needs MONAI and torch, and nothing of napari-seg.
"""

from segnets.datalist import bundle_root, datalist, images
from segnets.unet import UNet

__all__ = ["UNet", "bundle_root", "datalist", "images"]
