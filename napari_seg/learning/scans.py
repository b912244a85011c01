"""Read the scans of a training set again."""

from __future__ import annotations

from pathlib import Path

from napari_seg.formats.nifti import count_volumes
from napari_seg.formats.scan import Scan
from napari_seg.learning.training_set import AcceptedCase
from napari_seg.training.gather.referenced import ENDING, referenced_scan
from napari_seg.volume import Volume


def scan_of(folder: Path, case: AcceptedCase) -> Volume:
    """Read the scan of an accepted case.

    Args:
        folder: training set.
        case: the case.

    Raises:
        InputError: `series.*`, its DICOM series is not here or has changed; or the file can't be read.
    """
    path = folder / case.image
    if path.name.endswith(ENDING):
        return referenced_scan(path).read()
    return Scan(case.name, "nifti", (path,)).read(channels=count_volumes(path), one_slice=True)
