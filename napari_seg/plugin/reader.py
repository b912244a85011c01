"""Opens NIfTI, NRRD, MetaImage and DICOM files and folders of them in the right place in napari."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from napari_seg.errors import ChoiceNeeded, InputError, NapariSegError
from napari_seg.formats import ITK_ENDINGS, has_ending, nifti_ending
from napari_seg.plugin.layer_info import LayerInfo, frame_of, volume_of
from napari_seg.plugin.layers import image_layers
from napari_seg.plugin.messages import words_of
from napari_seg.plugin.study.label_files import LabelMaps, holds_labels, label_layers, read_labels
from napari_seg.volume import Volume

_LOOKED_AT = 200


def get_reader(path: str | list[str] | None = None) -> Callable[[str | list[str]], list[Any]] | None:
    """Return a function that reads the path, or None where another plugin should try.

    napari lists this in its command palette too, and calls it there without a path: then a person is asked for one.
    """
    if path is None:
        from napari_seg.plugin.commands import open_study

        open_study()
        return None
    paths = _paths(path)
    is_ours = _is_ours(paths[0]) if len(paths) == 1 else all(_is_slice(one) for one in paths)
    return read_layers if paths and is_ours else None


def read_layers(path: str | list[str]) -> list[Any]:
    """Return the layers of every scan at a path; of labels that were saved before, a labels layer.

    One slice of a DICOM series, or several, give the series. napari calls this for each file that is dropped into the
    window: for the second slice of a series it returns nothing, and says nothing once more.

    In a window, a person sees what is wrong as one line; napari's own dialog for a failed reader would bury it under
    advice to try other plugins. A script without a window gets the exception.

    Raises:
        NapariSegError: nothing at the path can be read; only where no window is open.
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
            show_warning(words_of(notice))
    if viewer is None and not layers and faults:
        raise faults[0]
    for fault in faults:
        more = ". Open its folder in the Study tab of the panel to choose" if isinstance(fault, ChoiceNeeded) else ""
        show_error(f"{words_of(fault)}{more}")
    if layers and hasattr(viewer, "window"):
        from napari_seg.plugin.napari_private import canvas_widget, native_canvas
        from napari_seg.plugin.planes.letters import Letters

        Letters.on(native_canvas(canvas_widget(viewer)), viewer)
    # napari's word for "read, and there is nothing to show".
    return layers or [(None,)]


def _read(paths: list[Path], viewer: Any) -> Iterator[Volume | LabelMaps | NapariSegError]:
    """Every scan that can be read, or the labels of a file that holds some; for each other what is wrong with it."""
    from napari_seg.formats import Found, find, find_series_of

    done: set[Path] = set()  # slices of series that were read
    for path in paths:
        try:
            if path in done or (_is_slice(path) and (_select(path, viewer) or _was_refused(path))):
                continue
            if path.is_file() and holds_labels(path):
                yield read_labels(path, _scans_of(viewer))
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
                yield scan.read()
            except NapariSegError as fault:
                _refused.update(dict.fromkeys(scan.files, time.monotonic()))
                yield fault


_refused: dict[Path, float] = {}
"""Slices of series that were refused, and when: napari opens files that are dropped together one by one."""

_TOGETHER_SECONDS = 5.0


def _was_refused(path: Path) -> bool:
    """Whether a slice belongs to a series that was refused just now, among files that are opened together."""
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
        if volume is not None and len(volume.files) > 1 and path in volume.files:
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
        looked = 0
        for folder, _, names in os.walk(path):
            for name in sorted(names):
                if _looks_readable(Path(folder, name)):
                    return True
                looked += 1
                if looked >= _LOOKED_AT:
                    return False
    except OSError:
        # Whoever may open it will say what is wrong; a look must not fail.
        return False
    return False


def _looks_readable(path: Path) -> bool:
    return bool(nifti_ending(path)) or has_ending(path, (*ITK_ENDINGS, ".dcm")) or _is_dicom(path)


def _is_slice(path: Path) -> bool:
    """Whether a file is DICOM by its name or its first bytes, and may be one of many."""
    is_named = bool(nifti_ending(path)) or has_ending(path, ITK_ENDINGS)
    return not is_named and path.is_file() and (has_ending(path, (".dcm",)) or _is_dicom(path))


def _is_dicom(path: Path) -> bool:
    if not path.is_file():  # a pipe would block whoever opens it
        return False
    # DICOM files often have no suffix; the standard puts these letters after 128 bytes (PS3.10, 7.1).
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"
