"""Models that nnU-Net really trained in few steps, for `scripts/nnunet_parity.py`."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from benchmarks.nnunet_cases import CASES, write_dataset

TRAINING = Path(__file__).with_name("nnunet_training.py")


def environment(work: Path) -> dict[str, str]:
    """Return the variables that nnU-Net reads, on top of this process's."""
    folders = {f"nnUNet_{name}": str(work / name) for name in ("raw", "preprocessed", "results")}
    quiet = {"nnUNet_n_proc_DA": "1", "nnUNet_compile": "false", "nnUNet_def_n_proc": "1"}
    return {**os.environ, "OMP_NUM_THREADS": "1", **folders, **quiet}


def make_model(name: str, data: Path, work: Path, peer: Path) -> Path:
    """Write a data set, train its models if they are not there yet, and return the folder of its results.

    Args:
        name: of the case.
        data: folder of the real scans.
        work: folder for data sets, models and logs.
        peer: Python of an environment with nnU-Net.
    """
    case = CASES[name]
    for folder in ("raw", "preprocessed", "results"):
        (work / folder).mkdir(parents=True, exist_ok=True)
    write_dataset(name, data, work / "raw")
    plans = "nnUNetPlans" if case.planner == "ExperimentPlanner" else "nnUNetResEncUNetMPlans"
    job = {
        "number": case.number,
        "folder": case.folder(name),
        "plans": plans,
        "planner": case.planner,
        "trainer": case.trainer,
        "patch": case.patch,
        "batch": case.batch,
        "features": case.features,
        "stages": case.stages,
        "settings": case.settings,
        "trainings": case.trainings,
        "iterations": case.iterations,
    }
    results = work / "results" / case.folder(name)
    folders = [results / f"{case.trainer}__{plans}__{one}" / f"fold_{fold}" for one, fold in case.trainings]
    if all((folder / "checkpoint_final.pth").is_file() for folder in folders):
        return results
    path = work / f"{name}.json"
    path.write_text(json.dumps(job))
    with (work / f"{name}.log").open("w") as log:
        subprocess.run([peer, TRAINING, path], env=environment(work), stdout=log, stderr=subprocess.STDOUT, check=True)
    return results
