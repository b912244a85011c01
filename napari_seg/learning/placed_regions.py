"""Regions of accepted scans as a localiser placed them, kept so that no scan is registered again for a later round."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from napari_seg.bundles.spec import Bundle, LocaliserSpec, RegionSpec
from napari_seg.errors import InputError, LocaliseError, one_line
from napari_seg.formats.atomic import atomic_write
from napari_seg.geometry import Grid
from napari_seg.learning.training_set import AcceptedCase
from napari_seg.localise import MAX_STRETCH, Region, localise, template_file
from napari_seg.progress import Progress, ignore_progress
from napari_seg.volume import Volume

REGIONS = "regions"
"""Folder of a training set with the places of regions."""

_MAX_BYTES = 1 << 20


def placed_regions(
    folder: Path, case: AcceptedCase, scan: Volume, bundle: Bundle, progress: Progress = ignore_progress
) -> list[Region]:
    """Return the regions of an accepted scan; those that were placed before by the same localiser are read.

    Args:
        folder: training set.
        case: the case.
        scan: its scan.
        bundle: a bundle with a localiser.
        progress: as for `localise`.

    Raises:
        LocaliseError, EnvironmentFault: as for `localise`.
    """
    spec = bundle.localiser
    assert spec is not None
    path = folder / REGIONS / f"{_key(case, scan, bundle, spec)}.json"
    if (known := _read(path, scan, bundle, spec)) is not None:
        return known
    try:
        found, _ = localise(scan, bundle, progress)
    except LocaliseError as error:
        _write(path, {"code": error.code, "message": error.message})
        raise
    grids = [region.grid for region in found if region.grid is not None]
    _write(path, {"regions": [{"shape": grid.shape, "affine": grid.affine.tolist()} for grid in grids]})
    return found


def _key(case: AcceptedCase, scan: Volume, bundle: Bundle, spec: LocaliserSpec) -> str:
    """Return a digest of what decides the places: the scan and its grid, the localiser and its template."""
    affine = (scan.grid.reoriented().affine.round(2) + 0.0).tolist()  # no -0.0
    digest = hashlib.sha256(f"{case.scan} {affine} {spec}".encode(errors="surrogateescape"))
    digest.update(template_file(spec.template, bundle.root).read_bytes())
    return digest.hexdigest()[:32]


def _read(path: Path, scan: Volume, bundle: Bundle, spec: LocaliserSpec) -> list[Region] | None:
    """Return what was placed before; None if nothing was, or if it is damaged or is no place of the regions.

    Raises:
        LocaliseError: the regions were not found before.
    """
    content: Any = None
    with suppress(OSError, ValueError, RecursionError):
        content = json.loads(path.read_bytes()) if path.stat().st_size <= _MAX_BYTES else None
    if not isinstance(content, dict):
        return None
    if str(content.get("code", "")).startswith("localise."):
        raise LocaliseError(one_line(content["code"], 60), one_line(content.get("message"), 1000))
    with suppress(LookupError, TypeError, ValueError, InputError):
        grids = [Grid(tuple(one["shape"]), np.array(one["affine"], np.float64)) for one in content["regions"]]
        if all(_fits(grid, one, spec, scan) for grid, one in zip(grids, spec.regions, strict=True)):
            return [_region(grid, one, bundle) for grid, one in zip(grids, spec.regions, strict=True)]
    return None


def _fits(grid: Grid, region: RegionSpec, spec: LocaliserSpec, scan: Volume) -> bool:
    """Return whether a grid can be the place of a region in a scan, as `localise` makes it."""
    stretches = np.array(grid.size_mm) / region.size_mm
    is_mirrored = bool(np.linalg.det(grid.affine[:3, :3]) < 0)
    return (
        np.allclose(grid.spacing_mm, spec.spacing_mm, atol=1e-6)
        and bool((stretches > 0.5 / MAX_STRETCH).all() and (stretches < 2 * MAX_STRETCH).all())
        and is_mirrored == region.mirror
        and bool(scan.grid.contains(grid.corners_mm).all())
    )


def _region(grid: Grid, region: RegionSpec, bundle: Bundle) -> Region:
    segments = tuple(segment for segment in bundle.segments if segment.label in region.labels.values())
    return Region(region.name, grid, region.labels, segments)


def _write(path: Path, content: dict[str, Any]) -> None:
    with suppress(OSError):  # then it is placed again
        path.parent.mkdir(exist_ok=True)
        atomic_write(path, json.dumps(content) + "\n")
