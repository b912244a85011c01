"""Time and memory of the editing functions, on a structure of a million voxels in a large scan."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from benchmarks.measuring import SPAWN, machine
from benchmarks.report import describe_machine, paragraph, table
from numpy.typing import NDArray

from napari_seg.editing import combine, cut, grow, interpolate, islands, move, plane, shape, split
from napari_seg.geometry import Grid

SHAPE = (512, 512, 400)
SPACING_MM = (0.8, 0.8, 1.0)
LABEL, OTHER = 3, 4
ROUNDS = 3

CALLS = (
    "smooth by 2 mm",
    "fill holes",
    "fill holes in each slice",
    "dilate by 3 mm",
    "erode by 3 mm",
    "list islands",
    "keep largest island",
    "remove small islands",
    "union with a mask",
    "minus, margin 3 mm",
    "within, margin 3 mm",
    "cut by a plane",
    "cut by a lasso",
    "copy to the next slice",
    "copy to the mirror side",
    "copy to an oblique mirror side",
    "grow from a click",
    "grow, neck 3 mm",
    "fill between every 5th slice",
    "split, parts found",
    "split, parts clicked",
)


def editing(args: argparse.Namespace) -> dict[str, object]:
    """Measure each function in a process of its own; the first call, which loads libraries, is not counted."""
    rows = []
    for name in args.only or CALLS:
        ours, theirs = SPAWN.Pipe()
        process = SPAWN.Process(target=_measure, args=(theirs, name, tuple(args.shape)))
        process.start()
        theirs.close()
        try:
            rows.append(ours.recv())
        except EOFError:
            raise SystemExit(f"{name}: the process ended early") from None
        process.join()
        print(rows[-1], file=sys.stderr)
    about = machine(["napari-seg", "numpy", "scipy", "scikit-image", "SimpleITK"])
    print("\n".join(_rows(rows)))
    return {"machine": about, "shape": list(args.shape), "spacing_mm": list(SPACING_MM), "functions": rows}


def _measure(connection: Connection, name: str, size: tuple[int, int, int]) -> None:
    call, voxels = prepare(name, size)
    call()  # loads libraries
    figures: dict[str, list[float]] = {"seconds": [], "cpu_seconds": []}
    held, _ = _memory_bytes()
    for _ in range(ROUNDS):
        start, cpu = time.perf_counter(), time.process_time()
        call()
        figures["seconds"].append(time.perf_counter() - start)
        figures["cpu_seconds"].append(time.process_time() - cpu)
    _, peak = _memory_bytes()
    medians = {key: statistics.median(values) for key, values in figures.items()}
    connection.send({"name": name, "voxels": voxels, **medians, "peak_mib": (peak - held) / 2**20})


def _memory_bytes() -> tuple[int, int]:
    """Return resident memory now, and its maximum since the last call (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    values = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith(("VmRSS", "VmHWM"))}
    Path("/proc/self/clear_refs").write_text("5")
    return int(values["VmRSS"]) * 1024, int(values["VmHWM"]) * 1024


