#!/usr/bin/env python3
"""Trains every network on the same data, evaluates it on the same unseen cases, and writes docs/results.md.

    python scripts/results.py train RUNS --volumes ../Task04_Hippocampus --pictures ../axon_sem [--only fcn_3d unet_2d]
    python scripts/results.py table RUNS -o docs/results.md

`train` calls `napari-seg train` and the bundle's own evaluation, so that a person can repeat each line; what is done
is skipped, what was interrupted goes on. `table` reads what they left behind: plan.json, history.jsonl and two
summary.json a run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Run:
    """One line of the table.

    Attributes:
        name: of the run's folder.
        network: as `--network` takes it.
        dims: of the network.
        minutes: what its training may take.
        pictures: trained on pictures instead of volumes.
    """

    name: str
    network: str
    dims: int
    minutes: float
    pictures: bool = False


RUNS = (
    Run("fcn_3d", "FCN", 3, 8),
    Run("unet_3d", "UNet", 3, 8),
    Run("deeplabv3_3d", "DeepLabV3", 3, 8),
    Run("deeplabv3plus_3d", "DeepLabV3Plus", 3, 8),
    Run("multiview", "MultiView", 3, 8),
    Run("fcn_2d", "FCN", 2, 4),
    Run("unet_2d", "UNet", 2, 4),
    Run("deeplabv3_2d", "DeepLabV3", 2, 4),
    Run("deeplabv3plus_2d", "DeepLabV3Plus", 2, 4),
    Run("fcn_axon", "FCN", 2, 4, pictures=True),
    Run("unet_axon", "UNet", 2, 4, pictures=True),
    Run("deeplabv3plus_axon", "DeepLabV3Plus", 2, 4, pictures=True),
)
AXON_LABELS = ("myelin=100-200", "axon=201-255")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    train = commands.add_parser("train", help="train and evaluate")
    train.add_argument("runs", type=Path)
    train.add_argument("--volumes", type=Path, help="the Decathlon's Task04_Hippocampus")
    train.add_argument("--pictures", type=Path, help="folder with images/ and labels/: 0, about 127 myelin, 255 axon")
    train.add_argument("--only", nargs="+", choices=[run.name for run in RUNS])
    train.set_defaults(call=train_all)
    table = commands.add_parser("table", help="write the table")
    table.add_argument("runs", type=Path)
    table.add_argument("-o", "--output", type=Path, default=Path("docs/results.md"))
    table.set_defaults(call=write_table)
    arguments = parser.parse_args()
    arguments.call(arguments)


def train_all(arguments: argparse.Namespace) -> None:
    for run in RUNS:
        dataset = arguments.pictures if run.pictures else arguments.volumes
        root = arguments.runs / run.name
        if dataset is None or (arguments.only and run.name not in arguments.only) or (root / "machine.json").is_file():
            continue
        for words in commands_of(run, root, dataset):
            print(shlex.join(words), flush=True)
            subprocess.run(words, check=True)
        (root / "machine.json").write_text(json.dumps(machine()))


def commands_of(run: Run, root: Path, dataset: Path) -> Iterator[list[str]]:
    """What a person would type."""
    words = [sys.executable, "-m", "napari_seg", "train", str(dataset), "-o", str(root)]
    words += ["--network", run.network, "--dims", str(run.dims), "--max-minutes", str(run.minutes)]
    yield words + (["--labels", *AXON_LABELS] if run.pictures else [])
    for part in parts(run):
        evaluate = ["--config_file", str(root / "configs" / "evaluate.yaml"), "--dataset_dir", str(dataset)]
        evaluate += ["--output_dir", str(root / "evaluation" / part), "--part", part]
        yield [sys.executable, "-m", "monai.bundle", "run", "evaluating", *evaluate]


def parts(run: Run) -> tuple[str, ...]:
    """Where it is measured; eight pictures of six animals leave none for a test."""
    return ("validation",) if run.pictures else ("validation", "test")


def machine() -> dict[str, Any]:
    """The processor's or GPU's name and how many cores this process may use."""
    import torch

    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"processor": name, "cores": cores, "gpu": gpu, "torch": torch.__version__}


def write_table(arguments: argparse.Namespace) -> None:
    sections = []
    for pictures in (False, True):
        found = [(run, arguments.runs / run.name) for run in RUNS if run.pictures == pictures]
        found = [(run, root) for run, root in found if (root / "machine.json").is_file()]
        if found:
            sections.append(section(found, pictures))
    arguments.output.write_text("\n\n".join([HEAD, *sections]) + "\n", encoding="utf-8")


def section(found: list[tuple[Run, Path]], pictures: bool) -> str:
    """A heading, what was done, and the table."""
    run, first = found[0]
    cases = {part: read(first / "evaluation" / part / "summary.json")["cases"] for part in parts(run)}
    machines = {describe(read(root / "machine.json")) for _, root in found}
    names = [name for name in measured(run, first)["mean_dice"] if name != "mean"]
    head = ["network", "", *(f"Dice {name}" for name in names), "mean Dice"]
    head += [f"HD95 ({'pixels' if pictures else 'mm'})", "NSD", *(f"mean Dice, {part} only" for part in parts(run)[1:])]
    head += ["parameters", "GFLOP", "minutes", "epochs"]
    rows = [head, ["---"] * 2 + ["---:"] * (len(head) - 2), *(row(run, root, names) for run, root in found)]
    title = "Pictures: axons and their myelin in electron micrographs" if pictures else "Volumes: hippocampus"
    text = TEXT[pictures].format(unseen=sum(cases.values()), **cases)
    lines = ["| " + " | ".join(cells) + " |" for cells in rows]
    return "\n".join([f"## {title}", "", text, "", *lines, "", f"Machine: {'; '.join(sorted(machines))}."])


def row(run: Run, root: Path, names: list[str]) -> list[str]:
    """A run's cells."""
    all_parts = measured(run, root)
    dice = all_parts["mean_dice"]
    history = [json.loads(line) for line in (root / "training" / "history.jsonl").read_text().splitlines()]
    parameters, gflop = cost(root, pictures=run.pictures)
    cells = [run.network, "2.5D" if run.network == "MultiView" else f"{run.dims}D"]
    cells += [f"{dice[name]:.4f}" for name in names] + [f"**{dice['mean']:.4f}**"]
    cells += [f"{all_parts['hd95_mm']['mean']:.2f}", f"{all_parts['nsd']['mean']:.4f}"]
    for part in parts(run)[1:]:
        cells.append(f"{read(root / 'evaluation' / part / 'summary.json')['mean_dice']['mean']:.4f}")
    cells += [f"{parameters / 1e6:.2f} M", f"{gflop:.1f}"]
    return [*cells, f"{history[-1]['seconds'] / 60:.1f}", str(max(line["epoch"] for line in history))]


