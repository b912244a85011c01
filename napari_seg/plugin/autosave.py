"""Keeps copies of labels that a person edited and did not save, and gives them back after a crash.

Copies lie in the user's own cache folder, in a folder for each running program that only the user can open, as NIfTI
with the names of the structures beside it. A program that ends as it should removes its folder; one that is left behind
by a program that is no more holds work to restore.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from napari.layers import Labels, Layer
from numpy.typing import NDArray

from napari_seg.plugin.layers import labels_layer, layer_of, segmentation_of
from napari_seg.plugin.placement import METADATA_KEY, place
from napari_seg.plugin.structures import Table

FOLDER_VARIABLE = "NAPARI_SEG_UNSAVED"
"""Environment variable with the folder in which copies are kept."""

_INFO = "unsaved.json"


@dataclass(frozen=True)
class Unsaved:
    """Work that a program left behind.

    Attributes:
        folder: where it lies.
        names: of the layers.
        when: seconds since 1970 of the last copy.
    """

    folder: Path
    names: tuple[str, ...]
    when: float

    def read(self, frame: NDArray | None) -> list[Layer]:
        """The layers, shown in a viewer's frame; takes a while, so not in the main thread.

        Raises:
            InputError: a copy is damaged.
        """
        from napari_seg.formats.label_maps import named, read_label_map

        answer = []
        for file, name in json.loads((self.folder / _INFO).read_text(encoding="utf-8"))["layers"]:
            segmentation = named(read_label_map(self.folder / file))
            placement = place(segmentation.grid, frame)
            layer = layer_of(labels_layer(segmentation, placement, f"{name} (restored)"))
            layer.metadata[METADATA_KEY]["table"] = Table(edited=True)
            answer.append(layer)
        return answer

    def discard(self) -> None:
        """Forgets it."""
        shutil.rmtree(self.folder, ignore_errors=True)


class Autosave:
    """The copies of one viewer.

    Args:
        root: where copies of all programs lie; None: the user's cache.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or unsaved_dir()
        self.folder = self.root / f"{os.getpid()}-{uuid4().hex[:8]}"

    def due(self, layers: Iterable[Labels]) -> list[tuple[NDArray, Mapping[str, Any]]]:
        """Labels and settings of the layers that were edited and not saved; arrays are copies, for another thread."""
        answer = []
        for layer in layers:
            table = layer.metadata.get(METADATA_KEY, {}).get("table")
            if table is not None and table.edited and not table.saved:
                answer.append((np.array(layer.data), layer.as_layer_data_tuple()[1]))
        return answer

    def keep(self, due: Iterable[tuple[NDArray, Mapping[str, Any]]]) -> None:
        """Writes copies in place of those before; takes a while, so not in the main thread.

        Raises:
            OutputError: the disk is full.
        """
        from napari_seg.formats.label_maps import write_label_map

        entries = []
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for number, (labels, settings) in enumerate(due):
            segmentation = segmentation_of(labels, settings)
            file = self.folder / f"{number}.nii.gz"
            write_label_map(segmentation, file)
            segments = [{"label": s.label, "name": s.name, "color": s.color} for s in segmentation.segments]
            (self.folder / f"{number}.json").write_text(json.dumps({"segments": segments}), encoding="utf-8")
            entries.append((file.name, settings["name"]))
        hidden = self.folder / f".{_INFO}"
        hidden.write_text(json.dumps({"layers": entries, "when": time.time()}), encoding="utf-8")
        hidden.replace(self.folder / _INFO)

    def forget(self) -> None:
        """Removes the copies."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def left_behind(self) -> list[Unsaved]:
        """What programs that are no more left, the latest first."""
        answer = []
        for info in self.root.glob(f"*/{_INFO}"):
            if _is_running(info.parent):
                continue
            try:
                known = json.loads(info.read_text(encoding="utf-8"))
                names = tuple(str(name) for _, name in known["layers"])
                answer.append(Unsaved(info.parent, names, float(known["when"])))
            except (OSError, ValueError, KeyError, TypeError):  # damaged: there is nothing to give back
                continue
        return sorted(answer, key=lambda unsaved: -unsaved.when)


def unsaved_dir() -> Path:
    """Where copies lie: a folder in the user's cache."""
    if named := os.environ.get(FOLDER_VARIABLE):
        return Path(named)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home()), "napari-seg", "unsaved")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "napari-seg" / "unsaved"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "napari-seg", "unsaved")


def _is_running(folder: Path) -> bool:
    """Whether the program that a folder belongs to still runs: it is there, and no younger than the folder."""
    import psutil

    try:
        began = psutil.Process(int(folder.name.partition("-")[0])).create_time()
    except (ValueError, psutil.Error):
        return False
    return began <= folder.stat().st_ctime + 1
