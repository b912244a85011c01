"""Cross-validation of a planned bundle, and the ensemble of its folds as its network."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from napari_seg.training import with_segnets
from napari_seg.training.process import run
from napari_seg.training.run import (
    RUN,
    STOP,
    command,
    history,
    replace_text,
    ship,
    steps_of,
    training_command,
    weights_of,
)

SUMMARY = Path("evaluation", "summary.json")


def fold_commands(root: Path, dataset_dir: Path, fold: int, folds: int, **values: Any) -> list[list[str]]:
    """The training of one fold and its evaluation on the cases that it is not trained on.

    They have chosen its best epoch, so that what is measured is slightly too kind.
    """
    common: dict[str, Any] = {"fold": fold, "folds": folds}
    cache_dir = root / RUN / "cache"  # every case is preprocessed once for all folds
    folder = root / f"fold_{fold}"
    # the bundle's own network becomes the ensemble in the end; a fold is always one network
    network = f"%{root / 'configs' / 'train.yaml'}#network_def"
    evaluation = {"network_def": network, "checkpoint": folder / "model.pt", "output_dir": folder / SUMMARY.parent}
    return [
        training_command(root, dataset_dir, folder.name, cache_dir=cache_dir, **common, **values),
        command("evaluating", root, dataset_dir=dataset_dir, **common, **evaluation),
    ]


def cross_validate(
    root: Path, dataset_dir: Path, folds: int, only: int | None, say: Callable[[str], None], **values: Any
) -> dict[str, list[float]]:
    """Trains and evaluates the folds that are not finished, and makes the bundle their ensemble once all are.

    Args:
        root: the bundle.
        dataset_dir: its data set.
        folds: how many there are.
        only: one fold to train; None: all, one after another.
        say: told what begins.
        values: as of `training_command`.

    Returns:
        Structure (and "mean") -> Dice of each finished fold in which a case counts for it, on the cases that the fold
        was not trained on but that chose its best epoch: slightly too kind.

    Raises:
        TrainingError: one of the commands failed.
        Cancelled: it was interrupted; finished folds are not done again.
    """
    for fold in range(folds) if only is None else [only]:
        folder = root / f"fold_{fold}"
        if _finished(folder, values):
            say(f"fold {fold} of {folds} is finished")
            continue
        say(f"fold {fold} of {folds}")
        training, evaluating = fold_commands(root, dataset_dir, fold, folds, **values)
        run(training, root / STOP)
        if (steps := steps_of(folder)) and steps[0] < steps[1]:
            say(f"fold {fold} of {folds} was trained for {steps[0]} of {steps[1]} planned steps")
        run(evaluating, root / STOP)
    finished = [n for n in range(folds) if (root / f"fold_{n}" / SUMMARY).is_file()]
    scores = [json.loads((root / f"fold_{n}" / SUMMARY).read_text(encoding="utf-8"))["mean_dice"] for n in finished]
    dice = {
        name: [score[name] for score in scores if score[name] is not None] for name in (scores[0] if scores else ())
    }
    if len(finished) == folds:
        _make_ensemble(root, folds, dice)
    return dice


def _finished(folder: Path, values: Mapping[str, Any]) -> bool:
    """Whether a fold was evaluated after its last weights were written, and is not to be trained further.

    Args:
        folder: the fold's.
        values: those of the training config's ids that are given now; what is not given is as planned.
    """
    summary, weights = folder / SUMMARY, weights_of(folder)
    if weights is None or not summary.is_file() or summary.stat().st_mtime < weights.stat().st_mtime:
        return False
    if not values.keys() & {"max_epochs", "max_minutes", "patience"}:
        return True
    import yaml

    planned = yaml.safe_load((folder.parent / "configs" / "train.yaml").read_text(encoding="utf-8"))
    epochs, minutes = (values.get(name, planned[name]) for name in ("max_epochs", "max_minutes"))
    lines = history(folder)
    return any(line["epoch"] >= epochs for line in lines if "loss" in line) or (
        minutes is not None and any(line["seconds"] >= 60 * minutes for line in lines if "seconds" in line)
    )


def _make_ensemble(root: Path, folds: int, dice: dict[str, list[float]]) -> None:
    """The configs first: without weights a bundle says what it lacks, with another network's it could not be loaded."""
    import yaml

    member = yaml.safe_load((root / "configs" / "train.yaml").read_text(encoding="utf-8"))["network_def"]
    for config in ("evaluate", "inference"):
        path = root / "configs" / f"{config}.yaml"
        comment, text = path.read_text(encoding="utf-8").split("\n", 1)
        content = yaml.safe_load(text)
        content["network_def"] = {
            "_target_": "segnets.Ensemble",
            "members": folds,
            "in_channels": member.get("in_channels"),
            "network": member,
        }
        text = yaml.safe_dump(content, sort_keys=False, width=120, default_flow_style=None)
        replace_text(path, f"{comment}\n{text}")
    with with_segnets():
        from segnets.training.weights import merge_checkpoints

        merged = root / "models" / "ensemble.unfinished"
        merge_checkpoints([root / f"fold_{n}" / "model.pt" for n in range(folds)], merged)
    means = {name: mean(values) for name, values in dice.items() if values}
    ship(root, merged, {f"mean Dice over {folds} folds, {name}": value for name, value in means.items()})
    merged.unlink()
