"""Compare the scores of several configurations over the same cases; the record of a comparison in `comparison.json`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
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


MIN_GAIN = 0.002
"""Mean Dice by which a pair, which takes the time of both configurations, must be better than the best single one."""

_AND = "+"


def name_of_pair(members: Sequence[str]) -> str:
    """Return the name of configurations whose probabilities are averaged, such as "2d+3d"."""
    return _AND.join(members)


@dataclass(frozen=True)
class Row:
    """Result of one configuration, or of a pair.

    Attributes:
        name: name of the configuration, see `name_of_pair`.
        dice: mean over the structures of their mean Dice over all cases.
        difference: its difference to that of the chosen one, negative if this one is worse; None for the chosen one.
        minutes: minutes of training of all folds.
        parameters: number of weights of one network, or of both; None if it is unknown.
        seconds: seconds of one fold's network, or of both, for a case; None if no pairs were compared.
    """

    name: str
    dice: Summary
    difference: Difference | None
    minutes: float
    parameters: int | None
    seconds: float | None = None

    def cells(self) -> list[str]:
        """Return the row of a table, see `HEADS`."""
        difference = "chosen"
        if self.difference is not None:
            difference = f"{self.difference.mean:+.4f}{_interval(self.difference, '+')}"
        millions = "–" if self.parameters is None else f"{self.parameters / 1e6:.1f} million"
        dice = f"{self.dice.mean:.4f}{_interval(self.dice)}"
        cost = "–" if self.seconds is None else f"{self.seconds:.2f}"
        return [self.name, str(self.dice.count), dice, difference, cost, f"{self.minutes:.1f}", millions]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values; nan becomes None."""
        return _plain(asdict(self))


HEADS = [
    "configuration",
    "cases",
    "mean Dice (95 % interval)",
    "difference to the chosen one",
    "seconds per case",
    "minutes of training",
    "parameters",
]
COMPARED_RULE = (
    "Means over the structures of their means over the same cases, each by the fold that it did not train and with the "
    "postprocessing that its folds chose; a structure that is absent counts 1 if it is not found, where another "
    "configuration finds it. Intervals resample patients. The chosen configuration was selected on these cases, so its "
    "Dice is slightly optimistic. "
    f"The probabilities of a pair ({_AND}) are averaged; it takes the time of both, and is chosen if its mean Dice is "
    f"higher than that of the best single configuration by at least {MIN_GAIN}. Seconds are those of one fold's "
    "network; the bundle runs those of all folds. Curves and validation are those of the best single configuration."
)


def rank(
    scores: Mapping[str, Cases],
    patients: Mapping[str, str],
    minutes: Mapping[str, float],
    parameters: Mapping[str, int | None],
    seconds: Mapping[str, float] | None = None,
) -> list[Row]:
    """Return the results of configurations and pairs of them: the chosen one first, then by their Dice.

    All means are over the same cases and structures. If a structure is absent in the reference, a configuration that
    finds nothing counts 1 where another one finds something, which counts 0.

    Args:
        scores: configuration or pair -> scores of all cases, each by the fold that it did not train.
        patients: case -> patient; intervals resample patients.
        minutes: configuration -> minutes of training.
        parameters: configuration -> number of weights.
        seconds: configuration -> seconds for a case.
    """
    cases = sorted(set.intersection(*(set(of_cases) for of_cases in scores.values())))
    names = list(dict.fromkeys(name for of_cases in scores.values() for name in structures_of(of_cases)))
    groups = [patients.get(case, case) for case in cases]
    plain = {name: table_of({case: of_cases[case] for case in cases}, names) for name, of_cases in scores.items()}
    counts = np.any([~np.isnan(table) for table in plain.values()], axis=0)
    tables = {name: np.where(counts & np.isnan(table), 1.0, table) for name, table in plain.items()}
    summaries = {name: summarise_table(table, groups) for name, table in tables.items()}
    order = sorted(tables, key=lambda name: -_finite(summaries[name].mean))
    single = next(name for name in order if _AND not in name)
    if _finite(summaries[order[0]].mean) < _finite(summaries[single].mean) + MIN_GAIN:
        order.remove(single)
        order.insert(0, single)
    rows = []
    for name in order:
        difference = None
        if name != order[0]:
            found = summarise_table(tables[name] - tables[order[0]], groups)
            difference = Difference(found.count, found.mean, found.low, found.high)
        members = name.split(_AND)
        weights = [parameters[one] for one in members]
        rows.append(
            Row(
                name,
                summaries[name],
                difference,
                sum(minutes[one] for one in members),
                None if None in weights else sum(filter(None, weights)),
                sum(seconds[one] for one in members) if seconds else None,
            )
        )
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
