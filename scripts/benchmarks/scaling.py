"""How a segmentation's time grows with the scan, and how much of it the network works and how fast."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any

from benchmarks.measuring import SPAWN, machine
from benchmarks.networks import Standard, make_random_bundle
from benchmarks.report import describe_machine, paragraph, table
from benchmarks.segmenting import segmented


def scaling(args: argparse.Namespace) -> dict[str, object]:
    """Seconds of scans that grow twofold, the network's share of them and what it reaches of the machine's peak."""
    folder = args.work or Path(tempfile.mkdtemp(prefix="benchmark-"))
    network = Standard(args.classes, tuple(args.features), args.patch)
    about = machine(["napari-seg", "torch", "openvino"])
    os.environ["NAPARI_SEG_CACHE"] = str(folder / "cache")
    rows: list[dict] = []
    with ProcessPoolExecutor(1, mp_context=SPAWN) as pool:
        bundle = pool.submit(make_random_bundle, folder / "bundle_scaling", network).result()
    for backend in args.backends:
        with ProcessPoolExecutor(1, mp_context=SPAWN) as pool:
            pool.submit(time_of, bundle, (network.patch,) * 3, backend).result()  # what a process does but once
            before = pool.submit(matrix_gflops).result()
            for shape in doubled(args.shape, args.sizes):
                row = pool.submit(time_of, bundle, shape, backend).result()
                after = pool.submit(matrix_gflops).result()
                peak = (before + after) / 2  # a shared machine is not as quick at all times
                rows.append({"backend": backend, "shape": list(shape), **row, "matrix_gflops": peak})
                before = after
                print(rows[-1], file=sys.stderr)
    return {"machine": about, "network": asdict(network), "rows": rows}


def doubled(shape: Sequence[int], count: int) -> Iterator[tuple[int, int, int]]:
    """A shape and others that have twice the voxels each, one axis doubled after the other."""
    lengths = list(shape)
    for n in range(count):
        i, j, k = lengths
        yield i, j, k
        lengths[n % 3] *= 2


def time_of(bundle: Path, shape: tuple[int, int, int], backend: str) -> dict[str, Any]:
    """Of one scan, the start of the backend left out of its seconds."""
    done = segmented(bundle, shape, 1.0, backend)
    return {
        "voxels": prod(shape),
        "windows": done.plan.window_count,
        "window": list(done.plan.windows.size),
        "seconds": done.seconds - done.start_seconds,
        "start_seconds": done.start_seconds,
        "network_seconds": done.network_seconds,
        "gflop": done.plan.flop / 1e9,
    }


def matrix_gflops(size: int = 4096, times: int = 5) -> float:
    """The machine's peak just now: the best of several products of two float32 matrices by torch."""
    import torch

    a, b = torch.rand(2, size, size)
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds) / 1e9


def describe_scaling(figures: dict) -> str:
    """Return the section of benchmarks.md about growing scans."""
    network = figures["network"]
    text = paragraph(
        f"`segment()` of synthetic scans at {network['spacing_mm']:g} mm by nnU-Net's standard network with random",
        f"weights ({len(network['features'])} stages, {network['features'][0]} to {network['features'][-1]} channels,",
        f"{network['classes']} classes). Reading or compiling the network once is not counted.",
        "The last column compares the speed of the network with this machine's in a product of two 4096×4096 matrices",
        "(torch, float32): the mean of just before and just after. That is not an upper bound.",
    )
    head = [
        "backend",
        "scan",
        "megavoxels",
        "windows",
        "s",
        "s per megavoxel",
        "in the network",
        "GFLOP/s",
        "of the matrix product",
    ]
    rows = []
    for row in figures["rows"]:
        mega, speed = row["voxels"] / 1e6, row["gflop"] / row["network_seconds"]
        cells = [
            row["backend"],
            "×".join(map(str, row["shape"])),
            f"{mega:.1f}",
            f"{row['windows']} of {'×'.join(map(str, row['window']))}",
            f"{row['seconds']:.1f}",
            f"{row['seconds'] / mega:.2f}",
            f"{row['network_seconds'] / row['seconds']:.0%}",
            f"{speed:.0f}",
            f"{speed / row['matrix_gflops']:.0%} of {row['matrix_gflops']:.0f}",
        ]
        rows.append(cells)
    about = describe_machine(figures["machine"])
    return "\n".join(["## Growing scans", "", *text, about, "", *table(head, rows), ""])
