"""One data set planned, trained, and a held-out case segmented by the command line and in the plugin."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from benchmarks.training_sets import DataSet, Kind
from numpy.typing import NDArray

_HERE = Path(__file__).parent

Row = dict[str, Any]


def run_kind(kind: Kind, made: DataSet, work: Path, limits: list[str]) -> Row:
    """Return the row of one kind of data set, with a list of what is wrong about it.

    Args:
        kind: the kind.
        made: the data set.
        work: folder for results and logs.
        limits: words of `napari-seg train` that limit it.
    """
    row: Row = {"about": kind.about, "faults": []}
    out = work / "trained"
    words = ["train", made.path, "-o", out, *made.options]
    start = time.time()
    status, text = _napari_seg([*words, *limits], work / "train.txt")
    row |= {"seconds": round(time.time() - start), "options of train": " ".join(made.options)}
    if "Traceback" in text:
        row["faults"].append("a traceback of train")
    if kind.refusal or status:
        return row | _refused(kind, status, text, row["faults"], made.path)
    plan = json.loads((out / "plan.json").read_text())
    row |= describe_plan(plan) | _times(out, start, row["seconds"], text)
    row["faults"] += differing_voxels(plan, made)
    _predict(made, plan, out, work, row)
    return row


def _napari_seg(words: list[Any], log: Path, program: tuple[str, ...] = ("-P", "-m", "napari_seg")) -> tuple[int, str]:
    """Run a command, and return its status and what it printed, which it also writes into a file."""
    environment = os.environ | {"NAPARI_SEG_MODELS": str(log.parent / "store"), "COLUMNS": "200"}
    command = [sys.executable, *program, *map(str, words)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", check=False)
    log.write_text(done.stdout + done.stderr)
    return done.returncode, done.stdout + done.stderr


def _refused(kind: Kind, status: int, text: str, faults: list[str], path: Path) -> Row:
    """Return what a refusal said, without the folder of the data."""
    # the first line that begins with a code, and the lines of a list of faults below it
    lines = text.replace(str(path), "DATA").replace(str(path.parent), "WORK").splitlines()
    first = next((n for n, line in enumerate(lines) if re.search(r"\b[a-z0-9]+\.[a-z0-9_]+: ", line)), None)
    said = [line.strip() for line in lines[first:]] if first is not None else lines[-3:]
    found = re.search(r"\b([a-z0-9]+\.[a-z0-9_]+): ", said[0]) if said else None
    code = found[1] if found else ""
    if status == 0:
        faults.append("trained, although it can't be")
    elif not kind.refusal:
        faults.append(f"refused with {code or status}, although it can be trained")
    elif code != kind.refusal:
        faults.append(f"refused with {code!r} instead of {kind.refusal!r}")
    return {"status": status, "refusal": code, "message": [re.sub(r" {2,}", "  ", line) for line in said[:8]]}


def describe_plan(plan: dict[str, Any]) -> Row:
    """Return the planned values of the table."""
    settings = {name: entry["value"] for name, entry in plan["settings"].items()}
    found = plan["fingerprint"]
    return {
        "cases": found["cases"],
        "channels": len(found["channels"]),
        "classes": [name for name in plan["labels"] if name not in ("background", "ignore")],
        "patch": settings["patch_size"],
        "dims": len(settings["patch_size"]),
        "options": list(plan["options"]),
        "converted": "converted" in plan,
        "passed over": [str(one.get("ending", one)) for one in plan.get("passed over", [])],
    }


def _times(out: Path, start: float, seconds: float, text: str) -> Row:
    planning = (out / "plan.json").stat().st_mtime - start
    steps = re.search(r"steps +(\d+) of (\d+) planned", text)
    best = re.search(r"best +Dice ([0-9.]+)", text)
    return {
        "seconds planning": round(planning),
        "seconds training": round(seconds - planning),
        "steps": [int(steps[1]), int(steps[2])] if steps else None,
        "validation": float(best[1]) if best else None,
    }


def differing_voxels(plan: dict[str, Any], made: DataSet) -> list[str]:
    """Return a line for each class whose voxels in the plan are not those of the source."""
    counted: Counter[str] = Counter()
    for entry in plan["label table"]:
        counted[entry["name"]] += entry["voxels"]
    faults = []
    for name in counted.keys() | made.voxels.keys():
        here, there = counted.get(name, 0), made.voxels.get(name, 0)
        if abs(here - there) > 0:
            faults.append(f"voxels of {name}: {here} in the plan, {there} in the source")
    return sorted(faults)


def _predict(made: DataSet, plan: dict[str, Any], out: Path, work: Path, row: Row) -> None:
    """Segment the held-out case with the command line and in the plugin, and add what came of it to a row."""
    files: list[Any] = [*made.scan]
    if len(made.scan) > 1:
        names = plan["fingerprint"]["channels"]
        files = [word for name, file in zip(names, made.scan, strict=True) for word in ("--channel", f"{name}={file}")]
    volume = [] if made.volume is None else ["--volume", str(made.volume)]
    result = work / "result"
    start = time.time()
    status, text = _napari_seg(["predict", *files, "--model", out, "-o", result, *volume], work / "predict.txt")
    row["seconds prediction"] = round(time.time() - start)
    if "Traceback" in text:
        row["faults"].append("a traceback of predict")
    if status:
        row["faults"].append(f"predict ended with {status}: {_last_line(text)}")
        return
    found, names_of = read_result(result, made, row["faults"])
    row["dice"] = dice(found, names_of, made)
    row["labels"] = {
        names_of.get(value, "?"): int((found == value).sum()) for value in np.unique(found).tolist() if value
    }
    file = work / "plugin.npz"
    numbers = [*volume, *(["--channels", str(made.channels)] if made.channels else [])]
    words = [out, file, *made.scan, *numbers]
    start = time.time()
    status, text = _napari_seg(words, work / "plugin.txt", (str(_HERE / "training_in_plugin.py"),))
    row["seconds plugin"] = round(time.time() - start)
    if status:
        row["faults"].append(f"the plugin's run ended with {status}: {_last_line(text)}")
        return
    said = json.loads(_last_line((work / "plugin.txt").read_text().partition("Traceback")[0], "{"))
    row["plugin"] = said
    if "obstacle" in said:
        row["faults"].append(f"the plugin refuses what the command line takes: {said['obstacle']}")
        return
    with np.load(file) as stored:
        labels, affine = stored["labels"], stored["affine"]
        theirs = dict(zip(stored["values"].tolist(), stored["names"].tolist(), strict=True))
    if not np.array_equal(labels, found) or theirs != names_of:
        row["faults"].append("the plugin's labels are not those of the command line")
    if made.affine is not None and not np.allclose(affine, made.affine, atol=1e-3):
        row["faults"].append("the plugin's labels do not lie on the grid of the source")
    row["plugin equal"] = bool(np.array_equal(labels, found))


def read_result(folder: Path, made: DataSet, faults: list[str]) -> tuple[NDArray[np.int64], dict[int, str]]:
    """Return the label map (I, J, K) of the command line and value -> name; append what is wrong to the faults."""
    (path,) = folder.rglob("*_seg.nii.gz")
    record = json.loads(path.with_name(path.name.removesuffix(".nii.gz") + ".json").read_text())
    names = {entry["label"]: entry["name"] for entry in record["segments"]}
    image = nibabel.load(path)
    found = np.asarray(image.dataobj).astype(np.int64)
    assert made.labels is not None
    if found.shape != made.labels.shape:
        faults.append(f"the label map has {found.shape} voxels, the scan {made.labels.shape}")
    elif made.affine is not None and not np.allclose(image.affine, made.affine, atol=1e-3):
        faults.append("the label map does not lie on the grid of the source")
    if unknown := set(np.unique(found).tolist()) - {0, *names}:
        faults.append(f"values {sorted(unknown)} without a name in the label map")
    if set(names.values()) != set(made.names):
        faults.append(f"names {sorted(names.values())}; expected {sorted(made.names)}")
    return found, names


def dice(found: NDArray[np.int64], names: dict[int, str], made: DataSet) -> dict[str, float | None]:
    """Return the Dice of each class by its name; None if neither label map has it."""
    values = {name: value for value, name in names.items()}
    scores: dict[str, float | None] = {}
    assert made.labels is not None
    if found.shape != made.labels.shape:
        return {}
    for value, name in enumerate(made.names, 1):
        one, other = found == values.get(name, -1), made.labels == value
        total = int(one.sum() + other.sum())
        scores[name] = round(2 * int((one & other).sum()) / total, 4) if total else None
    return scores


def _last_line(text: str, beginning: str = "") -> str:
    lines = [line for line in text.splitlines() if line.strip() and line.startswith(beginning)]
    return lines[-1].strip() if lines else "nothing was printed"
