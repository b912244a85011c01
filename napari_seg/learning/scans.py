"""Read the scans and the labels of a training set again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from napari_seg.errors import InputError, NapariSegError
from napari_seg.formats.label_maps import on_grid
from napari_seg.formats.nifti import count_volumes
from napari_seg.formats.read import read
from napari_seg.formats.scan import Scan
from napari_seg.geometry import Grid
from napari_seg.learning.training_set import AcceptedCase, TrainingSet
from napari_seg.progress import Progress, ignore_progress
from napari_seg.training.gather.referenced import ENDING, referenced_scan
from napari_seg.volume import Segmentation, Volume, as_labels


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


def labels_of(folder: Path, case: AcceptedCase, grid: Grid) -> NDArray[np.unsignedinteger]:
    """Read the labels of an accepted case on the grid of its scan.

    Args:
        folder: training set.
        case: the case.
        grid: grid of the scan.

    Raises:
        InputError: `geometry.other_grid`, they do not lie on the voxels of the scan; or the file can't be read.
    """
    path = folder / case.labels
    found = read(path)
    return on_grid(Segmentation(as_labels(found.array[0], case.name), found.grid, ()), grid, path).array


def unreadable(folder: Path, content: TrainingSet, progress: Progress = ignore_progress) -> dict[str, NapariSegError]:
    """Return name -> error of the cases whose scan or labels can't be read; all are read to the end.

    Args:
        folder: training set.
        content: its content.
        progress: called with the stage "reading" and the number of cases; may raise `Cancelled`.
    """
    faults: dict[str, NapariSegError] = {}
    for done, case in enumerate(content.cases):
        progress("reading", done, len(content.cases))
        try:
            labels_of(folder, case, scan_of(folder, case).grid)
        except InputError as error:
            faults[case.name] = error
    progress("reading", len(content.cases), len(content.cases))
    return faults
