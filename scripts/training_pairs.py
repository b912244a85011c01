"""Train on the same cases with nnU-Net and `napari-seg train` for equal minutes, and compare the Dice of test cases.

    python scripts/training_pairs.py --data DATA --work FOLDER --peer PYTHON
    python scripts/training_pairs.py --data DATA --work FOLDER --peer PYTHON --only tiny --minutes 30

Writes docs/reference/training_pairs.json and training_pairs.md; a data set that is run again replaces its own row, and
trainings that have ended are not repeated unless their files in FOLDER are removed. DATA holds the real scans that
`benchmarks/training_pairs.py` cuts and varies; PYTHON is the interpreter of an environment with nnU-Net.

Both programs train at the same time, each on a core of its own, so that they see the same machine at each moment.
Planning, checks and nnU-Net's preprocessing are not counted, napari-seg's preprocessing and validations are. Each uses
the defaults of its commands: `nnUNetv2_train` (see `benchmarks/nnunet_timed_training.py` for what differs) and
`nnUNetv2_predict` with its mirror images; `napari-seg train --max-minutes` and `napari-seg predict`. `napari-seg
evaluate` scores the results of both.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.measuring import CHECKOUT, NAPARI_SEG, machine
from benchmarks.nnunet_models import environment
from benchmarks.report import describe_machine, paragraph, table
from benchmarks.training_pairs import SETS, write_pair

from napari_seg.evaluation.statistics import summarise

VERSIONS = ("napari-seg", "torch", "monai")
TIMED = Path(__file__).parent / "benchmarks" / "nnunet_timed_training.py"
PREDICT = "import sys; from nnunetv2.inference.predict_from_raw_data import predict_entry_point as run; run()"


def main() -> None:
    """Run the data sets that the command names and write the report."""
    args = parse()
    about = machine(VERSIONS)
    for name in args.only or SETS:
        print(name, file=sys.stderr, flush=True)
        row = compare(name, args)
        print(json.dumps(row), file=sys.stderr, flush=True)
        write(args.report, name, row, about)
    print((args.report / "training_pairs.md").read_text())


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=absolute, required=True, help="folder of the real scans")
    parser.add_argument("--work", type=absolute, required=True, help="folder for data sets, models and results; kept")
    parser.add_argument("--peer", type=Path, required=True, help="Python of an environment with nnU-Net")
    parser.add_argument("--only", nargs="+", choices=SETS, metavar="NAME", help="data sets to run; default: all")
    parser.add_argument("--minutes", type=float, default=30.0, help="training time on one core; default 30")
    parser.add_argument("--report", type=Path, default=CHECKOUT / "docs" / "reference", help="folder of the report")
    return parser.parse_args()


def compare(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Train and evaluate both programs on a data set and return its row."""
    made, work = SETS[name], args.work / name
    data = args.work / "raw" / made.folder(name)
    write_pair(name, args.data, data)
    folder = args.work / "preprocessed" / made.folder(name)
    variables = environment(args.work)
    if not (folder / "splits_final.json").exists():
        run([args.peer, TIMED, "prepare", made.number], work / "prepare.txt", {**variables, "OMP_NUM_THREADS": "2"})
        shutil.copy(data / "splits_final.json", folder)
    ended = work / "ended.json"
    if not ended.exists():
        ended.write_text(json.dumps(train_both(name, data, work, args)))
    minutes = json.loads(ended.read_text())
    theirs = json.loads((work / "nnunet.json").read_text()) | {"cpu_minutes": minutes["nnunet"]}
    ours = describe(work) | {"cpu_minutes": minutes["ours"]}
    shutil.rmtree(work / "evaluated", ignore_errors=True)
    predict(name, args)
    for program, row in (("nnunet", theirs), ("ours", ours)):
        row |= evaluate(work, program, data, made.classes)
    difference = summarise([our - their for our, their in zip(ours["cases"], theirs["cases"], strict=True)])
    return {
        "about": made.about,
        "minutes": minutes["minutes"],
        "cases": [len(list((data / f"labels{side}").iterdir())) for side in ("Tr", "Ts")],
        "ours": ours,
        "nnunet": theirs,
        "difference": [difference.mean, difference.low, difference.high],
    }


