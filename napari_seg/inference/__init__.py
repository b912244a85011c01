"""From a Volume and a Bundle to a Segmentation."""

from __future__ import annotations

from napari_seg.inference.segment import segment

__all__ = ["segment"]
