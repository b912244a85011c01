"""State of a run, read from the files that it writes, while it runs or later; needs no torch."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RUN = "training"
"""Folder of the run inside the bundle."""

PREVIEW = "worst_best.png"
"""File of a run: worst and best cases of its best validation."""

_STALE_SECONDS = 300.0
"""A validation of a large case may take minutes without a word."""


@dataclass(frozen=True)
class RunSummary:
    """Progress of a run, read from its history.

    Attributes:
        best: {"mean_dice", "epoch", "dice": {name: Dice}, ...} of the best validation; None without a validation.
        steps: trained and planned steps at the last validation; without one, at the end; None if there is none either.
    """

    best: dict[str, Any] | None
    steps: tuple[int, int] | None


@dataclass(frozen=True)
class RunProgress:
    """Progress of a run at the last time when it wrote it (see `segnets.training.progress`).

    Attributes:
        stage: "training", "validating" or "ended".
        epoch: current epoch, from 1.
        epochs: planned epochs.
        step: steps so far.
        steps: planned steps.
        loss: mean loss of the epoch so far; nan before its first step.
        seconds: duration so far, without interruptions.
        seconds_left: estimate of the remaining time; None if there is none yet.
        validated: cases of the current validation that are done.
        to_validate: cases of the current validation; 0 outside a validation.
        age_seconds: time since the run wrote this.
        is_finished: whether it reached its last step or its time limit, and saved and validated everything.
    """

    stage: str
    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    seconds: float
    seconds_left: float | None
    validated: int
    to_validate: int
    age_seconds: float
    is_finished: bool = False

    @property
    def is_live(self) -> bool:
        """Return whether the run has not ended and wrote its progress within the last five minutes."""
        return self.stage != "ended" and self.age_seconds < _STALE_SECONDS


@dataclass(frozen=True)
class Validation:
    """Scores of one validation.

    Attributes:
        epoch: epoch in or after which it took place, from 1.
        mean_dice: mean over the structures.
        dice: structure -> mean over the cases; nan if no case counts.
    """

    epoch: float
    mean_dice: float
    dice: dict[str, float]


@dataclass(frozen=True)
class RunState:
    """Everything that a person sees of a run.

    Attributes:
        folder: folder of the run.
        losses: (epoch, mean loss) of each epoch.
        validations: validations in their order.
        progress: latest progress; None if the run has not begun.
        preview: image of the worst and best cases; None if there is none yet.
        preview_time: time at which the image was written, in seconds since 1970; 0 without one.
    """

    folder: Path
    losses: list[tuple[float, float]] = field(default_factory=list)
    validations: list[Validation] = field(default_factory=list)
    progress: RunProgress | None = None
    preview: Path | None = None
    preview_time: float = 0.0

    @property
    def best(self) -> Validation | None:
        """The validation with the highest mean Dice, the first one of equals; None without a validation."""
        return max(self.validations, key=lambda one: one.mean_dice, default=None)


def read_history(run_folder: Path) -> list[dict[str, Any]]:
    """Return the lines of history.jsonl of a run, in order; none if the run has not started."""
    return list(read_lines(run_folder / "history.jsonl"))


def read_summary(run_folder: Path) -> RunSummary:
    """Return the progress of a run."""
    lines = read_history(run_folder)
    validated = [line for line in lines if line.get("mean_dice") is not None]
    planned = [line for line in lines if "planned_steps" in line]
    best = max(validated, key=lambda line: line["mean_dice"], default=None)
    if planned:
        return RunSummary(best, (planned[-1]["step"], planned[-1]["planned_steps"]))
    progress = _read_progress(run_folder)
    if progress is not None and progress.stage == "ended":
        return RunSummary(best, (progress.step, progress.steps))
    return RunSummary(best, None)


def read_case_scores(
    run_folder: Path, file: str | Path = "validation.jsonl", metric: str | None = None
) -> dict[str, dict[str, float]]:
    """Return case -> structure -> score in a run's file; nan where neither label map has the structure.

    Empty if there is no such file, or if the run is of a version that did not write it.

    Args:
        run_folder: folder of the run.
        file: file in it; default: the cases of the best validation.
        metric: name of the score; None: the first one, which is the Dice.
    """
    found = {}
    for line in read_lines(run_folder / file):
        dicts = [value for name, value in line.items() if isinstance(value, dict) and metric in (None, name)]
        scores = dicts[0] if dicts else {}
        found[str(line.get("case"))] = {str(name): _number(value) for name, value in scores.items()}
    return found


def read_patients(run_folder: Path, file: str | Path = "validation.jsonl") -> dict[str, str]:
    """Return case -> patient in a run's file of scores; a case without a patient is one of its own."""
    lines = [(str(line.get("case")), line.get("patient")) for line in read_lines(run_folder / file)]
    return {case: case if patient is None else f"patient {patient}" for case, patient in lines}


