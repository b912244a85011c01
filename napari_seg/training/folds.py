"""Cross-validation of a planned bundle, and the ensemble of its folds as its network."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from napari_seg.bundles.spec import METADATA
from napari_seg.formats.atomic import atomic_write
from napari_seg.formats.temporary import TemporaryFolder
from napari_seg.training.history import RUN, read_history, read_summary
from napari_seg.training.postprocessing import METRIC, OPTION, LargestGain, measure_gains, set_largest, with_kept
from napari_seg.training.process import run
from napari_seg.training.report import write_report
from napari_seg.training.run import STOP, command, is_evaluated, ship, training_command, window_values
from napari_seg.training.scores import EVALUATION, Cases, read_means, read_patients, read_soft_dice, write_scores
from napari_seg.training.segnets_modules import with_segnets


def fold_commands(root: Path, dataset_dir: Path, fold: int, folds: int, **values: Any) -> list[list[str]]:
    """Return the commands that train one fold and evaluate it on its validation cases.

    These cases also select the best epoch, so the result is slightly optimistic.
    """
    common: dict[str, Any] = {"fold": fold, "folds": folds}
    cache_dir = root / RUN / "cache"  # preprocessed cases are shared by all folds
    folder = root / f"fold_{fold}"
    # the bundle's network_def becomes the ensemble at the end; a fold is always a single network
    network = f"%{root / 'configs' / 'train.yaml'}#network_def"
    evaluation = window_values(values) | {"network_def": network, "checkpoint": folder / "model.pt"}
    evaluation["output_dir"] = folder / EVALUATION
    can_compare = not (root / "configs").is_dir() or (root / "configs" / f"{OPTION}.yaml").is_file()
    if can_compare:  # a bundle of an older version can't
        evaluation["largest"] = []  # what is chosen on the folds comes after them
    return [
        training_command(root, dataset_dir, folder.name, cache_dir=cache_dir, **common, **values),
        command("evaluating", root, [OPTION] * can_compare, dataset_dir=dataset_dir, **common, **evaluation),
    ]


def cross_validate(
    root: Path,
    dataset_dir: Path,
    folds: int,
    only: int | None,
    report: Callable[[str], None],
    stop_file: Path | None = None,
    **values: Any,
) -> dict[str, list[float]]:
    """Train and evaluate the unfinished folds; once all are finished, make the bundle their ensemble.

    Args:
        root: folder of the bundle.
        dataset_dir: folder of the data set.
        folds: number of folds.
        only: index of the only fold to train; None trains all, one after another.
        report: function that prints a line of progress.
        stop_file: file that stops the running command; default: `STOP` in the bundle's folder.
        values: arguments of `training_command`.

    Returns:
        Structure (and "mean") -> Dice of each finished fold in which a case contains the structure. The validation
        cases also selected the best epoch of their fold, so the values are slightly optimistic.

    Raises:
        TrainingError: one of the commands failed.
        Cancelled: a command was interrupted; finished folds are kept.
    """
    stop_file = stop_file or root / STOP
    for fold in range(folds) if only is None else [only]:
        folder = root / f"fold_{fold}"
        if _finished(folder, values):
            report(f"fold {fold} of {folds} is finished")
            continue
        report(f"fold {fold} of {folds}")
        training, evaluating = fold_commands(root, dataset_dir, fold, folds, **values)
        run(training, stop_file, folder)
        if (steps := read_summary(folder).steps) and steps[0] < steps[1]:
            report(f"fold {fold} of {folds} was trained for {steps[0]} of {steps[1]} planned steps")
        run(evaluating, stop_file)
    folders = [folder for n in range(folds) if read_means(folder := root / f"fold_{n}") is not None]
    gains = _gains(root, folders) if len(folders) == folds else []
    dice = _dice(folders, gains)
    if len(folders) == folds:
        for gain in gains:
            report(gain.describe())
        _make_ensemble(root, folds, dice, gains)
        cases = cross_validated_cases(root, folds)
        tried = [gain.as_dict() for gain in gains]
        soft = [found for folder in folders if (found := read_soft_dice(folder)) is not None]
        soft_dice = mean(soft) if len(soft) == folds else None
        write_scores(root, "cross-validation", cases, cross_validated_patients(root, folds), tried, soft_dice)
    write_report(root)
    return dice


def cross_validated_cases(root: Path, folds: int) -> Cases:
    """Return the scores of all cases, each by the fold that it did not train; empty before all folds are finished."""
    folders = [root / f"fold_{n}" for n in range(folds)]
    if any(read_means(folder) is None for folder in folders):
        return {}
    gains = _gains(root, folders)
    of_folds = [with_kept(folder, gains) for folder in folders]
    if not all(of_folds):  # an older version has evaluated some, without the scores of the cases
        return {}
    return {case: scores for cases in of_folds for case, scores in cases.items()}


def cross_validated_patients(root: Path, folds: int) -> dict[str, str]:
    """Return case -> patient of all folds that were evaluated."""
    return {case: patient for n in range(folds) for case, patient in read_patients(root / f"fold_{n}").items()}


def _gains(root: Path, folders: Sequence[Path]) -> list[LargestGain]:
    """Return the gains by the largest components; none for regions, whose label map is made of several masks."""
    return [] if _config(root, "evaluate").get("regions") else measure_gains(folders)


def _dice(folders: Sequence[Path], gains: Sequence[LargestGain]) -> dict[str, list[float]]:
    """Return structure (and "mean") -> Dice of each fold that has it, with the largest components that are kept."""
    kept = {gain.structure for gain in gains if gain.is_kept}
    dice: dict[str, list[float]] = {}
    for folder in folders:
        means = read_means(folder) or {}
        scores = {name: means[METRIC if name in kept else "mean_dice"][name] for name in means.get("mean_dice", ())}
        if kept:
            known = [score for name, score in scores.items() if name != "mean" and score is not None]
            scores["mean"] = mean(known) if known else None
        for name, score in scores.items():
            dice.setdefault(name, []).extend([] if score is None else [score])
    return dice


def _finished(folder: Path, values: Mapping[str, Any]) -> bool:
    """Return whether a fold was evaluated after its last weights were written and needs no further training.

    Args:
        folder: folder of the fold.
        values: config ids that are set in this start; other ids are as planned.
    """
    if not is_evaluated(folder):
        return False
    if not values.keys() & {"max_epochs", "max_minutes", "patience"}:
        return True
    planned = _config(folder.parent, "train")
    epochs, minutes = (values.get(name, planned[name]) for name in ("max_epochs", "max_minutes"))
    lines = read_history(folder)
    return any(line["epoch"] >= epochs for line in lines if "loss" in line) or (
        minutes is not None and any(line["seconds"] >= 60 * minutes for line in lines if "seconds" in line)
    )


def _config(root: Path, name: str) -> dict[str, Any]:
    import yaml

    content: dict[str, Any] = yaml.safe_load((root / "configs" / f"{name}.yaml").read_text(encoding="utf-8"))
    return content


def _make_ensemble(root: Path, folds: int, dice: dict[str, list[float]], gains: Sequence[LargestGain] = ()) -> None:
    """Write the ensemble and its postprocessing into the configs, and the weights.

    The configs come first: a bundle without weights reports what is missing, but weights of another network fail to
    load.
    """
    import yaml

    member = _config(root, "train")["network_def"]
    channels = json.loads((root / METADATA).read_text(encoding="utf-8"))["network_data_format"]["outputs"]["pred"]
    kept = {gain.structure for gain in gains if gain.is_kept}
    numbers = [int(number) for number, name in channels["channel_def"].items() if name in kept]
    for config in ("evaluate", "inference"):
        path = root / "configs" / f"{config}.yaml"
        comment, text = path.read_text(encoding="utf-8").split("\n", 1)
        content = yaml.safe_load(text)
        content["network_def"] = {
            "_target_": "segnets.Ensemble",
            "members": folds,
            "in_channels": member.get("in_channels"),
            "network": member,
            **({"regions": True} if content.get("regions") else {}),
        }
        set_largest(content, numbers)
        text = yaml.safe_dump(content, sort_keys=False, width=120, default_flow_style=None)
        atomic_write(path, f"{comment}\n{text}")
    with with_segnets(), TemporaryFolder() as folder:  # not in the bundle: another machine may end the last fold, too
        from segnets.training.weights import merge_checkpoints

        merged = folder / "model.pt"
        merge_checkpoints([root / f"fold_{n}" / "model.pt" for n in range(folds)], merged)
        means = {name: mean(values) for name, values in dice.items() if values}
        ship(root, merged, {f"mean Dice over {folds} folds, {name}": value for name, value in means.items()})
