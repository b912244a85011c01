"""Make the layers of a session file again, in the thread of a job, and show them as they were, in the main thread."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from napari.components import ViewerModel
from napari.layers import Labels, Layer
from napari.utils.colormaps import AVAILABLE_COLORMAPS, Colormap
from numpy.typing import NDArray

from napari_seg.errors import InputError, NapariSegError, Notice, counted
from napari_seg.formats.label_maps import read_label_map
from napari_seg.formats.scan import Scan
from napari_seg.formats.temporary import TemporaryFolder
from napari_seg.geometry import Grid
from napari_seg.memory import check_fits
from napari_seg.plugin import kept_data
from napari_seg.plugin.labels_state import EditAction, state_of
from napari_seg.plugin.layer_info import NO_ORIENTATION, LayerInfo
from napari_seg.plugin.layers import colormap_of, image_layers, labels_layer, layer_of, title_of
from napari_seg.plugin.packed_labels import PackedLabels
from napari_seg.plugin.placement import place
from napari_seg.plugin.session_file.archive import extract, read_content
from napari_seg.plugin.session_file.content import (
    AnyLayer,
    ImageLayer,
    LabelsLayer,
    SavedColormap,
    ScanLayer,
    SessionContent,
    member_of,
)
from napari_seg.plugin.session_file.names import opened_name
from napari_seg.plugin.session_file.scans import find_scans, read_found
from napari_seg.plugin.session_file.take import IMAGE_SETTINGS, LABELS_SETTINGS
from napari_seg.volume import NO_SOURCE, Segmentation, Volume

_SETTING_ERRORS = (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError)
"""Errors of napari for a value that a setting can't have."""

_BYTES_PER_SHOWN_VOXEL = 8


@dataclass
class OpenedSession:
    """Layers of a session file.

    Attributes:
        path: the session file.
        content: its content.
        layers: index of each layer in the content -> the layer; scans that were not found are absent.
        missing: indices of the scans that were not found.
        volumes: index of each scan that was read -> the scan.
        notices: doubts about the scans.
        faults: reasons why scans or labels could not be read.
    """

    path: Path
    content: SessionContent
    layers: dict[int, Layer] = field(default_factory=dict)
    missing: tuple[int, ...] = ()
    volumes: dict[int, Volume] = field(default_factory=dict)
    notices: list[Notice] = field(default_factory=list)
    faults: list[NapariSegError] = field(default_factory=list)

    @property
    def scan_names(self) -> list[str]:
        """Present name of each scan; "" for one that was not read."""
        volumes = [self.volumes.get(number) for number in range(len(self.content.scans))]
        return ["" if volume is None else title_of(volume) for volume in volumes]

    @property
    def unread_scans(self) -> list[int]:
        """Indices of the scans that are not shown, because they were not found or could not be read."""
        numbers = {saved.scan for saved in self._not_made() if isinstance(saved, ScanLayer)}
        return sorted(numbers & set(range(len(self.content.scans))))

    @property
    def unread_names(self) -> list[str]:
        """Names of the layers in the file, labels or images, that could not be read."""
        others = (saved for saved in self._not_made() if not isinstance(saved, ScanLayer))
        return [opened_name(saved.name, self.scan_names, saved.kind) for saved in others]

    def _not_made(self) -> list[AnyLayer]:
        return [saved for number, saved in enumerate(self.content.layers) if number not in self.layers]


def open_session(path: Path, frame: NDArray | None = None, check: Callable[[], object] = lambda: None) -> OpenedSession:
    """Read a session file, search its scans in its folder and below, and make all layers; slow.

    Args:
        path: session file.
        frame: frame of a viewer with layers; None for an empty viewer, which gets the frame of the session.
        check: called between steps; may raise an error to stop.

    Raises:
        InputError: as `read_content`.
        EnvironmentFault: `environment.memory`.
    """
    content = read_content(path)
    opened = OpenedSession(path, content)
    with TemporaryFolder() as folder:
        files = extract(path, content, folder, check)
        frame = content.frame_array() if frame is None else frame
        read_scans(opened, path.absolute().parent, range(len(content.scans)), frame, check)
        for number, layer in enumerate(content.layers):
            check()
            if isinstance(layer, ScanLayer):
                continue
            own = {kind: files[name] for kind in layer.members if (name := member_of(kind, number)) in files}
            try:
                if isinstance(layer, LabelsLayer):
                    opened.layers[number] = _labels(opened, layer, own, frame)
                else:
                    opened.layers[number] = _image(opened, layer, own["images"], frame)
            except NapariSegError as error:
                opened.faults.append(error)
    return opened


