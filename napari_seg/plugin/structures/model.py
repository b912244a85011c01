"""Model of the Structures tab, without Qt: measure structures, go to them, name, colour, hide and compare them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from weakref import ref

import numpy as np
from napari.layers import Image, Labels
from psygnal import Signal

from napari_seg.evaluation.measure import Measurement, measure
from napari_seg.formats.kinds import FormatName
from napari_seg.plugin.job import Job
from napari_seg.plugin.labels_on_scan import may_belong_to, on_scan
from napari_seg.plugin.labels_state import LabelsState, Snapshot, state_of
from napari_seg.plugin.layer_info import LayerInfo, placement_of
from napari_seg.plugin.layers import color_in, colormap_of
from napari_seg.plugin.messages import Message, message_of
from napari_seg.plugin.session import Session, voxels_of
from napari_seg.plugin.structures.comparison import ReferenceComparison, compare
from napari_seg.plugin.structures.export import export
from napari_seg.volume import Segment, distinct_color

if TYPE_CHECKING:
    from napari_seg.evaluation.metrics import Scores


Work = Literal["measure", "compare", "resample", "save"]
"""Kinds of jobs of the model."""


@dataclass(frozen=True)
class Structure:
    """One row of the table of structures.

    Attributes:
        label: value in the label map.
        name: name for display.
        color: red, green and blue, each 0 to 255.
        shown: whether the structure is drawn.
        voxels: number of voxels on the grid of the file; None before the first measurement.
        ml: volume in millilitres; NaN before the first measurement.
        mean_intensity: mean intensity of the scan in the structure; NaN without a scan on the same voxels.
        confidence: mean probability of the network; NaN if unknown, and after an edit.
        scores: scores against the reference; None before a comparison.
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


@dataclass(frozen=True)
class Measurements:
    """Measurements of a snapshot.

    Attributes:
        snapshot: labels that were measured.
        scan: scan whose intensities were measured; None without one.
        measured: label -> measurement on the grid of the layer.
        counts: label -> number of voxels on the grid of the file.
    """

    snapshot: Snapshot
    scan: Image | None
    measured: dict[int, Measurement]
    counts: dict[int, int]


