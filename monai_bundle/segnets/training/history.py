"""Record a run as lines of JSON: `history.jsonl`.

It has one line per epoch and one per validation, and with `every_step` one per step:

    {"epoch": 1, "step": 83, "loss": 0.81, "lr": 0.0011, "seconds": 47.1}
    {"epoch": 6, "step": 498, "mean_dice": 0.86, "dice": {"anterior": 0.87, "posterior": 0.85},
     "planned_steps": 3984, "seconds": 301.4}
    {"epoch": 1, "step": 1, "step_loss": 1.24}

`loss` is the mean over the epoch's steps, `lr` the rate after its last step, `seconds` the run's time so far, without
interruptions. Undefined values, such as the Dice of a class that no case has, are null.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events

from segnets.metrics import mean_of


class History:
    """Append to `history.jsonl`, and keep the current loss and Dice; a handler of the trainer.

    Its state belongs to the checkpoint: the first line after a resume removes all lines written after the checkpoint,
    so that the file describes one uninterrupted run. It must come after the learning-rate schedule in the list of
    handlers.

    Args:
        path: the file; its folder is created if necessary.
        validator: MONAI's evaluator, whose key metric is a Dice with one column per class.
        names: names of the classes without background, in the order of the metric's columns.
        every_step: also write a line per step.

    Attributes:
        loss: mean over the steps of this epoch, or of the last epoch if this one has no step yet.
        mean_dice: mean Dice of the last validation, or None.
        best: (mean Dice, epoch) of the best validation, or None.
        listeners: functions that are called with each line after it was written, in the first process only.
    """

    def __init__(
        self, path: str | Path, validator: Engine | None = None, names: Sequence[str] = (), every_step: bool = False
    ) -> None:
        self.path = Path(path)
        self.validator = validator
        self.names = tuple(names)
        self.every_step = every_step
        self.loss = math.nan
        self.mean_dice: float | None = None
        self.best: tuple[float, int] | None = None
        self.listeners: list[Callable[[dict[str, Any]], object]] = []
        self._sum, self._steps = 0.0, 0
        self._size = 0
        self._seconds_before, self._clock = 0.0, time.monotonic()

    @property
    def seconds(self) -> float:
        """Return the run's time so far, without interruptions."""
        return self._seconds_before + time.monotonic() - self._clock

    def attach(self, trainer: Engine) -> None:
        """Record the trainer's steps and epochs, and the validator's results."""
        trainer.add_event_handler(Events.STARTED, self._start)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._step_completed)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed)
        if self.validator is not None:
            self.validator.add_event_handler(Events.COMPLETED, self._validation_completed, trainer)

    def state_dict(self) -> dict[str, Any]:
        """Return plain values: the valid size of the file, and the loss of the current epoch."""
        return {
            "size": self._size,
            "seconds": self.seconds,
            "sum": self._sum,
            "steps": self._steps,
            "loss": self.loss,
            "mean_dice": self.mean_dice,
            "best": None if self.best is None else list(self.best),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state that `state_dict` returned."""
        self._size, self._sum, self._steps = state["size"], state["sum"], state["steps"]
        self._seconds_before, self._clock = state["seconds"], time.monotonic()
        self.loss, self.mean_dice = state["loss"], state["mean_dice"]
        self.best = None if state["best"] is None else (state["best"][0], state["best"][1])

    def _start(self) -> None:
        self._clock = time.monotonic()

    def _step_completed(self, trainer: Engine) -> None:
        output = trainer.state.output
        loss = float((output[0] if isinstance(output, list) else output)["loss"])
        if idist.get_world_size() > 1:
            loss = float(idist.all_reduce(loss)) / idist.get_world_size()
        self._sum, self._steps = self._sum + loss, self._steps + 1
        self.loss = self._sum / self._steps
        if self.every_step:
            self._append(trainer, step_loss=_finite_or_none(loss))

    def _epoch_completed(self, trainer: Engine) -> None:
        lr = trainer.optimizer.param_groups[0]["lr"]
        self._append(trainer, loss=_finite_or_none(self.loss), lr=float(lr), seconds=round(self.seconds, 3))
        self._sum, self._steps = 0.0, 0

    def _validation_completed(self, validator: Engine, trainer: Engine) -> None:
        metric = validator.state.key_metric_name
        self.mean_dice = float(validator.state.metrics[metric])
        if math.isfinite(self.mean_dice) and (self.best is None or self.mean_dice > self.best[0]):
            self.best = (self.mean_dice, trainer.state.epoch)
        per_class = mean_of(validator.state.metric_details[metric])[1]
        names = self.names or [str(n) for n in range(1, len(per_class) + 1)]
        dice = {name: _finite_or_none(value) for name, value in zip(names, per_class, strict=True)}
        planned = trainer.state.max_epochs * trainer.state.epoch_length
        values = {"mean_dice": _finite_or_none(self.mean_dice), "dice": dice, "planned_steps": planned}
        self._append(trainer, **values, seconds=round(self.seconds, 3))

    def _append(self, trainer: Engine, **values: Any) -> None:
        if idist.get_rank() != 0:
            return
        content = {"epoch": trainer.state.epoch, "step": trainer.state.iteration} | values
        line = json.dumps(content) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("r+b" if self.path.exists() else "wb") as file:
            # bytes after the last line of this run were written by an interrupted run
            file.truncate(min(self._size, file.seek(0, 2)))
            file.seek(0, 2)
            file.write(line.encode())
            self._size = file.tell()
        for listener in self.listeners:
            listener(content)


def read_history(path: str | Path) -> list[dict[str, Any]]:
    """Return the lines of a history, in order, without a last line that is incomplete.

    Args:
        path: a `history.jsonl`, or the folder of a run.
    """
    path = Path(path)
    text = (path / "history.jsonl" if path.is_dir() else path).read_text(encoding="utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def _finite_or_none(value: float) -> float | None:
    """Return a value that JSON can store: None for NaN and infinity."""
    return value if math.isfinite(value) else None
