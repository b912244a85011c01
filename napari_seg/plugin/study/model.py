"""What the Study tab does, without Qt: say what lies below a path, and open what a person picks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from napari.layers import Image, Labels, Layer
from numpy.typing import NDArray
from psygnal import Signal

from napari_seg.cohort.discover import SUFFIX
from napari_seg.errors import ChoiceNeeded, InputError
from napari_seg.formats.find import find
from napari_seg.formats.scan import ReadOptions
from napari_seg.plugin.job import Job
from napari_seg.plugin.labels_on_scan import can_move, has_grid_of, on_scan
from napari_seg.plugin.labels_state import Snapshot, state_of
from napari_seg.plugin.layer_info import LayerInfo, frame_of, volume_of
from napari_seg.plugin.layers import VOLUME_MARK, holds, image_layers, in_frame, layer_of
from napari_seg.plugin.messages import Message, in_window_words, message_of, words_of
from napari_seg.plugin.session import Session
from napari_seg.plugin.study.label_files import (
    are_labels,
    holds_labels,
    kind_of,
    label_layers,
    read_labels,
    scan_index,
    waits_for,
)

if TYPE_CHECKING:
    from napari_seg.formats.scan import Scan
    from napari_seg.formats.verdict import Verdict
    from napari_seg.volume import Volume

WORDS = {"process": "ready", "warn": "ready, with a doubt", "refuse": "can't be used", "skip": "no scan"}
"""What a verdict is called for a person."""

SHORT_WORDS = {"process": "ready", "warn": "doubtful", "refuse": "refused", "skip": "no scan"}
"""The same in a narrow column."""


@dataclass(frozen=True)
class Entry:
    """One row of the tree.

    Attributes:
        verdict: what would become of it.
        scan: how to read it; None of what is no scan.
        folder: where it lies, relative to what was chosen.
        volumes: from how many volumes a person must choose one; 0 where there is nothing to choose.
        is_tilted: whether its slices must be shifted onto a straight grid.
        labels: file of a segmentation or of contours; None of a scan.
        scan_name: what the scan is called to which the labels belong; "" where that is not known.
    """

    verdict: Verdict
    scan: Scan | None
    folder: str
    volumes: int = 0
    is_tilted: bool = False
    labels: Path | None = None
    scan_name: str = ""

    @property
    def can_open(self) -> bool:
        """Whether it can be shown, at least once a person has chosen how."""
        if self.labels is not None:
            return True
        is_fit = self.verdict.verdict in ("process", "warn") or self.volumes > 0 or self.is_tilted
        return self.scan is not None and is_fit

    @property
    def can_be_labels(self) -> bool:
        """Whether its values may be labels: of a format that does not tell scans from label maps."""
        is_image = self.scan is not None and self.scan.format in ("nifti", "itk", "image2d")
        return is_image and self.labels is None and self.can_open

    @property
    def title(self) -> str:
        """Return what a person calls it, as its layer is called."""
        if self.labels is not None:
            what = "contours" if self.verdict.modality == "RTSTRUCT" else "segmentation"
            return f"{what} of {self.scan_name}" if self.scan_name else self.verdict.name
        return self.verdict.name

    def reading(self, volume: int) -> ReadOptions:
        """How it is read once a person has chosen.

        Args:
            volume: counted from 0; matters only where there are several.
        """
        return ReadOptions(volume=volume if self.volumes else None, resample_tilt=self.is_tilted)

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
    def short(self) -> str:
        """Return the verdict in a word or two."""
        if self.labels is not None:
            return "labels"
        if self.volumes:
            return f"{self.volumes} volumes"
        return "tilted" if self.is_tilted else SHORT_WORDS[self.verdict.verdict]

    @property
    def details(self) -> str:
        """Return all there is to say, for a person."""
        measures = [
            text for text in (self.verdict.modality, self.size, f"{self.spacing} mm" if self.spacing else "") if text
        ]
        code = f" ({self.verdict.code})" if self.verdict.code else ""
        why = in_window_words(self.verdict.message) if self.volumes or self.is_tilted else ""
        return "\n".join(text for text in (self.title, ", ".join(measures), f"{self.words}{code}", why) if text)

    @property
    def words(self) -> str:
        """The verdict for a person."""
        verdict = self.verdict
        if self.labels is not None:
            return "labels" if self.scan_name else "labels; their scan is not in this folder"
        if self.volumes:
            return f"{self.volumes} volumes: choose one below{', tilted' if self.is_tilted else ''}"
        if self.is_tilted:
            return "tilted gantry: can be straightened"
        return (
            f"{WORDS[verdict.verdict]}: {in_window_words(verdict.message)}"
            if verdict.message
            else WORDS[verdict.verdict]
        )


def entries(path: Path) -> Iterator[Entry]:
    """What lies below a path, one by one: each scan is read in full, because only that tells; not in the main thread.

    Segmentations, contours and results of earlier runs come after the scans, each with the scan to which it belongs.

    Args:
        path: a file or a folder.

    Raises:
        InputError: `input.missing`, the path does not exist; `file.unreadable`, a folder may not be opened.
    """
    from napari_seg.cohort.discover import is_certainty_map
    from napari_seg.formats.archive import shown
    from napari_seg.formats.verdict import verdict_of, verdict_of_skipped

    found = find(path, ignore=is_certainty_map)
    root = path if path.is_dir() else path.parent
    labels = [scan.files[0] for scan in found.scans if scan.format == "nifti" and holds_labels(scan.files[0])]
    scans = [scan for scan in found.scans if scan.files[0] not in labels]
    for scan in scans:
        verdict, folder = verdict_of(scan), _folder(scan.files[0], root)
        yield Entry(verdict, scan, folder, verdict.choices, verdict.option == "resample_tilt")
    for skipped in found.skipped:
        if are_labels(skipped):
            labels.append(skipped.files[0])
        else:
            yield Entry(verdict_of_skipped(skipped), None, _folder(shown(skipped.files[0]), root))
    for file in labels:
        yield _labels_entry(file, scans, root)


def _labels_entry(file: Path, scans: Sequence[Scan], root: Path) -> Entry:
    """The row of a file of labels."""
    from napari_seg.formats.archive import shown
    from napari_seg.formats.verdict import Verdict

    kind = kind_of(file)
    if kind in ("SEG", "RTSTRUCT"):
        number = scan_index(file, [scan.files for scan in scans])
    else:
        stem = file.name.removesuffix(kind).removesuffix(SUFFIX)
        number = next((n for n, scan in enumerate(scans) if scan.name == stem), None)
    name = "" if number is None else scans[number].name
    place = shown(file)
    verdict = Verdict(str(place), place.name, 1, "process", modality=kind)
    return Entry(verdict, None if number is None else scans[number], _folder(place, root), labels=file, scan_name=name)


def _folder(file: Path, root: Path) -> str:
    folder = file.parent
    return str(folder.relative_to(root)) if folder.is_relative_to(root) else str(folder)


Loaded = tuple[list[Layer], tuple[str, ...]]
"""Layers that were read, and the doubts about them for a person."""


class StudyModel:
    """The state of the Study tab of one viewer.

    Attributes:
        changed: emitted whenever something the tab shows has changed.
        session: takes what is said.
        path: what was chosen; None while nothing was.
        entries: what was found there so far.
        is_looking: whether there may be more.
        is_loading: whether layers are being read.
    """

    changed = Signal()

    def __init__(self, session: Session) -> None:
        self.session = session
        self.path: Path | None = None
        self.entries: list[Entry] = []
        self.is_looking = False
        self.is_loading = False
        self._look: Job | None = None
        session.inserted.connect(self._on_inserted)

    def look(self, path: Path) -> None:
        """List what lies below a path, in a job; a look at another path is abandoned."""
        if self._look is not None:
            self._look.abandon()
        self.path, self.entries, self.is_looking = path, [], True
        self.session.say()
        self.changed.emit()
        self._look = self.session.jobs.start(
            partial(self._find, path), on_result=self._on_found, on_error=self._on_error, on_end=self._on_looked
        )

    def _find(self, path: Path, job: Job) -> None:
        for entry in entries(path):
            job.check()
            job.post(self.add, entry)

    def add(self, entry: Entry) -> None:
        """Add a row."""
        self.entries.append(entry)
        self.changed.emit()

    def _on_found(self, _: None) -> None:
        scans = [entry for entry in self.entries if entry.scan is not None and entry.labels is None]
        count = sum(entry.labels is not None for entry in self.entries)
        ready = sum(entry.can_open for entry in scans)
        if not scans and not count:
            self.session.say(
                Message("warning", "There is no scan: expected NIfTI, NRRD, MetaImage, DICOM or 2D images.")
            )
        else:
            found = f"{len(scans)} scan{'s' * (len(scans) != 1)}, {ready} can be opened"
            labels = f"; {count} segmentation{'s' * (count != 1)}" if count else ""
            text = f"{found}{labels}. Double-click one."
            self.session.say(Message("info", text))

    def _on_error(self, error: Exception) -> None:
        self.session.say(message_of(error))

    def _on_looked(self) -> None:
        self.is_looking = False
        self.changed.emit()

    # opening

    def open(self, entry: Entry, volume: int = 0) -> None:
        """Read a scan or its labels in a job, and show them.

        Args:
            entry: the row.
            volume: counted from 0; matters only if there are several.
        """
        if entry.labels is not None:
            self.open_labels(entry, entry.labels)
        else:
            read = partial(self.read, entry, entry.reading(volume), self.frame())
            self.load(read, partial(self.fail, entry))

    def open_labels(self, entry: Entry, path: Path) -> None:
        """Read a file of labels in a job, and show it."""
        self.load(partial(self.read_labels, entry, path, self.scans(), self.frame()))

    def load(self, read: Callable[[], Loaded], on_error: Callable[[Exception], None] | None = None) -> None:
        """Read layers in a job, and show them.

        Args:
            read: returns the layers and the doubts about them.
            on_error: called with its error; None to report the error.
        """
        self.is_loading = True
        self.changed.emit()
        self.session.jobs.start(lambda _: read(), on_result=self.show, on_error=on_error, on_end=self._on_loaded)

    def _on_loaded(self) -> None:
        self.is_loading = False
        self.changed.emit()

    def scans(self) -> list[Volume]:
        """Return the open scans, the selected one first."""
        layers = [layer for layer in [self.session.scan, *reversed(self.session.scans)] if layer is not None]
        return [volume for layer in dict.fromkeys(layers) if (volume := volume_of(layer)) is not None]

    def _on_inserted(self, scan: Layer) -> None:
        """Put a scan below labels that were opened before it; those that belong to it go on its grid where they fit."""
        viewer = self.session.viewer
        if not isinstance(scan, Image) or volume_of(scan) is None:
            return
        for labels in [layer for layer in viewer.layers if isinstance(layer, Labels) and waits_for(layer, scan)]:
            if can_move(labels, scan):
                moved = on_scan(Snapshot.of(labels), scan)
                moved.visible, place = labels.visible, viewer.layers.index(labels)
                state_of(labels).count_saved(state_of(labels).edits)  # they go on in the moved layer
                viewer.layers.remove(labels)
                viewer.layers.insert(place, moved)
            else:
                text = f"{labels.name} belongs to {scan.name} but lies on other voxels: see Resample in Structures."
                self.session.say(Message("warning", text))
        covered = (layer for layer in self.session.segmentations if waits_for(layer, scan) or has_grid_of(layer, scan))
        lowest = min(map(viewer.layers.index, covered), default=len(viewer.layers))
        if lowest < viewer.layers.index(scan) and LayerInfo.require(scan).adopted is None:
            viewer.layers.move(viewer.layers.index(scan), lowest)

    def frame(self) -> NDArray | None:
        """The frame that the next scan is shown in."""
        return frame_of(self.session.viewer.layers)

    @staticmethod
    def read(entry: Entry, reading: ReadOptions, frame: NDArray | None) -> Loaded:
        """The layers of a scan and what there is to doubt; takes a while, so not in the main thread.

        Raises:
            NapariSegError: it can't be read.
        """
        assert entry.scan is not None
        volume, number = entry.scan.read(**reading), reading.get("volume")
        if number is not None:
            volume = replace(volume, name=f"{volume.name}{VOLUME_MARK}{number}")
        layers = [layer_of(one) for one in image_layers(volume, frame)]
        return layers, tuple(words_of(notice) for notice in volume.notices)

    @staticmethod
    def read_labels(entry: Entry, path: Path, scans: Sequence[Volume], frame: NDArray | None) -> Loaded:
        """Return the layers of a file of labels, for `show`; takes a while, so not in the main thread.

        Contours fill voxels only on a scan: theirs is read too, where it is not open.

        Args:
            entry: the row.
            path: the file.
            scans: the open scans, the selected one first.
            frame: the viewer's frame.

        Raises:
            NapariSegError: it can't be read.
        """
        layers: list[Layer] = []
        doubts: tuple[str, ...] = ()
        is_open = scan_index(path, [scan.source.files for scan in scans]) is not None
        if kind_of(path) == "RTSTRUCT" and not is_open and entry.scan is not None:
            layers, doubts = StudyModel.read(replace(entry, labels=None), ReadOptions(), frame)
            volume = volume_of(layers[0])
            assert volume is not None
            scans, frame = [volume], frame_of(layers)
        found = read_labels(path, scans)
        name = entry.title if entry.scan_name else entry.verdict.name.partition(".")[0]
        layers += [layer_of(one) for one in label_layers(found, name, frame)]
        return layers, (*doubts, *(words_of(notice) for notice in found.notices))

    def show(self, answer: Loaded) -> None:
        """Adds the layers of a scan, and goes there if it lies elsewhere than what is in the picture."""
        layers, doubts = answer
        viewer = self.session.viewer
        images = [layer for layer in layers if not isinstance(layer, Labels)]
        for layer in [*in_frame(images, self.frame()), *(one for one in layers if isinstance(one, Labels))]:
            viewer.add_layer(layer)  # another scan may have come first
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
