"""Tools of the Edit tab, which act where a person clicks or drags in a plane. Without Qt.

At most one tool is chosen. The threshold brush is napari's brush, which then changes only voxels in a range of
intensities; every other tool needs napari's mode that moves the camera, and ends when another mode is chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from napari.layers import Labels
from numpy.typing import ArrayLike, NDArray
from psygnal import Signal

from napari_seg.editing.change import Box, Change
from napari_seg.editing.cut import cut_by_lasso, cut_by_plane
from napari_seg.editing.grow import grow, suggest_range
from napari_seg.editing.islands import take_island
from napari_seg.editing.plane import plane_through_line
from napari_seg.editing.prompts import Prompts, from_lasso
from napari_seg.editing.split import split
from napari_seg.errors import InputError
from napari_seg.plugin.edit.model import Request
from napari_seg.plugin.edit.operations import Situation, needed_image, unused
from napari_seg.plugin.layer_info import placement_of
from napari_seg.plugin.messages import Message, message_of
from napari_seg.plugin.napari_private import restrict_brush

if TYPE_CHECKING:
    from napari_seg.plugin.edit.model import EditModel

ToolName = Literal["click", "scribble", "box", "grow", "lasso", "cut", "island", "divide", "brush"]

CLICKED: tuple[ToolName, ...] = ("click", "grow", "island", "divide")
"""Tools that act on clicks, while a drag moves the camera."""

LassoUse = Literal["inside", "outside", "find"]
"""What a lasso does: cut off what lies inside or outside of it, or find the structure in it."""

_BRUSH_MODES = ("paint", "erase", "fill", "polygon", "pick")
"""Modes of napari in which the range of intensities of the threshold brush holds."""


@dataclass(frozen=True)
class Tool:
    """One tool.

    Attributes:
        title: text of its button, and name of its step.
        tip: tool tip: what clicks and drags do.
        hint: the same in a few words, shown while the tool is chosen.
    """

    title: str
    tip: str
    hint: str


TOOLS: Mapping[ToolName, Tool] = {
    "click": Tool(
        "Click",
        "Click on what belongs to the structure; right-click, or Alt- or Ctrl-click, on what does not. The structure "
        "is computed again after each click.",
        "Click: include. Right or Alt-click: exclude.",
    ),
    "scribble": Tool(
        "Scribble",
        "Drag over what belongs to the structure; drag with the right button, or with Alt or Ctrl, over what does not.",
        "Drag: include. Right or Alt-drag: exclude.",
    ),
    "box": Tool(
        "Box",
        "Drag a rectangle around the structure, then another one in a second plane.",
        "Drag a rectangle around the structure.",
    ),
    "grow": Tool(
        "Grow",
        "Click on tissue: the structure grows there as far as the intensities are alike.",
        "Click on the tissue to add.",
    ),
    "lasso": Tool(
        "Lasso",
        "Drag around a part of the structure, to remove it or to keep only it. Or find the structure: drag around it, "
        "or with the right button, Alt or Ctrl around what does not belong to it.",
        "Drag around a part.",
    ),
    "cut": Tool(
        "Knife",
        "Drag a line: the smaller part of the structure on one side of it is cut off, in all slices.",
        "Drag a line; the smaller part is cut off.",
    ),
    "island": Tool(
        "Island",
        "Click on an island, a part that touches no other part of the structure: it is removed, or given to another "
        "structure. Right-click, or Alt- or Ctrl-click, keeps only it.",
        "Click: remove the island. Right or Alt-click: keep only it.",
    ),
    "divide": Tool(
        "Divide",
        "Click on each of several objects that touch: the structure is divided between them, and each further one "
        "gets a label of its own.",
        "Click on each object.",
    ),
    "brush": Tool(
        "Brush",
        "napari's brush, which paints only where the intensity is in the range.",
        "Paints only within the range.",
    ),
}
"""Tools by the names of their actions."""

assert tuple(TOOLS) == get_args(ToolName)


class Tools:
    """The chosen tool and its settings.

    Args:
        model: computes and applies what the tools request.

    Attributes:
        changed: emitted after the tool or a setting has changed.
        low: lowest intensity of the range for Grow and the brush.
        high: highest intensity of the range.
        is_automatic: whether the range is taken from the tissue where a click or a stroke begins.
        max_mm: largest distance that the structure grows from a click.
        neck_mm: radius of the widest bridge to other tissue that it does not grow over.
        lasso_use: what a lasso does.
        all_slices: whether a lasso cuts all slices, or only the one it is drawn in.
        cut_into: label of what the lasso, the knife or a click on an island cuts off; 0 removes it.
    """

    changed = Signal()

    def __init__(self, model: EditModel) -> None:
        self.model = model
        self.low, self.high = 0.0, 0.0
        self.is_automatic = True
        self.max_mm, self.neck_mm = 40.0, 0.0
        self.lasso_use: LassoUse = "inside"
        self.all_slices = True
        self.cut_into = 0
        self._tool: ToolName | None = None
        self._layer: Labels | None = None
        self._grown_from: tuple[int, int, int] | None = None
        self._objects: list[tuple[int, int, int]] = []
        """Voxels of the objects that a structure is divided into."""
        model.changed.connect(self._follow)
        model.views.added.connect(self._restrict)
        self._follow()

    def close(self) -> None:
        """Put the tool away."""
        self.choose(None)

    @property
    def tool(self) -> ToolName | None:
        """Chosen tool; None if there is none."""
        return self._tool

    @property
    def uses_prompts(self) -> bool:
        """Whether the chosen tool gives prompts."""
        return self._tool in ("click", "scribble", "box") or (self._tool == "lasso" and self.lasso_use == "find")

    def choose(self, tool: ToolName | None) -> None:
        """Choose a tool, or none."""
        layer, was_brush = self.model.layer, self._tool == "brush"
        self._objects = []
        self._tool = None  # so that a change of napari's mode does not end the new tool
        if layer is not None:
            if tool is not None:
                self.model.session.viewer.layers.selection.active = layer
            if tool == "brush":
                layer.mode = "paint"
            elif tool is not None or was_brush:
                layer.mode = "pan_zoom"
            self._tool = tool
        self._attend()
        if self.uses_prompts:
            self.model.warm_up()
        if tool is not None and layer is None:
            self.model.report_no_structure()
        self.changed.emit()

    @property
    def intensity_span(self) -> float:
        """Difference of the highest and the lowest intensity of the scan; 0 without a scan."""
        layer = self.model.layer
        scan = None if layer is None else self.model.session.scan_on(layer)
        if scan is None:
            return 0.0
        low, high = scan.contrast_limits_range
        return float(high - low)

    def set_range(self, low: float | None = None, high: float | None = None) -> None:
        """Set one or both ends of the range of intensities by hand; a grown structure is computed again."""
        self.low = self.low if low is None else low
        self.high = self.high if high is None else high
        self.is_automatic = False
        self._grow_again()
        self.changed.emit()

    def set_limits(self, max_mm: float, neck_mm: float) -> None:
        """Set how far the structure grows; a grown structure is computed again."""
        self.max_mm, self.neck_mm = max_mm, neck_mm
        self._grow_again()

    # called by the mouse

    def click(self, voxel: tuple[int, int, int], is_included: bool) -> None:
        """Act on a click on a voxel."""
        if self._tool == "click":
            self.model.add_prompt(np.array(voxel), is_included)
        elif self._tool == "grow" and is_included:
            self._grown_from = voxel
            self._pick(voxel)
            self._grow()
        elif self._tool == "island":
            into = self.cut_into
            self.model.start(
                Request(
                    "Island",
                    lambda s: take_island(s.labels, s.grid, s.label, voxel, is_kept=not is_included, into=into),
                )
            )
        elif self._tool == "divide" and is_included:
            self._divide(voxel)

    def begin_stroke(self, voxel: tuple[int, int, int]) -> None:
        """Take the range for the brush from the tissue where a stroke begins."""
        if self._tool == "brush":
            self._pick(voxel)

    def drag(self, path: NDArray[np.float64], axis: int, is_included: bool) -> None:
        """Act on a drag in a plane.

        Args:
            path: (N, 3) positions as fractional voxel indices.
            axis: axis at right angles to the plane.
            is_included: whether it was drawn with the left button and without Alt or Ctrl.
        """
        layer, placed = self.model.layer, self.model.placed
        if layer is None or placed is None or len(path) < 2:
            return
        if self._tool == "scribble":
            voxels = voxels_on(path, layer.data.shape)
            if len(voxels):
                self.model.add_prompt(voxels, is_included)
        elif self._tool == "box":
            box = box_around(path, axis, layer.data.shape, self.model.prompts.box, placed[0])
            self.model.add_prompts(Prompts(box=box))
        elif self._tool == "lasso":
            self._lasso(path, axis, layer, is_included)
        elif self._tool == "cut":
            into = self.cut_into
            self.model.start(Request("Cut", lambda s: _cut_smaller(s, path[0], path[-1], axis, into)))

    # what the tools request

    def _lasso(self, path: NDArray[np.float64], axis: int, layer: Labels, is_included: bool) -> None:
        use, into = self.lasso_use, self.cut_into
        index, polygon = round(float(path[0, axis])), np.delete(path, axis, axis=1)
        if use == "find":
            try:
                self.model.add_prompts(from_lasso(polygon, axis, index, layer.data.shape, is_positive=is_included))
            except InputError as error:
                self.model.session.show_messages(message_of(error))
            return
        slices = None if self.all_slices else (index, index + 1)

        def compute(s: Situation) -> Change:
            return cut_by_lasso(s.labels, s.grid, s.label, polygon, axis, slices=slices, cut_off=use, into=into)

        self.model.start(Request("Lasso", compute))

    def _divide(self, voxel: tuple[int, int, int]) -> None:
        """Divide the structure between all objects that were clicked on since the last change."""
        layer, structure, session = self.model.layer, self.model.structure, self.model.session
        if layer is None or structure is None or layer.data[voxel] != structure.label:
            session.show_messages(Message("warning", "Click on the structure."))
            return
        if len(self._objects) > 1 and self.model.request_name != "Divide":
            self._objects = []
        self._objects = [one for one in self._objects if layer.data[one] == structure.label] + [voxel]
        seeds = tuple(self._objects)
        if len(seeds) > 1:
            self.model.start(Request("Divide", lambda s: split(s.labels, s.grid, s.label, seeds=seeds, into=unused(s))))
        else:
            session.show_messages(Message("info", "Click on the next object."))

    def _grow(self) -> None:
        voxel, low, high, max_mm, neck_mm = self._grown_from, self.low, self.high, self.max_mm, self.neck_mm
        if voxel is None:
            return

        def compute(s: Situation) -> Change:
            image, overwrite = needed_image(s), s.overwrite
            return grow(
                s.labels, s.grid, s.label, image, voxel, low, high, max_mm=max_mm, neck_mm=neck_mm, overwrite=overwrite
            )

        self.model.start(Request("Grow", compute))

    def _grow_again(self) -> None:
        if self.model.request_name == "Grow":
            self._grow()

    def _pick(self, voxel: tuple[int, int, int]) -> None:
        """Take the range from the tissue around a voxel, if it is automatic."""
        layer = self.model.layer
        image = None if layer is None else self.model.session.image_on(layer)
        if not self.is_automatic or layer is None or image is None:
            return
        try:
            self.low, self.high = suggest_range(image, placement_of(layer).shown, voxel)
        except InputError as error:
            self.model.session.show_messages(message_of(error))
        self.changed.emit()

    # following napari's mode

    def _follow(self) -> None:
        if self.model.layer is not self._layer:
            if self._layer is not None:
                self._layer.events.mode.disconnect(self._on_mode)
            self._layer = self.model.layer
            if self._layer is not None:
                self._layer.events.mode.connect(self._on_mode)
            self._tool = None
            self._objects = []
            self._attend()
            self.changed.emit()

    def _on_mode(self, event: object = None) -> None:
        """Put the tool away if a person has chosen another one of napari's."""
        if self._tool is None or self._layer is None:
            return
        allowed = _BRUSH_MODES if self._tool == "brush" else ("pan_zoom",)
        if str(self._layer.mode) not in allowed:
            self._tool = None
            self._attend()
            self.changed.emit()

    def _attend(self) -> None:
        """Claim the clicks for the tool, and restrict napari's brush if it is the tool."""
        self.model.views.is_claimed = self._tool is not None and self._tool != "brush"
        for layer in self._shown():
            layer.cursor = "cross" if self.model.views.is_claimed else "standard" if _is_idle(layer) else layer.cursor
        self._restrict()

    def _restrict(self, viewer: object = None) -> None:
        may_paint: Callable[[tuple[slice, ...], int], NDArray] | None = None
        if self._tool == "brush":
            may_paint = self._may_paint
        for layer in self._shown():
            restrict_brush(layer, may_paint)

    def _shown(self) -> list[Labels]:
        """Return the labels layer and its copies in linked planes."""
        active = (viewer.layers.selection.active for viewer in self.model.views)
        copies = [layer for layer in active if isinstance(layer, Labels) and layer is not self._layer]
        return copies if self._layer is None else [self._layer, *copies]

    def _may_paint(self, box: tuple[slice, ...], new_label: int) -> NDArray:
        """Return which voxels of a box the brush may change: any to erase, those in the range to paint."""
        layer = self.model.layer
        image = None if layer is None else self.model.session.image_on(layer)
        if layer is None or image is None or not new_label:
            return np.ones((), bool)
        values, labels = image[box], np.asarray(layer.data[box])
        is_free = np.ones((), bool) if self.model.may_overwrite else (labels == 0) | (labels == new_label)
        answer: NDArray = (values >= self.low) & (values <= self.high) & is_free
        return answer


