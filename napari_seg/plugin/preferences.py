"""Settings of the plugin in napari's Preferences > napari-seg."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from napari_seg.inference.options import SegmentOptions


@dataclass(frozen=True)
class Preferences:
    """Values of the manifest's `configurations`.

    Attributes:
        options: options of every run: device, memory and precision; defaults for the others.
        bundle_folders: MONAI bundles, and folders whose subfolders are bundles.
        keep_seconds: interval between two copies of edited labels, which are restored after a crash; 0: no copies.
        reader: name of the person who accepts cases, for their records; "" if it is not stated.
        training_set: folder of accepted cases; None before the first choice.
    """

    options: SegmentOptions = field(default_factory=SegmentOptions)
    bundle_folders: tuple[Path, ...] = ()
    keep_seconds: int = 60
    reader: str = ""
    training_set: Path | None = None


def preferences() -> Preferences:
    """Return the current settings; defaults in a version of napari that has no settings of plugins."""
    try:
        from napari.settings import get_plugin_settings

        settings = get_plugin_settings("napari-seg")
        return _preferences(settings.segmenting, settings.safety, settings.learning)
    except (ImportError, KeyError, AttributeError):  # napari before 0.9
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


def remember_training_set(folder: Path) -> None:
    """Set the folder of accepted cases for later sessions."""
    try:
        from napari.settings import get_plugin_settings

        get_plugin_settings("napari-seg").learning.training_set = str(folder)
    except (ImportError, KeyError, AttributeError):  # as in `preferences`
        return


def _preferences(segmenting: Any, safety: Any, learning: Any) -> Preferences:
    gib = float(segmenting.memory_gib)
    folders = [folder for folder in re.split(f"[;{os.pathsep}]", str(segmenting.bundle_folders)) if folder.strip()]
    return Preferences(
        options=SegmentOptions(
            device=str(segmenting.device),
            precision=segmenting.precision,
            memory_bytes=int(gib * 2**30) if gib > 0 else None,
        ),
        bundle_folders=tuple(Path(folder.strip()).expanduser() for folder in folders),
        keep_seconds=int(safety.keep_seconds),
        reader=" ".join(str(learning.reader).split()),
        training_set=Path(text).expanduser() if (text := str(learning.training_set).strip()) else None,
    )
