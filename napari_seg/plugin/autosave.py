"""Automatic copies of unsaved labels and prompts, which can be restored after a crash.

Each open viewer has a folder in the user's cache that only the user can open. It holds one NIfTI file per layer with a
record of the structures' names, what a model had found, and a list with the mark of the scan, the prompts and the
actions of the Edit tab. The folder is removed when everything is saved or discarded. A folder whose program has ended
holds work to restore. So does the folder of a layer that was removed with unsaved edits.

A locked file in the folder shows other programs that its own one is alive, also on another machine that shares the home
folder. The name of the machine would not do so: that of a Mac is another one in each network.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock, Timeout
from napari.layers import Labels, Layer
from numpy.typing import NDArray

from napari_seg.errors import NapariSegError, OutputError
from napari_seg.formats.atomic import atomic_write
from napari_seg.formats.record import made_by_in, write_labels_record
from napari_seg.plugin import kept_data
from napari_seg.plugin.labels_state import EditAction, Snapshot, state_of, with_unsaved_data_in
from napari_seg.plugin.layer_info import NO_ORIENTATION, LayerInfo
from napari_seg.plugin.layers import labels_layer, layer_of
from napari_seg.plugin.packed_labels import PackedLabels
from napari_seg.plugin.placement import place
from napari_seg.plugin.scan_mark import ScanMark
from napari_seg.volume import Source

FOLDER_VARIABLE = "NAPARI_SEG_UNSAVED"
"""Environment variable that sets the folder of the copies."""

_INFO = "unsaved.json"

_LOCK = "lock"

_locks: dict[Path, FileLock] = {}
"""Locks of the folders of this program."""

_PACKED = ("model_labels", "model_confidence")
"""Attributes of `LayerInfo` with what a model had found, which *Accept* compares with."""

_OTHER_MACHINE_SECONDS = 86400.0
"""Age of a copy above which a program on another machine is taken to have ended, where files can't be locked."""


@dataclass(frozen=True)
class Unsaved:
    """Copies of unsaved layers that can be restored.

    Attributes:
        folder: folder of the copies.
        names: names of the layers.
        when: time of the last copy, in seconds since 1970.
        is_removed: whether the layers were removed in this viewer; otherwise their program has ended.
    """

    folder: Path
    names: tuple[str, ...]
    when: float
    is_removed: bool = False

    def read(self, frame: NDArray | None) -> list[Layer]:
        """Return the layers in a viewer's frame; slow, call outside the main thread.

        Raises:
            InputError: a copy is damaged.
        """
        from napari_seg.formats.label_maps import read_label_map, with_all_segments_named

        answer = []
        info = json.loads((self.folder / _INFO).read_text(encoding="utf-8"))
        for file, name in info["layers"]:
            segmentation = with_all_segments_named(read_label_map(self.folder / file))
            placement = place(segmentation.grid, frame)
            made_by, work = made_by_in(self.folder / file), info.get("work", {}).get(file, {})
            notices = () if work.get("is_oriented", True) else (NO_ORIENTATION,)
            title = f"{name} (restored)"
            layer = layer_of(labels_layer(segmentation, placement, title, algorithm=made_by, notices=notices))
            assert isinstance(layer, Labels)
            table = state_of(layer)
            table.edits, table.painted = 1, True
            self._restore_model(layer, work.get("model", {}))
            if scan := work.get("scan"):
                mark = ScanMark(scan["salt"], tuple(scan["digests"]), scan["blocks"], scan.get("volume"))
                replace(LayerInfo.require(layer), scan_mark=mark).attach(layer)
            table.earlier_actions = tuple(EditAction(**action) for action in work.get("actions", ()))
            layer.selected_label = work.get("selected_label", layer.selected_label)  # prompts belong to it
            for key, data in work.get("kept", {}).items():
                kept_data.keep(layer, key, data)
            answer.append(layer)
        return answer

    def _restore_model(self, layer: Labels, model: Mapping[str, Any]) -> None:
        """Give a layer what a model had found; a copy that is missing is left out."""
        known: dict[str, Any] = {"looked_for": frozenset(model.get("looked_for", ()))}
        for name in _PACKED:
            with suppress(KeyError, OSError):
                file, shape, data_type = model[name]
                known[name] = PackedLabels((self.folder / file).read_bytes(), tuple(shape), data_type)
        replace(LayerInfo.require(layer), **known).attach(layer)

    def discard(self) -> None:
        """Remove the copies."""
        _remove(self.folder)


