"""Opens NIfTI files, DICOM files and folders of either in the right place in napari."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from napari_seg.errors import InputError, NapariSegError
from napari_seg.formats import nifti_ending
from napari_seg.plugin.layers import frame_of, image_layers
from napari_seg.plugin.placement import METADATA_KEY
from napari_seg.volume import Volume

_LOOKED_AT = 200


def get_reader(path: str | list[str]) -> Callable[[str | list[str]], list[Any]] | None:
    """A function that reads the path, or None where another plugin should try."""
    only = _only(path)
    return read_layers if only is not None and _is_ours(only) else None


def read_layers(path: str | list[str]) -> list[Any]:
    """The layers of every scan at a path.

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
    for found in _read(_only(path)):
        if isinstance(found, NapariSegError):
            faults.append(found)
            continue
        layers += image_layers(found, frame)
        frame = layers[0][1]["metadata"][METADATA_KEY]["frame"]
        for notice in found.notices:
            show_warning(str(notice))
    if viewer is None and not layers:
        raise faults[0]
    for fault in faults:
        show_error(str(fault))
    # napari's word for "read, and there is nothing to show".
    return layers or [(None,)]


def _read(path: Path | None) -> Iterator[Volume | NapariSegError]:
    """Every scan that can be read, and for each other one what is wrong with it."""
    from napari_seg.formats import find_scans

    try:
        if path is None or not (scans := find_scans(path)):
            raise InputError("input.none", f"found no scan at {path}; expected NIfTI or DICOM files")
    except NapariSegError as fault:
        yield fault
        return
    for scan in scans:
        try:
            yield scan.read()
        except NapariSegError as fault:
            yield fault


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
    if nifti_ending(path) or path.suffix.lower() == ".dcm":
        return True
    if not path.is_file():  # a pipe would block whoever opens it
        return False
    # DICOM files often have no suffix; the standard puts these letters after 128 bytes (PS3.10, 7.1).
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"
