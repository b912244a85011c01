"""What the Structures tab does, without Qt: measure what was found, go there, name, colour, hide, compare."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import isnan, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
from napari.layers import Labels, Layer
from numpy.typing import NDArray
from psygnal import Signal

from napari_seg.evaluation.measure import Measurement, measure
from napari_seg.plugin.foreign_layers import lies_on
from napari_seg.plugin.job import COMPARING
from napari_seg.plugin.layer_info import LayerInfo, placement_of
from napari_seg.plugin.layers import (
    color_in,
    colormap_of,
    edits_of,
    labels_layer,
    layer_of,
    segmentation_of,
)
from napari_seg.plugin.messages import words_of
from napari_seg.plugin.session import Message, Session
from napari_seg.volume import Segment, Segmentation, distinct_from

if TYPE_CHECKING:
    from napari_seg.evaluation.metrics import Scores


@dataclass(frozen=True)
class Structure:
    """One row of the table.

    Attributes:
        label: its value in the label map.
        name: what a person calls it.
        color: red, green, blue, each 0 to 255.
        shown: whether it is drawn.
        voxels: of the layer; None while they are counted.
        ml: its volume.
        mean_intensity: of the scan there; NaN where there is none.
        confidence: mean probability that the network gave it; NaN where nobody knows, and once it was edited.
        scores: against the reference, if one was compared.
    """

    label: int
    name: str
    color: tuple[int, int, int]
    shown: bool = True
    voxels: int | None = None
    ml: float = nan
    mean_intensity: float = nan
    confidence: float = nan
    scores: Scores | None = None


@dataclass
class Table:
    """What is known of the structures of one labels layer.

    Attributes:
        edited: emitted when a person changed, undid or redid labels.
        marked: emitted when the layer becomes unsaved (True) or saved (False).
        measured: label -> its measurement, of the layer's array.
        counts: label -> voxels of the file's own grid.
        hidden: labels that are not drawn.
        scores: label -> its numbers against the reference.
        edits: how often a person changed labels, names or colours since they were made.
        paints: how often labels were among that.
        painted: whether a person took part in the labels.
        measured_at: `paints` of the labels that were measured; None while none were.
        saved: how often it was when they were last saved where the person wanted it.
        history: how many steps could be undone and redone when labels were last looked at.
    """

    edited = Signal()
    marked = Signal(bool)

    measured: dict[int, Measurement] = field(default_factory=dict)
    counts: dict[int, int] | None = None
    hidden: set[int] = field(default_factory=set)
    scores: dict[int, Scores] = field(default_factory=dict)
    edits: int = 0
    paints: int = 0
    painted: bool = False
    measured_at: int | None = None
    saved: int = 0
    history: tuple[int, int] = (0, 0)

    @property
    def is_unsaved(self) -> bool:
        """Whether there is work that lies nowhere else."""
        return self.edits > self.saved

    def count_edit(self) -> None:
        """Count a change of labels, names or colours."""
        was_unsaved, self.edits = self.is_unsaved, self.edits + 1
        if not was_unsaved:
            self.marked.emit(True)

    def count_saved(self, edits: int) -> None:
        """Note that the labels were saved as they were after so many edits; later edits are still unsaved."""
        was_unsaved, self.saved = self.is_unsaved, max(self.saved, edits)
        if was_unsaved and not self.is_unsaved:
            self.marked.emit(False)

    def _on_edited(self, event: Any) -> None:
        self.history = edits_of(event.source)
        self.paints += 1
        self.painted, self.scores = True, {}
        self.count_edit()
        self.edited.emit()

    def _on_drawn(self, event: Any) -> None:
        """Undone and redone steps: napari says of them only that it draws, as it does of every slice."""
        if self.history != edits_of(event.source):
            self._on_edited(event)


_TABLES: WeakKeyDictionary[Labels, Table] = WeakKeyDictionary()


def table_of(layer: Labels) -> Table:
    """Return what is known of a layer's structures; edits are counted from the first call on.

    A table lives as long as its layer, also when the panel is closed; a duplicate of the layer has its own.
    """
    if layer not in _TABLES:
        table = _TABLES[layer] = Table(history=edits_of(layer))
        layer.events.data.connect(table._on_edited)
        layer.events.paint.connect(table._on_edited)
        layer.events.set_data.connect(table._on_drawn)
    return _TABLES[layer]


def unsaved_in(layers: Iterable[Layer]) -> list[Labels]:
    """Return the labels layers of scans that hold edits which were saved nowhere."""
    labels = (layer for layer in layers if isinstance(layer, Labels) and LayerInfo.of(layer) is not None)
    return [layer for layer in labels if table_of(layer).is_unsaved]


@dataclass(frozen=True)
class Snapshot:
    """A labels layer at one moment, for another thread while a person goes on painting.

    Attributes:
        layer: whose it is.
        labels: a copy of its array.
        settings: as napari hands them to a writer.
        edits: `Table.edits` of that moment.
        paints: `Table.paints` of that moment.
    """

    layer: Labels
    labels: NDArray
    settings: Mapping[str, Any]
    edits: int
    paints: int

    @classmethod
    def of(cls, layer: Labels) -> Snapshot:
        """To be taken in the main thread."""
        table = table_of(layer)
        settings = layer.as_layer_data_tuple()[1]
        settings["metadata"] = dict(settings["metadata"])  # napari's own goes on changing
        return cls(layer, np.array(layer.data), settings, table.edits, table.paints)

    @property
    def info(self) -> LayerInfo:
        """What the plugin knew about the layer."""
        info = LayerInfo.in_settings(self.settings)
        assert info is not None
        return info

    @property
    def is_current(self) -> bool:
        """Whether the labels are still the same."""
        return table_of(self.layer).paints == self.paints

    def segmentation(self) -> Segmentation:
        """The labels on the file's own grid; takes a while."""
        return segmentation_of(self.labels, self.settings)