class StructuresModel:
    """State of the Structures tab of one viewer.

    Attributes:
        changed: emitted after any change of what the tab shows.
        measurement_due: emitted when measurements are outdated; the tab then calls `start_measuring` after a pause.
        session: source of the selected labels and scan; receives messages.
    """

    changed = Signal()
    measurement_due = Signal()

    def __init__(self, session: Session) -> None:
        self.session = session
        self._watched: Labels | None = None
        self._scan: Image | None = None
        self._running: set[Work] = set()
        session.changed.connect(self._follow)
        self._follow()

    def close(self) -> None:
        """Disconnect from the layer."""
        self._watch(None)

    @property
    def state(self) -> LabelsState:
        """State of the selected labels layer, which must exist."""
        assert self._watched is not None
        return state_of(self._watched)

    @property
    def structures(self) -> list[Structure]:
        """Rows of the table; empty if no labels layer is selected."""
        layer = self._watched
        if layer is None:
            return []
        state, info = self.state, LayerInfo.require(layer)
        ml = info.placement.native.voxel_ml
        rows = []
        for segment in _segments(layer, state):
            known = state.measured.get(segment.label)
            count = None if state.counts is None else state.counts.get(segment.label, 0)
            rows.append(
                Structure(
                    segment.label,
                    segment.name,
                    segment.color,
                    segment.label not in state.hidden,
                    count,
                    nan if count is None else count * ml,
                    nan if known is None else known.mean_intensity,
                    nan if state.painted else info.confidence.get(segment.label, nan),
                    state.scores.get(segment.label),
                )
            )
        return rows

    # jobs

    def is_running(self, work: Work) -> bool:
        """Return whether a job of a kind is running."""
        return work in self._running

    def _start(
        self,
        kind: Work,
        work: Callable[[Job], Any],
        on_result: Callable[[Any], object],
        on_error: Callable[[Exception], object] | None = None,
    ) -> None:
        def end() -> None:
            self._running.discard(kind)
            self.changed.emit()

        self._running.add(kind)
        self.changed.emit()
        self.session.jobs.start(work, on_result=on_result, on_error=on_error, on_end=end)

    def save(self, path: Path, format_name: FormatName) -> None:
        """Save the selected labels in a job.

        Args:
            path: file to write, with an ending of its format.
            format_name: format of the file.
        """
        snapshot = self.snapshot()
        assert snapshot is not None
        self.session.show_messages(Message("info", "Saving …"))
        done = partial(self._on_saved, snapshot, format_name)
        self._start("save", lambda _: export(snapshot, path, format_name), done)

    def _on_saved(self, snapshot: Snapshot, format_name: FormatName, text: str) -> None:
        if format_name != "csv":  # a table of volumes holds no labels
            state_of(snapshot.layer).mark_saved(snapshot.edits)
        self.session.show_messages(Message("info", text))
        self.session.viewer.status = text

    def compare(self, reference: Labels | Path) -> None:
        """Compare the selected labels with a layer or a file, in a job."""
        snapshot = self.snapshot()
        assert snapshot is not None
        other = Snapshot.of(reference) if isinstance(reference, Labels) else reference
        self.session.show_messages(Message("info", "Comparing …"))
        self._start("compare", lambda job: compare(snapshot, other, lambda: job.is_stopping), self.take_comparison)

    def take_comparison(self, comparison: ReferenceComparison) -> None:
        """Show the scores, and add the layer of the voxels that differ."""
        layer, session = comparison.snapshot.layer, self.session
        if not comparison.snapshot.is_current:
            session.show_messages(
                Message("warning", "The labels were edited during the comparison; compare them again.")
            )
            return
        state_of(layer).scores = dict(comparison.scores)
        session.viewer.add_layer(comparison.differences)
        if layer in session.viewer.layers:
            session.viewer.layers.selection.active = layer
        session.show_messages(*comparison.messages)

    def resample(self) -> None:
        """Resample the selected labels on the voxels of the selected scan, in a job; add them as a new layer."""
        snapshot, scan = self.snapshot(), self.session.scan
        assert snapshot is not None
        assert scan is not None
        self._start("resample", lambda _: on_scan(snapshot, scan), partial(self._on_resampled, snapshot, scan))

    def _on_resampled(self, snapshot: Snapshot, scan: Image, layer: Labels) -> None:
        layer.name = f"{layer.name} on {scan.name}"
        state_of(layer).edits += 1  # the resampled labels are saved nowhere
        self.session.viewer.add_layer(layer)
        text = f"Resampled on {scan.name} by the nearest voxel: volumes may differ a little from {snapshot.layer.name}."
        self.session.show_messages(Message("info", text))

    def give_scan(self) -> None:
        """Note that the selected labels, which were restored without their scan, belong to the selected scan."""
        layer, scan = self._watched, self.session.scan
        assert layer is not None
        assert scan is not None
        assert may_belong_to(layer, scan)
        replace(LayerInfo.require(layer), scan=LayerInfo.require(scan).scan, scan_mark=None).attach(layer)
        self.session.show_messages(Message("info", f"The labels belong to {scan.name} now: check them on it."))

    def start_measuring(self) -> None:
        """Measure the selected labels in a job; while one is running, emit `measurement_due` again instead."""
        if self.is_running("measure"):
            self.measurement_due.emit()
        elif self._watched is not None:
            snapshot, scan = Snapshot.of(self._watched, is_copied=False), self._scan
            on_error = partial(self._on_measuring_failed, snapshot)
            self._start("measure", lambda _: self.measure(snapshot, scan), self.take, on_error)

    def _on_measuring_failed(self, snapshot: Snapshot, error: Exception) -> None:
        """Ask for new measurements if labels were edited while they were counted, which can raise anything."""
        if snapshot.is_current:
            self.session.show_messages(message_of(error))
        elif snapshot.layer is self._watched:
            self.measurement_due.emit()

    def snapshot(self) -> Snapshot | None:
        """Return a snapshot of the selected labels layer; None if there is none."""
        return None if self._watched is None else Snapshot.of(self._watched)

    def measure(self, snapshot: Snapshot, scan: Image | None) -> Measurements:
        """Measure the structures of a snapshot; slow, call outside the main thread.

        Args:
            snapshot: labels.
            scan: scan on the same voxels; None without one.
        """
        measured = measure(snapshot.labels, None if scan is None else voxels_of(scan))
        if snapshot.info.placement.is_view:
            counts = {label: one.voxels for label, one in measured.items()}
        else:  # the layer is resampled; volumes come from the grid of the file
            counts = snapshot.segmentation_in_place().voxel_counts()
        return Measurements(snapshot, scan, measured, counts)

    def take(self, measurements: Measurements) -> None:
        """Show measurements; if the labels were edited in the meantime, ask for new ones instead."""
        snapshot, measured = measurements.snapshot, measurements.measured
        layer, state = snapshot.layer, state_of(snapshot.layer)
        if not snapshot.is_current:
            if layer is self._watched:
                self.measurement_due.emit()
            return
        state.measured_at = snapshot.paints
        state.measured_on = None if measurements.scan is None else ref(measurements.scan)
        is_new = state.counts is None and LayerInfo.require(layer).algorithm is not None
        state.measured, state.counts = measured, measurements.counts
        _name_new_structures(layer, state)
        _set_features(layer, state)
        self.changed.emit()
        if is_new and measured and layer is self._watched and not self.session.is_painting:
            # begin the review of a network's result at its largest structure
            self.show(max(measured, key=lambda label: measured[label].voxels))

    # showing

    def show(self, label: int) -> None:
        """Move the viewer to the centroid of a structure and select its label."""
        layer = self._watched
        if layer is None:
            return
        layer.selected_label = label
        if (known := self.state.measured.get(label)) is not None:
            dims = self.session.viewer.dims
            dims.set_point(range(dims.ndim - 3, dims.ndim), layer.data_to_world(known.center))

    def step(self, by: int) -> None:
        """Go to the next structure that has voxels (`by` = 1), or to the previous one (-1)."""
        found = [row.label for row in self.structures if row.voxels]
        if found and self._watched is not None:
            selected = self._watched.selected_label
            index = found.index(selected) + by if selected in found else (0 if by > 0 else -1)
            self.show(found[index % len(found)])

    def draw(self, label: int, shown: bool) -> None:
        """Draw a structure or hide it, without a change of the labels."""
        self.state.hidden -= {label}
        self.state.hidden |= set() if shown else {label}
        self._recolour()

    def add(self, name: str) -> int | None:
        """Add a structure without voxels to the selected labels, select it and return its label.

        Returns:
            The lowest free label; None if the type of the labels has no further one.
        """
        layer = self._watched
        assert layer is not None
        used = {segment.label for segment in _segments(layer, self.state)}
        free = next(label for label in range(1, len(used) + 2) if label not in used)
        if free > np.iinfo(layer.data.dtype).max:
            return None
        info = LayerInfo.require(layer)
        replace(info, segments=(*info.segments, Segment(free, name.strip(), distinct_color(free)))).attach(layer)
        self._change(free)
        layer.selected_label = free
        return free

    def rename(self, label: int, name: str) -> None:
        """Rename a structure; an empty name is ignored."""
        if name.strip():
            self._change(label, name=name.strip())

    def recolor(self, label: int, color: tuple[int, int, int]) -> None:
        """Change the colour of a structure."""
        self._change(label, color=color)

    def _change(self, label: int, **fields: Any) -> None:
        layer = self._watched
        assert layer is not None
        segments = tuple(replace(s, **fields) if s.label == label else s for s in _segments(layer, self.state))
        replace(LayerInfo.require(layer), segments=segments).attach(layer)
        self.state.count_edit()
        _set_features(layer, self.state)
        self._recolour()

    def _recolour(self) -> None:
        layer = self._watched
        assert layer is not None
        colors = {s.label: s.color for s in _segments(layer, self.state)}
        layer.colormap = colormap_of(colors, self.state.hidden)
        self.changed.emit()

    # following the layer

    def _follow(self) -> None:
        for layer in self.session.segmentations:
            state_of(layer).unsaved_changed.connect(self._on_unsaved_changed, unique=True)
        layer = self.session.labels
        scan = None if layer is None else self.session.scan_on(layer)
        if layer is not self._watched or scan is not self._scan:
            self._watch(layer, scan)
            if layer is not None and not self.state.is_measured(scan):
                self.measurement_due.emit()
        self.changed.emit()

    def _watch(self, layer: Labels | None, scan: Image | None = None) -> None:
        if self._watched is not None:
            self.state.edited.disconnect(self._on_edited)
        self._watched, self._scan = layer, scan
        if layer is not None:
            self.state.edited.connect(self._on_edited)

    def _on_edited(self) -> None:
        self.measurement_due.emit()

    def _on_unsaved_changed(self) -> None:
        if not self.session.is_closed:
            self.changed.emit()


