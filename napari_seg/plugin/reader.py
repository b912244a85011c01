"""napari's reader: opens NIfTI, NRRD, MetaImage and DICOM files, and folders of them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from napari_seg.errors import ChoiceNeeded, InputError, NapariSegError
from napari_seg.formats.endings import ITK_ENDINGS, has_ending, nifti_ending
from napari_seg.formats.mask_folder import mask_files
from napari_seg.plugin.layer_info import LayerInfo, frame_of, volume_of
from napari_seg.plugin.layers import image_layers
from napari_seg.plugin.messages import gui_text_of
from napari_seg.plugin.session_file.endings import is_session_file
from napari_seg.plugin.study.label_files import LabelMaps, holds_labels, label_layers, read_labels
from napari_seg.volume import Volume

_MAX_FILES_CHECKED = 200
"""Files of a folder that are checked before the folder is left to other plugins."""


def get_reader(path: str | list[str] | None = None) -> Callable[[str | list[str]], list[Any]] | None:
    """Return a function that reads the path, or None to leave the path to other plugins.

    napari also lists this function in its command palette and calls it there without a path. It then opens a dialog.
    """
    if path is None:
        from napari_seg.plugin.commands import open_study

        open_study()
        return None
    paths = _paths(path)
    if len(paths) == 1 and is_session_file(paths[0]):
        return read_session
    is_ours = _is_ours(paths[0]) if len(paths) == 1 else all(_is_slice(one) for one in paths)
    return read_layers if paths and is_ours else None


def read_session(path: str | list[str]) -> list[Any]:
    """Open a session file in the current window, or return its layers if there is no window.

    Raises:
        NapariSegError: the file can't be read, and no window is open.
    """
    from napari.viewer import current_viewer

    from napari_seg.plugin.session_file.restore import open_session

    viewer = current_viewer()
    (file,) = _paths(path)
    if hasattr(viewer, "window"):
        from napari_seg.plugin.commands import open_session_file

        open_session_file(file)
        return [(None,)]
    opened = open_session(file, None if viewer is None else frame_of(viewer.layers))
    if opened.faults and not opened.layers:
        raise opened.faults[0]
    return [opened.layers[number].as_layer_data_tuple() for number in sorted(opened.layers)] or [(None,)]


def read_layers(path: str | list[str]) -> list[Any]:
    """Return an image layer for every scan at a path, and labels layers for files of labels.

    One or more slices of a DICOM series open the whole series. napari calls this function for each file that is dropped
    into the window: for the second slice of a series it returns nothing and repeats no message.

    If a window is open, errors are shown as one line each, because napari's own dialog for a failed reader recommends
    other plugins. A script without a window gets the exception.

    Raises:
        NapariSegError: nothing at the path can be read, and no window is open.
    """
    from napari.utils.notifications import show_error, show_warning
    from napari.viewer import current_viewer

    viewer = current_viewer()
    frame = None if viewer is None else frame_of(viewer.layers)
    layers: list[Any] = []
    faults: list[NapariSegError] = []
    for found in _read(_paths(path), viewer):
        if isinstance(found, NapariSegError):
            faults.append(found)
            continue
        if isinstance(found, Volume):
            layers += image_layers(found, frame)
        else:
            layers += label_layers(found, found.path.name.partition(".")[0], frame)
        first = LayerInfo.in_settings(layers[0][1])
        frame = None if first is None else first.placement.frame
        for notice in found.notices:
            show_warning(gui_text_of(notice))
    if viewer is None and not layers and faults:
        raise faults[0]
    for fault in faults:
        more = ". Open its folder in the Study tab of the panel to choose" if isinstance(fault, ChoiceNeeded) else ""
        show_error(f"{gui_text_of(fault)}{more}")
    if layers and hasattr(viewer, "window"):
        from napari_seg.plugin.napari_private import native_canvas, qt_viewer_of
        from napari_seg.plugin.planes.markers import OrientationMarkers

        OrientationMarkers.for_canvas(native_canvas(qt_viewer_of(viewer)), viewer)
    # napari takes this for "read, but there is no layer to add"
    return layers or [(None,)]


def _read(paths: list[Path], viewer: Any) -> Iterator[Volume | LabelMaps | NapariSegError]:
    """Yield every scan and every file of labels that can be read, and the errors of the others."""
    from napari_seg.formats.find import Found, find, find_series_of

    done: set[Path] = set()  # slices of series that were already read
    for path in paths:
        try:
            if path in done or (_is_slice(path) and (_select(path, viewer) or _was_refused(path))):
                continue
            if path.is_file() and holds_labels(path):
                yield read_labels(path, _scans_of(viewer))
                continue
            if mask_files(path) and (masks := _masks(path, viewer)):
                yield masks
                continue
            found = find_series_of(path) if _is_slice(path) else Found((), ())
            found = found if found.scans else find(path)
            if not found.scans:
                raise InputError("input.none", f"found no scan at {path}; expected NIfTI, NRRD or DICOM files")
        except NapariSegError as fault:
            yield fault
            continue
        for scan in found.scans:
            done.update(scan.files)
            try:
                yield scan.read(one_slice=True)
            except NapariSegError as fault:
                _refused.update(dict.fromkeys(scan.files, time.monotonic()))
                yield fault


def _masks(folder: Path, viewer: Any) -> LabelMaps | None:
    """Return the label map of a folder with a mask for each structure; None if a file is none."""
    try:
        return read_labels(folder, _scans_of(viewer))
    except InputError as error:
        if error.code not in ("labels.not_masks", "geometry.other_grid"):
            raise
        return None


_refused: dict[Path, float] = {}
"""Slice -> time at which its series was refused. napari opens files that are dropped together one by one."""

_TOGETHER_SECONDS = 5.0


def _was_refused(path: Path) -> bool:
    """Return whether a slice belongs to a series that was refused less than `_TOGETHER_SECONDS` ago."""
    now = time.monotonic()
    if now - _refused.get(path, -_TOGETHER_SECONDS) >= _TOGETHER_SECONDS:
        _refused.clear()
        return False
    _refused.update(dict.fromkeys(_refused, now))
    return True


def _select(path: Path, viewer: Any) -> bool:
    """Select the layer of the series of a slice, if it is open; return whether it is."""
    for layer in [] if viewer is None else viewer.layers:
        volume = volume_of(layer)
        if volume is not None and len(volume.source.files) > 1 and path in volume.source.files:
            viewer.layers.selection.active = layer
            return True
    return False


def _scans_of(viewer: Any) -> list[Volume]:
    """Return the open scans, the selected one first, then the latest."""
    layers = [] if viewer is None else [*viewer.layers, viewer.layers.selection.active]
    volumes = [volume_of(layer) for layer in layers if layer is not None]
    return [volume for volume in reversed(volumes) if volume is not None]


def _paths(path: str | list[str]) -> list[Path]:
    return [Path(one) for one in (path if isinstance(path, list | tuple) else [path])]


def _is_ours(path: Path) -> bool:
    try:
        if not path.is_dir():
            return _looks_readable(path)
        checked = 0
        for folder, _, names in os.walk(path):
            for name in sorted(names):
                if _looks_readable(Path(folder, name)):
                    return True
                checked += 1
                if checked >= _MAX_FILES_CHECKED:
                    return False
    except OSError:
        # this check must not fail; the reader that opens the path reports the error
        return False
    return False


def _looks_readable(path: Path) -> bool:
    return bool(nifti_ending(path)) or has_ending(path, (*ITK_ENDINGS, ".dcm")) or _is_dicom(path)


def _is_slice(path: Path) -> bool:
    """Return whether a file is DICOM by its name or its first bytes, so that it may be a slice of a series."""
    is_named = bool(nifti_ending(path)) or has_ending(path, ITK_ENDINGS)
    return not is_named and path.is_file() and (has_ending(path, (".dcm",)) or _is_dicom(path))


def _is_dicom(path: Path) -> bool:
    from napari_seg.formats.dicom.headers import has_preamble

    return path.is_file() and bool(has_preamble(path))  # opening a pipe would block
