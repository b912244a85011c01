"""Find a learning rate: train a few steps with a growing one, and see where the loss is lowest."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ignite.engine import Engine, Events
from numpy.typing import NDArray

from segnets.errors import TrainingError
from segnets.files import replacing
from segnets.training.curves import can_draw
from segnets.training.trainer import Trainer

logger = logging.getLogger("segnets")

_SPAN = 1000
"""The rates go from a thousandth of the planned one to a thousand times as much."""
_SMOOTHING = 3
"""Standard deviation of the smoothing of the losses, in steps."""
_DIVERGED = 3
"""A loss this many times the first one ends the test."""
_MARGIN = 10
"""The suggested rate is the one with the lowest loss, divided by this."""


class RateTest(NamedTuple):
    """Losses of steps with growing learning rates.

    Attributes:
        rates: learning rate of each step, ascending.
        losses: loss of each step.
    """

    rates: NDArray[np.float64]
    losses: NDArray[np.float64]

    @property
    def smoothed(self) -> NDArray[np.float64]:
        """Losses without the noise of single batches."""
        weights = np.exp(-0.5 * (np.arange(-3 * _SMOOTHING, 3 * _SMOOTHING + 1) / _SMOOTHING) ** 2)
        return np.convolve(np.pad(self.losses, 3 * _SMOOTHING, mode="edge"), weights / weights.sum(), mode="valid")

    @property
    def suggested(self) -> float | None:
        """A tenth of the rate with the lowest loss; None if the losses do not fall, or fall to the end."""
        lowest = int(self.smoothed.argmin()) if len(self.losses) else 0
        is_inside = 0 < lowest < len(self.losses) - 1
        return float(f"{self.rates[lowest] / _MARGIN:.2g}") if is_inside else None


class RateFinder:
    """Test learning rates with the steps of a trainer (Smith 2017, arXiv:1506.01186), and draw the losses.

    The trainer is used up: its network has other weights then. Nothing is saved but the picture. MONAI's
    `LearningRateFinder` has a loop of its own, without split batches, bfloat16 and endless samplers.

    Args:
        path: PNG file.
        learning_rate: planned rate.
        steps: number of steps, one for each rate.
    """

    def __init__(self, path: str | Path, learning_rate: float, steps: int = 100) -> None:
        self.path = Path(path)
        self.learning_rate = learning_rate
        self.steps = steps

    def run(self, trainer: Trainer) -> RateTest:
        """Run the steps, draw them, and log the suggested rate."""
        rates = self.learning_rate * np.geomspace(1 / _SPAN, _SPAN, self.steps)
        losses: list[float] = []

        def set_rate(engine: Engine) -> None:
            for group in trainer.optimizer.param_groups:
                group["lr"] = float(rates[len(losses)])

        def add_loss(engine: Engine) -> None:
            losses.append(float(engine.state.output["loss"]))
            if losses[-1] > _DIVERGED * losses[0]:
                engine.terminate()

        trainer.add_event_handler(Events.ITERATION_STARTED, set_rate)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, add_loss)
        trainer.state.max_epochs, trainer.state.epoch_length = 1, self.steps
        try:
            trainer.run()
        except TrainingError as error:
            if error.code != "training.diverged":
                raise
        found = RateTest(rates[: len(losses)], np.array(losses))
        if can_draw(self.path):
            self._draw(found)
        logger.info(
            f"learning rate: planned {self.learning_rate:g}, suggested {found.suggested or 'none'}: {self.path}"
        )
        return found

    def _draw(self, found: RateTest) -> None:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        axes.plot(found.rates, found.losses, ".", color="lightgrey", label="loss of a step")
        axes.plot(found.rates, found.smoothed, color="black", label="smoothed")
        axes.axvline(self.learning_rate, color="tab:blue", linestyle="--", label=f"planned {self.learning_rate:g}")
        if found.suggested is not None:
            axes.axvline(found.suggested, color="tab:red", linestyle=":", label=f"suggested {found.suggested:g}")
        axes.set(xscale="log", xlabel="learning rate", ylabel="loss")
        axes.set_ylim(*np.percentile(found.losses, [0, 97]) * [0.95, 1.05])
        axes.legend()
        with replacing(self.path, is_optional=True) as part:
            figure.savefig(part, format="png", dpi=100)