def read_state(run_folder: Path) -> RunState:
    """Return the state of a run; files that are missing or damaged count as not written yet."""
    losses, validations = [], []
    for line in read_lines(run_folder / "history.jsonl"):
        epoch = _number(line.get("epoch"))
        if "mean_dice" in line:
            dice = line.get("dice")
            each = {str(name): _number(value) for name, value in dice.items()} if isinstance(dice, dict) else {}
            validations.append(Validation(epoch, _number(line["mean_dice"]), each))
        elif "loss" in line:
            losses.append((epoch, _number(line["loss"])))
    known = [one for one in validations if math.isfinite(one.mean_dice)]
    preview = run_folder / PREVIEW
    try:
        preview_time = preview.stat().st_mtime
    except OSError:
        preview_time = 0.0
    return RunState(
        run_folder, losses, known, _read_progress(run_folder), preview if preview_time else None, preview_time
    )


def run_folders(root: Path) -> list[Path]:
    """Return the folders of a bundle's runs that have a history: one, or one for each fold that has begun."""
    folds = sorted(root.glob("fold_*"), key=lambda path: (len(path.name), path.name))
    return [path for path in (root / RUN, *folds) if (path / "history.jsonl").is_file()]


def current_run(root: Path) -> Path:
    """Return the folder of the run that wrote last; of a bundle without a run, the folder of its first."""
    folders = [root / RUN, *root.glob("fold_*")]
    return max(folders, key=lambda path: _written(path / "progress.jsonl"))


def ended_since(run_folder: Path, start: float) -> RunProgress | None:
    """Return the last progress of a run that has saved everything and ended after a time; otherwise None.

    Args:
        run_folder: folder of the run.
        start: time in seconds since 1970.
    """
    progress = _read_progress(run_folder)
    if progress is None or progress.stage != "ended" or time.time() - progress.age_seconds < start - 1:
        return None
    return progress


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _read_progress(run_folder: Path) -> RunProgress | None:
    line = next(read_lines(run_folder / "progress.jsonl"), None)
    if line is None:
        return None
    counts = [_number(line.get(name)) for name in ("epoch", "epochs", "step", "steps", "done", "total")]
    if not all(map(math.isfinite, counts)):
        return None
    epoch, epochs, step, steps, done, total = map(int, counts)
    left = _number(line.get("seconds_left"))
    return RunProgress(
        stage=str(line.get("stage")),
        epoch=epoch,
        epochs=epochs,
        step=step,
        steps=steps,
        loss=_number(line.get("loss")),
        seconds=_number(line.get("seconds")),
        seconds_left=left if math.isfinite(left) else None,
        validated=done,
        to_validate=total,
        age_seconds=time.time() - _number(line.get("time")),
        is_finished=line.get("finished") is True,
    )


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a file that are JSON objects; a line that is being written is left out."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for line in text[: text.rfind("\n") + 1].splitlines():
        try:
            content = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(content, dict):
            yield content


def _number(value: Any) -> float:
    """Return a number of a JSON file as a float; nan for anything else, and for integers that no float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan
