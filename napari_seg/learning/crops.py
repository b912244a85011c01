"""Accepted cases as a network in boxes sees them: a crop for each region that its bundle's localiser places.

A crop is written along the axes of its region, from 0 on, as inference passes it to the network. So a mirrored region
stays mirrored, and a case of the right side teaches what a network of the left side sees there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_seg.bundles.spec import Bundle, LocaliserSpec
from napari_seg.errors import InputError, LocaliseError, NapariSegError
from napari_seg.formats.nifti import write_map, write_volume
from napari_seg.geometry import Grid, resample
from napari_seg.learning.placed_regions import placed_regions
from napari_seg.learning.scans import labels_of, scan_of
from napari_seg.learning.training_set import IMAGES, LABELS, AcceptedCase, TrainingSet
from napari_seg.localise import Region, is_crop
from napari_seg.progress import Progress, ignore_progress
from napari_seg.volume import Volume, smallest_label_type

MIN_INSIDE = 0.5
"""Part of the annotated voxels that a region must hold; with fewer it was placed elsewhere."""


@dataclass(frozen=True)
class Crops:
    """Crops of a training set.

    Attributes:
        entries: of the list of a round, relative to the folder above that of the crops.
        left_out: name of a case -> why it has no crop.
    """

    entries: tuple[dict[str, Any], ...]
    left_out: Mapping[str, NapariSegError]


@dataclass(frozen=True)
class _Crop:
    """A part of a scan with labels of the network.

    Attributes:
        region: number of the region, from 1 on; 0 for a scan that is a crop already.
        grid: of the crop, in the scan's world; None: the scan as it is.
        values: label of the network -> value in the label map of the case, for each structure that was annotated.
    """

    region: int
    grid: Grid | None
    values: Mapping[int, int]


def write_crops(
    folder: Path, content: TrainingSet, bundle: Bundle, into: Path, progress: Progress = ignore_progress
) -> Crops:
    """Write the crops of all cases that can be read; those that an interrupted call has left are replaced.

    A scan that is a crop already is taken as it is; one of a side that the network sees mirrored is mirrored.
    Structures that lie in no region are left out.

    Args:
        folder: training set.
        content: its content.
        bundle: a bundle with a localiser.
        into: folder for the crops; created if missing.
        progress: called with the stage "locating" and the number of cases; may raise `Cancelled`.

    Raises:
        EnvironmentFault: `environment.template`, the template is not installed.
        OutputError: `output.*`.
    """
    for name in (IMAGES, LABELS):
        (into / name).mkdir(parents=True, exist_ok=True)
    entries: list[dict[str, Any]] = []
    left_out: dict[str, NapariSegError] = {}
    for done, case in enumerate(content.cases):

        def on_step(stage: str, step: int, steps: int, done: int = done) -> None:
            progress("locating", done, len(content.cases))

        on_step("", 0, 1)
        try:
            scan = scan_of(folder, case)
            labels = labels_of(folder, case, scan.grid)
            crops = _crops(folder, content.structures, case, scan, labels, bundle, on_step)
        except (LocaliseError, InputError) as error:
            left_out[case.name] = error
            continue
        for crop in crops:
            name = f"{case.name}_box{crop.region}"
            image, label = (f"{kind}/{name}.nii.gz" for kind in (IMAGES, LABELS))
            _write(scan, labels, crop, into / image, into / label)
            entry = {"name": name, "image": f"./{into.name}/{image}", "label": f"./{into.name}/{label}"}
            entry |= {"patient": case.patient, "split": case.part}
            names = {one.label: one.name for one in bundle.network_segments}
            partly = {"labelled": [names[one] for one in crop.values]} if len(crop.values) < len(names) else {}
            entries.append(entry | partly)
    progress("locating", len(content.cases), len(content.cases))
    return Crops(tuple(entries), left_out)


def _crops(
    folder: Path,
    structures: Mapping[str, int],
    case: AcceptedCase,
    scan: Volume,
    labels: NDArray[np.unsignedinteger],
    bundle: Bundle,
    progress: Progress,
) -> list[_Crop]:
    """Return the crops of a case.

    Raises:
        LocaliseError: the regions were not found in the scan.
        InputError: `improve.no_structure`, it has no structure of a region, or none that lies in its region.
    """
    spec = bundle.localiser
    assert spec is not None
    annotated = {name.casefold(): structures[name] for name in case.annotated}
    if is_crop(scan, spec):
        return [_of_cropped_scan(scan, labels, bundle, spec, annotated)]
    names = {segment.label: segment.name for segment in bundle.segments}
    if not any(names[label].casefold() in annotated for region in spec.regions for label in region.labels.values()):
        listed = ", ".join(names[label] for region in spec.regions for label in region.labels.values())
        raise _no_structure(f"found {', '.join(case.annotated)}; expected any of {listed}")
    found: list[_Crop] = []
    outside: list[str] = []
    for number, region in enumerate(placed_regions(folder, case, scan, bundle, progress), 1):
        values = _values(region, annotated)
        if not values:
            continue
        mask = np.isin(labels, list(values.values()))
        if mask.any() and _part_inside(mask, scan.grid, region.grid) < MIN_INSIDE:
            outside.append(region.name)
        else:
            found.append(_Crop(number, region.grid, values))
    if not found:
        text = f"the labels lie outside the {' and the '.join(outside)} as located; expected them inside; check them"
        raise _no_structure(text)
    return found


def _values(region: Region, annotated: Mapping[str, int]) -> dict[int, int]:
    """Return label of the network -> value in the label map of a case, for what was annotated in a region."""
    names = {segment.label: segment.name.casefold() for segment in region.segments}
    return {label: annotated[names[of]] for label, of in region.labels.items() if names.get(of) in annotated}


def _of_cropped_scan(
    scan: Volume,
    labels: NDArray[np.unsignedinteger],
    bundle: Bundle,
    spec: LocaliserSpec,
    annotated: Mapping[str, int],
) -> _Crop:
    """Return a scan that is a crop already, with the structures of the network, or of the one side that it shows.

    Raises:
        InputError: `improve.no_structure`, it shows no structure, or several sides.
    """
    own = {segment.label: segment.label for segment in bundle.network_segments}
    sides: list[tuple[Grid | None, Region]] = [(None, Region("scan", None, own, bundle.network_segments))]
    mirrored = scan.grid.reoriented("RAS").mirrored(0)
    sides += [
        (mirrored if one.mirror else None, Region(one.name, None, one.labels, bundle.segments)) for one in spec.regions
    ]
    shown = [(grid, values) for grid, region in sides if (values := _shown(labels, _values(region, annotated)))]
    if shown and (len(shown) == 1 or shown[0][1].items() == shown[1][1].items()):
        grid, values = shown[0]
        return _Crop(0, grid, values)
    raise _no_structure(
        f"a scan below {spec.crop_below_mm:g} mm shows {'several regions' if shown else 'no structure'} of the model; "
        "expected one region"
    )


def _no_structure(text: str) -> InputError:
    return InputError("improve.no_structure", text)


def _shown(labels: NDArray[np.unsignedinteger], values: dict[int, int]) -> dict[int, int]:
    """Return the values if the labels hold any of them; otherwise nothing."""
    return values if np.isin(labels, list(values.values())).any() else {}


def _part_inside(mask: NDArray[np.bool_], grid: Grid, region: Grid | None) -> float:
    """Return the part of the voxels of a mask whose centres lie in a region."""
    return 1.0 if region is None else float(region.contains(grid.to_world(np.argwhere(mask))).mean())


def _write(scan: Volume, labels: NDArray[np.unsignedinteger], crop: _Crop, image: Path, label: Path) -> None:
    """Write what the network sees of a crop, and its labels there."""
    grid = crop.grid or scan.grid
    array = resample(scan.array, scan.grid, grid).astype(np.float32, copy=False)
    found = resample(labels, scan.grid, grid, order=0, outside=0)
    renumbered = np.zeros(found.shape, smallest_label_type(max(crop.values)))
    for new, value in crop.values.items():
        renumbered[found == value] = new
    if crop.grid is not None:
        grid = Grid(grid.shape, np.diag([*grid.spacing_mm, 1.0]))
    write_volume(replace(scan, array=array, grid=grid), image)
    write_map(renumbered, grid, label)
