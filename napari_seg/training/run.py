"""Train a planned bundle with MONAI's own command, and copy the best weights into the bundle."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from filecmp import cmp
from pathlib import Path
from typing import Any

from napari_seg.bundles.spec import METADATA, WEIGHTS
from napari_seg.errors import Cancelled, OutputError, TrainingError
from napari_seg.formats.atomic import atomic_file, atomic_write
from napari_seg.training.choices import digest
from napari_seg.training.history import RUN, RunSummary, ended_since, read_summary
from napari_seg.training.pace import read_configs
from napari_seg.training.process import run
from napari_seg.training.report import write_report
from napari_seg.training.scores import (
    EVALUATION,
    SUMMARY,
    Part,
    read_means,
    read_patients,
    read_scores,
    read_soft_dice,
    write_scores,
)
from napari_seg.training.segnets_modules import with_segnets

_TRAINED_FOR = re.compile(r" Trained for \d+ of \d+ planned steps\.$")
_NUMBERED = re.compile(r"\[Errno (\d+)\] ([^:'\"]+)")
"""Number and reason of the first error in a `shutil.Error`."""
STOP = "stop"
"""A file of this name in the bundle's folder stops the running command."""


def command(run_id: str, root: Path, options: Sequence[str] = (), **values: Any) -> list[str]:
    """Return the command line that runs one of the bundle's configs.

    Args:
        run_id: "training", "evaluating" or "inference".
        root: folder of the bundle.
        options: names of option files in the bundle to merge over its config in this start only.
        values: config id -> value.
    """
    config = {"training": "train", "evaluating": "evaluate", "inference": "inference"}[run_id]
    files = [str(root / "configs" / f"{name}.yaml") for name in (config, *options)]
    words = [sys.executable, "-m", "monai.bundle", "run", run_id]
    words += ["--config_file", files[0] if len(files) == 1 else str(files)]
    for name, value in values.items():
        words += [
            f"--{name}",
            "$None" if value is None else str(value),
        ]  # MONAI ignores an argument whose value is None
    return words


def training_command(
    root: Path,
    dataset_dir: Path,
    folder: str = RUN,
    fine_tune: Mapping[str, str] | None = None,
    track: Sequence[str] = (),
    gpus: int = 1,
    **values: Any,
) -> list[str]:
    """Return the command line that trains a bundle.

    Args:
        root: folder of the bundle.
        dataset_dir: folder of the data set.
        folder: name of the run's folder inside the bundle.
        fine_tune: initial weights (see `Choices`); ignored once the run has a checkpoint.
        track: services to report to, of `choices.TRACKERS`.
        gpus: number of processes that train together, each on a GPU of its own if there are GPUs.
        values: config id -> value.

    Raises:
        TrainingError: `weights.missing` or `weights.changed`, the initial weights are missing or differ from those of
            the plan.
    """
    if fine_tune and not any((root / folder / "checkpoints").glob("*.pt")):
        weights = (root / fine_tune["file"]).resolve()
        if digest(weights) != fine_tune["sha256"]:
            raise TrainingError(
                "weights.changed",
                f"{weights} contains other weights than when {root} was planned; restore the original file and "
                "pass it with --fine-tune, or choose a new folder with -o",
            )
        values["finetune"] = weights
    options = [name for name in track if name != "tensorboard"] + ["multi_gpu_train"] * (gpus > 1)
    words = command("training", root, options, dataset_dir=dataset_dir, output_dir=root / folder, **values)
    if gpus > 1:
        words[2:2] = ["napari_seg.training.distributed", str(gpus)]
    return words


def train(root: Path, dataset_dir: Path, **values: Any) -> RunSummary:
    """Start or resume the training of a bundle; its best weights so far end up in the bundle, also after a stop.

    A training that ended is evaluated, see `evaluate_unseen`. An interrupt that arrives after the training has finished
    does not stop that.

    Args:
        root: folder of the bundle.
        dataset_dir: folder of the data set.
        values: arguments of `training_command`.

    Raises:
        TrainingError: the training failed.
        Cancelled: it was interrupted.
    """
    start = time.time()
    try:
        run(training_command(root, dataset_dir, **values), root / STOP, root / RUN)
    except Cancelled:
        ended = ended_since(root / RUN, start)
        if ended is None or not ended.is_finished:
            raise
    finally:
        summary, weights = read_summary(root / RUN), weights_of(root / RUN)
        if weights:
            metrics = {_metric_name(root): summary.best["mean_dice"]} if summary.best else {}
            ship(root, weights, metrics, summary.steps)
        write_report(root)
    evaluate_unseen(root, dataset_dir, **window_values(values))
    write_report(root)
    return summary


