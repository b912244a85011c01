"""Write the surfaces of segments as STL or OBJ files, for 3D printing and 3D programs."""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from napari_seg.errors import OutputError
from napari_seg.formats.atomic import verified_write
from napari_seg.geometry import RAS_FROM_LPS, Grid
from napari_seg.volume import Segment, Segmentation

_FRAME = "SPACE=LPS, lengths in mm, by napari-seg"
"""Comment with the frame, which 3D Slicer writes and reads; neither format has a field for it."""


def write_surfaces(segmentation: Segmentation, path: Path) -> list[Path]:
    """Write one file per segment with voxels, `<stem>_<segment>.stl` or .obj, in mm, LPS+; return their paths.

    Args:
        segmentation: labels with their segments.
        path: path with the folder, the stem and the ending of the files.

    Raises:
        OutputError: `output.no_segments`, all segments are empty; `output.not_written`.
    """
    counts, written = segmentation.voxel_counts(), []
    names = {segment.label: _file_name_part(segment) for segment in segmentation.segments}
    plain = [name.casefold() for name in names.values()]
    names = {n: name if plain.count(name.casefold()) == 1 else f"{n}_{name}" for n, name in names.items()}
    with ExitStack() as unfinished:  # all files get their names at the end, or none does
        for segment in segmentation.segments:
            if counts[segment.label]:
                target = path.with_name(f"{path.stem}_{names[segment.label]}{path.suffix}")
                points, triangles = surface_of(segmentation.array == segment.label, segmentation.grid)
                write = _write_stl if path.suffix.lower() == ".stl" else _write_obj
                write(unfinished.enter_context(verified_write(target, path.suffix)), points, triangles)
                written.append(target)
    if not written:
        raise OutputError("output.no_segments", f"{path.name} would be empty: no segment has a voxel")
    return written


def surface_of(mask: NDArray[np.bool_], grid: Grid) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Return vertices (N, 3) in mm, LPS+, and triangles (M, 3), counter-clockwise from outside, of a mask (I, J, K).

    Marching cubes (Lewiner 2003) puts the surface half-way between an inner and an outer voxel.
    """
    from skimage.measure import marching_cubes

    indices, triangles, _, _ = marching_cubes(np.pad(mask, 1).astype(np.float32), 0.5)
    points = grid.to_world(indices - 1) @ RAS_FROM_LPS[:3, :3]
    corners = points[triangles]
    volume = np.einsum("ni,ni->", corners[:, 0], np.cross(corners[:, 1], corners[:, 2]))
    return points, triangles if volume > 0 else triangles[:, ::-1]


def _write_stl(path: Path, points: NDArray[np.float64], triangles: NDArray[np.intp]) -> None:
    """Write binary STL: 80 bytes of comment, the number of triangles, then normal, corners and two bytes for each."""
    corners = points[triangles]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    facets = np.zeros(len(triangles), [("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("empty", "<u2")])
    facets["normal"] = np.divide(normals, lengths, out=np.zeros_like(normals), where=lengths > 0)
    facets["corners"] = corners
    with path.open("wb") as file:
        file.write(_FRAME.encode().ljust(80))
        file.write(np.uint32(len(facets)).tobytes())
        file.write(facets.tobytes())


def _write_obj(path: Path, points: NDArray[np.float64], triangles: NDArray[np.intp]) -> None:
    with path.open("w", encoding="ascii") as file:
        file.write(f"# {_FRAME}\n")
        np.savetxt(file, points, "v %.4f %.4f %.4f")
        np.savetxt(file, triangles + 1, "f %d %d %d")


def _file_name_part(segment: Segment) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", segment.name).strip("_") or f"label_{segment.label}"
