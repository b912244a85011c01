"""Plan and train a model with nnU-Net in few steps; run by the Python of an environment that has nnU-Net.

    PYTHON scripts/benchmarks/nnunet_training.py job.json

The job names the data set, the changes of its plans, and what is trained. The folders are those of nnU-Net's three
environment variables.
"""

from __future__ import annotations

import json
import os
import sys
from multiprocessing.context import SpawnContext
from multiprocessing.pool import ThreadPool
from pathlib import Path

import torch
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.experiment_planning.plan_and_preprocess_api import (
    extract_fingerprints,
    plan_experiments,
    preprocess_dataset,
)
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer as Trainer


class nnUNetTrainer(Trainer):
    """nnU-Net's own trainer, which learns in few steps: with Adam, at most mirrored copies, and more foreground.

    Its class has the name of one of nnU-Net's trainers, so that nnUNetv2_predict finds one of that name.
    """

    is_mirrored = True

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.network.parameters(), LEARNING_RATE)
        return optimizer, PolyLRScheduler(optimizer, LEARNING_RATE, self.num_epochs)

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self):
        axes = tuple(range(len(self.configuration_manager.patch_size))) if self.is_mirrored else None
        self.inference_allowed_mirroring_axes = axes
        return (0, 0), False, self.configuration_manager.patch_size, axes

    def get_training_transforms(self, patch_size, rotation, scales, mirror_axes, *_, **others):
        names = ("is_cascaded", "foreground_labels", "regions", "ignore_label")
        last = self.get_validation_transforms(scales, **{name: others[name] for name in names})
        return ComposeTransforms([MirrorTransform(mirror_axes), last]) if mirror_axes else last


class nnUNetTrainerNoMirroring(nnUNetTrainer):
    """The same, whose checkpoints allow no mirror images."""

    is_mirrored = False


LEARNING_RATE = 3e-3
TRAINERS = {one.__name__: one for one in (nnUNetTrainer, nnUNetTrainerNoMirroring)}


def main() -> None:
    """Plan, preprocess and train what the job names; what is there is kept."""
    SpawnContext.Pool = lambda self, processes: ThreadPool(processes)  # worker processes take longer to start than this
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    number, plans_name = job["number"], job["plans"]
    preprocessed = Path(os.environ["nnUNet_preprocessed"], job["folder"])  # noqa: SIM112  nnU-Net's name
    plans_file = preprocessed / f"{plans_name}.json"
    dimensions = len(job["patch"])
    if not plans_file.is_file():
        extract_fingerprints([number], num_processes=1, check_dataset_integrity=False)
        plan_experiments([number], experiment_planner_class_name=job["planner"])
        plans = json.loads(plans_file.read_text())
        wanted = {configuration for configuration, _ in job["trainings"]}
        for name in [name for name in plans["configurations"] if name not in ("2d", "3d_fullres")]:
            del plans["configurations"][name]
        for entry in plans["configurations"].values():
            patch = job["patch"] if len(entry["patch_size"]) == dimensions else job["patch"][1:]
            shrink(entry, patch, job)
        if "3d_lowres" in wanted:
            full = plans["configurations"]["3d_fullres"]
            full["batch_dice"] = False
            plans["configurations"]["3d_lowres"] = {
                **full,
                "data_identifier": f"{plans_name}_3d_lowres",
                "spacing": [1.6 * value for value in full["spacing"]],
                "next_stage": "3d_cascade_fullres",
            }
            plans["configurations"]["3d_cascade_fullres"] = {
                "inherits_from": "3d_fullres",
                "previous_stage": "3d_lowres",
            }
        plans_file.write_text(json.dumps(plans, indent=4))
        names = [name for name in plans["configurations"] if name in wanted and name != "3d_cascade_fullres"]
        preprocess_dataset(number, plans_name, names, [1] * len(names))
    os.environ["nnUNet_n_proc_DA"] = "0"  # noqa: SIM112  augment in this process
    for configuration, fold in job["trainings"]:
        train(job, plans_file, configuration, fold if fold == "all" else int(fold))


def shrink(entry: dict, patch: list[int], job: dict) -> None:
    """Give a configuration a small network and small windows."""
    entry["patch_size"], entry["batch_size"] = list(patch), job["batch"]
    if len(patch) == 3 and len(job["patch"]) == 3:
        entry |= job["settings"]
    arguments = entry["architecture"]["arch_kwargs"]
    count = job["stages"]
    arguments["n_stages"] = count
    arguments["features_per_stage"] = [job["features"] * 2**n for n in range(count)]
    thin = [1 if length < 16 else 2 for length in patch]
    arguments["kernel_sizes"] = [[1 if t == 1 else 3 for t in thin]] + [[3] * len(patch)] * (count - 1)
    arguments["strides"] = [[1] * len(patch), thin] + [[2] * len(patch)] * (count - 2)
    for key in ("n_conv_per_stage", "n_blocks_per_stage"):
        if key in arguments:
            arguments[key] = [1] + [2] * (count - 1)
    arguments["n_conv_per_stage_decoder"] = [1] * (count - 1)


def train(job: dict, plans_file: Path, configuration: str, fold: int | str) -> None:
    plans = {**json.loads(plans_file.read_text()), "continue_training": False}
    dataset = json.loads((plans_file.parent / "dataset.json").read_text())
    trainer = TRAINERS[job["trainer"]](plans, configuration, fold, dataset, device=torch.device("cpu"))
    trainer.num_epochs, trainer.num_val_iterations_per_epoch = 5, 1
    trainer.num_iterations_per_epoch = job["iterations"] // 5
    trainer.oversample_foreground_percent = 0.66
    if Path(trainer.output_folder, "checkpoint_final.pth").is_file():
        return
    trainer.run_training()
    if configuration == "3d_lowres":  # the next stage is trained on what this one finds
        trainer.perform_actual_validation(False)


if __name__ == "__main__":
    main()