def _segments(layer: Labels, state: LabelsState) -> tuple[Segment, ...]:
    """Return the segments of the layer's table, and those that a person painted in addition."""
    known = {s.label: s for s in LayerInfo.require(layer).segments}
    for label in state.measured:
        if label not in known:
            known[label] = Segment(label, f"label {label}", color_in(layer.colormap, label))
    return tuple(known[label] for label in sorted(known))


def _name_new_structures(layer: Labels, state: LabelsState) -> None:
    """Put structures that an action made into the table of the layer, and take them out after it was undone."""
    info = LayerInfo.require(layer)
    known = {segment.label: segment for segment in info.segments}
    for label, name in state.take_back_names():
        if label in known and known[label].name == name:
            del known[label]  # a person who paints this label afterwards paints another structure
    for label, name in state.new_names.items():
        if label in state.measured:
            known.setdefault(label, Segment(label, name, distinct_color(label)))
        elif label in known and known[label].name == name:
            del known[label]
    segments = tuple(known[label] for label in sorted(known))
    if len(segments) != len(info.segments):
        replace(info, segments=segments).attach(layer)
        layer.colormap = colormap_of({segment.label: segment.color for segment in segments}, state.hidden)


def _set_features(layer: Labels, state: LabelsState) -> None:
    """Set names, volumes and intensities as features of the layer, which napari shows in its status bar."""
    segments, ml = _segments(layer, state), placement_of(layer).native.voxel_ml
    counts = state.counts or {}
    means = [state.measured[s.label].mean_intensity if s.label in state.measured else nan for s in segments]
    layer.features = {
        "index": [0, *(s.label for s in segments)],
        "name": ["background", *(s.name for s in segments)],
        "ml": [nan, *(round(counts.get(s.label, 0) * ml, 3) for s in segments)],
        "mean": [nan, *(round(mean, 2) for mean in means)],
    }