def prepare(name: str, size: tuple[int, int, int] = SHAPE) -> tuple[Callable[[], object], int]:
    """Return the call that is measured, and the voxels of its structure.

    Args:
        name: one of `CALLS`.
        size: shape of the scan.
    """
    grid = Grid(size, np.diag([-SPACING_MM[0], -SPACING_MM[1], SPACING_MM[2], 1.0]))
    middle = tuple(n // 2 for n in size)
    radius = 53.5 * size[0] / SHAPE[0]  # a million voxels in the usual scan
    labels = np.zeros(size, np.uint8)
    if name.startswith("split"):
        offset = round(0.72 * radius / SPACING_MM[1])
        ends = [(middle[0], middle[1] + step, middle[2]) for step in (-offset, offset)]
        for end in ends:
            _ball(labels, end, 0.79 * radius)
        seeds = ends if name.endswith("clicked") else []
        return partial(split.split, labels, grid, LABEL, seeds=seeds), _count(labels)
    center = (middle[0] - middle[0] // 3, middle[1], middle[2])
    _ball(labels, center, radius)
    voxels = _count(labels)
    labels[center[0], center[1] : center[1] + 5, center[2]] = 0  # a hole
    labels[5:8, 5:8, 5:8] = LABEL  # an island
    if name.startswith("fill between"):
        labels[:, :, np.arange(size[2]) % 5 != center[2] % 5] = 0
        return partial(interpolate.interpolate, labels, grid, LABEL, 2), voxels
    if name in ("grow from a click", "grow, neck 3 mm"):
        image = np.where(labels == LABEL, np.int16(100), np.int16(20))
        image += np.random.default_rng(0).integers(0, 9, size, np.int16)
        labels[labels == LABEL] = 0
        click = (center[0] + 10, center[1], center[2])
        neck_mm = 3.0 if "neck" in name else 0.0
        options = {"max_mm": 1.1 * radius, "neck_mm": neck_mm}
        return partial(grow.grow, labels, grid, LABEL, image, click, 95, 120, **options), voxels
    other = np.zeros(size, bool)
    if name.startswith(("union", "minus", "within")):
        other[:, : center[1]] = True
    lasso = [(center[0] - 30, center[1] - 40), (center[0] + 50, center[1] - 10), (center[0], center[1] + 60)]
    x = (1.0, 0.0, 0.0)
    return {
        "smooth by 2 mm": partial(shape.smooth, labels, grid, LABEL, 2.0),
        "fill holes": partial(shape.fill_holes, labels, grid, LABEL),
        "fill holes in each slice": partial(shape.fill_holes, labels, grid, LABEL, axis=2),
        "dilate by 3 mm": partial(shape.dilate, labels, grid, LABEL, 3.0),
        "erode by 3 mm": partial(shape.erode, labels, grid, LABEL, 3.0),
        "list islands": partial(islands.list_islands, labels, grid, LABEL),
        "keep largest island": partial(islands.keep_largest, labels, grid, LABEL),
        "remove small islands": partial(islands.remove_small_islands, labels, grid, LABEL, 1.0),
        "union with a mask": partial(combine.union, labels, grid, LABEL, other),
        "minus, margin 3 mm": partial(combine.minus, labels, grid, LABEL, other, margin_mm=3.0),
        "within, margin 3 mm": partial(combine.within, labels, grid, LABEL, other, margin_mm=3.0),
        "cut by a plane": partial(
            cut.cut_by_plane, labels, grid, LABEL, plane.Plane(grid.to_world(center), (0.6, 0.0, 0.8))
        ),
        "cut by a lasso": partial(cut.cut_by_lasso, labels, grid, LABEL, lasso, 2),
        "copy to the next slice": partial(move.copy_to_slice, labels, grid, LABEL, 2, center[2], center[2] + 1),
        "copy to the mirror side": partial(
            move.copy_to_mirror, labels, grid, LABEL, plane.center_plane(grid), into=OTHER
        ),
        "copy to an oblique mirror side": partial(
            move.copy_to_mirror, labels, grid, LABEL, plane.Plane(grid.center_mm, np.add(x, (0, 0.1, 0.1))), into=OTHER
        ),
    }[name], voxels


def _ball(labels: NDArray[np.uint8], center: tuple[int, ...], radius_mm: float) -> None:
    box = tuple(
        slice(max(n - round(radius_mm / mm) - 1, 0), n + round(radius_mm / mm) + 2)
        for n, mm in zip(center, SPACING_MM, strict=True)
    )
    part = labels[box]
    places = np.ogrid[tuple(slice(s.start, s.start + n) for s, n in zip(box, part.shape, strict=True))]
    away = sum(((place - n) * mm) ** 2 for place, n, mm in zip(places, center, SPACING_MM, strict=True))
    part[away < radius_mm**2] = LABEL


def _count(labels: NDArray[np.uint8]) -> int:
    return int((labels == LABEL).sum())


def _rows(functions: list[dict]) -> list[str]:
    rows = [
        [row["name"], row["voxels"], f"{row['seconds']:.2f}", f"{row['cpu_seconds']:.2f}", f"{row['peak_mib']:.0f}"]
        for row in functions
    ]
    return table(["function", "voxels of the structure", "s", "CPU s", "peak memory, MiB"], rows)


def describe_editing(figures: dict) -> str:
    """Return the section of benchmarks.md about editing."""
    lines = ["## Editing", ""]
    size, spacing = ("×".join(map(str, figures[key])) for key in ("shape", "spacing_mm"))
    lines += paragraph(
        f"Each editing function on one structure in a label map of {size} voxels of {spacing} mm, with a small island",
        f"far from the rest, from the label map to the change: medians of {ROUNDS} calls after a first one. Memory is",
        "the maximum during the calls, in addition to the label map and the image.",
    )
    lines += [describe_machine(figures["machine"]), ""]
    return "\n".join([*lines, *_rows(figures["functions"]), ""])
