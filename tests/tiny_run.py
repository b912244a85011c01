"""Run a training that takes a second: a small network with dropout on synthetic volumes, with all handlers."""

from __future__ import annotations

import json
import multiprocessing
import sys
from collections.abc import Sequence
from functools import cache
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from monai.bundle import ConfigParser
from monai.data import DataLoader
from monai.engines import SupervisedEvaluator
from monai.losses import DiceCELoss
from monai.transforms import EnsureTyped, RandAffined, RandGaussianNoised, Spacingd
from torch import nn

from napari_seg.bundles.read import shipped_root

sys.path.insert(0, str(shipped_root()))

from segnets.annotation import AsLabelsd
from segnets.data import CachedCases, EpochSampler, TrainingSet, part_of_process
from segnets.metrics import CaseMetric, Dice
from segnets.training import (
    Checkpoints,
    EarlyStopping,
    Schedule,
    StopAfterMinutes,
    StopOnFile,
    StopOnSignal,
    Trainer,
    Validation,
    WeightAverage,
)
from segnets.training.history import History, read_history


class Network(nn.Sequential):
    """Apply two convolutions, and hold numbers that only make saving slower."""

    def __init__(self, dropout: float, ballast_mb: int) -> None:
        super().__init__(nn.Conv3d(1, 6, 3, padding=1), nn.ReLU(), nn.Dropout(dropout), nn.Conv3d(6, 3, 1))
        self.register_buffer("ballast", torch.zeros(ballast_mb * 2**18))


def volumes(number: int) -> list[dict[str, Any]]:
    """Return cases with class 1 at bright voxels and class 2 at brighter ones."""
    cases = []
    for n in range(number):
        image = np.random.default_rng(n).random((1, 10, 8, 9), dtype=np.float32)
        cases.append({"name": f"case_{n}", "image": image, "label": (image * 3).astype(np.uint8)})
    return cases


def make_run(
    folder: Path,
    *,
    max_epochs: int = 4,
    cases: int = 5,
    val_cases: int = 2,
    batch_size: int = 2,
    seed: int = 0,
    num_workers: int = 0,
    dropout: float = 0.2,
    ballast_mb: int = 0,
    max_minutes: float | None = None,
    patience: int | None = None,
    every_steps: int | None = 2,
    resume: bool = True,
    digests: dict[str, str] | None = None,
    distributed: bool = False,
    learning_rate: float = 0.02,
    noise: float = 0.1,
    spacing: float = 1.0,
    dice_share: float = 1.0,
    more_handlers: Sequence[Any] = (),
    **settings: Any,
) -> Trainer:
    """Return a trainer as train.yaml builds it; 5 cases in batches of 2 make 3 steps per epoch."""
    torch.manual_seed(seed)
    network = Network(dropout, ballast_mb)
    data = volumes(cases)
    deterministic = [EnsureTyped(["image", "label"]), Spacingd("image", [spacing] * 3)]
    random = [
        RandGaussianNoised("image", prob=0.5, std=noise),
        RandAffined(["image", "label"], prob=0.5, rotate_range=[0.3, 0.3, 0.3], mode=["bilinear", "nearest"]),
    ]
    loader = DataLoader(
        TrainingSet(data, deterministic, random, folder / "cache", seed),
        batch_sampler=EpochSampler(len(data), batch_size, seed),
        num_workers=num_workers,
    )
    ema = WeightAverage(network, momentum=0.004)
    validator = SupervisedEvaluator(
        device="cpu",
        val_data_loader=DataLoader(
            CachedCases(data[:val_cases], deterministic, folder / "cache"),
            batch_size=1,
            sampler=part_of_process(val_cases),
        ),
        network=ema.ema_model,
        postprocessing=AsLabelsd(),
        key_val_metric={"mean_dice": CaseMetric(Dice(2))},
    )
    optimizer = torch.optim.AdamW(network.parameters(), learning_rate)
    minutes = StopAfterMinutes(max_minutes)
    schedule = Schedule(
        torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=max_epochs * len(loader)), minutes
    )
    history = History(folder / "history.jsonl", validator, every_step=True)
    validation = Validation(validator, 2, minutes)
    early_stopping = EarlyStopping(patience, validator)
    checkpoints = Checkpoints(
        folder,
        ema=ema,
        validator=validator,
        objects={
            "history": history,
            "validation": validation,
            "minutes": minutes,
            "early_stopping": early_stopping,
        },
        data=digests,
        every_steps=every_steps,
        resume=resume,
    )
    stops = [minutes, StopOnFile(folder / "stop"), StopOnSignal()]
    trainer = Trainer(
        device="cpu",
        max_epochs=max_epochs,
        train_data_loader=loader,
        network=nn.parallel.DistributedDataParallel(network) if distributed else network,
        optimizer=optimizer,
        loss_function=DiceCELoss(to_onehot_y=True, softmax=True, lambda_dice=dice_share),
        train_handlers=[checkpoints, schedule, history, validation, early_stopping, *stops, *more_handlers],
        **settings,
    )
    ema.attach(trainer)
    return trainer


def run(folder: Path, **options: Any) -> Trainer:
    trainer = make_run(folder, **options)
    trainer.run()
    return trainer


def run_distributed(folder: Path, rank: int, processes: int, **options: Any) -> None:
    """Run as one of several processes on one machine."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}-store", rank=rank, world_size=processes)
    run(folder, distributed=True, **options)
    torch.distributed.destroy_process_group()


def losses(folder: Path) -> list[float]:
    """Return the loss of each step, in order, after checking that each step occurs once."""
    lines = [line for line in read_history(folder) if "step_loss" in line]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return [line["step_loss"] for line in lines]


def without_times(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of history.jsonl without the times, which two equal runs differ in."""
    return [{k: v for k, v in line.items() if k != "seconds"} for line in read_history(folder)]


def steps_so_far(folder: Path) -> int:
    """Return the last step in the history of a run that may be running."""
    path = folder / "history.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    for line in reversed(lines):
        if line.endswith("}"):
            return int(json.loads(line)["step"])
    return 0


def random_transforms() -> list[Any]:
    """Return the random transforms of train.yaml, each with probability 1."""
    parser = ConfigParser(yaml.safe_load((shipped_root() / "configs" / "train.yaml").read_text()))
    parser["patch_size"] = [6, 6, 6]
    found = []
    for id in ("patches", "spatial_augmentation", "intensity_augmentation"):
        for n, entry in enumerate(parser[id]):
            if "prob" in entry:
                parser[f"{id}::{n}::prob"] = 1.0
        found += parser.get_parsed_content(id)
    return [t for t in found if "Rand" in type(t).__name__]


@cache
def children() -> Any:
    """Return a context whose processes start with torch and MONAI loaded."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tiny_run"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        forkserver.ensure_running()
    return context


def spoil_the_middle(path: Path) -> None:
    """Overwrite 64 bytes without changing the file's size."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = b"\xa5" * 64
    path.write_bytes(content)
