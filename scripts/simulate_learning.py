"""Simulate corrections: does a model learn more from the cases that the queue names than from random ones?

    python scripts/simulate_learning.py --data Task04 --model SEED --parts parts.json --work FOLDER
    python scripts/simulate_learning.py ... --sizes 10 20 40 --seeds 3 --steps 240 --threads 1

The reference labels stand for corrections. `parts.json` names the cases "seed", on which SEED was trained, "candidates"
and "validation", which nothing is trained on. The candidates are segmented by SEED and ranked once, by

    napari-seg predict CANDIDATES --model SEED -o FOLDER/results
    napari-seg queue FOLDER/results --scans CANDIDATES --model SEED --accepted SEED_CASES

so it is one batch, and a set of 20 holds the set of 10; so do the random ones. For each size and each choice, SEED is
fine-tuned on its own cases and the chosen ones for the same number of steps, and the weights of the last step are
compared with the reference labels of the validation part, so that no validation case chooses among weights. The queue's
choice is trained on `--repeats` times with other seeds of the training, to show how much these alone change.

Each cell (a size and a choice) writes its row into FOLDER/learning.json as it ends; the same command continues a run
that was stopped or killed, within a cell from the last checkpoint. `--summary` prints the rows that there are.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

RANKED = "queue"
REPORT = "learning.json"
BATCH = 2


def main() -> None:
    """Run the cells that are left, and print the summary."""
    args = parse()
    if not args.summary:
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ[name] = str(args.threads)  # before torch is imported; the trainings inherit it
        simulate(args)
    print(summary(read(args.work)))


def simulate(args: argparse.Namespace) -> None:
    """Rank the candidates, then run each cell that has no row yet."""
    import numpy as np

    from napari_seg.learning.ranking import choose

    parts = json.loads(args.parts.read_text())
    report = read(args.work)
    if "start" not in report:
        say("the model before: its Dice on the validation part")
        start = {"dice": evaluate(args.model, args.data, parts["validation"])}
        write(args.work, report | {"start": start, "steps": args.steps, "learning_rate": args.learning_rate})
    if not (args.work / "queue.json").is_file():
        say("ranking the candidates")
        order = rank_candidates(args, parts)
        (args.work / "queue.json").write_text(json.dumps(order))
    order = json.loads((args.work / "queue.json").read_text())
    candidates = sorted(parts["candidates"])
    orders = {RANKED: order} | {f"{RANKED} {repeat}": order for repeat in range(1, args.repeats)}
    for seed in range(args.seeds):
        chosen = choose(candidates, (), np.zeros((0, 0)), np.zeros((0, 0)), "random", seed=seed)
        orders[f"random {seed}"] = [candidates[choice.number] for choice in chosen]
    for size, choice in cells(args.sizes, list(orders)):
        key = f"{size} {choice}"
        if key in read(args.work).get("cells", {}):
            continue
        say(f"cell {key}")
        repeat = int(choice.removeprefix(RANKED) or 0) if choice.startswith(RANKED) else 0
        row = run_cell(args, parts, orders[choice][:size], key, repeat)
        report = read(args.work)
        report.setdefault("cells", {})[key] = {"size": size, "choice": choice, **row}
        write(args.work, report)
        say(f"cell {key}: Dice {row['dice']['mean']:.4f}, {row['cpu_minutes']:.1f} CPU minutes")


def cells(sizes: Sequence[int], choices: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Yield all cells, size by size, so that an unfinished run has complete sizes."""
    for size in sizes:
        for choice in choices:
            yield size, choice


def rank_candidates(args: argparse.Namespace, parts: dict[str, list[str]]) -> list[str]:
    """Return the candidates in the order of the queue; the model segments and looks at each of them once."""
    from napari_seg.cohort.cohort import Cohort
    from napari_seg.inference.options import SegmentOptions
    from napari_seg.learning.queue import rank

    scans = args.work / "scans"
    for name, folder in (("candidates", scans), ("seed", args.work / "accepted")):
        folder.mkdir(parents=True, exist_ok=True)
        for case in parts[name]:
            if not (folder / f"{case}.nii.gz").exists():
                shutil.copy2(args.data / "imagesTr" / f"{case}.nii.gz", folder)
    for result in Cohort(scans, args.work / "results", args.model, workers=1):
        if result.status == "failed":
            raise SystemExit(f"{result.name}: {result.code}: {result.message}")
    found = rank(
        args.work / "results",
        scans=scans,
        model=args.model,
        accepted=args.work / "accepted",
        options=SegmentOptions(device="cpu"),
        count=max(args.sizes),
    )
    return [case.name for case in found if case.rank is not None]


