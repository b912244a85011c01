"""End a training before its last epoch, and validate.

All handlers end it between two steps: a step or a validation that has begun is completed. A checkpoint is always
written, so the same command resumes the run. In a distributed run all processes stop at the same step.
"""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import ignite.handlers
import torch
from ignite.engine import Engine, Events
from monai.handlers import ValidationHandler

logger = logging.getLogger("segnets")

_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGBREAK") if hasattr(signal, name)]
"""Signals that interrupt a run; on Windows SIGBREAK (Ctrl-Break) interrupts a process that shares its console."""


class Stop:
    """End a training as soon as `reason` returns a text; the base of the handlers below."""

    skip_completed = False

    def attach(self, trainer: Engine) -> None:
        """Check for a reason to stop before each batch of the trainer."""
        # all handlers of a step or an epoch have run before the next batch
        trainer.add_event_handler(Events.GET_BATCH_STARTED, self._check)

    def reason(self) -> str | None:
        """Return the reason to stop now, as text for the user, or None."""
        raise NotImplementedError

    def _check(self, trainer: Engine) -> None:
        reason = self.reason()
        if idist.all_reduce(float(reason is not None), "MAX"):
            logger.info("stopped at step %d: %s", trainer.state.iteration, reason or "another process stopped")
            # do not count an epoch without a step
            trainer.state.epoch = -(-trainer.state.iteration // trainer.state.epoch_length)
            trainer.terminate(skip_completed=self.skip_completed)


class StopAfterMinutes(Stop):
    """End a training after a number of minutes; the weights are validated and exported as after the last epoch.

    The time is counted from the first step, summed over all starts, without the time between them. A later start with
    more minutes resumes the run. A `Schedule` with this handler lowers the learning rate in time.

    Args:
        minutes: time limit; None: no limit.

    Attributes:
        fraction: fraction of the time that was used when this step began, equal in all processes; 0 without a limit.
    """

    def __init__(self, minutes: float | None = None) -> None:
        self.minutes = minutes
        self.fraction = 0.0
        self._before, self._start = 0.0, time.monotonic()

    def attach(self, trainer: Engine) -> None:
        """Start the clock with the trainer, and check it before each batch."""
        super().attach(trainer)
        trainer.add_event_handler(Events.STARTED, self._begin)

    def _begin(self) -> None:
        self._start = time.monotonic()

    @property
    def _seconds(self) -> float:
        return self._before + time.monotonic() - self._start

    def reason(self) -> str | None:
        """Return the reason to stop if the time limit is reached."""
        if self.minutes is None:
            return None
        self.fraction = min(1.0, float(idist.broadcast(self._seconds)) / (60 * self.minutes))
        return f"the time limit is reached (max_minutes {self.minutes:g})" if self.fraction == 1.0 else None

    def state_dict(self) -> dict[str, Any]:
        """Return the seconds used so far."""
        return {"seconds": self._seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state that `state_dict` returned."""
        self._before, self._start = state["seconds"], time.monotonic()
        if self.minutes is not None:
            self.fraction = min(1.0, self._before / (60 * self.minutes))


class StopOnFile(Stop):
    """End a training when a file appears (`touch run/stop`), and remove the file.

    The weights are validated and exported as after the last epoch.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def reason(self) -> str | None:
        """Return the reason to stop if the file exists, and remove the file."""
        if idist.get_rank() != 0 or not self.path.exists():
            return None
        self.path.unlink(missing_ok=True)
        return f"the file {self.path} was found"


class StopOnSignal(Stop):
    """End a training on SIGTERM, SIGINT (Ctrl-C) or Ctrl-Break after the current step; a second signal kills at once.

    The run is interrupted, not completed: the checkpoint and `model_final.pt` are written, and nothing is validated.
    The process must call `exit` at its end to return the exit code of an interruption.
    """

    skip_completed = True

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def attach(self, trainer: Engine) -> None:
        """Handle signals from the trainer's start to its end."""
        super().attach(trainer)
        trainer.add_event_handler(Events.STARTED, self._listen)
        trainer.add_event_handler(Events.TERMINATE, self._restore)
        trainer.add_event_handler(Events.COMPLETED, self._restore)

    def reason(self) -> str | None:
        """Return the reason to stop if a signal was received."""
        return None if self.received is None else f"received {signal.Signals(self.received).name}"

    def exit(self) -> None:
        """Exit with 128 + the signal's number, as shells do (143 or 130), if a signal was received.

        So `until python -m monai.bundle run training ...; do :; done` ends.
        """
        if self.received is not None:
            raise SystemExit(128 + self.received)

    def _listen(self, trainer: Engine) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._before[number] = signal.signal(number, self._receive)
            # a signal to the whole process group must not end the workers during the current step
            trainer.data_loader.worker_init_fn = _ignore_signals

    def _receive(self, number: int, _: Any) -> None:
        self.received = number
        self._restore()

    def _restore(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())


class EarlyStopping:
    """End a training after `patience` validations in a row without an improvement (ignite's handler, with its state).

    A validation in which no case counts, with a metric of nan, is no improvement.

    Args:
        patience: number of validations; None: no early stopping.
        validator: MONAI's evaluator, whose key metric is better if larger.
        threshold: smallest difference that counts as an improvement.
    """

    def __init__(self, patience: int | None, validator: Engine, threshold: float = 0.0) -> None:
        self.patience = patience
        self.validator = validator
        self.threshold = threshold
        self._stopping: ignite.handlers.EarlyStopping | None = None

    def attach(self, trainer: Engine) -> None:
        """Compare after each validation, and end the trainer."""
        if self.patience is None:
            return
        self._stopping = ignite.handlers.EarlyStopping(self.patience, self._score, trainer, self.threshold)
        self.validator.add_event_handler(Events.COMPLETED, self._stopping)
        trainer.add_event_handler(Events.STARTED, self._still_stopped)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of ignite's handler; nothing without patience."""
        return {} if self._stopping is None else dict(self._stopping.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state that `state_dict` returned."""
        if self._stopping is not None and state:
            self._stopping.load_state_dict(state)

    def _score(self, validator: Engine) -> float:
        score = float(validator.state.metrics[validator.state.key_metric_name])
        return -math.inf if math.isnan(score) else score  # ignite would accept nan as the best

    def _still_stopped(self, trainer: Engine) -> None:
        if self._stopping is not None and self._stopping.counter >= self._stopping.patience:
            logger.info("%d validations without an improvement; raise patience to resume", self._stopping.counter)
            trainer.terminate()


class Validation(ValidationHandler):
    """Validate every `interval` epochs, and at the end of the run if it was trained since; not without cases.

    A run with a time limit may end before the first interval, so it also validates at the ends of other epochs, at most
    once in each tenth of its time, and with at most a tenth of its time.

    Args:
        validator: MONAI's evaluator.
        interval: epochs between validations.
        minutes: time limit of the training.
    """

    def __init__(self, validator: Engine, interval: int, minutes: StopAfterMinutes | None = None) -> None:
        super().__init__(interval, validator)
        self.minutes = minutes
        self.step = 0
        self.used_minutes = 0.0
        self.duration_minutes = 0.0

    def attach(self, trainer: Engine) -> None:
        """Validate after epochs of the trainer and at its end."""
        super().attach(trainer)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self._in_time)
        trainer.add_event_handler(Events.COMPLETED, self._at_the_end)

    def __call__(self, trainer: Engine) -> None:
        """Validate now, without a change of the trainer's random states."""
        if not len(self.validator.data_loader.dataset):
            return
        self.step = trainer.state.iteration
        self.used_minutes = self._minutes_now()
        begin = time.monotonic()
        device = trainer.state.device
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices):  # so the training does not depend on validations
            super().__call__(trainer)
        self.duration_minutes = float(idist.all_reduce(time.monotonic() - begin, "MAX")) / 60

    def state_dict(self) -> dict[str, Any]:
        """Return the step of the last validation, when it began and how long it took."""
        return {"step": self.step, "minutes": self.used_minutes, "duration": self.duration_minutes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state that `state_dict` returned."""
        self.step, self.used_minutes = state["step"], state.get("minutes", 0.0)
        self.duration_minutes = state.get("duration", 0.0)

    def _in_time(self, trainer: Engine) -> None:
        now = self._minutes_now()
        if not now or self.step == trainer.state.iteration:
            return
        if now >= self.used_minutes + max(self.minutes.minutes, 100 * self.duration_minutes) / 10:
            self(trainer)

    def _minutes_now(self) -> float:
        """Return the minutes used so far; 0 without a time limit."""
        return self.minutes.fraction * self.minutes.minutes if self.minutes and self.minutes.minutes else 0.0

    def _at_the_end(self, trainer: Engine) -> None:
        if self.step != trainer.state.iteration:
            self(trainer)


def _ignore_signals(_: int) -> None:
    """Let a data loader's worker ignore signals; it ends with its trainer."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
