"""The average of a network's weights over its last steps."""

from __future__ import annotations

from ignite.engine import Engine, Events
from ignite.handlers import EMAHandler


class WeightAverage(EMAHandler):
    """ignite's exponential moving average, over about the last ninth of the training so far and no more.

    Step n weighs max(momentum, 9 / (n + 10)) and all before it the rest, so that the random weights of the start are
    gone after a few dozen steps; with `momentum` alone 0.996^n of them would stay. That depends on the trainer's step
    and on nothing else, so a resumed run goes on with the same average. ignite's own warm-up counts from each start.

    Args:
        model: the network.
        momentum: weight of the newest step in a long run, from step 9 / momentum - 10 on.
    """

    def attach(self, trainer: Engine) -> None:
        """Follows the trainer's steps."""
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._warm_up)
        super().attach(trainer)

    def _warm_up(self, trainer: Engine) -> None:
        trainer.state.ema_momentum = max(self.momentum, 9 / (trainer.state.iteration + 10))
