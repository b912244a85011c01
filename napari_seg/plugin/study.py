"""What the Study tab does, without Qt: say what lies below a path, and open what a person picks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from napari.layers import Layer
from numpy.typing import NDArray
from psygnal import Signal

from napari_seg.errors import ChoiceNeeded, InputError
from napari_seg.formats import Reading, find
from napari_seg.plugin.layers import VOLUME_MARK, frame_of, holds, image_layers, in_frame, layer_of
from napari_seg.plugin.session import Message, Session, message_of

if TYPE_CHECKING:
    from napari_seg.formats import Scan
    from napari_seg.formats.verdict import Verdict

WORDS = {"process": "ready", "warn": "ready, with a doubt", "refuse": "can't be used", "skip": "no scan"}
"""What a verdict is called for a person."""


@dataclass(frozen=True)
class Entry:
    """One row of the tree.

    Attributes:
        verdict: what would become of it.
        scan: how to read it; None of what is no scan.
        folder: where it lies, relative to what was chosen.
        volumes: from how many volumes a person must choose one; 0 where there is nothing to choose.
        is_tilted: whether its slices must be shifted onto a straight grid.
    """

    verdict: Verdict
    scan: Scan | None
    folder: str
    volumes: int = 0
    is_tilted: bool = False

    @property
    def can_open(self) -> bool:
        """Whether it can be shown, at least once a person has chosen how."""
        is_fit = self.verdict.verdict in ("process", "warn") or self.volumes > 0 or self.is_tilted
        return self.scan is not None and is_fit

    def reading(self, volume: int) -> Reading:
        """How it is read once a person has chosen.

        Args:
            volume: counted from 0; matters only where there are several.
        """
        return Reading(volume=volume if self.volumes else None, resample_tilt=self.is_tilted)

    @property
    def size(self) -> str:
        """Its voxels along each axis; "" of what can't be read."""
        return "" if self.verdict.shape is None else " × ".join(map(str, self.verdict.shape))

    @property
    def spacing(self) -> str:
        """Millimetres along each axis; "" of what can't be read."""
        spacing = self.verdict.spacing_mm
        return "" if spacing is None else " × ".join(f"{length:.3g}" for length in spacing)

    @property
    def words(self) -> str:
        """The verdict for a person."""
        verdict = self.verdict
        if self.volumes:
            return f"{self.volumes} volumes: choose one below{', tilted' if self.is_tilted else ''}"
        if self.is_tilted:
            return "tilted gantry: can be straightened"
        return f"{WORDS[verdict.verdict]}: {verdict.message}" if verdict.message else WORDS[verdict.verdict]


def entries(path: Path) -> Iterator[Entry]:
    """What lies below a path, one by one: each scan is read in full, because only that tells; not in the main thread.

    Results of earlier runs are left out.

    Args:
        path: a file or a folder.

    Raises:
        InputError: `input.missing`, the path does not exist; `file.unreadable`, a folder may not be opened.
    """
    from napari_seg.cohort.discover import is_result
    from napari_seg.formats.archive import shown
    from napari_seg.formats.verdict import verdict_of, verdict_of_skipped

    found = find(path, passing_over=is_result)
    root = path if path.is_dir() else path.parent
    for scan in found.scans:
        verdict, folder = verdict_of(scan), _folder(scan.files[0], root)
        yield Entry(verdict, scan, folder, verdict.choices, verdict.option == "resample_tilt")
    for skipped in found.skipped:
        yield Entry(verdict_of_skipped(skipped), None, _folder(shown(skipped.files[0]), root))


def _folder(file: Path, root: Path) -> str:
    folder = file.parent
    return str(folder.relative_to(root)) if folder.is_relative_to(root) else str(folder)


class StudyModel:
    """The state of the Study tab of one viewer.

    Attributes:
        changed: emitted whenever something the tab shows has changed.
        session: takes what is said.
        path: what was chosen; None while nothing was.
        entries: what was found there so far.
        is_looking: whether there may be more.
    """

    changed = Signal()

    def __init__(self, session: Session) -> None:
        self.session = session
        self.path: Path | None = None
        self.entries: list[Entry] = []
        self.is_looking = False

    def begin(self, path: Path) -> Iterator[Entry]:
        """What to go through in a thread; each entry goes to `add`, and the end is told to `end`."""
        self.path, self.entries, self.is_looking = path, [], True
        self.session.say()
        self.changed.emit()
        return entries(path)

    def add(self, entry: Entry) -> None:
        """Takes what was found."""
        self.entries.append(entry)
        self.changed.emit()

    def end(self, error: Exception | None = None) -> None:
        """Says what was found in all, or why it could not be looked at."""
        if not self.is_looking:
            return
        self.is_looking = False
        scans = [entry for entry in self.entries if entry.scan is not None]
        ready = sum(entry.can_open for entry in scans)
        if error is not None:
            self.session.say(message_of(error))
        elif not scans:
            self.session.say(
                Message("warning", "There is no scan: expected NIfTI, NRRD, MetaImage, DICOM or pictures.")
            )
        else:
            text = f"{len(scans)} scan{'s' * (len(scans) != 1)}, {ready} can be opened. Double-click one."
            self.session.say(Message("info", text))
        self.changed.emit()

    def frame(self) -> NDArray | None:
        """The frame that the next scan is shown in."""
        return frame_of(self.session.viewer.layers)

    @staticmethod
    def read(entry: Entry, reading: Reading, frame: NDArray | None) -> tuple[list[Layer], tuple[str, ...]]:
        """The layers of a scan and what there is to doubt; takes a while, so not in the main thread.

        Raises:
            NapariSegError: it can't be read.
        """
        assert entry.scan is not None
        volume, number = entry.scan.read(**reading), reading.get("volume")
        if number is not None:
            volume = replace(volume, name=f"{volume.name}{VOLUME_MARK}{number}")
        layers = [layer_of(one) for one in image_layers(volume, frame)]
        return layers, tuple(f"{n.message} ({n.code})" for n in volume.notices)

    def show(self, answer: tuple[list[Layer], tuple[str, ...]]) -> None:
        """Adds the layers of a scan, and goes there if it lies elsewhere than what is in the picture."""
        layers, doubts = answer
        viewer = self.session.viewer
        for layer in in_frame(layers, self.frame()):  # another scan may have come first
            viewer.add_layer(layer)
        if layers and not holds(layer, viewer.dims.point[-3:]):
            axes = range(viewer.dims.ndim - 3, viewer.dims.ndim)
            viewer.dims.set_point(axes, np.mean(layer.extent.world, axis=0))
            viewer.reset_view()
        self.session.say(*(Message("warning", doubt) for doubt in doubts))

    def fail(self, entry: Entry, error: Exception) -> None:
        """Says why a scan could not be opened, and what may still be chosen."""
        if isinstance(error, ChoiceNeeded):  # a volume of a tilted series
            entry = self._replace(entry, replace(entry, is_tilted=True))
            self.session.say(Message("warning", f"{entry.verdict.name} has a tilted gantry: it can be straightened."))
        else:
            if isinstance(error, InputError) and not entry.volumes:
                verdict = replace(entry.verdict, verdict="refuse", code=error.code, message=error.message)
                self._replace(entry, replace(entry, verdict=verdict, is_tilted=False))
            self.session.say(message_of(error))
        self.changed.emit()

    def _replace(self, entry: Entry, other: Entry) -> Entry:
        self.entries = [other if one is entry else one for one in self.entries]
        return other