def read_scans(
    opened: OpenedSession,
    folder: Path,
    numbers: Sequence[int],
    frame: NDArray | None,
    check: Callable[[], object] = lambda: None,
) -> None:
    """Search scans in a folder and below, read them and make their layers; slow, call outside the main thread.

    Args:
        opened: session, which gets the layers.
        folder: folder to search.
        numbers: indices of the scans.
        frame: frame of the viewer.
        check: called between steps; may raise an error to stop.
    """
    content = opened.content
    found = find_scans(folder, [content.scans[number] for number in numbers], content.salt, check)
    missing: list[int] = []
    faults: list[NapariSegError] = []
    for number, files in zip(numbers, found, strict=True):
        check()
        if not files.candidates:
            missing.append(number)
            if files.may_have_changed:
                faults.append(_changed(opened, number))
            continue
        try:
            volume, notices = read_found(content.scans[number], files, content.salt, check)
        except NapariSegError as error:
            faults.append(error)
            continue
        opened.volumes[number] = volume
        opened.notices += [*volume.notices, *notices]
        try:
            _check_shown(volume.grid, frame, opened.path)
        except NapariSegError as error:
            faults.append(error)
            continue
        tuples = image_layers(volume, frame)
        for index, layer in enumerate(content.layers):
            if isinstance(layer, ScanLayer) and layer.scan == number and layer.channel < len(tuples):
                made = layer_of(tuples[layer.channel])
                made.name = opened_name(layer.name, opened.scan_names, made.name)
                _set(made, IMAGE_SETTINGS, layer.settings)
                _set_colors(made, layer.colormap)
                opened.layers[index] = made
    opened.missing = tuple(missing)
    opened.faults += faults


def missing_error(opened: OpenedSession) -> InputError:
    """Return the error about scans that were not found, with what is known of them."""
    texts = []
    for number in opened.missing[:3]:
        scan = opened.content.scans[number]
        count = counted(len(scan.files), "file")
        size = " x ".join(map(str, scan.grid.shape))
        texts.append(f"{scan.modality or scan.format} scan of {size} voxels in {count}")
    more = f" and {len(opened.missing) - 3} more" if len(opened.missing) > 3 else ""
    return InputError(
        "session.scan_missing",
        f"found no file with the content of the {', '.join(texts)}{more} next to {opened.path.name} or below; "
        "choose the folder of the scans",
    )


def _changed(opened: OpenedSession, number: int) -> InputError:
    scan = opened.content.scans[number]
    size = " x ".join(map(str, scan.grid.shape))
    return InputError(
        "session.scan_changed",
        f"the scan of {size} voxels has changed since the session was saved, or is incomplete: only files of the same "
        "size, or a part of its files, were found; open it by itself and check the labels on it",
    )


def _labels(opened: OpenedSession, saved: LabelsLayer, files: Mapping[str, Path], frame: NDArray | None) -> Labels:
    """Return a labels layer.

    Args:
        opened: the session.
        saved: content of the layer.
        files: kind of array -> file, as in `LabelsLayer.members`.
        frame: frame of the viewer.

    Raises:
        NapariSegError: a label map is damaged or lies on another grid than the session says.
    """
    grid = saved.grid.grid()
    _check_shown(grid, frame, opened.path)
    array = _labels_on(grid, files["labels"], opened.path)
    made = _model_arrays(opened, saved, files)
    segments = tuple(segment.segment() for segment in sorted(saved.segments, key=lambda one: one.label))
    if len({segment.label for segment in segments}) < len(segments):
        raise InputError("session.damaged", f"two structures in {opened.path.name} have the same label")
    volume = None if saved.scan is None else opened.volumes.get(saved.scan)
    scan = volume.source if volume is not None and volume.grid.matches(grid) else NO_SOURCE
    segmentation = Segmentation(array, grid, segments, confidence=saved.confidence)
    name = opened_name(saved.name, opened.scan_names, "labels")
    layer = layer_of(labels_layer(segmentation, place(grid, frame), name, scan=scan, algorithm=saved.algorithm))
    assert isinstance(layer, Labels)
    replace(
        LayerInfo.require(layer),
        notices=() if saved.is_oriented else (NO_ORIENTATION,),
        scan_mark=None if saved.scan is None or volume is not None else opened.content.scan_mark(saved.scan),
        looked_for=frozenset(saved.looked_for),
        model_labels=made.get("model_labels"),
        model_confidence=made.get("model_confidence"),
    ).attach(layer)
    state = state_of(layer)
    state.painted, state.hidden = saved.is_painted, set(saved.hidden)
    state.earlier_actions = tuple(EditAction(**action.model_dump()) for action in saved.actions)
    if state.hidden:
        layer.colormap = colormap_of({one.label: one.color for one in segments}, state.hidden)
    _set(layer, LABELS_SETTINGS, saved.settings)
    kept_data.restore(layer, saved.kept)
    return layer


