"""Test learning rates on the first steps of a planned training: train a few steps with a growing rate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from napari_seg.errors import EnvironmentFault, OutputError
from napari_seg.formats.atomic import atomic_write
from napari_seg.training.pace import call_as_training, read_configs

if TYPE_CHECKING:
    from ignite.engine import Engine

STEPS = 100
_SPAN = 1000
"""The rates go from a thousandth of the planned one to a thousand times as much."""
_SMOOTHING = 3
"""Standard deviation of the smoothing of the losses, in steps."""
_FIRST = 16
"""Number of first steps, whose rates are so small that their mean loss is that of the initial weights."""
_CLEAR = 2
"""A minimum this many standard deviations of single losses below the first steps is no noise. The difference of the
two means has about 0.4 standard deviations."""
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
        """A tenth of the rate with the lowest loss; None if that is not clearly below the first ones, or the last."""
        if len(self.losses) < 2 * _FIRST:
            return None
        smoothed, first = self.smoothed, self.losses[:_FIRST]
        lowest = int(smoothed.argmin())
        noise = max(float(first.std(ddof=1)), float(np.diff(self.losses[: 2 * _FIRST]).std()) / 2**0.5)
        is_clear = first.mean() - smoothed[lowest] > _CLEAR * noise and lowest < len(smoothed) - 1
        return float(f"{self.rates[lowest] / _MARGIN:.2g}") if is_clear else None


def check_picture(path: Path) -> None:
    """Check that the picture of a test can be drawn and written, before the steps.

    Raises:
        EnvironmentFault: `environment.package`, matplotlib is not installed.
        OutputError: `output.exists`; `output.not_written`, its folder can't be written to.
    """
    if find_spec("matplotlib") is None:
        raise EnvironmentFault(
            "environment.package", "--find-rate draws with matplotlib, which is not installed: pip install matplotlib"
        )
    with _writing(path):
        path.touch(exist_ok=False)
        path.unlink()


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError as error:
        raise OutputError("output.exists", f"{path} exists; give --find-rate the name of a new PNG file") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            "output.not_written", f"can't write {path} ({reason}); give --find-rate a PNG file in another folder"
        ) from error


def find_rate(
    root: Path, dataset_dir: Path, picture: Path, values: Mapping[str, Any], report: Callable[[str], None]
) -> dict[str, Any]:
    """Return the planned and the suggested learning rate of a written bundle; call it within `with_segnets`.

    Args:
        root: folder of the bundle.
        dataset_dir: folder of the data set.
        picture: PNG file of the losses, which does not exist, see `check_picture`.
        values: config id -> value that differs from the written one, such as `fold`, `folds` and `finetune`.
        report: function that prints a line of progress.

    Returns:
        {"planned", "suggested", "steps"}; "suggested" is None if no rate stands out.
    """
    planned, found = call_as_training(_find, root, dataset_dir, dict(values), callbacks={"report": report})
    _draw(found, planned, picture)
    return {"planned": planned, "suggested": found.suggested, "steps": len(found.losses)}


def _find(
    root: Path, dataset_dir: Path, values: dict[str, Any], report: Callable[[str], None]
) -> tuple[float, RateTest]:
    """Return the planned rate and the losses; nothing is saved, by handlers neither."""
    import torch

    parser = read_configs(root, dataset_dir)
    for name, value in {**values, "train#handlers": []}.items():
        parser[name] = value
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the same rate each time
        parser.get_parsed_content("pretrained")
        trainer = parser.get_parsed_content("train#trainer")
        parser.get_parsed_content("frozen").attach(trainer)
        planned = float(parser.get_parsed_content("learning_rate"))
        return planned, run_steps(trainer, planned, report)


def run_steps(trainer: Any, learning_rate: float, report: Callable[[str], None]) -> RateTest:
    """Take steps of a trainer with growing learning rates (Smith 2017, arXiv:1506.01186), until the loss diverges.

    The trainer is used up: its network has other weights then. MONAI's `LearningRateFinder` has a loop of its own,
    without split batches, bfloat16 and endless samplers.

    Args:
        trainer: `segnets.training.Trainer` without handlers that schedule or save.
        learning_rate: planned rate.
        report: function that prints a line of progress.

    Raises:
        TrainingError: "training.diverged", the first loss is not finite.
    """
    from ignite.engine import Events
    from segnets.errors import TrainingError

    rates = learning_rate * np.geomspace(1 / _SPAN, _SPAN, STEPS)
    losses: list[float] = []

    def set_rate(engine: Engine) -> None:
        for group in trainer.optimizer.param_groups:
            group["lr"] = float(rates[len(losses)])

    def add_loss(engine: Engine) -> None:
        losses.append(float(engine.state.output["loss"]))
        if len(losses) % 20 == 0:
            report(f"{len(losses)} of up to {STEPS} steps")
        if losses[-1] > _DIVERGED * losses[0]:
            engine.terminate()

    trainer.add_event_handler(Events.ITERATION_STARTED, set_rate)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, add_loss)
    trainer.state.max_epochs, trainer.state.epoch_length = 1, STEPS
    try:
        trainer.run()
    except TrainingError as error:
        if error.code != "training.diverged" or not losses:
            raise
    return RateTest(rates[: len(losses)], np.array(losses))


def _draw(found: RateTest, planned: float, picture: Path) -> None:
    from io import BytesIO

    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(found.rates, found.losses, ".", color="lightgrey", label="loss of a step")
    axes.plot(found.rates, found.smoothed, color="black", label="smoothed")
    axes.axvline(planned, color="tab:blue", linestyle="--", label=f"planned {planned:g}")
    if found.suggested is not None:
        axes.axvline(found.suggested, color="tab:red", linestyle=":", label=f"suggested {found.suggested:g}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="loss")
    axes.set_ylim(*np.percentile(found.losses, [0, 97]) * [0.95, 1.05])
    axes.legend()
    drawn = BytesIO()
    figure.savefig(drawn, format="png", dpi=100)
    with _writing(picture):
        atomic_write(picture, drawn.getvalue())
