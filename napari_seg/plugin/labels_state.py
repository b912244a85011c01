"""State of each labels layer that napari does not keep: edits, measurements, hidden structures. Without Qt.

A state lives as long as its layer, even if the panel is closed. A duplicate of a layer gets a state of its own, which
begins as that of the original.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet

import numpy as np
from napari.layers import Image, Labels, Layer
from numpy.typing import NDArray
from psygnal import Signal

from napari_seg.evaluation.measure import Measurement
from napari_seg.plugin import kept_data
from napari_seg.plugin.foreign_layers import is_moved
from napari_seg.plugin.layer_info import LayerInfo
from napari_seg.plugin.layers import moved_error, segmentation_of
from napari_seg.plugin.napari_private import Atom, history_lengths, undone_arrays
from napari_seg.volume import Segmentation

if TYPE_CHECKING:
    from napari_seg.evaluation.metrics import Scores


@dataclass(frozen=True)
class EditAction:
    """One applied action of the Edit tab.

    Attributes:
        name: name of the action, such as "Smooth".
        label: label of the structure.
        structure: name of the structure.
        added: voxels that the structure gained.
        removed: voxels that the structure lost.
    """

    name: str
    label: int
    structure: str
    added: int
    removed: int


@dataclass
class _LoggedAction:
    action: EditAction
    after: weakref.ref[NDArray]
    """New labels of the first box, which napari's history keeps while the action can be undone or redone."""
    names: Mapping[int, str]
    """Names of the structures that it made."""
    is_undone: bool = False


@dataclass
class LabelsState:
    """Edits and measurements of one labels layer.

    Attributes:
        edited: emitted after a person changed, undid or redid labels.
        unsaved_changed: emitted when the layer becomes unsaved (True) or saved (False).
        measured: label -> measurement on the grid of the layer.
        counts: label -> number of voxels on the grid of the file; None before the first measurement.
        hidden: labels that are not drawn.
        scores: label -> scores against the reference; empty before a comparison and after an edit.
        edits: number of changes of labels, names and colours.
        paints: number of changes of labels among `edits`.
        painted: whether a person changed the labels.
        measured_at: value of `paints` for which `measured` is valid; None before the first measurement.
        measured_on: scan whose intensities `measured` holds; None without one.
        saved: value of `edits` at the last save.
        history: lengths of the undo and redo histories after the last change.
        earlier_actions: actions of the Edit tab before the layer was restored from a file.
    """

    edited = Signal()
    unsaved_changed = Signal(bool)

    measured: dict[int, Measurement] = field(default_factory=dict)
    counts: dict[int, int] | None = None
    hidden: set[int] = field(default_factory=set)
    scores: dict[int, Scores] = field(default_factory=dict)
    edits: int = 0
    paints: int = 0
    painted: bool = False
    measured_at: int | None = None
    measured_on: weakref.ref[Image] | None = None
    saved: int = 0
    history: tuple[int, int] = (0, 0)
    earlier_actions: tuple[EditAction, ...] = ()
    _logged: list[_LoggedAction] = field(default_factory=list)

    @property
    def actions(self) -> list[EditAction]:
        """Actions of the Edit tab in the order in which they were applied, without those that were undone."""
        return [*self.earlier_actions, *(logged.action for logged in self._logged if not logged.is_undone)]

    def log(self, action: EditAction, step: list[Atom], names: Mapping[int, str] | None = None) -> None:
        """Add an action to `actions`; call before its step is written.

        Args:
            action: the action.
            step: step of napari's history that the action makes.
            names: label -> name of the structures that it makes.
        """
        self._logged.append(_LoggedAction(action, weakref.ref(step[0][2]), names or {}))

    @property
    def new_names(self) -> dict[int, str]:
        """Names for structures that actions made; they are in the table while they have voxels."""
        return {label: name for one in self._logged if not one.is_undone for label, name in one.names.items()}

    def take_back_names(self) -> set[tuple[int, str]]:
        """Return labels and names that actions gave before they were undone, and forget what can't be redone."""
        undone = {named for one in self._logged if one.is_undone for named in one.names.items()}
        self._logged = [one for one in self._logged if not one.is_undone or one.after() is not None]
        return undone - set(self.new_names.items())

    def is_measured(self, scan: Image | None) -> bool:
        """Return whether `measured` is valid for the labels as they are, with the intensities of a scan."""
        measured_on = None if self.measured_on is None else self.measured_on()
        return self.measured_at == self.paints and measured_on is scan

    @property
    def is_unsaved(self) -> bool:
        """Return whether there are edits that were not saved."""
        return self.edits > self.saved

    def count_edit(self) -> None:
        """Count a change of labels, names or colours."""
        was_unsaved, self.edits = self.is_unsaved, self.edits + 1
        if not was_unsaved:
            self.unsaved_changed.emit(True)

    def mark_saved(self, edits: int) -> None:
        """Note that the layer was saved.

        Args:
            edits: value of `edits` when the saved snapshot was taken; later edits are still unsaved.
        """
        was_unsaved, self.saved = self.is_unsaved, max(self.saved, edits)
        if was_unsaved and not self.is_unsaved:
            self.unsaved_changed.emit(False)

    def _on_edited(self, event: Any) -> None:
        self.history = history_lengths(event.source)
        undone = undone_arrays(event.source)
        for logged in self._logged:
            if (after := logged.after()) is not None:  # what can't be redone any more stays as it was
                logged.is_undone = id(after) in undone
        self.paints += 1
        self.painted, self.scores = True, {}
        self.count_edit()
        self.edited.emit()

    def _on_drawn(self, event: Any) -> None:
        """Detect undo and redo, for which napari emits no event but `set_data`, as for every new slice."""
        if self.history != history_lengths(event.source):
            self._on_edited(event)


