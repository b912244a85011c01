"""Show the progress of a run in one line: epoch, time left, loss, Dice and the best Dice; and write it to a file."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import time
from contextlib import ExitStack, suppress
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from segnets.files import PART
from segnets.training.history import History

logger = logging.getLogger("segnets")


ESTIMATE_STEPS, ESTIMATE_SECONDS = 10, 20.0
"""Steps, or seconds if steps take long, before the number of steps within the time limit is estimated."""

MIN_FRACTION = 0.25
"""Fraction of the planned steps below which a network has hardly learned anything."""

FILE = "progress.jsonl"
"""File in the folder of the run that other programs read to follow it."""

_FILE_SECONDS = 1.0


class Progress:
    """Show a progress bar in a terminal, and otherwise (`nohup`, a cluster) log lines; a handler of the trainer.

    The bar shows the progress of the whole run. The time left is that of the remaining steps at the mean speed since
    this start, validations included, or the rest of `max_minutes` if that is less. It must come after `History` in the
    list of handlers. Of several processes only the first one shows progress.

    The same values are written to `progress.jsonl` next to the history as one line, at most once a second:

        {"stage": "training", "epoch": 7, "epochs": 48, "step": 560, "steps": 3984, "loss": 0.412,
         "seconds": 641.2, "seconds_left": 751.0, "done": 0, "total": 0, "time": 1780000000.0}

    `stage` is "training", "validating" or "ended"; `done` of `total` cases are validated; `seconds_left` is null before
    the first step; `time` is the time of writing in seconds since 1970.

    Args:
        history: source of loss and Dice.
        max_minutes: time limit of the run; None: no limit.
        every_seconds: seconds between log lines without a terminal.
    """

    def __init__(self, history: History, max_minutes: float | None = None, every_seconds: float = 30.0) -> None:
        self.history = history
        self.max_minutes = max_minutes
        self.every_seconds = every_seconds
        self._bar: tqdm | None = None
        self._log_above = ExitStack()
        self._first_step = 0
        self._started = self._shown = self._written = 0.0
        self._validated = (0, 0)  # cases of the validation that runs, done and total
        self._timed_from: tuple[int, float] | None = None  # a step and when it ended
        self._is_estimated = self._is_finished = False

    def attach(self, trainer: Engine) -> None:
        """Show progress after the trainer's steps."""
        trainer.add_event_handler(Events.STARTED, self._start)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._step)
        trainer.add_event_handler(Events.COMPLETED, self._completed)
        trainer.add_event_handler(Events.TERMINATE, self._interrupted)
        if self.history.validator is not None:
            self.history.validator.add_event_handler(Events.ITERATION_COMPLETED, self._validation_step, trainer)
            self.history.validator.add_event_handler(Events.COMPLETED, self._validation_end)

    def _start(self, trainer: Engine) -> None:
        self._started = self._shown = time.monotonic()
        self._first_step = trainer.state.iteration
        self._timed_from, self._is_estimated = None, False
        self._write(trainer, "training")
        if idist.get_rank() == 0:
            # disable=None: silent where stderr is no terminal
            self._bar = tqdm(
                total=1.0,
                initial=self._resumed_fraction(trainer),
                desc=f"preparing {f'step {self._first_step + 1}' if self._first_step else 'the first step'}",
                bar_format="{percentage:3.0f}%|{bar:20}| {desc}",
                disable=None,
                **_terminal_size(),
            )
            if not self._bar.disable:
                self._log_above.enter_context(logging_redirect_tqdm())

    def _resumed_fraction(self, trainer: Engine) -> float:
        """Return the fraction of the steps, or of the time if that is more, that earlier starts have done."""
        done = self._first_step / max(trainer.state.max_epochs * trainer.state.epoch_length, 1)
        in_time = self.history.seconds / (60 * self.max_minutes) if self.max_minutes else 0.0
        return min(max(done, in_time), 1.0)

    def _step(self, trainer: Engine) -> None:
        if self._bar is None:
            return
        if not self._is_estimated:
            self._estimate(trainer)
        self._show_if_due(trainer)

    def _validation_step(self, validator: Engine, trainer: Engine) -> None:
        done, total = validator.state.iteration, validator.state.epoch_length
        if (processes := idist.get_world_size()) > 1:  # they divide the cases
            total = len(validator.data_loader.dataset)
            done = min(done * processes, total)
        self._validated = (done, total)
        self._show_if_due(trainer)

    def _validation_end(self) -> None:
        self._validated = (0, 0)

    def _interrupted(self, trainer: Engine) -> None:
        if trainer.should_terminate == "skip_completed":
            self._end(trainer)

    def _completed(self, trainer: Engine) -> None:
        self._is_finished = True
        self._end(trainer)

    def _end(self, trainer: Engine) -> None:
        if self._bar is None:
            return
        self._write(trainer, "ended")
        self._show(trainer)
        self._log_above.close()
        with suppress(OSError):
            self._bar.close()

    def _show_if_due(self, trainer: Engine) -> None:
        if self._bar is None:
            return
        now = time.monotonic()
        if now - self._written >= _FILE_SECONDS:
            self._write(trainer, "validating" if self._validated[1] else "training")
        if now - self._shown >= (self.every_seconds if self._bar.disable else 0.5):
            self._show(trainer)

    def _show(self, trainer: Engine) -> None:
        self._shown = time.monotonic()
        assert self._bar is not None
        if self._bar.disable:
            logger.info(self.line(trainer))
        else:
            spent, left = self.history.seconds, self.seconds_left(trainer)
            self._bar.n = spent / max(spent + left, 1e-9)
            with suppress(OSError):  # the terminal was closed; the run continues
                self._bar.set_description_str(self.line(trainer))

    def _write(self, trainer: Engine, stage: str) -> None:
        """Write the file; a disk that is full or a reader that holds the file open must not end the run."""
        self._written = time.monotonic()
        if idist.get_rank() != 0:
            return
        state, (done, total) = trainer.state, self._validated
        values = {
            "stage": stage,
            "epoch": state.epoch,
            "epochs": state.max_epochs,
            "step": state.iteration,
            "steps": state.max_epochs * state.epoch_length,
            "loss": self.history.loss if math.isfinite(self.history.loss) else None,
            "seconds": round(self.history.seconds, 1),
            "seconds_left": self._seconds_left_or_none(trainer, stage),
            "done": done,
            "total": total,
            "finished": self._is_finished,
            "time": round(time.time(), 1),
        }
        path = self.history.path.with_name(FILE)
        part = path.with_name(f"{path.name}{PART}")
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps(values) + "\n", encoding="utf-8")
            part.replace(path)

    def _seconds_left_or_none(self, trainer: Engine, stage: str) -> float | None:
        if stage == "ended":
            return 0.0
        return round(self.seconds_left(trainer), 1) if trainer.state.iteration > self._first_step else None

    def _estimate(self, trainer: Engine) -> None:
        """Log once, after a few steps, how many steps fit into the time limit; the first step loads and compiles."""
        now, step = time.monotonic(), trainer.state.iteration
        if self._timed_from is None:
            self._timed_from = step, now
            return
        count, seconds = step - self._timed_from[0], now - self._timed_from[1]
        if count < ESTIMATE_STEPS and (count < 2 or seconds < ESTIMATE_SECONDS):
            return
        self._is_estimated = True
        pace, planned = seconds / count, trainer.state.max_epochs * trainer.state.epoch_length
        needed = pace * (planned - step)
        text = f"a step takes {pace:.2g} s, all {planned} about {tqdm.format_interval(pace * planned)}"
        if self.max_minutes is None:
            logger.info(text)
            return
        left = max(60 * self.max_minutes - self.history.seconds, 0.0)
        reached = planned if needed <= left else step + int(left / pace) if pace else planned
        text += f"; max_minutes {self.max_minutes:g} reaches about step {reached}"
        if reached < MIN_FRACTION * planned:
            logger.warning(
                f"{text}, {reached / planned:.1%} of them: too few for a useful network; raise --max_minutes"
            )
        else:
            logger.info(text)

    def seconds_left(self, trainer: Engine) -> float:
        """Return the seconds to the last step, or to the end of `max_minutes` if that comes first."""
        state, spent = trainer.state, time.monotonic() - self._started
        steps = max(state.iteration - self._first_step, 1)
        left = (state.max_epochs * state.epoch_length - state.iteration) * spent / steps
        if self.max_minutes is not None:
            left = min(left, max(60 * self.max_minutes - self.history.seconds, 0.0))
        return left

    def line(self, trainer: Engine) -> str:
        """Return a line such as "epoch 7/48  12:31 left  loss 0.412  Dice 0.861  best 0.870 (epoch 6)"."""
        left = f"{tqdm.format_interval(self.seconds_left(trainer))} left"
        parts = [f"epoch {trainer.state.epoch}/{trainer.state.max_epochs}", left, f"loss {self.history.loss:.3f}"]
        done, total = self._validated
        if total:
            parts.insert(1, f"validating {done}/{total}")
        if self.history.mean_dice is not None and self.history.best is not None:
            dice, epoch = self.history.best
            parts += [f"Dice {self.history.mean_dice:.3f}", f"best {dice:.3f} (epoch {epoch})"]
        return "  ".join(parts)


def _terminal_size() -> dict[str, Any]:
    """Return tqdm's settings for the terminal: its current size, or 80 columns if it reports none."""
    with suppress(OSError, ValueError):
        if 0 in os.get_terminal_size(sys.stderr.fileno()):
            return {"ncols": 80, "nrows": 24}
    return {"dynamic_ncols": True}
