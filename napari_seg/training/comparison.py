"""Compare the scores of several configurations over the same cases; the record of a comparison in `comparison.json`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from napari_seg.errors import BundleError
from napari_seg.evaluation.statistics import Difference, Summary, compare, summarise
from napari_seg.formats.atomic import atomic_write
from napari_seg.training.scores import Cases, case_means

COMPARISON = "comparison.json"
"""Record of a comparison in the folder of the best bundle."""


@dataclass(frozen=True)
class Row:
    """Result of one configuration.

    Attributes:
        name: name of the configuration.
        dice: mean Dice over all cases, each with the mean over its structures.
        difference: case by case to the best configuration, negative if this one is worse; None for the best one.
        minutes: minutes of training of all folds.
        parameters: number of weights of one network; None if it is unknown.
    """

    name: str
    dice: Summary
    difference: Difference | None
    minutes: float
    parameters: int | None

    def cells(self) -> list[str]:
        """Return the row of a table, see `HEADS`."""
        difference = "best"
        if self.difference is not None:
            difference = f"{self.difference.mean:+.4f}{_interval(self.difference, '+')}"
        millions = "–" if self.parameters is None else f"{self.parameters / 1e6:.1f} million"
        dice = f"{self.dice.mean:.4f}{_interval(self.dice)}"
        return [self.name, str(self.dice.count), dice, difference, f"{self.minutes:.1f}", millions]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values; nan becomes None."""
        return _plain(asdict(self))


HEADS = ["configuration", "cases", "mean Dice (95 % interval)", "difference to the best", "minutes", "parameters"]
COMPARED_RULE = (
    "Means over the same cases, each by the fold that it did not train and with the postprocessing that its folds "
    "chose; differences case by case. The best one was selected on these cases, so its Dice is slightly optimistic."
)


def rank(scores: Mapping[str, Cases], minutes: Mapping[str, float], parameters: Mapping[str, int | None]) -> list[Row]:
    """Return the results of configurations, best first.

    Args:
        scores: configuration -> scores of all cases, each by the fold that it did not train.
        minutes: configuration -> minutes of training.
        parameters: configuration -> number of weights.
    """
    means = {name: case_means(cases) for name, cases in scores.items()}
    summaries = {name: summarise(list(of_cases.values())) for name, of_cases in means.items()}
    order = sorted(means, key=lambda name: -_finite(summaries[name].mean))
    return [
        Row(
            name,
            summaries[name],
            None if name == order[0] else compare(means[name], means[order[0]]),
            minutes[name],
            parameters[name],
        )
        for name in order
    ]


def read_comparison(out: Path) -> dict[str, Any] | None:
    """Return the record of a comparison; None if the folder holds none.

    Raises:
        BundleError: `bundle.compare`, the record is damaged.
    """
    path = out / COMPARISON
    if not path.is_file():
        return None
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(record["choices"], dict) and isinstance(record["compared"], list):
            return record
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    raise BundleError("bundle.compare", f"{path} is damaged; choose a new folder with -o")


def write_comparison(out: Path, record: Mapping[str, Any]) -> None:
    """Write the record of a comparison."""
    atomic_write(out / COMPARISON, json.dumps(record, indent=2) + "\n")


def _interval(of: Summary | Difference, sign: str = "") -> str:
    return "" if math.isnan(of.low) else f" ({of.low:{sign}.4f} to {of.high:{sign}.4f})"


def _finite(value: float) -> float:
    return value if math.isfinite(value) else -math.inf


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
