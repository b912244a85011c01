"""The learning rate's way through a run, measured in steps or in minutes."""

from __future__ import annotations

import warnings

from ignite.engine import Engine, Events
from torch.optim.lr_scheduler import LRScheduler

from segnets.training.stopping import StopAfterMinutes


class Schedule:
    """Steps a scheduler of torch once after each step of the trainer, or more often where the time is shorter.

    With `minutes`, the schedule is as far as the larger of the two shares, steps done of all steps and minutes used of
    all minutes: it comes down to its end by the time the training is stopped. Such a run depends on the machine's
    speed and is not exactly repeatable.

    It has no state but the trainer's step and the minutes used. A resumed run steps a new scheduler up to these, on the
    optimiser's own settings: so a run with more epochs or minutes than before goes on along the longer schedule from
    where it then is, and one with the same number along the very same.

    Args:
        lr_scheduler: any of torch's that needs no metric, counted in steps.
        minutes: the time the training has.
    """

    def __init__(self, lr_scheduler: LRScheduler, minutes: StopAfterMinutes | None = None) -> None:
        self.lr_scheduler = lr_scheduler
        self.minutes = minutes
        self.steps = 0

    def attach(self, trainer: Engine) -> None:
        trainer.add_event_handler(Events.STARTED, self._catch_up)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._follow)

    def _catch_up(self, trainer: Engine) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            self._follow(trainer)

    def _follow(self, trainer: Engine) -> None:
        last = trainer.state.max_epochs * trainer.state.epoch_length - 1
        share = 0.0 if self.minutes is None else self.minutes.share
        steps = min(last, max(trainer.state.iteration, round(share * last)))
        for _ in range(self.steps, steps):
            self.lr_scheduler.step()
        self.steps = max(self.steps, steps)