_STATES: WeakKeyDictionary[Labels, LabelsState] = WeakKeyDictionary()

_INFOS: WeakSet[LayerInfo] = WeakSet()
"""Infos of layers that have or had a state. A new layer with one of them is a copy: only napari shares infos."""


def state_of(layer: Labels) -> LabelsState:
    """Return the state of a layer; edits are counted from the first call on."""
    info = LayerInfo.of(layer)
    if layer not in _STATES:
        state = _STATES[layer] = LabelsState(history=history_lengths(layer))
        if info is not None:
            _begin_as_copy(state, layer, info)
        layer.events.data.connect(state._on_edited)
        layer.events.paint.connect(state._on_edited)
        layer.events.set_data.connect(state._on_drawn)
    if info is not None:
        _INFOS.add(info)
    return _STATES[layer]


def _begin_as_copy(state: LabelsState, layer: Labels, info: LayerInfo) -> None:
    """If a layer is a copy of another one, such as a duplicate, give it the edits of the original.

    If the original is gone or has other labels, another program may have changed them: they count as edited.
    """
    others = [one for known in _STATES.keyrefs() if (one := known()) is not None and one is not layer]
    same = [one for one in others if LayerInfo.of(one) is info]
    if not same and info not in _INFOS:
        return
    if (original := next((one for one in same if np.array_equal(one.data, layer.data)), None)) is None:
        state.edits, state.painted = 1, True
        return
    old = _STATES[original]
    state.edits, state.saved, state.painted, state.hidden = old.edits, old.saved, old.painted, set(old.hidden)
    state.earlier_actions = tuple(old.actions)


def unsaved_in(layers: Iterable[Layer]) -> list[Labels]:
    """Return the labels layers on scans that have unsaved edits."""
    labels = (layer for layer in layers if isinstance(layer, Labels) and LayerInfo.of(layer) is not None)
    return [layer for layer in labels if state_of(layer).is_unsaved]


def with_unsaved_data_in(layers: Iterable[Layer]) -> list[Labels]:
    """Return the labels layers on scans that have unsaved edits, or unsaved data of tools, such as prompts."""
    labels = [layer for layer in layers if isinstance(layer, Labels) and LayerInfo.of(layer) is not None]
    return [layer for layer in labels if state_of(layer).is_unsaved or kept_data.has_unsaved(layer)]


@dataclass(frozen=True)
class Snapshot:
    """Copy of a labels layer at one moment, for another thread while a person continues to paint.

    Attributes:
        layer: layer that was copied.
        labels: copy of its array.
        settings: settings as napari passes them to a writer.
        edits: value of `LabelsState.edits` at that moment.
        paints: value of `LabelsState.paints` at that moment.
        actions: actions of the Edit tab.
        kept: data of tools, such as prompts; see `kept_data`.
        kept_changes: number of changes of `kept` at that moment.
        selected_label: label that was painted with.
        is_moved: whether the layer lay elsewhere than its voxels in the patient, see `foreign_layers.is_moved`.
    """

    layer: Labels
    labels: NDArray
    settings: Mapping[str, Any]
    edits: int
    paints: int
    actions: tuple[EditAction, ...] = ()
    kept: Mapping[str, Any] = field(default_factory=dict)
    kept_changes: int = 0
    selected_label: int = 1
    is_moved: bool = False

    @classmethod
    def of(cls, layer: Labels, *, is_copied: bool = True) -> Snapshot:
        """Return a snapshot of a layer; call in the main thread.

        Args:
            layer: layer.
            is_copied: copy the array. Otherwise it is the layer's own, which may change at any time: for results that
                are dropped unless `is_current`, because the copy of a large scan blocks the window.
        """
        state = state_of(layer)
        settings = layer.as_layer_data_tuple()[1]
        settings["metadata"] = dict(settings["metadata"])  # napari returns the live dictionary
        kept, changes = kept_data.kept(layer), kept_data.changes_of(layer)
        return cls(
            layer,
            np.array(layer.data) if is_copied else np.asarray(layer.data),
            settings,
            state.edits,
            state.paints,
            tuple(state.actions),
            kept,
            changes,
            int(layer.selected_label),
            is_moved(layer),
        )

    def mark_saved(self) -> None:
        """Note that the labels and the data of tools were saved; later changes are still unsaved."""
        kept_data.mark_saved(self.layer, self.kept_changes)
        state_of(self.layer).mark_saved(self.edits)

    @property
    def name(self) -> str:
        """Name of the layer."""
        return str(self.settings["name"])

    @property
    def info(self) -> LayerInfo:
        """Info of the layer."""
        info = LayerInfo.in_settings(self.settings)
        assert info is not None
        return info

    @property
    def is_current(self) -> bool:
        """Return whether the labels of the layer are unchanged since then."""
        return state_of(self.layer).paints == self.paints

    def segmentation(self) -> Segmentation:
        """Return the labels on the grid of the file; slow, call outside the main thread.

        Raises:
            OutputError: `output.moved`, the layer was moved away from that grid; and as `segmentation_of`.
        """
        if self.is_moved:
            raise moved_error(self.name)
        return self.segmentation_in_place()

    def segmentation_in_place(self) -> Segmentation:
        """Return the labels on the grid of the file, wherever the layer was moved to; as `segmentation`."""
        return segmentation_of(self.labels, self.settings)
