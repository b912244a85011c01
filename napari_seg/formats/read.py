"""Read the only scan below a path."""

from __future__ import annotations

import os

from napari_seg.errors import InputError
from napari_seg.formats.find import find_scans
from napari_seg.formats.scan import Scan
from napari_seg.volume import Volume


def read(path: str | os.PathLike[str], channels: int | None = None) -> Volume:
    """Return the volume of the only scan below a path.

    Args:
        path: a file or a folder.
        channels: required channels, as for `Scan.read`; of several files, see `read_channels`.

    Raises:
        InputError: the errors of `only_scan` and of `Scan.read`.
    """
    return only_scan(path).read(channels=channels)


def only_scan(path: str | os.PathLike[str]) -> Scan:
    """Return the only scan below a path, which is not read yet.

    Raises:
        InputError: `input.none`, there is no scan; `input.several_scans`, there is more than one.
    """
    scans = find_scans(path)
    if not scans:
        raise InputError("input.none", f"found no scan in {path}; expected NIfTI, NRRD, MetaImage, DICOM or 2D images")
    if len(scans) > 1:
        names = ", ".join(scan.name for scan in scans[:10]) + (", ..." if len(scans) > 10 else "")
        raise InputError("input.several_scans", f"found {len(scans)} scans in {path} ({names}); give the path of one")
    return scans[0]
