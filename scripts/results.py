#!/usr/bin/env python3
"""Train every network on the same data, evaluate it on the same unseen cases, and write docs/reference/results.md.

    python scripts/results.py train RUNS --volumes ../Task04_Hippocampus --pictures ../axon_sem [--only fcn_3d unet_2d]
    python scripts/results.py table RUNS -o docs/reference/results.md

`train` calls `napari-seg train` and the bundle's own evaluation, so that a person can repeat each line; what is done
is skipped, what was interrupted goes on. `table` reads what they left behind: plan.json, history.jsonl and, a row a
case, the evaluations' *_raw.csv. Volumes have a test part; the few pictures are cross-validated instead.
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
        name: of the run's folder.
        network: as `--network` takes it.
        dims: of the network.
        minutes: what its training may take; of pictures, that of each fold.
        pictures: trained on pictures instead of volumes.
    """

    name: str
    network: str
    dims: int
    minutes: float
    pictures: bool = False


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
    Run("fcn_axon", "FCN", 2, 3, pictures=True),
    Run("unet_axon", "UNet", 2, 3, pictures=True),
    Run("deeplabv3plus_axon", "DeepLabV3Plus", 2, 3, pictures=True),
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
    if run.pictures:  # which evaluates each fold itself
        yield [*words, "--labels", *AXON_LABELS, "--folds", str(FOLDS)]
        return
    yield words
    for part in PARTS:
        evaluate = ["--config_file", str(root / "configs" / "evaluate.yaml"), "--dataset_dir", str(dataset)]
        evaluate += ["--output_dir", str(root / "evaluation" / part), "--part", part]
        yield [sys.executable, "-m", "monai.bundle", "run", "evaluating", *evaluate]


def evaluations(run: Run, root: Path) -> list[Path]:
    """The folders of what was measured, on cases that their weights were not trained on; together each case once."""
    if run.pictures:
        return [root / f"fold_{n}" / "evaluation" for n in range(FOLDS)]
    return [root / "evaluation" / part for part in PARTS]


def trainings(run: Run, root: Path) -> list[Path]:
    """The folders of the trainings, one a fold."""
    return [root / f"fold_{n}" for n in range(FOLDS)] if run.pictures else [root / "training"]


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
    folders = evaluations(run, first)
    names = [name for name in read(folders[0] / "summary.json")["mean_dice"] if name != "mean"]
    head = ["network", "", *(f"Dice {name}" for name in names), "mean Dice"]
    head += [f"HD95 ({'pixels' if pictures else 'mm'})", "NSD", *([] if pictures else ["mean Dice, test only"])]
    head += ["parameters", "GFLOP", "minutes", "epochs"]
    rows = [head, ["---"] * 2 + ["---:"] * (len(head) - 2), *(row(run, root) for run, root in found)]
    title = "2D images: axons and their myelin in electron micrographs" if pictures else "Volumes: hippocampus"
    facts = read(first / "plan.json")["fingerprint"]
    counts = [len(scores([folder], "mean_dice")) for folder in folders]
    text = TEXT[pictures].format(
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
    """A run's cells."""
    folders = evaluations(run, root)
    dice, hd95, nsd = (means(scores(folders, metric)) for metric in ("mean_dice", "hd95_mm", "nsd"))
    histories = [
        [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
        for folder in trainings(run, root)
    ]
    parameters, gflop = cost(run, root)
    cells = [run.network, "2.5D" if run.network == "MultiView" else f"{run.dims}D"]
    cells += [f"{x:.4f}" for x in dice] + [f"**{average(dice):.4f}**", f"{average(hd95):.2f}", f"{average(nsd):.4f}"]
    if not run.pictures:
        cells.append(f"{average(means(scores(folders[-1:], 'mean_dice'))):.4f}")
    cells += [f"{parameters / 1e6:.2f} M", f"{gflop:.1f}"]
    minutes = sum(lines[-1]["seconds"] for lines in histories) / 60
    return [*cells, f"{minutes:.1f}", ", ".join(str(max(line["epoch"] for line in lines)) for lines in histories)]


def scores(folders: list[Path], metric: str) -> list[list[float]]:
    """A row a case, a number a structure; nan where the case does not count."""
    rows = []
    for folder in folders:
        with (folder / f"{metric}_raw.csv").open(newline="", encoding="utf-8") as file:
            for line in csv.DictReader(file):
                rows.append([float(value) for name, value in line.items() if name.startswith("class")])
    return rows


def means(rows: list[list[float]]) -> list[float]:
    """Of each structure, over the cases that count for it."""
    return [average(column) for column in zip(*rows, strict=True)]


def average(values: Iterable[float]) -> float:
    """Of what is a number; nan where nothing is."""
    counting = [value for value in values if not isnan(value)]
    return mean(counting) if counting else nan


def image_size(run: Run, root: Path) -> list[int]:
    """Of the image whose inference is counted: the median volume, and a picture of moderate size."""
    return [512, 512] if run.pictures else [round(n) for n in read(root / "plan.json")["fingerprint"]["median shape"]]


def cost(run: Run, root: Path) -> tuple[int, float]:
    """Parameters of one network, and its 10^9 floating-point operations (two a multiply-add) for one input."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from napari_seg.bundles.load import load_model
    from napari_seg.bundles.spec import read_bundle

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