Measured = tuple[Snapshot, dict[int, Measurement], dict[int, int]]
Compared = tuple[Snapshot, "dict[int, Scores]", Labels, list[Message]]


class StructuresModel:
    """The state of the Structures tab of one viewer.

    Attributes:
        changed: emitted whenever something the tab shows has changed.
        measuring: emitted when structures must be measured anew; whoever hears it calls `measure` in a thread and hands
            the answer to `take`.
        session: gives the labels layer and the scan, and takes what is said.
    """

    changed = Signal()
    measuring = Signal()

    def __init__(self, session: Session) -> None:
        self.session = session
        self._watched: Labels | None = None
        session.changed.connect(self._follow)
        self._follow()

    def close(self) -> None:
        """Lets go of the layer."""
        self._watch(None)

    @property
    def table(self) -> Table:
        """What is known of the layer's structures."""
        assert self._watched is not None
        return table_of(self._watched)

    @property
    def structures(self) -> list[Structure]:
        """The rows; none where there are no labels."""
        layer = self._watched
        if layer is None:
            return []
        table, info = self.table, LayerInfo.require(layer)
        ml = info.placement.native.voxel_ml
        rows = []
        for segment in _segments(layer, table):
            known = table.measured.get(segment.label)
            count = None if table.counts is None else table.counts.get(segment.label, 0)
            rows.append(
                Structure(
                    segment.label,
                    segment.name,
                    segment.color,
                    segment.label not in table.hidden,
                    count,
                    nan if count is None else count * ml,
                    nan if known is None else known.mean_intensity,
                    nan if table.painted else info.confidence.get(segment.label, nan),
                    table.scores.get(segment.label),
                )
            )
        return rows

    # measuring

    def snapshot(self) -> Snapshot | None:
        """The layer as it is now."""
        return None if self._watched is None else Snapshot.of(self._watched)

    def measure(self, snapshot: Snapshot) -> Measured:
        """Measurements and voxel counts; takes a while, so not in the main thread."""
        found = measure(snapshot.labels, self._image_on(snapshot.layer))
        if placement_of(snapshot.layer).is_view:
            counts = {label: one.voxels for label, one in found.items()}
        else:  # what is drawn is resampled; volumes are those of the file's own voxels
            counts = snapshot.segmentation().voxel_counts()
        return snapshot, found, counts

    def take(self, answer: Measured) -> None:
        """Shows measurements, unless the labels are others by now: then they are measured anew."""
        snapshot, found, counts = answer
        layer, table = snapshot.layer, table_of(snapshot.layer)
        if not snapshot.is_current:
            if layer is self._watched:
                self.measuring.emit()
            return
        table.measured_at = snapshot.paints
        is_new = table.counts is None and LayerInfo.require(layer).algorithm is not None
        table.measured, table.counts = found, counts
        _tell_hover(layer, table)
        self.changed.emit()
        if is_new and found and layer is self._watched and not self.session.is_painting:
            # what a network found is looked at first where most of it is
            self.show(max(found, key=lambda label: found[label].voxels))

    # looking

    def show(self, label: int) -> None:
        """Moves the viewer to a structure's centroid, and selects its label."""
        layer = self._watched
        if layer is None:
            return
        layer.selected_label = label
        if (known := self.table.measured.get(label)) is not None:
            dims = self.session.viewer.dims
            dims.set_point(range(dims.ndim - 3, dims.ndim), layer.data_to_world(known.center))

    def step(self, by: int) -> None:
        """Goes to the next structure that was found, or the one before it."""
        found = [row.label for row in self.structures if row.voxels]
        if found and self._watched is not None:
            now = self._watched.selected_label
            place = found.index(now) + by if now in found else (0 if by > 0 else -1)
            self.show(found[place % len(found)])

    def draw(self, label: int, shown: bool) -> None:
        """Draws a structure or leaves it out; the labels stay what they are."""
        self.table.hidden -= {label}
        self.table.hidden |= set() if shown else {label}
        self._recolour()

    def rename(self, label: int, name: str) -> None:
        """Calls a structure otherwise; a name that is empty changes nothing."""
        if name.strip():
            self._change(label, name=name.strip())

    def recolor(self, label: int, color: tuple[int, int, int]) -> None:
        """Draws a structure in another colour."""
        self._change(label, color=color)

    def _change(self, label: int, **what: Any) -> None:
        layer = self._watched
        assert layer is not None
        segments = tuple(replace(s, **what) if s.label == label else s for s in _segments(layer, self.table))
        replace(LayerInfo.require(layer), segments=segments).attach(layer)
        self.table.count_edit()
        _tell_hover(layer, self.table)
        self._recolour()

    def _recolour(self) -> None:
        layer = self._watched
        assert layer is not None
        colors = {s.label: s.color for s in _segments(layer, self.table)}
        layer.colormap = colormap_of(colors, self.table.hidden)
        self.changed.emit()

    # comparing

    def compare(self, snapshot: Snapshot, reference: Snapshot | Path) -> Compared:
        """What was compared, its numbers, a layer of where the two differ, and what there is to say.

        Takes a while, so not in the main thread.

        Args:
            snapshot: the labels.
            reference: others of the same scan, or a file.

        Raises:
            NapariSegError: the reference can't be read or lies on another grid.
        """
        from napari_seg.evaluation.metrics import DISAGREEMENTS
        from napari_seg.evaluation.pairs import compare_with

        layer, found = snapshot.layer, snapshot.segmentation()
        expected: Segmentation | Path
        if isinstance(reference, Snapshot):
            name, expected = str(reference.settings["name"]), reference.segmentation()
        else:
            name, expected = reference.name, reference.absolute()
        images = snapshot.info.scan.absolute().files
        scores, differing_at, notices = COMPARING.run(
            compare_with, found, expected, images, is_stopping=self.session.is_closed.is_set
        )
        usual = ((255, 150, 0), (0, 170, 255), (230, 60, 230))
        colors = distinct_from([s.color for s in found.segments], usual)
        kinds = zip(DISAGREEMENTS.items(), colors, strict=True)
        segments = tuple(Segment(label, meaning, color) for (label, meaning), color in kinds)
        differing = Segmentation(differing_at, found.grid, segments)
        placement = snapshot.info.placement.for_new_layer()
        shown = layer_of(labels_layer(differing, placement, f"{layer.name} against {name}"))
        known = [one.dice for one in scores.values() if not isnan(one.dice)]
        mean = f"mean Dice {np.mean(known):.3f}" if known else "neither holds a structure"
        text = f"Compared with {name}: {mean}; {sum(differing.volumes_ml().values()):.2f} ml differ."
        return (
            snapshot,
            scores,
            shown,
            [*(Message("warning", words_of(notice)) for notice in notices), Message("info", text)],
        )

    def take_comparison(self, answer: Compared) -> None:
        """Shows the numbers, and adds a layer with the voxels where the two differ."""
        snapshot, scores, shown, messages = answer
        layer = snapshot.layer
        if not snapshot.is_current:
            self.session.say(Message("warning", "The labels were changed meanwhile; compare them once more."))
            return
        table_of(layer).scores = dict(scores)
        viewer = self.session.viewer
        viewer.add_layer(shown)
        if layer in viewer.layers:
            viewer.layers.selection.active = layer
        self.session.say(*messages)

    # following the layer

    def _follow(self) -> None:
        for layer in self.session.segmentations:
            table_of(layer).marked.connect(self._on_marked, unique=True)
        if self.session.labels is not self._watched:
            self._watch(self.session.labels)
            if self._watched is not None and self.table.measured_at != self.table.paints:
                self.measuring.emit()
        self.changed.emit()

    def _watch(self, layer: Labels | None) -> None:
        if self._watched is not None:
            self.table.edited.disconnect(self._on_edited)
        self._watched = layer
        if layer is not None:
            self.table.edited.connect(self._on_edited)

    def _on_edited(self) -> None:
        self.measuring.emit()

    def _on_marked(self) -> None:
        if not self.session.is_closed.is_set():
            self.changed.emit()

    def _image_on(self, layer: Labels) -> NDArray | None:
        """The scan's array, if it is the one that the labels lie on."""
        scans = [self.session.scan, *self.session.scans] if self.session.scan is not None else self.session.scans
        found = next((scan for scan in scans if lies_on(layer, scan)), None)
        return None if found is None else np.asarray(found.data[0] if found.multiscale else found.data)


def _segments(layer: Labels, table: Table) -> tuple[Segment, ...]:
    """Those that were looked for, and what a person painted beside them."""
    known = {s.label: s for s in LayerInfo.require(layer).segments}
    for label in table.measured:
        if label not in known:
            known[label] = Segment(label, f"label {label}", color_in(layer.colormap, label))
    return tuple(known[label] for label in sorted(known))


def _tell_hover(layer: Labels, table: Table) -> None:
    """Puts names, volumes and intensities where napari's status bar finds them."""
    segments, ml = _segments(layer, table), placement_of(layer).native.voxel_ml
    counts = table.counts or {}
    means = [table.measured[s.label].mean_intensity if s.label in table.measured else nan for s in segments]
    layer.features = {
        "index": [0, *(s.label for s in segments)],
        "name": ["background", *(s.name for s in segments)],
        "ml": [nan, *(round(counts.get(s.label, 0) * ml, 3) for s in segments)],
        "mean": [nan, *(round(mean, 2) for mean in means)],
    }