def train_both(name: str, data: Path, work: Path, args: argparse.Namespace) -> dict[str, float]:
    """Train with both programs at the same time and return the minutes of processor time of each."""
    made = SETS[name]
    shutil.rmtree(work / "trained", ignore_errors=True)
    train = [*NAPARI_SEG, "train", data / "cases.csv", "-o", work / "trained"]
    train += ["--labels", *(f"{one}={value}" for value, one in enumerate(made.classes, 1))]
    train += ["--max-minutes", args.minutes, *made.options]
    peer = [args.peer, TIMED, "train", made.number, made.configuration, args.minutes, work / "nnunet.json"]
    both = [
        start(peer, work / "nnunet.txt", environment(args.work), core=1),
        start(train, work / "train.txt", environment(args.work), core=0),
    ]
    theirs, ours = (finish(*one) for one in both)
    return {"minutes": args.minutes, "nnunet": theirs, "ours": ours}


def start(command: list[Any], log: Path, variables: dict[str, str], core: int) -> tuple[subprocess.Popen, Path]:
    """Start a program on one core."""
    log.parent.mkdir(parents=True, exist_ok=True)
    words = ["taskset", "-c", str(core), *map(str, command)]
    with log.open("w") as file:
        return subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT, env=variables), log


def finish(process: subprocess.Popen, log: Path) -> float:
    """Wait for a program and return the minutes of processor time that it and its children took."""
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{process.args} failed with {process.returncode}; see {log}")
    return (used.ru_utime + used.ru_stime) / 60


