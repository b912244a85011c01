"""Prepare a data set with nnU-Net, or train on it for some minutes, with the Python of an environment that has it.

    PYTHON scripts/benchmarks/nnunet_timed_training.py prepare 951
    PYTHON scripts/benchmarks/nnunet_timed_training.py train 951 3d_fullres 15 training.json

The number is that of a data set in nnU-Net's layout, and the folders are those of its three environment variables; if
the folder of the preprocessed data set holds splits_final.json, its fold 0 is trained.

All is nnU-Net's own: plan, preprocessing, augmentation, network, loss, optimiser. Three things differ from
`nnUNetv2_train`, all in its favour: the learning rate falls to 0 within the time instead of within 1000 epochs; it is
set for each step instead of each 250; and no step is spent on validation. The weights of the last step are kept.
"""

from __future__ import annotations

import json
import os
import sys
import time
from multiprocessing.context import SpawnContext
from multiprocessing.pool import ThreadPool
from pathlib import Path

import torch
from nnunetv2.experiment_planning.plan_and_preprocess_api import (
    extract_fingerprints,
    plan_experiments,
    preprocess_dataset,
)
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.dataset_name_id_conversion import convert_id_to_dataset_name


def main() -> None:
    """Run the command."""
    SpawnContext.Pool = lambda self, processes: ThreadPool(processes)  # worker processes take longer to start than this
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    command, number = sys.argv[1], int(sys.argv[2])
    if command == "prepare":
        prepare(number)
    else:
        train(number, sys.argv[3], float(sys.argv[4]), Path(sys.argv[5]))


def prepare(number: int) -> None:
    """Plan and preprocess the first configuration of a data set: 3d_fullres, or 2d of images."""
    extract_fingerprints([number], num_processes=1, check_dataset_integrity=False)
    plan_experiments([number])
    folder = Path(os.environ["nnUNet_preprocessed"], convert_id_to_dataset_name(number))  # noqa: SIM112
    configurations = json.loads((folder / "nnUNetPlans.json").read_text())["configurations"]
    preprocess_dataset(number, "nnUNetPlans", ["3d_fullres" if "3d_fullres" in configurations else "2d"], [1])


def train(number: int, configuration: str, minutes: float, report: Path) -> None:
    """Train for some minutes and write the number of steps and other figures."""
    os.environ["nnUNet_n_proc_DA"] = "0"  # noqa: SIM112  augment in this process: the others would share its core
    folder = Path(os.environ["nnUNet_preprocessed"], convert_id_to_dataset_name(number))  # noqa: SIM112
    plans = {**json.loads((folder / "nnUNetPlans.json").read_text()), "continue_training": False}
    description = json.loads((folder / "dataset.json").read_text())
    trainer = nnUNetTrainer(plans, configuration, 0, description, device=torch.device("cpu"))
    trainer.on_train_start()
    trainer.network.train()
    start, steps, losses = time.perf_counter(), 0, []
    while (passed := (time.perf_counter() - start) / (60 * minutes)) < 1:
        for group in trainer.optimizer.param_groups:
            group["lr"] = trainer.initial_lr * (1 - passed) ** 0.9
        losses.append(float(trainer.train_step(next(trainer.dataloader_train))["loss"]))
        steps += 1
    trainer.save_checkpoint(str(Path(trainer.output_folder, "checkpoint_final.pth")))
    figures = {
        "steps": steps,
        "batch": trainer.configuration_manager.batch_size,
        "patch": list(trainer.configuration_manager.patch_size),
        "parameters": sum(one.numel() for one in trainer.network.parameters()),
        "loss": sum(losses[-20:]) / len(losses[-20:]),
    }
    report.write_text(json.dumps(figures))
    os._exit(0)  # its loaders have threads that keep the process


if __name__ == "__main__":
    main()