@dataclass(frozen=True)
class _Entry:
    """One copy: its file, the name of its layer, and what the file can't hold."""

    file: str
    name: str
    work: dict[str, Any]


class Autosave:
    """Copies of the unsaved labels of one viewer.

    Args:
        root: folder of the copies of all programs; None for the user's cache.

    Attributes:
        folder: folder of the copies of this viewer.
        is_ended: set to prevent further copies, including those of threads that have not begun to write.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or unsaved_dir()
        self.folder = self.root / f"{platform.node()}-{os.getpid()}-{uuid4().hex[:8]}"
        self.is_ended = False
        self._writing = threading.Lock()
        self._removed: list[Path] = []
        self._saved_edits: dict[int, tuple[int, int]] = {}  # by id of the layer: edits, and changes of kept data
        self._entries: dict[int, _Entry] = {}  # by id of the layer
        self._marks: dict[Source, ScanMark] = {}

    def due(self, layers: Iterable[Labels]) -> list[Snapshot]:
        """Return snapshots of the layers with unsaved edits or prompts; [] if the copies hold all of these."""
        unsaved = with_unsaved_data_in(layers)
        now = {id(layer): (state_of(layer).edits, kept_data.changes_of(layer)) for layer in unsaved}
        if now == self._saved_edits:
            return []
        return [Snapshot.of(layer) for layer in unsaved]

    def write_copies(self, due: Iterable[Snapshot]) -> int:
        """Replace the copies and return their number; slow, call outside the main thread.

        If a layer cannot be written, its previous copy is kept.

        Raises:
            OutputError: the disk is full, or labels cannot be written.
        """
        with self._writing:
            if self.is_ended:
                return 0
            try:
                return self._write_copies(due)
            except OSError as error:
                reason = error.strerror or type(error).__name__
                raise OutputError(
                    "output.not_written",
                    f"cannot write copies of unsaved labels to {self.root} ({reason}); save the labels",
                ) from error

    def _write_copies(self, due: Iterable[Snapshot]) -> int:
        from napari_seg.formats.kinds import write_label_map

        entries: dict[int, _Entry] = {}
        saved_edits, fault = {}, None
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _lock(self.folder)
        for snapshot in due:
            key, stem = id(snapshot.layer), uuid4().hex  # never replaces a copy that the list still names
            try:
                segmentation = snapshot.segmentation_in_place()  # work is never lost
                write_label_map(segmentation, self.folder / f"{stem}.nii.gz")
                write_labels_record(segmentation, self.folder / f"{stem}.nii.gz", snapshot.info.algorithm)
            except NapariSegError as error:  # copy the other layers nevertheless
                fault = error
                if key in self._entries:
                    entries[key] = self._entries[key]
                continue
            work = {
                "kept": dict(snapshot.kept),
                "actions": [asdict(action) for action in snapshot.actions],
                "selected_label": snapshot.selected_label,
                "model": self._write_model(snapshot.info),
                "is_oriented": snapshot.info.is_oriented,
                "scan": asdict(mark) if (mark := self._mark_of(snapshot.info)) else None,
            }
            entries[key] = _Entry(f"{stem}.nii.gz", str(snapshot.settings["name"]), work)
            saved_edits[key] = snapshot.edits, snapshot.kept_changes
        info = {
            "layers": [(one.file, one.name) for one in entries.values()],
            "work": {one.file: one.work for one in entries.values()},
            "when": time.time(),
        }
        atomic_write(self.folder / _INFO, json.dumps(info))
        self._entries, self._saved_edits = entries, saved_edits
        named = {one.file.removesuffix(".nii.gz") for one in entries.values()}
        models = [one.work["model"] for one in entries.values()]
        named |= {model[name][0].partition(".")[0] for model in models for name in _PACKED if name in model}
        for path in self.folder.iterdir():
            if path.name not in (_INFO, _LOCK) and path.name.partition(".")[0] not in named:
                path.unlink(missing_ok=True)
        if fault is not None:
            raise fault
        return len(entries)

    def _mark_of(self, info: LayerInfo) -> ScanMark | None:
        """Return the mark of the scan of labels; None if they belong to none. Its files are read once, if they can."""
        if not info.scan.files:
            return info.scan_mark
        mark = self._marks.get(info.scan) or ScanMark.of(info.scan)
        if mark.digests:  # otherwise the next copy tries again
            self._marks[info.scan] = mark
        return mark

    def _write_model(self, info: LayerInfo) -> dict[str, Any]:
        """Write what a model had found, unless it is there already; return how it is found again.

        Raises:
            OSError: it could not be written.
        """
        model: dict[str, Any] = {"looked_for": sorted(map(int, info.looked_for))}
        for name in _PACKED:
            packed = getattr(info, name)
            if packed is not None:
                file = f"{hashlib.sha256(packed.content).hexdigest()[:32]}.packed"
                if not (self.folder / file).exists():
                    atomic_write(self.folder / file, packed.content)
                model[name] = file, packed.shape, packed.type
        return model

    def remove_copies(self) -> None:
        """Remove the copies."""
        with self._writing:
            self._saved_edits, self._entries = {}, {}
            _remove(self.folder)

    def set_aside(self, snapshot: Snapshot) -> None:
        """Write a copy of a layer that was removed, so that it can be restored; slow, call outside the main thread.

        Raises:
            OutputError: the disk is full, or labels cannot be written.
        """
        copy = Autosave(self.root)
        copy.write_copies([snapshot])
        self._removed.append(copy.folder)

    def left_behind(self) -> list[Unsaved]:
        """Return the copies of ended programs and of removed layers, the latest first."""
        answer = []
        for info in self.root.glob(f"*/{_INFO}"):
            is_removed = info.parent in self._removed
            if not is_removed and _is_running(info.parent):
                continue
            try:
                known = json.loads(info.read_text(encoding="utf-8"))
                names = tuple(str(name) for _, name in known["layers"])
                answer.append(Unsaved(info.parent, names, float(known["when"]), is_removed))
            except (OSError, ValueError, KeyError, TypeError):  # damaged: nothing can be restored
                continue
        return sorted(answer, key=lambda unsaved: -unsaved.when)


def unsaved_dir() -> Path:
    """Return the folder of all copies, in the user's cache."""
    if named := os.environ.get(FOLDER_VARIABLE):
        return Path(named)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home()), "napari-seg", "unsaved")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "napari-seg" / "unsaved"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "napari-seg", "unsaved")


