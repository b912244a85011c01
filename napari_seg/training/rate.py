"""Test learning rates on the first steps of a planned training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from napari_seg.training.pace import call_as_training, read_configs


def find_rate(root: Path, dataset_dir: Path, picture: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the planned and the suggested learning rate of a written bundle; call it within `with_segnets`.

    Args:
        root: folder of the bundle.
        dataset_dir: folder of the data set.
        picture: PNG file of the losses.
        values: config id -> value that differs from the written one, such as `fold`, `folds` and `finetune`.

    Returns:
        {"planned", "suggested", "steps"}; "suggested" is None if the losses have no minimum.
    """
    return call_as_training(_find, root, dataset_dir, picture, dict(values))


def _find(root: Path, dataset_dir: Path, picture: Path, values: dict[str, Any]) -> dict[str, Any]:
    import torch

    parser = read_configs(root, dataset_dir)
    for name, value in {**values, "rate_finder#path": str(picture)}.items():
        parser[name] = value
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the same rate each time
        parser.get_parsed_content("pretrained")
        test = parser.get_parsed_content("rate_finder").run(parser.get_parsed_content("train#trainer"))
    return {
        "planned": parser.get_parsed_content("learning_rate"),
        "suggested": test.suggested,
        "steps": len(test.losses),
    }