def window_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a start that also count for its evaluations: those of the windows."""
    return {name: value for name, value in values.items() if name.startswith(("windows#", "windows::"))}


def evaluate_unseen(root: Path, dataset_dir: Path, **values: Any) -> None:
    """Evaluate a training on its test part, or on its validation part if there is no test part; not without both.

    The scores are written into the metadata. Weights that were evaluated before are not evaluated again.

    Args:
        root: folder of the bundle.
        dataset_dir: folder of the data set.
        values: config id -> value.

    Raises:
        TrainingError: the evaluation failed.
        Cancelled: it was interrupted.
    """
    folder = root / RUN
    weights = weights_of(folder)
    if weights is None:
        return
    part = _unseen_part(root, dataset_dir)
    if part is None:
        return
    if not is_evaluated(folder):
        values |= {"checkpoint": weights, "output_dir": folder / EVALUATION, "part": part}
        run(command("evaluating", root, dataset_dir=dataset_dir, **values), root / STOP)
    write_scores(root, part, read_scores(folder), read_patients(folder), soft_dice=read_soft_dice(folder))


def is_evaluated(run_folder: Path) -> bool:
    """Return whether a run was evaluated completely after its last weights were written."""
    weights = weights_of(run_folder)
    if weights is None or read_means(run_folder) is None:
        return False
    return (run_folder / SUMMARY).stat().st_mtime >= weights.stat().st_mtime


def _unseen_part(root: Path, dataset_dir: Path) -> Part | None:
    """Return "test", or "validation" if the split of the bundle's config has no test part; None if all cases train."""
    with with_segnets():
        split = read_configs(root, dataset_dir).get_parsed_content("cases")
        parts: tuple[Part, ...] = ("test", "validation")
        return next((part for part in parts if split.count(part)), None)


def _metric_name(root: Path) -> str:
    """Return the name of the validations' Dice, which says if they saw patches or some of the cases only."""
    import yaml

    config = yaml.safe_load((root / "configs" / "train.yaml").read_text(encoding="utf-8"))
    where = " on patches" if "val_patches" in config else ""
    return f"validation mean Dice{where}{f' of {count} cases' if (count := config.get('val_cases')) else ''}"


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Convert operating-system errors while a bundle's folder is written into this package's errors.

    Raises:
        OutputError: `output.disk_full` or `output.not_written`.
        TrainingError: `dataset.unreadable`, a file outside the folder can't be read.
    """
    try:
        yield
    except OSError as error:
        number, reason = error.errno, error.strerror or str(error)
        if isinstance(error, shutil.Error) and (found := _NUMBERED.search(reason)):  # of a copied folder
            number, reason = int(found[1]), found[2]
        if number in (errno.ENOSPC, errno.EDQUOT):
            raise OutputError("output.disk_full", f"the disk of {out} is full; free some space") from error
        where = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else out
        if number == errno.EROFS or out == where or out.is_relative_to(where) or where.is_relative_to(out):
            raise OutputError(
                "output.not_written", f"can't write to {out} ({reason}); choose another folder with -o"
            ) from error
        raise TrainingError("dataset.unreadable", f"{where} can't be read ({reason}); copy it again") from error


def weights_of(run_folder: Path) -> Path | None:
    """Return the file of a run's best validated weights, else of its last weights, else None."""
    return next((path for name in ("model.pt", "model_final.pt") if (path := run_folder / name).is_file()), None)


def ship(root: Path, weights: Path, metrics: Mapping[str, float], steps: tuple[int, int] | None = None) -> None:
    """Copy weights into the bundle and write their metrics into its metadata; each file is replaced atomically.

    The scores of an evaluation stay if they are of the same weights.

    Args:
        root: folder of the bundle.
        weights: file of the weights.
        metrics: name -> value, for `eval_metrics`.
        steps: trained and planned steps; the description reports a training that stopped early.
    """
    metadata = json.loads((root / METADATA).read_text(encoding="utf-8"))
    if not ((root / WEIGHTS).is_file() and cmp(weights, root / WEIGHTS, shallow=False)):
        metadata["eval_metrics"] = {}
        if metadata.get("napari_seg", {}).pop(EVALUATION, None):  # even a kill leaves no scores of other weights
            atomic_write(root / METADATA, json.dumps(metadata, indent=4) + "\n")
        with atomic_file(root / WEIGHTS) as unfinished:
            shutil.copyfile(weights, unfinished)
    metadata["eval_metrics"] |= {name: round(value, 4) for name, value in metrics.items()}
    description = _TRAINED_FOR.sub("", str(metadata.get("description", "")))
    if steps and steps[0] < steps[1]:
        description += f" Trained for {steps[0]} of {steps[1]} planned steps."
    metadata["description"] = description
    atomic_write(root / METADATA, json.dumps(metadata, indent=4) + "\n")
