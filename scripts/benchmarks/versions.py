"""Compare this checkout with another one: the same commands, scans and weights, in turns."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from benchmarks.learning import Training
from benchmarks.measuring import CHECKOUT, SPAWN, compare, machine, spread, watch
from benchmarks.memory import make_ct, make_small_bundle
from benchmarks.networks import Standard
from benchmarks.predict import MONAI_OVERLAP, fingerprint, make
from benchmarks.reading import SHAPE, make_series
from benchmarks.report import describe_machine, describe_spread, paragraph, table
from numpy.typing import NDArray

CASES = {
    "import": "`import napari_seg`",
    "help": "`napari-seg --help`",
    "read": "a CT series of 400 slices, `napari_seg.read`",
    "default": "a scan, `napari-seg predict`",
    "memory": "a scan, `--memory 2GiB`",
    "bfloat16": "a scan, `--precision bfloat16`",
    "long": "600 slices and 105 classes, `--memory 3GiB`",
}
TIMES = {"import": 5, "help": 5, "read": 3}
"""Runs of a short case in each round."""


def versions(args: argparse.Namespace) -> dict[str, object]:
    """Return seconds, peak memory and labels of each case in this checkout, compared with the other checkout."""
    work = args.work or Path(tempfile.mkdtemp(prefix="benchmark-"))
    network = Standard(args.classes, tuple(args.features), args.patch)
    training = Training(args.training_steps, 64, amp=False)
    folder = work / f"predict_{fingerprint(args.scan, network, training)}"
    with ProcessPoolExecutor(1, mp_context=SPAWN) as pool:
        made = pool.submit(make, args.scan, folder, network, training).result()
    wanted = args.only or list(CASES)
    series = make_series(work / "series_{}x{}x{}".format(*SHAPE), SHAPE) if "read" in wanted else work
    long = [make_ct(work / "ct_600.nii", 600), make_small_bundle(work / "bundle_105", 105)] if "long" in wanted else []
    commands = {
        "import": ["-P", "-c", "import napari_seg"],
        "help": ["-P", "-m", "napari_seg", "--help"],
        "read": ["-P", "-c", f"import napari_seg; napari_seg.read({str(series)!r})"],
        **{
            case: [*predict_words(made.scan, made.bundle(MONAI_OVERLAP)), *extra]
            for case, extra in (
                ("default", ()),
                ("memory", ("--memory", "2GiB")),
                ("bfloat16", ("--precision", "bfloat16")),
            )
        },
        "long": [*predict_words(*long), "--memory", "3GiB"] if long else [],
    }
    rows: dict[str, dict] = {}
    for case in wanted:
        runs: dict[str, list[list]] = {"ours": [], "other": []}
        for n in range(args.rounds + 1):  # the first round fills caches and does not count
            for name in ("ours", "other") if n % 2 == 0 else ("other", "ours"):
                checkout = CHECKOUT if name == "ours" else args.other
                output = work / f"versions_{case}_{name}"
                shutil.rmtree(output, ignore_errors=True)
                words = [sys.executable, *commands[case], *(("-o", output) if "predict" in commands[case] else ())]
                # PYTHONPATH comes before the installed package
                environment = {
                    "PYTHONPATH": os.fspath(checkout),
                    "NAPARI_SEG_CACHE": os.fspath(work / f"cache_{name}"),
                }
                taken = [watch(words, work / f"log_{case}_{name}", environment) for _ in range(TIMES.get(case, 1))]
                runs[name] += [taken] if n else []
        ours, other = ([[run.seconds for run in taken] for taken in runs[name]] for name in ("ours", "other"))
        peaks = [[[run.peak_bytes for run in taken] for taken in runs[name]] for name in ("ours", "other")]
        rows[case] = {
            "seconds": spread([second for taken in ours for second in taken]),
            "ratio": compare(ours, other),
            "peak_gib": max(max(taken) for taken in peaks[0]) / 2**30,
            "peak_ratio": compare(*peaks),
        }
        labels = [read_labels(work / f"versions_{case}_{name}") for name in ("ours", "other")]
        if labels[0] is not None and labels[1] is not None:
            rows[case]["labels_equal"] = float(np.mean(labels[0] == labels[1]))
        print(case, rows[case], file=sys.stderr, flush=True)
    return {"machine": machine(["torch", "openvino", "monai"]), "rounds": args.rounds, "cases": rows}


def predict_words(scan: Path, bundle: Path) -> list[object]:
    """Return the arguments of Python that segment a scan on the processor."""
    return ["-P", "-m", "napari_seg", "predict", scan, "--bundle", bundle, "--trust-bundle", "--device", "cpu"]


def read_labels(folder: Path) -> NDArray | None:
    """Return the label map in an output folder; None if there is none."""
    import nibabel

    found = sorted(folder.glob("*_seg.nii.gz"))
    return np.asanyarray(nibabel.load(found[0]).dataobj) if found else None


def describe_versions(figures: dict) -> str:
    """Return the section of benchmarks.md about another version."""
    lines = ["## Compared with an earlier version", ""]
    lines += paragraph(
        "The same commands, scans and weights in this version and in an earlier one, each run in a process of its own,",
        f"in turns, {figures['rounds']} rounds after one that does not count. Ratios are this version divided by the",
        "earlier one: median with minimum and maximum over the rounds.",
    )
    lines += [describe_machine(figures["machine"]), ""]
    head = ["case", "s", "ratio of seconds", "peak, GiB", "ratio of peaks", "equal voxels"]
    rows = [
        [
            CASES[case],
            describe_spread(row["seconds"]),
            describe_spread(row["ratio"]),
            f"{row['peak_gib']:.2f}",
            describe_spread(row["peak_ratio"]),
            f"{row['labels_equal']:.4%}" if "labels_equal" in row else "",
        ]
        for case, row in figures["cases"].items()
    ]
    return "\n".join([*lines, *table(head, rows), ""])
