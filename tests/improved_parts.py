"""An improved model of one part of TotalSegmentator's task total_mr, with random weights, for tests."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import datasets
import torch
from nnunet_models import save_checkpoint
from task_models import write_task

from napari_seg.bundles.nnunet.load import load_nnunet
from napari_seg.bundles.read import read_bundle
from napari_seg.bundles.spec import WEIGHTS
from napari_seg.bundles.totalsegmentator.part_model import part_with
from napari_seg.bundles.totalsegmentator.task import TaskBundle
from napari_seg.learning.inherit import inherited_choices
from napari_seg.training.pace import read_configs
from napari_seg.training.prepare import plan_bundle
from napari_seg.training.segnets_modules import with_segnets

TASK = "totalsegmentator:total_mr"


def write_parts(weights: Path) -> None:
    """Write the task; many structures of both models win somewhere, and the second one leaves much as background."""
    write_task(weights, "total_mr")
    task = read_bundle(TASK)
    assert isinstance(task, TaskBundle)
    noise = torch.randn(1, 1, 32, 32, 32, generator=torch.Generator().manual_seed(0))
    for model, background in zip(task.parts, (0.0, 0.1), strict=True):
        network = load_nnunet(model, torch.device("cpu"), torch.float32).network
        with torch.inference_mode():
            mean = network(noise).mean(dim=(0, 2, 3, 4))
            mean[0] -= background
            network.decoder.seg_layers[-1].bias -= mean
        save_checkpoint(model.root / "fold_0" / "checkpoint_final.pth", network)


def part_names(number: int) -> list[str]:
    """Return the structures of a part of the task, which must be on this machine."""
    task = read_bundle(TASK)
    assert isinstance(task, TaskBundle)
    named = {one.label: one.name for one in task.segments}
    return [named[label] for _, label in task.task.parts[number].labels]


def write_improved(folder: Path, number: int, names: list[str], data: Path) -> Path:
    """Write the bundle of a training that begins from a part of the task, before its first step.

    Args:
        folder: of the bundle.
        number: of the part, from 0.
        names: structures of the data set, in the order of the channels.
        data: folder of the data set, which is written too.
    """
    task = read_bundle(TASK)
    assert isinstance(task, TaskBundle)
    datasets.write_decathlon(data, cases=4)
    (data / "labels.json").write_text(json.dumps({name: value for value, name in enumerate(names, 1)}))
    part = part_with(task, part_names(number)[:1])
    choices = inherited_choices(part, folder)
    plan = plan_bundle(data, folder, replace(choices, settings=choices.settings | {"allow_empty": True}))
    with with_segnets():
        parser = read_configs(folder, data)
        parser["finetune"] = str((folder / plan["choices"]["fine_tune"]["file"]).resolve())
        parser.get_parsed_content("pretrained")
        torch.save(parser.get_parsed_content("network_def").state_dict(), folder / WEIGHTS)
    return folder


def change_weights(folder: Path) -> None:
    """Give a bundle other weights, as after a training."""
    weights = torch.load(folder / WEIGHTS, weights_only=True)
    generator = torch.Generator().manual_seed(1)
    changed = {key: value + 0.3 * torch.randn(value.shape, generator=generator) for key, value in weights.items()}
    torch.save(changed, folder / WEIGHTS)