def _model_arrays(opened: OpenedSession, saved: LabelsLayer, files: Mapping[str, Path]) -> dict[str, PackedLabels]:
    """Return what a model had found, by the kind of array; empty, with a fault, if one of them is damaged."""
    try:
        return {
            kind: PackedLabels.of(_labels_on(saved.grid.grid(), files[kind], opened.path)) for kind in saved.members[1:]
        }
    except (KeyError, NapariSegError):
        text = f"the labels in {opened.path.name} are complete, but what the model had found before is damaged"
        opened.faults.append(InputError("session.damaged", f"{text} and left out; save the session again"))
        return {}


def _labels_on(grid: Grid, file: Path, path: Path) -> NDArray[np.unsignedinteger]:
    """Return a label map of a session file.

    Raises:
        NapariSegError: it is damaged or lies on another grid than the session says.
    """
    found = read_label_map(file)
    if not found.grid.matches(grid):
        text = f"a label map in {path.name} does not lie on the grid that the session gives; save it again"
        raise InputError("session.damaged", text)
    return found.array


def _image(opened: OpenedSession, saved: ImageLayer, file: Path, frame: NDArray | None) -> Layer:
    """Return the layer of an image that lies in the file.

    Raises:
        NapariSegError: the image is damaged or lies on another grid than the session says.
    """
    grid = saved.grid.grid()
    _check_shown(grid, frame, opened.path)
    found = Scan("image", "nifti", (file,)).read(one_slice=True)
    if not found.grid.matches(grid):
        raise InputError(
            "session.damaged",
            f"an image in {opened.path.name} does not lie on the grid that the session gives; save it again",
        )
    name = opened_name(saved.name, opened.scan_names, "image")
    notices = () if saved.is_oriented else (NO_ORIENTATION,)
    volume = Volume(found.array, grid, name, saved.modality, notices=notices)
    ((data, settings, kind),) = image_layers(volume, frame)
    layer = layer_of((data, {**settings, "name": name}, kind))
    if not saved.is_scan:
        LayerInfo(place(grid, frame), notices=notices).attach(layer)
    _set(layer, IMAGE_SETTINGS, saved.settings)
    _set_colors(layer, saved.colormap)
    return layer


def _check_shown(grid: Grid, frame: NDArray | None, path: Path) -> None:
    """Raise if the array of a layer does not fit in memory: in a rotated frame it is much larger than a long grid.

    Raises:
        EnvironmentFault: `environment.memory`.
    """
    check_fits(_BYTES_PER_SHOWN_VOXEL * prod(place(grid, frame).shown.shape), f"showing {path.name}")


def _set(layer: Layer, names: Sequence[str], settings: Mapping[str, Any]) -> None:
    """Set the settings of a list that napari accepts; others keep their defaults."""
    for name in names:
        if settings.get(name) is not None and hasattr(layer, name):
            with suppress(*_SETTING_ERRORS):
                setattr(layer, name, settings[name])


def _set_colors(layer: Layer, saved: SavedColormap) -> None:
    with suppress(*_SETTING_ERRORS):
        if saved.name in AVAILABLE_COLORMAPS:
            layer.colormap = saved.name
        elif saved.colors:
            layer.colormap = Colormap(np.array(saved.colors), controls=np.array(saved.controls))


def show(opened: OpenedSession, viewer: ViewerModel, *, sets_view: bool) -> None:
    """Add the layers to a viewer in their order; call in the main thread.

    Args:
        opened: the session.
        viewer: the viewer.
        sets_view: also set crosshair, axes and camera; false for a viewer that shows other layers.
    """
    content = opened.content
    before = len(viewer.layers)
    ordered = [opened.layers[number] for number in sorted(opened.layers)]
    for layer in ordered:
        viewer.add_layer(layer)
    put_in_order(viewer, ordered, before)
    active = opened.layers.get(-1 if content.active is None else content.active)
    if active is not None:
        viewer.layers.selection.active = active
    if sets_view:
        set_view(content, viewer)


def put_in_order(viewer: ViewerModel, layers: Sequence[Layer], first: int) -> None:
    """Move layers to consecutive places, the first of which is given."""
    for place_, layer in enumerate(layers, first):
        index = viewer.layers.index(layer)
        if index != place_:
            viewer.layers.move(index, place_ if place_ < index else place_ + 1)


def set_view(content: SessionContent, viewer: ViewerModel) -> None:
    """Set crosshair, axes and camera; call in the main thread after the layers were added."""
    view = content.view
    if viewer.dims.ndim != 3 or sorted(view.order) != [0, 1, 2]:
        return
    viewer.dims.ndisplay = view.ndisplay
    viewer.dims.order = view.order
    viewer.dims.set_point(range(3), view.point)
    viewer.scene.camera.center = view.camera_center
    viewer.scene.camera.zoom = view.camera_zoom
    viewer.scene.camera.angles = view.camera_angles
