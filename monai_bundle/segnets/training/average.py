"""Average the weights of a network over its last steps."""

from __future__ import annotations

from ignite.engine import Engine, Events
from ignite.handlers import EMAHandler


class WeightAverage(EMAHandler):
    """Compute ignite's exponential moving average over at most the last ninth, roughly, of the steps so far.

    Step n has the weight max(momentum, 9 / (n + 10)), and the average before it the rest. So the random initial weights
    vanish after a few dozen steps; with `momentum` alone 0.996^n of them would remain. The weight depends only on the
    trainer's step, so a resumed run continues the same average. ignite's own warm-up counts from each start.

    Args:
        model: the network.
        momentum: weight of the newest step from step 9 / momentum - 10 on.
    """

    def attach(self, trainer: Engine) -> None:
        """Update the average after each step of the trainer."""
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._warm_up)
        super().attach(trainer)

    def _warm_up(self, trainer: Engine) -> None:
        trainer.state.ema_momentum = max(self.momentum, 9 / (trainer.state.iteration + 10))
