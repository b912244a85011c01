"""Medical-image segmentation from napari, the command line and Python.

The public names are loaded when first used, so that `import napari_seg` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from napari_seg.version import __version__

if TYPE_CHECKING:
    from napari_seg.bundles.read import find_bundles, read_bundle
    from napari_seg.bundles.spec import Bundle
    from napari_seg.cohort.cohort import Cohort
    from napari_seg.cohort.outcome import CaseResult
    from napari_seg.errors import NapariSegError, Notice
    from napari_seg.formats.channels import read_channels
    from napari_seg.formats.find import find_scans
    from napari_seg.formats.read import read
    from napari_seg.geometry import Grid, resample
    from napari_seg.inference.segment import segment
    from napari_seg.volume import Segment, Segmentation, Volume

_HOME = {
    "Bundle": "bundles.spec",
    "CaseResult": "cohort.outcome",
    "Cohort": "cohort.cohort",
    "Grid": "geometry",
    "NapariSegError": "errors",
    "Notice": "errors",
    "Segment": "volume",
    "Segmentation": "volume",
    "Volume": "volume",
    "find_bundles": "bundles.read",
    "find_scans": "formats.find",
    "read": "formats.read",
    "read_bundle": "bundles.read",
    "read_channels": "formats.channels",
    "resample": "geometry",
    "segment": "inference.segment",
}

__all__ = [
    "Bundle",
    "CaseResult",
    "Cohort",
    "Grid",
    "NapariSegError",
    "Notice",
    "Segment",
    "Segmentation",
    "Volume",
    "__version__",
    "find_bundles",
    "find_scans",
    "read",
    "read_bundle",
    "read_channels",
    "resample",
    "segment",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'napari_seg' has no attribute {name!r}")
    return getattr(import_module(f"napari_seg.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
