"""Accepted cases as a network in boxes sees them: a crop for each region that its bundle's localiser finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from napari_seg.bundles.spec import Bundle
from napari_seg.formats.nifti import write_map, write_volume
from napari_seg.formats.read import read
from napari_seg.geometry import Grid, resample
from napari_seg.learning.scans import scan_of
from napari_seg.learning.training_set import IMAGES, LABELS, AcceptedCase, TrainingSet
from napari_seg.localise import Region, localise
from napari_seg.volume import Volume, as_labels, smallest_label_type


def write_crops(folder: Path, content: TrainingSet, bundle: Bundle, into: Path) -> list[dict[str, Any]]:
    """Write the crops of all cases, and return their entries for the list of a round, relative to the folder above.

    The labels are those of the network. Structures that lie in no region are left out.

    Args:
        folder: training set.
        content: its content.
        bundle: a bundle with a localiser.
        into: folder for the crops; created if missing.

    Raises:
        LocaliseError: the regions were not found in a scan.
        InputError: a scan can't be read.
        OutputError: `output.*`.
    """
    for name in (IMAGES, LABELS):
        (into / name).mkdir(parents=True, exist_ok=True)
    entries: list[dict[str, Any]] = []
    for case in content.cases:
        scan = scan_of(folder, case)
        labels = as_labels(read(folder / case.labels).array[0], case.name)
        for number, region in enumerate(localise(scan, bundle)[0], 1):
            values = _values(region, content.structures, case)
            if not np.isin(labels, list(values.values())).any():
                continue
            name = f"{case.name}_box{number}"
            image, label = (f"{folder}/{name}.nii.gz" for folder in (IMAGES, LABELS))
            _write(scan, labels, region, values, into / image, into / label)
            entry = {"name": name, "image": f"{into.name}/{image}", "label": f"{into.name}/{label}"}
            entry |= {"patient": case.patient, "split": case.part}
            names = {one.label: one.name for one in bundle.network_segments}
            partly = {"labelled": [names[label] for label in values]} if len(values) < len(names) else {}
            entries.append(entry | partly)
    return entries


def _values(region: Region, structures: Mapping[str, int], case: AcceptedCase) -> dict[int, int]:
    """Return label of the network -> value in the label map of a case, for what was annotated there."""
    named = {segment.label: segment.name.casefold() for segment in region.segments}
    annotated = {name.casefold(): structures[name] for name in case.annotated}
    return {
        label: annotated[named[result]]
        for label, result in region.labels.items()
        if named.get(result) in annotated
    }  # fmt: skip


def _write(
    scan: Volume, labels: np.ndarray, region: Region, values: Mapping[int, int], image: Path, label: Path
) -> None:
    """Write what the network sees of a region; so that a mirrored one stays mirrored, its place is left out."""
    grid = region.grid or scan.grid
    crop = resample(scan.array, scan.grid, grid).astype(np.float32)
    found = resample(labels, scan.grid, grid, order=0, outside=0)
    renumbered = np.zeros(found.shape, smallest_label_type(max(values)))
    for new, value in values.items():
        renumbered[found == value] = new
    if region.grid is not None:
        grid = Grid(grid.shape, np.diag([*grid.spacing_mm, 1.0]))
    write_volume(replace(scan, array=crop, grid=grid), image)
    write_map(renumbered, grid, label)
