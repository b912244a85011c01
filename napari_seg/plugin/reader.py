"""Opens NIfTI, NRRD, MetaImage and DICOM files and folders of them in the right place in napari."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from napari_seg.errors import ChoiceNeeded, InputError, NapariSegError
from napari_seg.formats import ITK_ENDINGS, has_ending, nifti_ending
from napari_seg.plugin.label_files import LabelMaps, holds_labels, label_layers, read_labels
from napari_seg.plugin.layers import frame_of, image_layers, volume_of
from napari_seg.plugin.placement import METADATA_KEY
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
    only = _only(path)
    return read_layers if only is not None and _is_ours(only) else None


def read_layers(path: str | list[str]) -> list[Any]:
    """The layers of every scan at a path; of labels that were saved before, a labels layer.

    In a window, a person sees what is wrong as one line; napari's own dialog for a failed reader would bury
    it under advice to try other plugins. A script without a window gets the exception.

    Raises:
        NapariSegError: nothing at the path can be read; only where no window is open.
    """
    from napari.utils.notifications import show_error, show_warning
    from napari.viewer import current_viewer

    viewer = current_viewer()
    frame = None if viewer is None else frame_of(viewer.layers)
    layers: list[Any] = []
    faults: list[NapariSegError] = []
    for found in _read(_only(path), viewer):
        if isinstance(found, NapariSegError):
            faults.append(found)
            continue
        if isinstance(found, Volume):
            layers += image_layers(found, frame)
        else:
            layers += label_layers(found, found.path.name.partition(".")[0], frame)
        frame = layers[0][1]["metadata"][METADATA_KEY]["frame"]
        for notice in found.notices:
            show_warning(str(notice))
    if viewer is None and not layers:
        raise faults[0]
    for fault in faults:
        more = ". In napari: choose in the Study tab of the panel" if isinstance(fault, ChoiceNeeded) else ""
        show_error(f"{fault}{more}")
    # napari's word for "read, and there is nothing to show".
    return layers or [(None,)]


def _read(path: Path | None, viewer: Any) -> Iterator[Volume | LabelMaps | NapariSegError]:
    """Every scan that can be read, or the labels of a file that holds some; for each other what is wrong with it."""
    from napari_seg.formats import find

    try:
        if path is None:
            raise InputError("input.several_files", "found several files; open them one by one, or their folder")
        if path.is_file() and holds_labels(path):
            yield read_labels(path, _scans_of(viewer))
            return
        found = find(path)
        if not found.scans:
            raise InputError("input.none", f"found no scan at {path}; expected NIfTI, NRRD or DICOM files")
    except NapariSegError as fault:
        yield fault
        return
    for scan in found.scans:
        try:
            yield scan.read()
        except NapariSegError as fault:
            yield fault


def _scans_of(viewer: Any) -> list[Volume]:
    """Return the open scans, the selected one first, then the latest."""
    layers = [] if viewer is None else [*viewer.layers, viewer.layers.selection.active]
    volumes = [volume_of(layer) for layer in layers if layer is not None]
    return [volume for volume in reversed(volumes) if volume is not None]


def _only(path: str | list[str]) -> Path | None:
    if isinstance(path, list | tuple):
        return Path(path[0]) if len(path) == 1 else None
    return Path(path)


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
    if nifti_ending(path) or has_ending(path, (*ITK_ENDINGS, ".dcm")):
        return True
    if not path.is_file():  # a pipe would block whoever opens it
        return False
    # DICOM files often have no suffix; the standard puts these letters after 128 bytes (PS3.10, 7.1).
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"
