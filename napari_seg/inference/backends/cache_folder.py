"""The folder of what is kept about networks for later runs."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

CACHE_VARIABLE = "NAPARI_SEG_CACHE"
"""Environment variable with the folder of the cache; empty: nothing is cached."""


def cache_dir() -> Path | None:
    """Return the folder of the cache; None: nothing is cached, as requested or because the user has no home folder."""
    folder_setting = os.environ.get(CACHE_VARIABLE)
    if folder_setting is not None:
        return Path(folder_setting) if folder_setting else None
    with suppress(RuntimeError):  # a container may run as a user that its system does not know
        if sys.platform == "win32":
            return Path(os.environ.get("LOCALAPPDATA") or Path.home(), "napari-seg", "cache")
        if sys.platform == "darwin":
            return Path.home() / "Library" / "Caches" / "napari-seg"
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "napari-seg")
    return None