def measured(run: Run, root: Path) -> dict[str, dict[str, float]]:
    """Each metric's means over the cases of all parts."""
    found = [read(root / "evaluation" / part / "summary.json") for part in parts(run)]
    total = sum(part["cases"] for part in found)
    return {
        metric: {name: sum(part[metric][name] * part["cases"] for part in found) / total for name in found[0][metric]}
        for metric in ("mean_dice", "hd95_mm", "nsd")
    }


def cost(root: Path, *, pictures: bool) -> tuple[int, float]:
    """Parameters, and 10^9 floating-point operations (two a multiplication with addition) for one input."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from napari_seg.bundle import load_model, read_bundle

    model = load_model(read_bundle(root, trust=True), "cpu")
    image = torch.zeros(1, 1, *PICTURE) if pictures else torch.zeros(1, 1, *VOLUME)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model.inferer(image, model.network)
    return sum(p.numel() for p in model.network.parameters()), counter.get_total_flops() / 1e9


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def describe(found: dict[str, Any]) -> str:
    return found["gpu"] or f"{found['cores']} cores of {found['processor']}, torch {found['torch']}"


VOLUME, PICTURE = (36, 50, 36), (512, 512)

HEAD = """# Results

Made by `scripts/results.py` from logged runs: each network trained by `napari-seg train` with the plan it makes for the
data set and a budget of minutes, no setting tuned for one network. Dice, HD95 (95th percentile of the distances between
the surfaces, the larger of both directions) and NSD (share of the surfaces within 1 mm, or one pixel, of each other) as
MONAI computes them, the mean over structures and cases. GFLOP: one whole inference of a typical image, windows and
views included."""

TEXT = {
    False: """Medical Segmentation Decathlon, Task04 (CC BY-SA 4.0): T1-weighted crops of 1 mm, about 36 x 50 x 36
voxels. Trained on 80 % of the 208 cases; measured on the other {unseen}: {validation} validation cases, which chose
the epoch, and {test} test cases, which chose nothing (their mean alone in its own column). GFLOP of a volume of
36 x 50 x 36.""",
    True: """Eight scanning electron micrographs of the spinal cord of six rats (doi:10.5281/zenodo.5498378, MIT).
Measured on {validation} of them, which also chose the epoch: too few to rank networks, enough to see that pictures
work. GFLOP of 512 x 512 pixels.""",
}


if __name__ == "__main__":
    main()