def _lock(folder: Path) -> None:
    """Show other programs that this one is alive; where files can't be locked, the name of the folder does it."""
    if folder in _locks:
        return
    lock = FileLock(folder / _LOCK, thread_local=False)
    try:
        lock.acquire(timeout=0)
        _locks[folder] = lock
    except (NotImplementedError, OSError, Timeout):
        with suppress(OSError):
            (folder / _LOCK).unlink(missing_ok=True)


def _remove(folder: Path) -> None:
    """Remove a folder; its lock last, which Windows can't remove before it is released."""
    shutil.rmtree(folder, ignore_errors=True)
    if lock := _locks.pop(folder, None):
        lock.release()
        shutil.rmtree(folder, ignore_errors=True)


def _is_running(folder: Path) -> bool:
    """Return whether the program of a folder still runs: it has locked a file there.

    Where files can't be locked, its process exists and started before the folder. A program on another machine that
    shares the home folder is then taken to run for a day after its last copy.
    """
    import psutil

    if (folder / _LOCK).is_file():
        try:
            with FileLock(folder / _LOCK).acquire(timeout=0):
                pass
            (folder / _LOCK).touch()  # the release removes it on Windows
            return False
        except Timeout:
            return True
        except (NotImplementedError, OSError):
            pass
    node, pid = folder.name.rsplit("-", 2)[:2] if folder.name.count("-") >= 2 else (platform.node(), folder.name)
    try:
        if node != platform.node():
            return time.time() - folder.stat().st_mtime < _OTHER_MACHINE_SECONDS
        started = psutil.Process(int(pid.partition("-")[0])).create_time()
        return started <= folder.stat().st_ctime + 1
    except (ValueError, OSError, psutil.Error):
        return False
