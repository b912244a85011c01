"""What a person set in napari's Preferences > napari-seg."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from napari_seg.bundles.precision import Precision


@dataclass(frozen=True)
class Preferences:
    """Values of the manifest's `configurations`.

    Attributes:
        device: "auto", "cpu" or "cuda".
        memory_bytes: what the program may hold at most; None: a safe share of what is free.
        bundle_folders: MONAI bundles, and folders whose subfolders are bundles.
        precision: what networks compute in: "auto", "float32" or "bfloat16".
        keep_seconds: how often edited labels are kept for a crash; 0: never.
    """

    device: str = "auto"
    memory_bytes: int | None = None
    bundle_folders: tuple[Path, ...] = ()
    precision: Precision = "auto"
    keep_seconds: int = 60


def preferences() -> Preferences:
    """What is set now; what this version of napari does not know has its usual value."""
    try:
        from napari.settings import get_plugin_settings

        known = get_plugin_settings("napari-seg")
        return _preferences(known.segmenting, known.safety)
    except (ImportError, KeyError, AttributeError):  # napari before 0.9 has no settings of plugins
        return Preferences()


def remember_bundle(folder: Path) -> None:
    """Add the folder of a bundle to those that are read when the panel is opened."""
    if folder in preferences().bundle_folders:
        return
    try:
        from napari.settings import get_plugin_settings

        segmenting = get_plugin_settings("napari-seg").segmenting
    except (ImportError, KeyError, AttributeError):  # as in `preferences`
        return
    segmenting.bundle_folders = ";".join(filter(None, (str(segmenting.bundle_folders), str(folder))))


def _preferences(segmenting: Any, safety: Any) -> Preferences:
    gib = float(segmenting.memory_gib)
    folders = [folder for folder in re.split(f"[;{os.pathsep}]", str(segmenting.bundle_folders)) if folder.strip()]
    return Preferences(
        device=str(segmenting.device),
        memory_bytes=int(gib * 2**30) if gib > 0 else None,
        bundle_folders=tuple(Path(folder.strip()).expanduser() for folder in folders),
        precision=segmenting.precision,
        keep_seconds=int(safety.keep_seconds),
    )
