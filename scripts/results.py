#!/usr/bin/env python3
"""Train every network on the same data, evaluate it on the same unseen cases, and write docs/reference/results.md.

    python scripts/results.py train RUNS --volumes ../Task04_Hippocampus --pictures ../axon_sem [--only fcn_3d unet_2d]
    python scripts/results.py table RUNS -o docs/reference/results.md

`train` calls `napari-seg train` and the bundle's own evaluation, so that each line can be repeated by hand; finished
runs are skipped, interrupted ones resume. `table` reads their files: plan.json, history.jsonl and the evaluations'
*_raw.csv, one row per case. Volumes have a test part; the few 2D images are cross-validated instead.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import isnan, nan
from pathlib import Path
from statistics import mean
from typing import Any


@dataclass(frozen=True)
class Run:
    """One line of the table.

    Attributes:
        name: name of the run's folder.
        network: value of `--network`.
        dims: dimensions of the network.
        minutes: time limit of its training; of 2D images, per fold.
        is_2d: trained on 2D images instead of volumes.
    """

    name: str
    network: str
    dims: int
    minutes: float
    is_2d: bool = False


RUNS = (
    Run("fcn_3d", "FCN", 3, 22),
    Run("unet_3d", "UNet", 3, 22),
    Run("deeplabv3_3d", "DeepLabV3", 3, 40),
    Run("deeplabv3plus_3d", "DeepLabV3Plus", 3, 22),
    Run("multiview", "MultiView", 3, 30),
    Run("fcn_2d", "FCN", 2, 12),
    Run("unet_2d", "UNet", 2, 12),
    Run("deeplabv3_2d", "DeepLabV3", 2, 12),
    Run("deeplabv3plus_2d", "DeepLabV3Plus", 2, 12),
    Run("fcn_axon", "FCN", 2, 3, is_2d=True),
    Run("unet_axon", "UNet", 2, 3, is_2d=True),
    Run("deeplabv3plus_axon", "DeepLabV3Plus", 2, 3, is_2d=True),
)
AXON_LABELS = ("myelin=100-200", "axon=201-255")
FOLDS = 3


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
    table.add_argument("-o", "--output", type=Path, default=Path("docs/reference/results.md"))
    table.set_defaults(call=write_table)
    arguments = parser.parse_args()
    arguments.call(arguments)


def train_all(arguments: argparse.Namespace) -> None:
    for run in RUNS:
        dataset = arguments.pictures if run.is_2d else arguments.volumes
        root = arguments.runs / run.name
        if dataset is None or (arguments.only and run.name not in arguments.only) or (root / "machine.json").is_file():
            continue
        for words in commands_of(run, root, dataset):
            print(shlex.join(words), flush=True)
            subprocess.run(words, check=True)
        (root / "machine.json").write_text(json.dumps(machine()))


def commands_of(run: Run, root: Path, dataset: Path) -> Iterator[list[str]]:
    """Yield the commands of a run, as they would be typed."""
    words = [sys.executable, "-P", "-m", "napari_seg", "train", str(dataset), "-o", str(root)]
    words += ["--network", run.network, "--dims", str(run.dims), "--max-minutes", str(run.minutes)]
    if run.is_2d:  # the command evaluates each fold itself
        yield [*words, "--labels", *AXON_LABELS, "--folds", str(FOLDS)]
        return
    yield words
    for part in PARTS:
        evaluate = ["--config_file", str(root / "configs" / "evaluate.yaml"), "--dataset_dir", str(dataset)]
        evaluate += ["--output_dir", str(root / "evaluation" / part), "--part", part]
        yield [sys.executable, "-P", "-m", "monai.bundle", "run", "evaluating", *evaluate]


def evaluations(run: Run, root: Path) -> list[Path]:
    """Return the folders of the evaluations on cases that were not in training; together they hold each case once."""
    if run.is_2d:
        return [root / f"fold_{n}" / "evaluation" for n in range(FOLDS)]
    return [root / "evaluation" / part for part in PARTS]


def trainings(run: Run, root: Path) -> list[Path]:
    """Return the folders of the trainings, one per fold."""
    return [root / f"fold_{n}" for n in range(FOLDS)] if run.is_2d else [root / "training"]


def machine() -> dict[str, Any]:
    """Return the names of processor and GPU, and the number of cores of this process."""
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
    for is_2d in (False, True):
        found = [(run, arguments.runs / run.name) for run in RUNS if run.is_2d == is_2d]
        found = [(run, root) for run, root in found if (root / "machine.json").is_file()]
        if found:
            sections.append(section(found, is_2d))
    arguments.output.write_text("\n\n".join([HEAD, *sections]) + "\n", encoding="utf-8")


def section(found: list[tuple[Run, Path]], is_2d: bool) -> str:
    """Return a heading, a description and the table."""
    run, first = found[0]
    folders = evaluations(run, first)
    names = [name for name in read(folders[0] / "summary.json")["mean_dice"] if name != "mean"]
    head = ["network", "", *(f"Dice {name}" for name in names), "mean Dice"]
    head += [f"HD95 ({'pixels' if is_2d else 'mm'})", "NSD", *([] if is_2d else ["mean Dice, test only"])]
    head += ["parameters", "GFLOP", "minutes", "epochs"]
    rows = [head, ["---"] * 2 + ["---:"] * (len(head) - 2), *(row(run, root) for run, root in found)]
    title = "2D images: axons and their myelin in electron micrographs" if is_2d else "Volumes: hippocampus"
    facts = read(first / "plan.json")["fingerprint"]
    counts = [len(scores([folder], "mean_dice")) for folder in folders]
    text = TEXT[is_2d].format(
        cases=facts["cases"],
        trained=facts["cases"] - sum(counts),
        first=counts[0],
        last=counts[-1],
        folds=FOLDS,
        size=" x ".join(map(str, image_size(run, first))),
    )
    machines = {describe(read(root / "machine.json")) for _, root in found}
    lines = ["| " + " | ".join(cells) + " |" for cells in rows]
    return "\n".join([f"## {title}", "", text, "", *lines, "", f"Machine: {'; '.join(sorted(machines))}."])


def row(run: Run, root: Path) -> list[str]:
    """Return the cells of a run."""
    folders = evaluations(run, root)
    dice, hd95, nsd = (means(scores(folders, metric)) for metric in ("mean_dice", "hd95_mm", "nsd"))
    histories = [
        [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
        for folder in trainings(run, root)
    ]
    parameters, gflop = cost(run, root)
    cells = [run.network, "2.5D" if run.network == "MultiView" else f"{run.dims}D"]
    cells += [f"{x:.4f}" for x in dice] + [f"**{average(dice):.4f}**", f"{average(hd95):.2f}", f"{average(nsd):.4f}"]
    if not run.is_2d:
        cells.append(f"{average(means(scores(folders[-1:], 'mean_dice'))):.4f}")
    cells += [f"{parameters / 1e6:.2f} M", f"{gflop:.1f}"]
    minutes = sum(lines[-1]["seconds"] for lines in histories) / 60
    return [*cells, f"{minutes:.1f}", ", ".join(str(max(line["epoch"] for line in lines)) for lines in histories)]


def scores(folders: list[Path], metric: str) -> list[list[float]]:
    """Return a row per case with a number per structure; nan if the case does not count."""
    rows = []
    for folder in folders:
        with (folder / f"{metric}_raw.csv").open(newline="", encoding="utf-8") as file:
            for line in csv.DictReader(file):
                rows.append([float(value) for name, value in line.items() if name.startswith("class")])
    return rows


def means(rows: list[list[float]]) -> list[float]:
    """Return the mean of each structure over the cases that count for it."""
    return [average(column) for column in zip(*rows, strict=True)]


def average(values: Iterable[float]) -> float:
    """Return the mean of the numbers that are not nan; nan if there are none."""
    counting = [value for value in values if not isnan(value)]
    return mean(counting) if counting else nan


def image_size(run: Run, root: Path) -> list[int]:
    """Return the size of the image whose inference is counted: the median volume, or 512 x 512 pixels."""
    return [512, 512] if run.is_2d else [round(n) for n in read(root / "plan.json")["fingerprint"]["median shape"]]


def cost(run: Run, root: Path) -> tuple[int, float]:
    """Return the parameters of one network, and its 10^9 floating-point operations (two per multiply-add) per input."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from napari_seg.bundles.load import load_model
    from napari_seg.bundles.read import read_bundle

    model = load_model(read_bundle(root, trust=True), "cpu")
    image = torch.zeros(1, 1, *image_size(run, root))
    members = len(trainings(run, root))  # a bundle of folds is their ensemble
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model.inferer(image, model.network)
    parameters = sum(p.numel() for p in model.network.parameters())
    return parameters // members, counter.get_total_flops() / members / 1e9


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def describe(found: dict[str, Any]) -> str:
    return (
        found["gpu"]
        or f"{found['cores']} core{'s' * (found['cores'] > 1)} of {found['processor']}, torch {found['torch']}"
    )


