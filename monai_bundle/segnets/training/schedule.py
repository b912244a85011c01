"""Set the learning rate during a run, by steps or by minutes."""

from __future__ import annotations

import warnings

from ignite.engine import Engine, Events
from torch.optim.lr_scheduler import LRScheduler

from segnets.training.stopping import StopAfterMinutes


class Schedule:
    """Step one of torch's schedulers after each step of the trainer, several times if the time limit is shorter.

    With `minutes`, the schedule advances to the larger of two fractions: steps of all steps, and minutes used of the
    time limit. So it ends when the training is stopped. Such a run depends on the speed of the machine and is not
    exactly repeatable.

    The only state is the trainer's step and the minutes used. A resumed run advances a new scheduler to them, with the
    optimiser's settings from the config. So a run with more epochs or minutes than before continues on the longer
    schedule, and a run with the same numbers on the same schedule.

    Args:
        lr_scheduler: a scheduler of torch that needs no metric and counts steps.
        minutes: time limit of the training.
    """

    def __init__(self, lr_scheduler: LRScheduler, minutes: StopAfterMinutes | None = None) -> None:
        self.lr_scheduler = lr_scheduler
        self.minutes = minutes
        self.steps = 0

    def attach(self, trainer: Engine) -> None:
        """Advance the schedule when the trainer starts and after each of its steps."""
        trainer.add_event_handler(Events.STARTED, self._catch_up)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._advance)

    def _catch_up(self, trainer: Engine) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            self._advance(trainer)

    def _advance(self, trainer: Engine) -> None:
        last = trainer.state.max_epochs * trainer.state.epoch_length - 1
        fraction = 0.0 if self.minutes is None else self.minutes.fraction
        steps = min(last, max(trainer.state.iteration, round(fraction * last)))
        for _ in range(self.steps, steps):
            self.lr_scheduler.step()
        self.steps = max(self.steps, steps)
