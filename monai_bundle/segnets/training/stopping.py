"""When a training ends before its last epoch, and what is done then.

All of these end it between two steps: what has begun, a step or a validation, is finished. The run's checkpoint is
written in any case, so the same command goes on where it stopped. In a distributed run all processes stop at the same
step.
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
"""What interrupts a run; SIGBREAK (Ctrl-Break) is how Windows interrupts a process that has no console to itself."""


class Stop:
    """Ends a training as soon as `reason` gives one; the base of the handlers below."""

    skip_completed = False

    def attach(self, trainer: Engine) -> None:
        # before the next batch: all that follows a step or an epoch is done by then
        trainer.add_event_handler(Events.GET_BATCH_STARTED, self._check)

    def reason(self) -> str | None:
        """Why to stop now, for a person; or None."""
        raise NotImplementedError

    def _check(self, trainer: Engine) -> None:
        reason = self.reason()
        if idist.all_reduce(float(reason is not None), "MAX"):
            logger.info("stopped at step %d: %s", trainer.state.iteration, reason or "another process was told to")
            # an epoch that has begun without a step has not begun
            trainer.state.epoch = -(-trainer.state.iteration // trainer.state.epoch_length)
            trainer.terminate(skip_completed=self.skip_completed)


class StopAfterMinutes(Stop):
    """Ends a training when it has taken its minutes; the weights are validated and exported as at the last epoch's end.

    Time counts from the first step on, over interruptions, without the time between them: it is the training that has
    30 minutes, not the process. A later start with more minutes goes on. The learning rate comes down in time where
    `Schedule` knows this handler.

    Args:
        minutes: None for no end.

    Attributes:
        share: how much of the time was used when this step began, the same in all processes; 0 without an end.
    """

    def __init__(self, minutes: float | None = None) -> None:
        self.minutes = minutes
        self.share = 0.0
        self._before, self._start = 0.0, time.monotonic()

    def attach(self, trainer: Engine) -> None:
        super().attach(trainer)
        trainer.add_event_handler(Events.STARTED, self._begin)

    def _begin(self) -> None:
        self._start = time.monotonic()

    @property
    def _seconds(self) -> float:
        return self._before + time.monotonic() - self._start

    def reason(self) -> str | None:
        if self.minutes is None:
            return None
        self.share = min(1.0, float(idist.broadcast(self._seconds)) / (60 * self.minutes))
        return f"it has taken its {self.minutes:g} minutes (max_minutes)" if self.share == 1.0 else None

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self._seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._before, self._start = state["seconds"], time.monotonic()
        if self.minutes is not None:
            self.share = min(1.0, self._before / (60 * self.minutes))


class StopOnFile(Stop):
    """Ends a training when a file appears, and removes the file: `touch run/stop`.

    The weights are validated and exported as at the last epoch's end.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def reason(self) -> str | None:
        if idist.get_rank() != 0 or not self.path.exists():
            return None
        self.path.unlink(missing_ok=True)
        return f"{self.path} was there"


class StopOnSignal(Stop):
    """Ends a training on SIGTERM, SIGINT (Ctrl-C) or Ctrl-Break after the present step; a second signal kills at once.

    The run is interrupted, not finished: the checkpoint and `model_final.pt` are written, nothing is validated. For
    the process to say so, its last act must be `exit`.
    """

    skip_completed = True

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def attach(self, trainer: Engine) -> None:
        super().attach(trainer)
        trainer.add_event_handler(Events.STARTED, self._listen)
        trainer.add_event_handler(Events.TERMINATE, self._leave)
        trainer.add_event_handler(Events.COMPLETED, self._leave)

    def reason(self) -> str | None:
        return None if self.received is None else f"it was sent {signal.Signals(self.received).name}"

    def exit(self) -> None:
        """Exits with 128 + the signal's number, as a shell has it (143 or 130), if one was received.

        So `until python -m monai.bundle run training ...; do :; done` comes to its end.
        """
        if self.received is not None:
            raise SystemExit(128 + self.received)

    def _listen(self, trainer: Engine) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._before[number] = signal.signal(number, self._receive)
            # a signal to the whole group must not take the workers away from under the step that is being finished
            trainer.data_loader.worker_init_fn = _ignore_signals

    def _receive(self, number: int, _: Any) -> None:
        self.received = number
        self._leave()

    def _leave(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())


class EarlyStopping:
    """Ends a training when `patience` validations in a row did not better the best (ignite's, with its state).

    A validation in which no case counts, with a metric of nan, betters nothing.

    Args:
        patience: None for no end.
        validator: MONAI's evaluator with a key metric, larger is better.
        threshold: how much better than the best counts.
    """

    def __init__(self, patience: int | None, validator: Engine, threshold: float = 0.0) -> None:
        self.patience = patience
        self.validator = validator
        self.threshold = threshold
        self._stopping: ignite.handlers.EarlyStopping | None = None

    def attach(self, trainer: Engine) -> None:
        if self.patience is None:
            return
        self._stopping = ignite.handlers.EarlyStopping(self.patience, self._score, trainer, self.threshold)
        self.validator.add_event_handler(Events.COMPLETED, self._stopping)
        trainer.add_event_handler(Events.STARTED, self._still_stopped)

    def state_dict(self) -> dict[str, Any]:
        return {} if self._stopping is None else dict(self._stopping.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self._stopping is not None and state:
            self._stopping.load_state_dict(state)

    def _score(self, validator: Engine) -> float:
        score = float(validator.state.metrics[validator.state.key_metric_name])
        return -math.inf if math.isnan(score) else score  # ignite would take nan for the best

    def _still_stopped(self, trainer: Engine) -> None:
        if self._stopping is not None and self._stopping.counter >= self._stopping.patience:
            logger.info("%d validations without a better one: give more patience to go on", self._stopping.counter)
            trainer.terminate()


class Validation(ValidationHandler):
    """Validates every `interval` epochs, and at the end of the run whatever has been trained since.

    A run with a time limit may be over before the first interval is, so it validates each tenth of its time as well.

    Args:
        validator: MONAI's evaluator.
        interval: in epochs.
        minutes: the time the training has.
    """

    def __init__(self, validator: Engine, interval: int, minutes: StopAfterMinutes | None = None) -> None:
        super().__init__(interval, validator)
        self.minutes = minutes
        self.step = 0
        self.at = 0.0  # minutes

    def attach(self, trainer: Engine) -> None:
        super().attach(trainer)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self._in_time)
        trainer.add_event_handler(Events.COMPLETED, self._at_the_end)

    def __call__(self, trainer: Engine) -> None:
        self.step = trainer.state.iteration
        self.at = self._minutes_used()
        with torch.random.fork_rng(range(torch.cuda.device_count())):  # when it is done changes nothing in the training
            super().__call__(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "minutes": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.at = state["step"], state.get("minutes", 0.0)

    def _in_time(self, trainer: Engine) -> None:
        used = self._minutes_used()
        if used and used >= self.at + self.minutes.minutes / 10 and self.step != trainer.state.iteration:
            self(trainer)

    def _minutes_used(self) -> float:
        """0 without an end."""
        return self.minutes.share * self.minutes.minutes if self.minutes and self.minutes.minutes else 0.0

    def _at_the_end(self, trainer: Engine) -> None:
        if self.step != trainer.state.iteration:
            self(trainer)


def _ignore_signals(_: int) -> None:
    """What a worker does first: it ends when its trainer does."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