def voxels_on(path: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.intp]:
    """Return the voxels (N, 3) that a path of fractional voxel indices (M, 3) passes, inside an array."""
    parts = [path[:1]]
    for start, end in pairwise(path):
        steps = max(int(np.ceil(2 * np.abs(end - start).max())), 1)
        parts.append(start + (end - start) * np.linspace(0, 1, steps + 1)[1:, None])
    voxels = np.unique(np.rint(np.concatenate(parts)).astype(np.intp), axis=0)
    return voxels[((voxels >= 0) & (voxels < np.array(shape))).all(axis=1)]


def box_around(
    path: NDArray[np.float64], axis: int, shape: tuple[int, ...], known: Box | None, spacing_mm: ArrayLike
) -> Box:
    """Return the box around a path in a plane.

    At right angles to the plane it has the extent of a known box that the plane meets; otherwise it extends from the
    plane by half of the larger side of the path to both sides.

    Args:
        path: (N, 3) fractional voxel indices.
        axis: axis at right angles to the plane.
        shape: (I, J, K) of the label map.
        known: box that was drawn before; None if there is none.
        spacing_mm: (3,) size of a voxel.
    """
    spacing = np.asarray(spacing_mm, np.float64)
    low, high = path.min(axis=0), path.max(axis=0)
    index = round(float(path[0, axis]))
    if known is not None and known[axis].start <= index < known[axis].stop:
        low[axis], high[axis] = known[axis].start, known[axis].stop - 1
    else:
        half_mm = ((high - low) * spacing).max() / 2
        low[axis], high[axis] = index - half_mm / spacing[axis], index + half_mm / spacing[axis]
    first = np.clip(np.rint(low), 0, np.array(shape) - 1).astype(int)
    last = np.clip(np.rint(high), first, np.array(shape) - 1).astype(int)
    i, j, k = (slice(int(a), int(b) + 1) for a, b in zip(first, last, strict=True))
    return i, j, k


def _cut_smaller(s: Situation, first: NDArray, second: NDArray, axis: int, into: int) -> Change:
    """Return the change that cuts off the smaller part of a structure at a line through all slices."""
    one, other = first.tolist(), second.tolist()
    change = cut_by_plane(s.labels, s.grid, s.label, plane_through_line(s.grid, one, other, axis), into=into)
    total = int(np.count_nonzero(change.before == s.label))
    if 2 * change.count(s.label)[1] <= total:
        return change
    return cut_by_plane(s.labels, s.grid, s.label, plane_through_line(s.grid, other, one, axis), into=into)


def _is_idle(layer: Labels) -> bool:
    return str(layer.mode) == "pan_zoom"