PARTS = ("validation", "test")

HEAD = """# Trained networks

Written by `scripts/results.py` from logged runs: each network was trained by `napari-seg train` with the plan that
it makes for the data set. Only the minutes were chosen for each network; other work ran on the machine at the same
time, so training takes less time on a free one. Dice, HD95 (95th percentile of the distances between the surfaces,
the larger of both directions) and NSD (fraction of the surfaces within 1 mm, or one pixel, of each other) are
MONAI's: for each structure the mean over the cases, then the mean over the structures. A structure that is missed,
or found where there is none, counts with Dice 0, NSD 0 and the diagonal of the image. GFLOP: one whole inference,
windows and views included."""

TEXT = {
    False: """Medical Segmentation Decathlon, Task04 (CC BY-SA 4.0): T1-weighted crops of 1 mm. Trained on {trained} of
{cases} cases; measured on the others: {first} validation cases, which chose the epoch, and {last} test cases, which
chose nothing (their own mean is in a column of its own). GFLOP of the median volume, {size}. MultiView was still
improving when its time was over: one of its steps runs a 2D network on every slice of the volumes.""",
    True: """{cases} scanning electron micrographs of rats' spinal cords (doi:10.5281/zenodo.5498378, MIT), in {folds}
folds: each image is measured with weights that saw none of its animal, but whose epoch was chosen on its fold, which is
slightly optimistic. So few images show that 2D images work; they do not rank networks, and after some 60 steps per fold
all networks were still improving. Minutes are summed over the folds, epochs are given per fold; parameters and GFLOP
({size} pixels) are those of one network.""",
}


if __name__ == "__main__":
    main()
