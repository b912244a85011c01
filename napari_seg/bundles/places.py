"""Folders on this machine that hold bundles: the store of installed models, and those that the user lists."""

from __future__ import annotations

import os
from pathlib import Path

BUNDLES_VARIABLE = "NAPARI_SEG_BUNDLES"
"""Environment variable with further folders that hold bundles, separated as in PATH."""

STORE_VARIABLE = "NAPARI_SEG_MODELS"
"""Environment variable with the folder of the store."""


def store_root() -> Path:
    """Return the folder that holds the installed models, one folder each; it need not exist.

    It is the folder that NAPARI_SEG_MODELS names, else `models` in the user's data folder of napari-seg.
    """
    named = os.environ.get(STORE_VARIABLE)
    if named:
        return Path(named).expanduser().absolute()
    import platformdirs

    return platformdirs.user_data_path("napari-seg", appauthor=False) / "models"


def kept_folder() -> Path:
    """Return the folder of the store that keeps weights of nnU-Net as tensors alone; it need not exist.

    No model can have its name.
    """
    return store_root() / ".weights"


def bundle_folders() -> list[Path]:
    """Return the folders that NAPARI_SEG_BUNDLES lists, then the store."""
    listed = os.environ.get(BUNDLES_VARIABLE, "").split(os.pathsep)
    return [*(Path(entry) for entry in listed if entry), store_root()]
