"""Folders with TotalSegmentator's weights on this machine, and the models in them."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from napari_seg.bundles.places import store_root
from napari_seg.bundles.totalsegmentator.task import Part

WEIGHTS_VARIABLE = "TOTALSEG_WEIGHTS_PATH"
"""Environment variable of TotalSegmentator with the folder of its weights."""

HOME_VARIABLE = "TOTALSEG_HOME_DIR"
"""Environment variable of TotalSegmentator with the folder that it uses in place of ~/.totalsegmentator."""


def own_folder() -> Path:
    """Return the folder of the weights that `napari-seg models add` fetches; it need not exist."""
    return store_root() / "totalsegmentator"


def weight_folders() -> list[Path]:
    """Return the folders in which weights are looked for: TotalSegmentator's, then the store's; they need not exist."""
    folders = []
    if named := os.environ.get(WEIGHTS_VARIABLE):
        folders = [Path(named).expanduser()]
    elif named := os.environ.get(HOME_VARIABLE):
        folders = [Path(named).expanduser() / "nnunet" / "results"]
    else:
        with suppress(RuntimeError):  # a user without a home
            folders = [Path.home() / ".totalsegmentator" / "nnunet" / "results"]
    return list(dict.fromkeys((*folders, own_folder())))


def training_folder(part: Part, folders: list[Path] | None = None) -> Path | None:
    """Return the folder of a model's training: the one of its trainer, plans and configuration; None if there is none.

    Args:
        part: the model.
        folders: where to look; None: in `weight_folders()`.
    """
    name = f"{part.trainer}__{part.plans}__{part.configuration}"
    for folder in weight_folders() if folders is None else folders:
        with suppress(OSError):  # a folder that can't be listed
            for found in sorted(folder.glob(f"Dataset{part.number:03d}_*/{name}")):
                if (found / "plans.json").is_file():
                    return found
    return None