def run_cell(
    args: argparse.Namespace, parts: dict[str, list[str]], chosen: list[str], key: str, seed: int
) -> dict[str, Any]:
    """Fine-tune the model on its own cases and the chosen ones, and return the Dice on the validation part."""
    from napari_seg.bundles.read import read_bundle
    from napari_seg.learning.improve import LAST
    from napari_seg.learning.inherit import inherited_choices
    from napari_seg.training.history import RUN
    from napari_seg.training.prepare import data_folder, plan_bundle
    from napari_seg.training.process import run
    from napari_seg.training.run import STOP, ship, training_command

    folder = args.work / "cells" / key.replace(" ", "_")
    data, out = folder / "data", folder / "bundle"
    cases = [*parts["seed"], *chosen]
    if not (data / "dataset.json").is_file():
        write_data(args.data, data, cases, parts["validation"])
    epochs = ceil(args.steps / ceil(len(cases) / BATCH))
    settings = {"batch_size": BATCH, "patches_per_case": 1, "val_cases": 2, "val_interval": epochs}
    settings |= {"learning_rate": args.learning_rate, "max_epochs": epochs}
    settings |= {"seed": seed} if seed else {}
    inherited = inherited_choices(read_bundle(args.model, trust=True), out)
    plan = plan_bundle(data, out, replace(inherited, settings=inherited.settings | settings), report=say)
    limits = {} if args.minutes_per_cell is None else {"max_minutes": args.minutes_per_cell}
    command = training_command(out, data_folder(data, out, plan), fine_tune=plan["choices"]["fine_tune"], **limits)
    began, before = time.time(), cpu_seconds()
    run(command, out / STOP, out / RUN)
    minutes, cpu_minutes = (time.time() - began) / 60, (cpu_seconds() - before) / 60
    ship(out, out / RUN / LAST, {})
    lines = (out / RUN / "history.jsonl").read_text().splitlines()
    return {
        "cases": chosen,
        "steps": max(json.loads(line)["step"] for line in lines),
        "minutes": round(minutes, 2),
        "cpu_minutes": round(cpu_minutes, 2),
        "dice": evaluate(out, args.data, parts["validation"]),
    }


def write_data(source: Path, target: Path, training: Sequence[str], validation: Sequence[str]) -> None:
    """Write a data set in the Decathlon's layout with a fixed validation part."""
    description = json.loads((source / "dataset.json").read_text())
    entries = []
    for part, names in (("training", training), ("validation", validation)):
        for name in names:
            entry = {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz", "split": part}
            for file in (entry["image"], entry["label"]):
                (target / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / file, target / file)
            entries.append(entry)
    description |= {"training": entries, "numTraining": len(entries), "test": [], "numTest": 0}
    unfinished = target / "unfinished.json"
    unfinished.write_text(json.dumps(description))
    unfinished.rename(target / "dataset.json")


def evaluate(model: Path, data: Path, names: Sequence[str]) -> dict[str, float]:
    """Return structure -> mean Dice of a model over cases, and "mean", the mean over cases of their mean."""
    import numpy as np

    from napari_seg.bundles.read import read_bundle
    from napari_seg.formats.read import read as read_scan
    from napari_seg.inference.segment import segment

    bundle = read_bundle(model, trust=True)
    dice: dict[str, list[float]] = {segment.name: [] for segment in bundle.segments}
    for name in names:
        found = segment(read_scan(data / "imagesTr" / f"{name}.nii.gz"), bundle, device="cpu")
        truth = read_scan(data / "labelsTr" / f"{name}.nii.gz").array[0]
        for one in bundle.segments:
            a, b = found.array == one.label, truth == one.label
            dice[one.name].append(2 * float((a & b).sum()) / float(a.sum() + b.sum()))
    per_case = np.mean(list(dice.values()), axis=0)
    return {name: round(fmean(values), 5) for name, values in dice.items()} | {"mean": round(float(per_case.mean()), 5)}


def cpu_seconds() -> float:
    """Return the CPU time of the processes that this one waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def summary(report: dict[str, Any]) -> str:
    """Return a table: a row for each size, with the queue beside the random choices."""
    rows = list(report.get("cells", {}).values())
    lines = [f"start: mean Dice {report['start']['dice']['mean']:.4f}"] if "start" in report else ["nothing yet"]
    lines.append("cases  queue                    random                   difference  CPU min   (mean ± sd (n))")
    for size in sorted({row["size"] for row in rows}):
        of_size = [row for row in rows if row["size"] == size]
        ranked, random = (
            [row["dice"]["mean"] for row in of_size if row["choice"].startswith(word)] for word in (RANKED, "random")
        )
        difference = f"{fmean(ranked) - fmean(random):+.4f}" if ranked and random else "-"
        minutes = fmean(row["cpu_minutes"] for row in of_size)
        lines.append(f"{size:5}  {described(ranked):23}  {described(random):23}  {difference:10}  {minutes:.1f}")
    return "\n".join(lines)


def described(values: Sequence[float]) -> str:
    """Return mean, standard deviation and number of values."""
    if not values:
        return "-"
    return f"{fmean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "") + f" ({len(values)})"


def read(work: Path) -> dict[str, Any]:
    """Return the report so far; empty if there is none."""
    path = work / REPORT
    return json.loads(path.read_text()) if path.is_file() else {}


def write(work: Path, report: dict[str, Any]) -> None:
    """Replace the report in one step."""
    work.mkdir(parents=True, exist_ok=True)
    unfinished = work / f"{REPORT}.unfinished"
    unfinished.write_text(json.dumps(report, indent=1))
    unfinished.replace(work / REPORT)


def say(text: str) -> None:
    """Print a line with the time."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def parse() -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="data set in the Decathlon's layout")
    parser.add_argument("--model", type=Path, required=True, help="model that was trained on the seed cases")
    parser.add_argument("--parts", type=Path, required=True, help="JSON: names of seed, candidates and validation")
    parser.add_argument("--work", type=Path, required=True, help="folder of this simulation")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 20, 40], help="numbers of corrected cases")
    parser.add_argument("--seeds", type=int, default=3, help="number of random choices")
    parser.add_argument("--repeats", type=int, default=3, help="trainings on the queue's choice, with other seeds")
    parser.add_argument("--steps", type=int, default=240, help="steps of each fine-tuning")
    parser.add_argument("--minutes-per-cell", type=float, help="also limit the minutes of each; cells may then differ")
    parser.add_argument("--learning-rate", type=float, default=0.0007)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--summary", action="store_true", help="print the rows that there are, and run nothing")
    return parser.parse_args()


if __name__ == "__main__":
    main()
