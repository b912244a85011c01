"""Train on data sets of many kinds and segment a held-out case of each, on the command line and in the plugin.

    python scripts/training_kinds.py --hippocampus Task04 --ct-body CT --axon-sem SEM --work FOLDER
    python scripts/training_kinds.py ... --minutes 0.7 --only dicom_seg coco

Writes docs/reference/training_kinds.json and training_kinds.md; a kind that runs again replaces its own row, and one
that ran before with the same limit is kept unless it is named. The data sets are small and made from real scans
(`benchmarks/training_*.py`): the table shows that each kind is read as it is, trained, and segmented at once, not how
well a network can become. Each row comes from

    napari-seg train DATA -o OUT --max-minutes M
    napari-seg predict FILES --model OUT -o RESULT

on the files of a case that the data set does not hold, and from the models of the plugin's *Study* and *Segment* tabs
on the same files (`benchmarks/training_in_plugin.py`). It is a fault if a command fails or prints a traceback, if the
plan counts other voxels of a class than the source holds, if names or values of the result are not those of the data
set, if the result does not lie on the voxels of the scan, or if the plugin's labels are not those of the command line.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.measuring import CHECKOUT, machine
from benchmarks.report import describe_machine, paragraph, table
from benchmarks.training_images2d import IMAGES_2D
from benchmarks.training_refused import REFUSED
from benchmarks.training_runs import run_kind
from benchmarks.training_sets import CASES, Scans
from benchmarks.training_volumes import VOLUMES

KINDS = {**VOLUMES, **IMAGES_2D, **REFUSED}
_MESSAGE_LINES = 4
"""Lines of a refusal that the page has; the others are in the JSON file."""

VERSIONS = ("napari-seg", "torch", "monai", "napari")


def main() -> None:
    """Run the kinds that the command names and write the report."""
    args = parse()
    scans = Scans(args.hippocampus, args.ct_body, args.axon_sem)
    limits = ["--max-epochs", str(args.epochs)] if args.epochs else ["--max-minutes", f"{args.minutes:g}"]
    about = machine(VERSIONS) | {"threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))}
    for name in args.only or KINDS:
        known = read(args.report)["kinds"].get(name, {})
        if not args.only and known.get("limits") == limits and not known["faults"]:
            continue
        print(name, file=sys.stderr, flush=True)
        row = run(name, scans, args.work / name, limits)
        print(json.dumps(row), file=sys.stderr, flush=True)
        write(args.report, name, row | {"limits": limits}, about)
        if not args.keep and not row["faults"]:
            shutil.rmtree(args.work / name)
    print((args.report / "training_kinds.md").read_text())
    kinds = read(args.report)["kinds"]
    wrong = [name for name, row in kinds.items() if row["faults"]]
    sys.exit(f"faults of {', '.join(wrong)}" if wrong else 0)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hippocampus", type=absolute, required=True, help="Task04 of the Decathlon")
    parser.add_argument("--ct-body", type=absolute, required=True, help="test scans of TotalSegmentator")
    parser.add_argument("--axon-sem", type=absolute, required=True, help="images of axons and their labels")
    parser.add_argument("--work", type=absolute, required=True, help="folder for data sets, bundles and logs")
    parser.add_argument("--minutes", type=float, default=3.0, help="training time of each kind; default 3")
    parser.add_argument("--epochs", type=int, help="number of epochs instead, to try the script")
    parser.add_argument("--only", nargs="+", choices=KINDS, metavar="NAME", help="kinds to run; default: those missing")
    parser.add_argument("--keep", action="store_true", help="keep data sets, bundles and logs")
    parser.add_argument("--report", type=Path, default=CHECKOUT / "docs" / "reference", help="folder of the report")
    return parser.parse_args()


def run(name: str, scans: Scans, work: Path, limits: list[str]) -> dict[str, Any]:
    """Write a data set again and return its row."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    return run_kind(KINDS[name], KINDS[name].write(scans, work), work, limits)


def read(folder: Path) -> dict[str, Any]:
    """Return the report so far."""
    path = folder / "training_kinds.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"machine": {}, "kinds": {}}
    return found


