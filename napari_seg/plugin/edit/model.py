"""Model of the Edit tab, without Qt: compute a change of a structure, preview it, apply it as one step of undo.

One request is worked on at a time: an operation on the whole structure, a tool, or the refinement by prompts. Its
change is computed in a job from the labels of the layer itself, which no function of `editing` modifies. If a person
edits the labels meanwhile, or while the preview is shown, the request is computed again; a change is never applied to
other labels than those it was computed from.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Labels
from numpy.typing import NDArray
from psygnal import Signal

from napari_seg.editing.change import Change
from napari_seg.editing.interactive_network import InteractiveNetwork
from napari_seg.editing.prompts import Prompts
from napari_seg.errors import InputError
from napari_seg.plugin.edit.kept_prompts import keep_prompts, kept_prompts
from napari_seg.plugin.edit.new_structure import add_structure
from napari_seg.plugin.edit.operations import WINDOW_OPERATIONS, Situation
from napari_seg.plugin.edit.preview import Preview
from napari_seg.plugin.edit.refining import BOX_ALONE, ModelResult, load, refined
from napari_seg.plugin.edit.step import fits
from napari_seg.plugin.edit.strokes import Strokes
from napari_seg.plugin.job import Job
from napari_seg.plugin.labels_state import EditAction, state_of
from napari_seg.plugin.layer_info import LayerInfo, placement_of
from napari_seg.plugin.layers import scale_and_translate
from napari_seg.plugin.messages import Message, message_of
from napari_seg.plugin.napari_private import is_stroke_open, paint_step
from napari_seg.plugin.views import Marks, views_of

if TYPE_CHECKING:
    from napari_seg.plugin.session import Session
    from napari_seg.plugin.structures.model import Structure, StructuresModel


_MAX_LABEL = 4095
"""Highest label that new structures get."""


@dataclass(frozen=True)
class Request:
    """What is computed.

    Attributes:
        name: name of the action.
        compute: returns the change.
        is_of_prompts: whether it depends on the prompts.
        moves_by: number of slices that the main viewer moves by after the change is applied.
    """

    name: str
    compute: Callable[[Situation], Change]
    is_of_prompts: bool = False
    moves_by: int = 0


class EditModel:
    """State of the Edit tab of one viewer.

    Args:
        session: source of the selected labels and scan; receives messages.
        structures: names and colours of the structures.

    Attributes:
        changed: emitted after any change of what the tab shows.
        preview: change that was computed and not applied; None if there is none.
        job: job of the current request; None if none runs.
        size_mm: size for operations that need one.
        min_ml: volume of the smallest island that stays.
        network: network that refines by prompts; None for the built-in method.
    """

    changed = Signal()

    def __init__(self, session: Session, structures: StructuresModel) -> None:
        self.session, self.structures = session, structures
        self.views = views_of(session.viewer)
        self.preview: Preview | None = None
        self.job: Job | None = None
        self.size_mm, self.min_ml = 2.0, 0.5
        self.network: InteractiveNetwork | None = None
        self._may_overwrite = False
        self._is_at_once = self._is_warm = False
        self._computing = threading.Lock()
        self._strokes = Strokes()
        self._model_result: ModelResult | None = None
        self._request: Request | None = None
        self._is_applying = False
        self._watched: Labels | None = None
        self._label = 0
        session.changed.connect(self._follow)
        structures.changed.connect(self.changed)
        self._follow()

    def close(self) -> None:
        """Disconnect from the layer and remove the marks."""
        self.network = None
        self._watch(None)
        self.views.show(None)

    def warm_up(self) -> None:
        """Load the packages of the functions in a job, once, so that the first change does not wait for them."""
        if not self._is_warm:
            self._is_warm = True
            self.session.jobs.start(lambda _: load(), on_error=lambda _: None)

    # what is edited

    @property
    def layer(self) -> Labels | None:
        """Labels layer that is edited: the selected one; None without one."""
        return self._watched

    @property
    def placed(self) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """Scale and translation of the layer, as `scale_and_translate`; None without one, or if it is turned."""
        return None if self._watched is None else scale_and_translate(self._watched)

    def report_turned(self) -> None:
        """Show that the layer is turned, so that its voxels and slices are not those that the window shows."""
        assert self._watched is not None
        text = (
            f"{self._watched.name!r} is rotated against the axes of the window, where the Edit tab can't work; "
            "save the labels, and open them and the file of the scan with napari-seg"
        )
        self.session.show_messages(message_of(InputError("layer.turned", text)))

    @property
    def structure(self) -> Structure | None:
        """Structure that is edited: the selected label of the layer; None for background or without a layer."""
        return next((one for one in self.structures.structures if one.label == self._label), None)

    @property
    def others(self) -> list[Structure]:
        """All other structures of the layer."""
        return [one for one in self.structures.structures if one.label != self._label]

    @property
    def may_overwrite(self) -> bool:
        """Whether the structure may take voxels from other structures."""
        return self._may_overwrite

    @may_overwrite.setter
    def may_overwrite(self, may: bool) -> None:
        self._may_overwrite = may
        self._compute_again()
        self.changed.emit()

    @property
    def is_at_once(self) -> bool:
        """Whether changes are applied without a preview."""
        return self._is_at_once

    @is_at_once.setter
    def is_at_once(self, at_once: bool) -> None:
        self._is_at_once = at_once
        self.changed.emit()

    def choose(self, label: int) -> None:
        """Select a structure and go to it, unless a tool is in use."""
        if self._watched is None:
            return
        if self.views.is_claimed:
            self._watched.selected_label = label
        else:
            self.structures.show(label)

    def add_structure(self, name: str) -> None:
        """Add a structure without voxels; to a new labels layer if none lies on the scan."""
        add_structure(self.session, self.structures, name)
        self._follow()

    # requests

    def run(self, operation: str, other: int | None = None) -> None:
        """Compute an operation on the whole structure.

        Args:
            operation: key of `WINDOW_OPERATIONS`.
            other: label of the other structure, for an operation on two.
        """
        known = WINDOW_OPERATIONS[operation]
        amounts = {"size_mm": self.size_mm, "min_ml": self.min_ml, "other": other}
        given: dict[str, Any] = {name: amounts[name] for name in known.amounts}
        compute = lambda situation: known.run(situation, **given)  # noqa: E731
        self.start(Request(known.title, compute, moves_by=known.moves_by))

    def start(self, request: Request) -> None:
        """Compute a request; it replaces the current one."""
        layer = self._watched
        self._drop()
        if layer is None or not self._label:
            self.report_no_structure()
            return
        if self.placed is None:
            self.report_turned()
            return
        self._request = request
        label, paints, grid = self._label, state_of(layer).paints, placement_of(layer).shown
        labels, image, overwrite = _unsigned(layer.data), self.session.image_on(layer), self._overwrite()
        slice_shown = self._slice(layer)
        used = {one.label for one in self.structures.structures}
        free = tuple(n for n in range(1, min(int(np.iinfo(layer.data.dtype).max), _MAX_LABEL) + 1) if n not in used)

        def work(job: Job) -> Preview:
            situation = Situation(labels, grid, label, overwrite, image, slice_shown, free, job.report)
            job.report("waiting")
            with self._computing:  # what was replaced may still run
                job.report("computing")
                change = request.compute(situation)
                job.report("checking")
                return Preview.of(change, request.name, layer, paints, situation)

        def end() -> None:
            if self.job is job:
                self.job = None
            self.changed.emit()

        job = self.job = self.session.jobs.start(work, on_result=self._take, on_error=self._fail, on_end=end)
        self.changed.emit()

    @property
    def has_pending(self) -> bool:
        """Whether there is a preview, a prompt or a computation to discard."""
        return self.preview is not None or self.job is not None or len(self._strokes) > 0

    @property
    def request_name(self) -> str:
        """Name of the current request; "" without one."""
        return "" if self._request is None else self._request.name

    def report_no_structure(self) -> None:
        """Show that no structure is chosen."""
        self.session.show_messages(Message("warning", "Choose a structure, or add a new one with “+”."))

    def stop(self) -> None:
        """Stop the job and drop its request."""
        if self.job is not None:
            self._drop()
            self.session.show_messages(Message("info", "Stopped."))

    def apply(self) -> None:
        """Apply the preview as one step that can be undone; compute it again if the labels have changed."""
        preview = self.preview
        if preview is None:
            return
        if self._is_painting:
            self.session.show_messages(Message("warning", "Finish the stroke first."))
            return
        if state_of(preview.layer).paints != preview.paints or not fits(preview.step, preview.layer.data):
            self._compute_again()
            self.session.show_messages(Message("warning", "The labels have changed; the preview was computed again."))
            return
        structure = self.structure
        name = structure.name if structure is not None else f"label {preview.label}"
        action = EditAction(preview.name, preview.label, name, preview.added, preview.removed)
        names = {label: f"{name} {n}" for n, label in enumerate(preview.new_labels, start=2)}
        state_of(preview.layer).log(action, preview.step, names)
        is_of_prompts = self._request is not None and self._request.is_of_prompts
        moves_by = 0 if self._request is None else self._request.moves_by
        self._drop()
        self._is_applying = True
        try:
            paint_step(preview.layer, preview.step)
        finally:
            self._is_applying = False
        if moves_by and preview.slice_shown is not None:
            axis, index = preview.slice_shown
            self._show_slice(preview.layer, axis, index + moves_by)
        if is_of_prompts:  # a later prompt corrects the labels with this change
            self._strokes.clear()
        if len(self._strokes):
            self._refine()
        self._show(Message("info", f"{preview.name}: {preview.text}. Ctrl+Z takes it back."))

    def discard(self) -> None:
        """Discard the preview, and the prompts if it was computed from them."""
        if self._request is None or self._request.is_of_prompts:
            self._strokes.clear()
        self._drop()
        self._refine()

    # prompts

    @property
    def prompts(self) -> Prompts:
        """Prompts for the structure, in voxels of the layer; setting them computes the refinement."""
        return self._strokes.prompts

    @prompts.setter
    def prompts(self, prompts: Prompts) -> None:
        self._strokes.prompts = prompts
        self._refine()

    @property
    def prompts_text(self) -> str:
        """Number of prompts in words."""
        return self._strokes.text

    def add_prompt(self, voxels: NDArray[np.intp], is_included: bool = True) -> None:
        """Add a click (3,) or a scribble (N, 3), and refine the structure."""
        if self._needs_structure():
            self._strokes.add(voxels, is_included)
            self._refine()

    def add_prompts(self, prompts: Prompts) -> None:
        """Add prompts that belong together, such as a box or a lasso, and refine the structure."""
        if self._needs_structure():
            self._strokes.add_prompts(prompts)
            self._refine()

    def undo_prompt(self) -> None:
        """Remove the latest prompt, and refine the structure by the others."""
        self._strokes.undo()
        self._refine()

    def clear_prompts(self) -> None:
        """Remove all prompts and the preview of their refinement."""
        self._strokes.clear()
        self._refine()

    def _refine(self) -> None:
        """Compute the refinement by all prompts since the latest applied one, from the labels without it."""
        prompts = self._strokes.prompts
        if prompts.is_empty:
            if self._request is not None and self._request.is_of_prompts:
                self._drop()
            self._show()
            return
        network, layer = self.network, self._watched
        info = None if layer is None else LayerInfo.of(layer)
        result = self._model_result = None if info is None else ModelResult.of(info, self._model_result)

        def compute(situation: Situation) -> Change:
            return refined(situation, prompts, network, result)

        self.start(Request("Refine", compute, is_of_prompts=True))
        self._show()

    def connect_network(self, connect: Callable[[], InteractiveNetwork]) -> None:
        """Use a network for prompts, after it is connected in a job."""

        def use(network: InteractiveNetwork) -> None:
            self.network = network
            self._refine()

        self.session.jobs.start(lambda _: connect(), on_result=use, on_end=self.changed.emit)

    def leave_network(self) -> None:
        """Use the built-in method for prompts again."""
        if self.network is not None:
            self.session.jobs.start(lambda _, network=self.network: network.close(), on_error=lambda _: None)  # type: ignore[misc]
            self.network = None
            self._refine()

    # results

    def _take(self, preview: Preview) -> None:
        if self._is_painting:
            return  # its end is an edit, after which the request is computed again
        if state_of(preview.layer).paints != preview.paints:
            self._compute_again()
            return
        if preview.is_empty:
            is_of_prompts = self._request is not None and self._request.is_of_prompts
            self._request = self._request if is_of_prompts else None
            prompts = self._strokes.prompts
            is_box_alone = is_of_prompts and prompts.box is not None and not prompts.has_voxels
            owner = self._owner_of(prompts, preview) if is_of_prompts else None
            if is_box_alone and (self.structure is None or self.structure.voxels != 0):
                self._show(Message("warning", f"{preview.name}: nothing changes; {BOX_ALONE}"))
            elif owner is not None:
                text = f"the clicked voxel belongs to {owner}; switch on “May replace other structures” to take it"
                self._show(Message("warning", f"{preview.name}: nothing changes; {text}."))
            else:
                self._show(Message("info", f"{preview.name}: nothing changes."))
            return
        self.preview = preview
        if self._is_at_once:
            self.apply()
        else:
            self._show()

    def _owner_of(self, prompts: Prompts, preview: Preview) -> str | None:
        """Return the name of a structure that has included voxels and may not be replaced; None if there is none."""
        found = set(np.asarray(preview.layer.data)[tuple(prompts.positive.T)].tolist())
        found -= {0, preview.label, *self._overwrite()}
        return next((one.name for one in self.others if one.label in found), None)

    def _fail(self, error: Exception) -> None:
        self._drop()
        self._show(message_of(error))

    def _compute_again(self) -> None:
        if self._request is not None:
            self.start(self._request)
            self._mark()

    def _drop(self) -> None:
        """Drop the request, its job and its preview."""
        if self.job is not None:
            self.job.abandon()
        self.job, self._request, self.preview = None, None, None

    def _show(self, *messages: Message) -> None:
        self._mark()
        self.session.show_messages(*messages)
        self.changed.emit()

    def _mark(self) -> None:
        """Draw the preview and the prompts, and keep the prompts."""
        layer, preview = self._watched, self.preview
        if layer is not None:
            keep_prompts(layer, self._label, self._strokes.prompts)
        placed = self.placed
        if layer is None or placed is None or (preview is None and not len(self._strokes)):
            if self.views.marks is not None:
                self.views.show(None)
            return
        points, kinds = self._strokes.clicks
        areas = (*(preview.areas if preview is not None else ()), *self._strokes.areas)
        self.views.show(Marks(layer.data.shape, *placed, areas, points, kinds))

    # following the layer

    def _follow(self) -> None:
        if self.session.labels is not self._watched:
            self._watch(self.session.labels)
        self.changed.emit()

    def _watch(self, layer: Labels | None) -> None:
        if self._watched is not None:
            state_of(self._watched).edited.disconnect(self._on_edited)
            self._watched.events.selected_label.disconnect(self._on_selected)
        self._watched, self._model_result = layer, None
        if layer is not None:
            state_of(layer).edited.connect(self._on_edited)
            layer.events.selected_label.connect(self._on_selected)
        self._on_selected()

    def _on_selected(self, event: object = None) -> None:
        """Drop what belongs to another structure, and show the prompts that are kept for this one."""
        self._label = 0 if self._watched is None else int(self._watched.selected_label)
        self._strokes.clear()
        if self._watched is not None:
            self._strokes.prompts = kept_prompts(self._watched, self._label)
        self._drop()
        self._mark()
        self.changed.emit()

    def _on_edited(self) -> None:
        """Compute the request again after the event: napari emits it before it writes the new labels."""
        request = self._request
        if self._is_applying or request is None:
            return
        self._drop()
        self._request = request
        self._mark()
        self.job = self.session.jobs.start(lambda _: None, on_result=lambda _: self._compute_again())

    def _overwrite(self) -> tuple[int, ...]:
        return tuple(one.label for one in self.others) if self._may_overwrite else ()

    def _slice(self, layer: Labels) -> tuple[int, int] | None:
        """Return the axis and the number of the slice that the main viewer shows, or would show in 2D.

        The axes of the layer are the last three of the viewer. None if one of its two displayed axes is another one.
        """
        dims = self.session.viewer.dims
        others = dims.ndim - 3
        if any(axis < others for axis in dims.order[-2:]):
            return None
        axis = next(int(axis) - others for axis in reversed(dims.order[:-2]) if axis >= others)
        placed = scale_and_translate(layer)
        if placed is None:
            return None
        scale, translate = placed
        position = (dims.point[others + axis] - translate[axis]) / scale[axis]
        return axis, min(max(round(float(position)), 0), layer.data.shape[axis] - 1)

    def _show_slice(self, layer: Labels, axis: int, index: int) -> None:
        """Let the main viewer show a slice of a layer."""
        dims, placed = self.session.viewer.dims, scale_and_translate(layer)
        if placed is not None:
            scale, translate = placed
            dims.set_point(dims.ndim - 3 + axis, float(translate[axis] + scale[axis] * index))

    @property
    def _is_painting(self) -> bool:
        """Whether a stroke is being painted: its voxels change before it is a step of the history."""
        active = (viewer.layers.selection.active for viewer in self.views)
        return any(is_stroke_open(layer) for layer in active if isinstance(layer, Labels))

    def _needs_structure(self) -> bool:
        if self._watched is not None and self._label:
            return True
        self.report_no_structure()
        return False


def _unsigned(data: Any) -> NDArray[np.unsignedinteger]:
    """Return labels as unsigned numbers without a copy."""
    array = np.asarray(data)
    return array.view(f"u{array.dtype.itemsize}") if array.dtype.kind == "i" else array