def run(command: list[Any], log: Path, variables: dict[str, str]) -> None:
    """Run a program to its end."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        done = subprocess.run([*map(str, command)], stdout=file, stderr=subprocess.STDOUT, env=variables, check=False)
    if done.returncode:
        sys.exit(f"{command} failed with {done.returncode}; see {log}")


def describe(work: Path) -> dict[str, Any]:
    """Return the plan of `napari-seg train` and how far it came."""
    settings = json.loads((work / "trained" / "plan.json").read_text())["settings"]
    steps = re.search(r"steps +(\d+) of (\d+) planned", (work / "train.txt").read_text())
    last = json.loads((work / "trained" / "training" / "progress.jsonl").read_text().splitlines()[-1])
    values = {key: settings[key]["value"] for key in ("patch_size", "batch_size") if key in settings}
    return {"steps": [int(steps[1]), int(steps[2])] if steps else None, "last": last, **values}


def predict(name: str, args: argparse.Namespace) -> None:
    """Segment the test part with both programs."""
    made, work = SETS[name], args.work / name
    data = args.work / "raw" / made.folder(name)
    variables = {**environment(args.work), "OMP_NUM_THREADS": "2", "nnUNet_def_n_proc": "2"}
    command = [args.peer, "-c", PREDICT, "-i", data / "imagesTs", "-o", work / "evaluated" / "nnunet", "-f", "0"]
    command += ["-d", made.number, "-c", made.configuration, "-device", "cpu", "-npp", "1", "-nps", "1"]
    run(command, work / "nnunet_predict.txt", variables)
    ours = [*NAPARI_SEG, "predict", "--model", work / "trained", "--no-preview"]
    if len(made.channels) == 1:
        run([*ours, data / "imagesTs", "-o", work / "evaluated" / "ours"], work / "predict.txt", variables)
        return
    for label in sorted((data / "labelsTs").iterdir()):
        case = label.name.split(".")[0]
        files = [f"{one}={data}/imagesTs/{case}_{n:04d}.nii.gz" for n, one in enumerate(made.channels)]
        words = [word for one in files for word in ("--channel", one)]
        run([*ours, *words, "-o", work / "evaluated" / "ours"], work / "predict.txt", variables)


def evaluate(work: Path, program: str, data: Path, classes: tuple[str, ...]) -> dict[str, Any]:
    """Score the results of a program: the mean Dice, that of each class, and of each case in the order of names."""
    out = work / "evaluated" / f"{program}_scores"
    command = [*NAPARI_SEG, "evaluate", work / "evaluated" / program, data / "labelsTs"]
    command += ["-o", out, "--no-pictures", "--labels", *(f"{one}={n}" for n, one in enumerate(classes, 1))]
    run(command, work / f"{program}_evaluate.txt", dict(os.environ))
    with (out / "cases.csv").open() as file:
        rows = list(csv.DictReader(file))
    scores: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["dice"]:
            scores.setdefault(row["case"], {})[row["segment"]] = float(row["dice"])
    by_class = {one: float(np.mean([case[one] for case in scores.values() if one in case])) for one in classes}
    cases = [float(np.mean(list(scores[case].values()))) for case in sorted(scores)]
    return {"dice": float(np.mean(list(by_class.values()))), "by_class": by_class, "cases": cases}


def write(folder: Path, name: str, row: dict[str, Any], about: dict[str, Any]) -> None:
    """Replace a row of the report, and write its page."""
    path = folder / "training_pairs.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else {}
    rows |= {name: row}
    known = {"machine": about, "rows": {one: rows[one] for one in SETS if one in rows}}
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(known, indent=1) + "\n")
    (folder / "training_pairs.md").write_text(page(known))


def page(known: dict[str, Any]) -> str:
    """Return the report as a page."""
    lines = ["# Trainings of equal minutes next to nnU-Net", ""]
    lines += paragraph(" ".join(str(__doc__).split("\n\n")[3].split()))
    lines += paragraph(
        "Dice: mean of the classes over the test cases, which neither program saw. Difference: the mean over the test",
        "cases of the differences of their Dice, with its 95 % interval, by resampling the cases; it leaves out",
        "the variation between trainings, of which there was one each. Processor minutes: those of the training; they",
        "are fewer than the minutes where other work ran on the machine, for both alike. Samples: steps times the",
        "batch. All numbers are in [training_pairs.json](training_pairs.json).",
    )
    lines += paragraph(
        "**What it does not show**: what either reaches in days, or on a GPU, for which nnU-Net is made. Its networks",
        "and patches take many times as long for a step here, so it sees far fewer samples in these minutes. A",
        "Dice of 0 means that no voxel of its results has a label: its standard plan trains for 250,000 steps, and the",
        "number of its steps in these minutes is in the last column.",
    )
    lines += [describe_machine(known["machine"]), ""]
    rows = []
    for name, row in known["rows"].items():
        ours, theirs = row["ours"], row["nnunet"]
        low, high = row["difference"][1:]
        rows.append(
            [
                f"{name}: {row['about']}",
                f"{row['cases'][0]} / {row['cases'][1]}",
                f"{row['minutes']:g}",
                " / ".join(f"{one['cpu_minutes']:.1f}" if one.get("cpu_minutes") else "–" for one in (ours, theirs)),
                f"**{ours['dice']:.4f}**" if ours["dice"] >= theirs["dice"] else f"{ours['dice']:.4f}",
                f"{theirs['dice']:.4f}",
                f"{row['difference'][0]:+.4f} ({low:+.4f} to {high:+.4f})",
                f"{_samples(ours)} / {theirs['steps'] * theirs['batch']}",
                f"{_size(ours['patch_size'])} / {_size(theirs['patch'])}",
                f"{ours['steps'][0] if ours['steps'] else 'all'} / {theirs['steps']}",
            ]
        )
    head = [
        "data set",
        "cases: training / test",
        "minutes",
        "processor minutes",
        "napari-seg",
        "nnU-Net",
        "difference",
        "samples",
        "patch",
        "steps",
    ]
    return "\n".join([*lines, *table(head, rows), ""])


def _samples(ours: dict[str, Any]) -> object:
    return ours["steps"][0] * ours["batch_size"] if ours["steps"] else "all"


def _size(lengths: list[int]) -> str:
    return " x ".join(map(str, lengths))


def absolute(text: str) -> Path:
    return Path(text).resolve()


if __name__ == "__main__":
    main()
