"""Trains a planned bundle: MONAI's own command in a process of its own, and what is left of it in the bundle."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from napari_seg.bundles.spec import METADATA, WEIGHTS
from napari_seg.errors import OutputError, TrainingError
from napari_seg.training.choices import digest
from napari_seg.training.process import run

RUN = "training"
"""The run's folder inside the bundle."""
_TRAINED_FOR = re.compile(r" Trained for \d+ of \d+ planned steps\.$")
STOP = "stop"
"""A file of this name in the bundle stops whatever is run for it."""


def command(run_id: str, root: Path, **values: Any) -> list[str]:
    """What a person would type to run one of the bundle's configs.

    Args:
        run_id: "training", "evaluating" or "inference".
        root: the bundle.
        values: of the config's ids.
    """
    config = {"training": "train", "evaluating": "evaluate", "inference": "inference"}[run_id]
    words = [sys.executable, "-m", "monai.bundle", "run", run_id]
    words += ["--config_file", str(root / "configs" / f"{config}.yaml")]
    for name, value in values.items():
        words += [f"--{name}", "$None" if value is None else str(value)]  # MONAI takes None itself for not said
    return words


def training_command(
    root: Path, dataset_dir: Path, folder: str = RUN, fine_tune: Mapping[str, str] | None = None, **values: Any
) -> list[str]:
    """The training of a bundle in one of its folders.

    Args:
        root: the bundle.
        dataset_dir: its data set.
        folder: the run's.
        fine_tune: the weights to begin from, as of `Choices`; a run that has begun does not need them.
        values: of the config's ids, as of `command`.

    Raises:
        TrainingError: `weights.missing` or `weights.changed`, they are needed and are not what they were.
    """
    if fine_tune and not any((root / folder / "checkpoints").glob("*.pt")):
        weights = (root / fine_tune["file"]).resolve()
        if digest(weights) != fine_tune["sha256"]:
            raise TrainingError(
                "weights.changed",
                f"{weights} holds other weights than when {root} was planned to begin from them; bring those back and "
                "say where they are with --fine-tune, or choose a new folder with -o",
            )
        values["finetune"] = weights
    return command("training", root, dataset_dir=dataset_dir, output_dir=root / folder, **values)


def train(root: Path, dataset_dir: Path, **values: Any) -> dict[str, Any] | None:
    """Begins a bundle's training or goes on with it; its best weights so far end in the bundle, stopped or not.

    Args:
        root: the bundle.
        dataset_dir: its data set.
        values: as of `training_command`.

    Returns:
        {"mean_dice", "epoch", "dice": {name: Dice}, ...} of the best validation; None if there was none.

    Raises:
        TrainingError: the training failed.
        Cancelled: it was interrupted.
    """
    try:
        run(training_command(root, dataset_dir, **values), root / STOP)
    finally:
        best, weights = _best_validation(root / RUN), weights_of(root / RUN)
        if weights:
            metrics = {"validation mean Dice": best["mean_dice"]} if best else {}
            ship(root, weights, metrics, steps_of(root / RUN))
    return best


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Turn the system's errors while a bundle's folder is written into this package's.

    Raises:
        OutputError: `output.disk_full` or `output.not_written`.
        TrainingError: `dataset.unreadable`, a file elsewhere can't be read.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutputError("output.disk_full", f"the disk of {out} is full; free some space") from error
        where = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else out
        if error.errno == errno.EROFS or out == where or out.is_relative_to(where) or where.is_relative_to(out):
            raise OutputError(
                "output.not_written", f"can't write to {out} ({reason}); choose another folder with -o"
            ) from error
        raise TrainingError("dataset.unreadable", f"{where} can't be read ({reason}); copy it again") from error


def history(run_folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's history.jsonl, in order; none if it has not begun."""
    from napari_seg.training import with_segnets

    with with_segnets():
        from segnets.training.history import read_history

        lines: list[dict[str, Any]] = read_history(run_folder) if (run_folder / "history.jsonl").is_file() else []
    return lines


def _best_validation(run_folder: Path) -> dict[str, Any] | None:
    from napari_seg.training import with_segnets

    lines = history(run_folder)
    with with_segnets():
        from segnets.training.curves import best_validation

        best: dict[str, Any] | None = best_validation(lines)
    return best


def weights_of(run_folder: Path) -> Path | None:
    """The best validated weights of a run, the last ones if none were validated, or None."""
    return next((path for name in ("model.pt", "model_final.pt") if (path := run_folder / name).is_file()), None)


def steps_of(run_folder: Path) -> tuple[int, int] | None:
    """Return how many steps a run has trained and how many were planned, as of its last validation, or None."""
    lines = [line for line in history(run_folder) if "planned_steps" in line]
    return (lines[-1]["step"], lines[-1]["planned_steps"]) if lines else None


def ship(root: Path, weights: Path, metrics: Mapping[str, float], steps: tuple[int, int] | None = None) -> None:
    """Make weights those of the bundle, and write into its metadata how good they were; whole at every instant.

    Args:
        root: the bundle.
        weights: a file of weights.
        metrics: name -> value, for `eval_metrics`.
        steps: trained and planned; the description tells when fewer were trained.
    """
    unfinished = root / WEIGHTS.with_suffix(".unfinished")
    shutil.copyfile(weights, unfinished)
    unfinished.replace(root / WEIGHTS)
    metadata = json.loads((root / METADATA).read_text(encoding="utf-8"))
    metadata["eval_metrics"] = {name: round(value, 4) for name, value in metrics.items()}
    description = _TRAINED_FOR.sub("", str(metadata.get("description", "")))
    if steps and steps[0] < steps[1]:
        description += f" Trained for {steps[0]} of {steps[1]} planned steps."
    metadata["description"] = description
    replace_text(root / METADATA, json.dumps(metadata, indent=4) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Writes a file so that whoever reads it, after a kill too, finds the old text or the new one."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)
