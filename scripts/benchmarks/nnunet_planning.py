"""Plan a data set with nnU-Net and print what it plans; run by the Python of an environment that has nnU-Net.

    PYTHON scripts/benchmarks/nnunet_planning.py 901 plans.json

The number is that of a data set in nnU-Net's layout, and the folders are those of its three environment variables. The
trainer is built too, for the settings that are not in the plans.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as trainer_module
from nnunetv2.utilities.dataset_name_id_conversion import convert_id_to_dataset_name


def main() -> None:
    """Write the plans and the trainer's settings of each of its configurations."""
    number, out = int(sys.argv[1]), Path(sys.argv[2])
    trainer_module.infer_dataset_class = lambda folder: None  # nothing is preprocessed here
    extract_fingerprints([number], num_processes=1, check_dataset_integrity=False)
    plan_experiments([number])
    folder = Path(nnUNet_preprocessed) / convert_id_to_dataset_name(number)
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    description = json.loads((folder / "dataset.json").read_text())
    trainers = {
        name: describe(
            trainer_module.nnUNetTrainer(
                {**plans, "continue_training": False}, name, 0, description, torch.device("cpu")
            )
        )
        for name in plans["configurations"]
        if name in ("2d", "3d_fullres")
    }
    out.write_text(json.dumps({"plans": plans, "trainers": trainers}))


def describe(trainer: trainer_module.nnUNetTrainer) -> dict:
    """Return the settings of a trainer that is ready to train."""
    trainer.initialize()
    group = trainer.optimizer.param_groups[0]
    batch = trainer.configuration_manager.batch_size
    return {
        "optimizer": type(trainer.optimizer).__name__,
        "learning_rate": group["lr"],
        "momentum": group["momentum"],
        "nesterov": group["nesterov"],
        "weight_decay": group["weight_decay"],
        "schedule": f"polynomial, exponent {trainer.lr_scheduler.exponent}",
        "epochs": trainer.num_epochs,
        "steps_per_epoch": trainer.num_iterations_per_epoch,
        "oversampled": batch - round(batch * (1 - trainer.oversample_foreground_percent)),
        "deep_supervision_weights": [round(float(weight), 6) for weight in trainer.loss.weight_factors],
        "loss": type(trainer.loss.loss).__name__,
        "batch_dice": trainer.configuration_manager.batch_dice,
    }


if __name__ == "__main__":
    main()
