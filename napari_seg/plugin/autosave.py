"""Copies of labels that a person edited and did not save, to be restored later.

Copies lie in the user's own cache folder, in a folder for each open viewer that only the user can open, as NIfTI with
the names of the structures beside it. The folder is removed once everything is saved or discarded. One that is left
behind by a program that has ended holds work to restore; so does the folder of a layer that was removed with its edits.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from napari.layers import Labels, Layer
from numpy.typing import NDArray

from napari_seg.errors import NapariSegError, OutputError
from napari_seg.plugin.layers import labels_layer, layer_of
from napari_seg.plugin.placement import place
from napari_seg.plugin.structures.model import Snapshot, table_of
from napari_seg.plugin.structures.records import made_by_in, made_by_of, write_record

FOLDER_VARIABLE = "NAPARI_SEG_UNSAVED"
"""Environment variable with the folder in which copies are kept."""

_INFO = "unsaved.json"

_FOREIGN_SECONDS = 86400.0


@dataclass(frozen=True)
class Unsaved:
    """Work that a program left behind.

    Attributes:
        folder: where it lies.
        names: of the layers.
        when: seconds since 1970 of the last copy.
        is_removed: whether these are layers that were removed in this viewer.
    """

    folder: Path
    names: tuple[str, ...]
    when: float
    is_removed: bool = False

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
            made_by = made_by_in(self.folder / file)
            layer = layer_of(labels_layer(segmentation, placement, f"{name} (restored)", algorithm=made_by))
            table = table_of(layer)
            table.edits, table.painted = 1, True
            answer.append(layer)
        return answer

    def discard(self) -> None:
        """Forgets it."""
        shutil.rmtree(self.folder, ignore_errors=True)


class Autosave:
    """The copies of one viewer.

    Args:
        root: where copies of all programs lie; None: the user's cache.

    Attributes:
        folder: where copies of this viewer lie.
        is_ended: whether nothing more shall be written, not even by a thread that is about to.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or unsaved_dir()
        self.folder = self.root / f"{platform.node()}-{os.getpid()}-{uuid4().hex[:8]}"
        self.is_ended = False
        self._writing = threading.Lock()
        self._set_aside: list[Path] = []
        self._kept: dict[int, int] = {}
        self._entries: dict[int, tuple[str, str]] = {}

    def due(self, layers: Iterable[Labels]) -> list[Snapshot]:
        """The layers with unsaved work; [] if all of it was kept already."""
        unsaved = [layer for layer in layers if table_of(layer).is_unsaved]
        if {id(layer): table_of(layer).edits for layer in unsaved} == self._kept:
            return []
        return [Snapshot.of(layer) for layer in unsaved]

    def keep(self, due: Iterable[Snapshot]) -> int:
        """Writes copies in place of those before, and tells how many; takes a while, so not in the main thread.

        Of a layer that can't be written the copy before stays.

        Raises:
            OutputError: the disk is full, or labels can't be written.
        """
        with self._writing:
            if self.is_ended:
                return 0
            try:
                return self._keep(due)
            except OSError as error:
                reason = error.strerror or type(error).__name__
                raise OutputError(
                    "output.not_written",
                    f"copies of unsaved labels can't be written to {self.root} ({reason}); save the labels",
                ) from error

    def _keep(self, due: Iterable[Snapshot]) -> int:
        from napari_seg.formats.label_maps import write_label_map

        entries: dict[int, tuple[str, str]] = {}
        kept, fault = {}, None
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for snapshot in due:
            key, stem = id(snapshot.layer), uuid4().hex  # never over a copy that the list still names
            try:
                segmentation = snapshot.segmentation()
                write_label_map(segmentation, self.folder / f"{stem}.nii.gz")
                write_record(segmentation, self.folder / f"{stem}.nii.gz", made_by_of(snapshot))
            except NapariSegError as error:  # the others are kept all the same
                fault = error
                if key in self._entries:
                    entries[key] = self._entries[key]
                continue
            entries[key] = f"{stem}.nii.gz", str(snapshot.settings["name"])
            kept[key] = snapshot.edits
        hidden = self.folder / f".{_INFO}"
        hidden.write_text(json.dumps({"layers": list(entries.values()), "when": time.time()}), encoding="utf-8")
        hidden.replace(self.folder / _INFO)
        self._entries, self._kept = entries, kept
        named = {file.removesuffix(".nii.gz") for file, _ in entries.values()}
        for path in self.folder.iterdir():
            if path.name != _INFO and path.name.partition(".")[0] not in named:
                path.unlink(missing_ok=True)
        if fault is not None:
            raise fault
        return len(entries)

    def forget(self) -> None:
        """Remove the copies."""
        with self._writing:
            self._kept, self._entries = {}, {}
            shutil.rmtree(self.folder, ignore_errors=True)

    def set_aside(self, snapshot: Snapshot) -> None:
        """Write a copy of a layer that was removed, to be restored or discarded by hand; takes a while.

        Raises:
            OutputError: the disk is full, or labels can't be written.
        """
        aside = Autosave(self.root)
        aside.keep([snapshot])
        self._set_aside.append(aside.folder)

    def left_behind(self) -> list[Unsaved]:
        """Return what there is to restore, the latest first: of programs that have ended, and removed layers."""
        answer = []
        for info in self.root.glob(f"*/{_INFO}"):
            is_removed = info.parent in self._set_aside
            if not is_removed and _is_running(info.parent):
                continue
            try:
                known = json.loads(info.read_text(encoding="utf-8"))
                names = tuple(str(name) for _, name in known["layers"])
                answer.append(Unsaved(info.parent, names, float(known["when"]), is_removed))
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
    """Whether the program that a folder belongs to still runs: it is there, and no younger than the folder.

    Of one on another machine, whose home this is too, nobody here knows: it is taken to run for a day after a copy.
    """
    import psutil

    node, pid = folder.name.rsplit("-", 2)[:2] if folder.name.count("-") >= 2 else (platform.node(), folder.name)
    try:
        if node != platform.node():
            return time.time() - folder.stat().st_mtime < _FOREIGN_SECONDS
        began = psutil.Process(int(pid.partition("-")[0])).create_time()
        return began <= folder.stat().st_ctime + 1
    except (ValueError, OSError, psutil.Error):
        return False
