"""Compare the scores of several configurations over the same cases; the record of a comparison in `comparison.json`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from napari_seg.errors import BundleError
from napari_seg.evaluation.statistics import Difference, Summary, summarise_table
from napari_seg.formats.atomic import atomic_write
from napari_seg.training.scores import Cases, structures_of, table_of

COMPARISON = "comparison.json"
"""Record of a comparison in the folder of the best bundle."""


@dataclass(frozen=True)
class Row:
    """Result of one configuration.

    Attributes:
        name: name of the configuration.
        dice: mean over the structures of their mean Dice over all cases.
        difference: its difference to that of the best configuration, negative if this one is worse; None for the best.
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
    "Means over the structures of their means over the same cases, each by the fold that it did not train and with the "
    "postprocessing that its folds chose; a structure that is absent counts 1 if it is not found, where another "
    "configuration finds it. Intervals resample patients. The best configuration was selected on these cases, so its "
    "Dice is slightly optimistic."
)


def rank(
    scores: Mapping[str, Cases],
    patients: Mapping[str, str],
    minutes: Mapping[str, float],
    parameters: Mapping[str, int | None],
) -> list[Row]:
    """Return the results of configurations, best first.

    All means are over the same cases and structures. If a structure is absent in the reference, a configuration that
    finds nothing counts 1 where another one finds something, which counts 0.

    Args:
        scores: configuration -> scores of all cases, each by the fold that it did not train.
        patients: case -> patient; intervals resample patients.
        minutes: configuration -> minutes of training.
        parameters: configuration -> number of weights.
    """
    cases = sorted(set.intersection(*(set(of_cases) for of_cases in scores.values())))
    names = list(dict.fromkeys(name for of_cases in scores.values() for name in structures_of(of_cases)))
    groups = [patients.get(case, case) for case in cases]
    plain = {name: table_of({case: of_cases[case] for case in cases}, names) for name, of_cases in scores.items()}
    counts = np.any([~np.isnan(table) for table in plain.values()], axis=0)
    tables = {name: np.where(counts & np.isnan(table), 1.0, table) for name, table in plain.items()}
    summaries = {name: summarise_table(table, groups) for name, table in tables.items()}
    order = sorted(tables, key=lambda name: -_finite(summaries[name].mean))
    rows = []
    for name in order:
        difference = None
        if name != order[0]:
            found = summarise_table(tables[name] - tables[order[0]], groups)
            difference = Difference(found.count, found.mean, found.low, found.high)
        rows.append(Row(name, summaries[name], difference, minutes[name], parameters[name]))
    return rows


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
