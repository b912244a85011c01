"""Predicted beside measured memory and time of whole segmentations, each in a fresh process."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.measuring import SPAWN, machine
from benchmarks.networks import Standard, make_random_bundle
from benchmarks.report import describe_machine, paragraph, table
from benchmarks.segmenting import segmented


@dataclass(frozen=True)
class Case:
    """A scan and what segments it.

    Attributes:
        shape: of the scan, (I, J, K).
        spacing_mm: of its voxels.
        network: with random weights, which cost as much as any.
        backend: what runs it.
    """

    shape: tuple[int, int, int]
    spacing_mm: float
    network: Standard
    backend: str


SMALL, SMALLER = (16, 32, 64, 128), (16, 32, 64)
CASES = (
    Case((192, 256, 256), 1.0, Standard(), "openvino"),
    Case((160, 160, 160), 1.0, Standard(), "torch"),
    Case((256, 256, 160), 1.0, Standard(3, SMALL, 96), "torch"),
    Case((256, 256, 160), 1.0, Standard(25, SMALL, 96), "openvino"),
    Case((320, 320, 200), 1.0, Standard(105, SMALLER, 64), "torch"),
    Case((320, 320, 200), 1.0, Standard(105, SMALLER, 64), "openvino"),
    Case((60, 80, 70), 1.0, Standard(2, SMALL, 96), "torch"),
    Case((512, 512, 120), 0.8, Standard(14, SMALL, 96), "openvino"),
    Case((200, 200, 400), 0.5, Standard(8, SMALLER, 64), "torch"),
)
TINY = (
    Case((40, 30, 50), 1.0, Standard(3, (4, 8), 16), "torch"),
    Case((40, 30, 50), 0.5, Standard(5, (4, 8), 16), "openvino"),
)


def plans(args: argparse.Namespace) -> dict[str, object]:
    """Predicted and measured figures of all cases."""
    folder = args.work or Path(tempfile.mkdtemp(prefix="benchmark-"))
    about = machine(["napari-seg", "torch", "openvino"])
    os.environ["NAPARI_SEG_CACHE"] = str(folder / "cache")
    rows = []
    for n, case in enumerate(TINY if args.tiny else CASES):
        with ProcessPoolExecutor(1, mp_context=SPAWN) as pool:
            bundle = pool.submit(make_random_bundle, folder / f"bundle_plan_{n}", case.network).result()
        with ProcessPoolExecutor(1, mp_context=SPAWN) as pool:
            row = pool.submit(predicted_and_measured, bundle, case).result()
        rows.append(asdict(case) | row)
        print(rows[-1], file=sys.stderr)
    return {"machine": about, "cases": rows}


def predicted_and_measured(bundle: Path, case: Case) -> dict[str, Any]:
    """Bytes and seconds as the engine predicts them before it runs the windows, and as they were."""
    done = segmented(bundle, case.shape, case.spacing_mm, case.backend)
    return {
        "windows": done.plan.window_count,
        "window": list(done.plan.windows.size),
        "predicted_bytes": done.plan.peak_bytes,
        "measured_bytes": done.peak_bytes,
        "predicted_seconds": done.estimated_seconds,
        "measured_seconds": done.region_seconds,
        "start_seconds": done.start_seconds,
        "whole_seconds": done.seconds,
    }


def describe_plans(figures: dict) -> str:
    """Return the section of benchmarks.md about estimates."""
    text = paragraph(
        "What `segment()` estimates before it runs, and what it then takes: peak memory of the process, and seconds.",
        "Both are estimated once the network is read or compiled. The scans are synthetic; the networks are like",
        "nnU-Net's, with random weights; each case runs in a fresh process.",
    )
    head = ["scan", "mm", "classes", "backend", "windows", "GiB estimated", "measured", "ratio"]
    rows = []
    for case in figures["cases"]:
        gib = [case[f"{what}_bytes"] / 2**30 for what in ("predicted", "measured")]
        seconds = [case[f"{what}_seconds"] for what in ("predicted", "measured")]
        window = f"{case['windows']} of {'×'.join(map(str, case['window']))}"
        cells = ["×".join(map(str, case["shape"])), case["spacing_mm"], case["network"]["classes"], case["backend"]]
        rows.append([*cells, window, *_ratio(gib, ".2f"), *_ratio(seconds, ".1f")])
    shown = table([*head, "s estimated", "measured", "ratio"], rows)
    return "\n".join(["## Estimates", "", *text, describe_machine(figures["machine"]), "", *shown, ""])


def _ratio(values: list[float], digits: str) -> list[str]:
    predicted, measured = values
    return [f"{predicted:{digits}}", f"{measured:{digits}}", f"{predicted / measured:.2f}"]
