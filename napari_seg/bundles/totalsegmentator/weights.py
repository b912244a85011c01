"""Folders with TotalSegmentator's weights on this machine, and the models in them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from napari_seg.bundles.nnunet.folder import has_weights
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

    A folder without weights does not count: TotalSegmentator unzips in place, and may have been stopped.

    Args:
        part: the model.
        folders: where to look; None: in `weight_folders()`.
    """
    found = _training_folders(part, weight_folders() if folders is None else folders)
    return next((folder for folder, is_complete in found if is_complete), None)


def incomplete_folders(part: Part) -> list[Path]:
    """Return the folders of a model's training that lack the weights."""
    return [folder for folder, is_complete in _training_folders(part, weight_folders()) if not is_complete]


def _training_folders(part: Part, folders: list[Path]) -> Iterator[tuple[Path, bool]]:
    """Yield the folders of a model's training, each with whether it has the weights."""
    name = f"{part.trainer}__{part.plans}__{part.configuration}"
    for folder in folders:
        with suppress(OSError):  # a folder that can't be listed
            for found in sorted(folder.glob(f"Dataset{part.number:03d}_*/{name}")):
                if (found / "plans.json").is_file():
                    yield found, has_weights(found, part.folds)