def write(folder: Path, name: str, row: dict[str, Any], about: dict[str, object]) -> None:
    """Replace a row of the report, and write its page."""
    figures = read(folder)
    kinds = figures["kinds"] | {name: row}
    figures = {"machine": about, "kinds": {one: kinds[one] for one in KINDS if one in kinds}}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "training_kinds.json").write_text(json.dumps(figures, indent=1) + "\n")
    (folder / "training_kinds.md").write_text(page(figures))


def page(figures: dict[str, Any]) -> str:
    """Return the report as a page."""
    kinds: dict[str, dict[str, Any]] = figures["kinds"]
    trained = {name: row for name, row in kinds.items() if "cases" in row}
    refused = {name: row for name, row in kinds.items() if name not in trained}
    limits = sorted({" ".join(row["limits"]) for row in trained.values()})
    lines = ["# Kinds of data sets", ""]
    lines += paragraph(
        "Written by `scripts/training_kinds.py`, which says what each check is: small data sets of many kinds, made",
        f"from real scans, {CASES} cases each (images of axons: 14), planned and trained by `napari-seg train DATA",
        f"{' or '.join(limits)}`. A further case, which the data set does not hold, is segmented at once from its",
        "source files by `napari-seg predict` and by the plugin's own models of the *Study* and *Segment* tabs,",
        "without a window. All numbers are in [training_kinds.json](training_kinds.json).",
    )
    lines += paragraph(
        "**What it shows**: each kind is read as it is, with the classes and voxels of its source, is trained, and",
        "gives a bundle that runs on such files. **What it does not show**: how good a network becomes. The time limit",
        f"reaches a small fraction of most plans (column *steps*), here with {figures['machine'].get('threads', 1)}",
        "thread(s) beside other work on the machine; Dice is the mean of the classes in that one case, and near 0",
        "where the time was too short to find a class. The CT is one patient in variations. Column *plugin*: its",
        "labels are those of the command line, voxel by voxel and name by name; and how many voxels have a label.",
    )
    lines += [describe_machine(figures["machine"]), "", "## Trained", ""]
    head = [
        "kind",
        "made of",
        "cases",
        "classes",
        "patch",
        "limit",
        "steps",
        "s: plan / train / predict",
        "Dice",
        "plugin",
        "faults",
    ]
    lines += table(head, [_trained(name, row) for name, row in trained.items()])
    if refused:
        lines += ["", "## Refused", ""]
        head = ["kind", "made of", "code", "message", "faults"]
        lines += table(head, [_refused(name, row) for name, row in refused.items()])
    return "\n".join(lines) + "\n"


def _trained(name: str, row: dict[str, Any]) -> list[object]:
    scores = [value for value in row.get("dice", {}).values() if value is not None]
    seconds = [row.get(f"seconds {part}", "–") for part in ("planning", "training", "prediction")]
    channels = f", {row['channels']} channels" if row["channels"] > 1 else ""
    options = f"; with `{row['options of train']}`" if row.get("options of train") else ""
    return [
        name,
        f"{row['about']}{channels}{options}{'; converted' if row['converted'] else ''}",
        row["cases"],
        len(row["classes"]),
        f"{' x '.join(map(str, row['patch']))}",
        f"{row['limits'][1]} {row['limits'][0].removeprefix('--max-')}",
        f"{row['steps'][0]} of {row['steps'][1]}" if row["steps"] else "all",
        " / ".join(map(str, seconds)),
        f"{mean(scores):.2f}" if scores else "–",
        f"equal, {sum(row.get('labels', {}).values())} voxels" if row.get("plugin equal") else "–",
        _cell("; ".join(row["faults"])) or "none",
    ]


def _refused(name: str, row: dict[str, Any]) -> list[object]:
    message = " / ".join(row.get("message", [])[:_MESSAGE_LINES]).removeprefix("napari-seg: ")
    return [
        name,
        row["about"],
        f"`{row.get('refusal', '')}`",
        _cell(message),
        _cell("; ".join(row["faults"])) or "none",
    ]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def absolute(text: str) -> Path:
    return Path(text).resolve()


if __name__ == "__main__":
    main()
