"""Record the scores of each case in the best validation, or in an evaluation, one line of JSON per case.

    {"case": "case_07", "epoch": 44, "mean_dice": {"anterior": 0.91, "posterior": null}}

A score is null where it is undefined, such as the Dice of a class that neither reference nor prediction contains. The
key metric comes first; an evaluation has further ones, and the number of the patient, "patient".
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events

from segnets.files import replacing

logger = logging.getLogger("segnets")


class CaseScores:
    """Write the scores of all cases of the best validation so far; a handler of MONAI's evaluator, after its metrics.

    The batches of the evaluator have `name`, and its key metric has a row per case and a column per class.

    Args:
        path: the file, replaced by each better validation.
        names: names of the columns; their numbers if there are none.
        patients: name of a case -> its patient, whose number is written with the case.
    """

    def __init__(self, path: str | Path, names: Sequence[str] = (), patients: Mapping[str, str] | None = None) -> None:
        self.path = Path(path)
        self.names = tuple(names)
        numbers = {patient: number for number, patient in enumerate(dict.fromkeys((patients or {}).values()), 1)}
        self.patients = {case: numbers[patient] for case, patient in (patients or {}).items()}
        self._cases: list[str] = []

    def attach(self, evaluator: Engine) -> None:
        """Collect the names of the cases during each validation and write the file at its end."""
        evaluator.add_event_handler(Events.STARTED, lambda: self._cases.clear())
        evaluator.add_event_handler(Events.ITERATION_COMPLETED, self._batch_completed)
        evaluator.add_event_handler(Events.COMPLETED, self._completed)

    def _batch_completed(self, evaluator: Engine) -> None:
        self._cases += [str(item["name"]) for item in evaluator.state.batch]

    def _completed(self, evaluator: Engine) -> None:
        cases = self._cases
        if idist.get_world_size() > 1:  # each process validates other cases; the metric has them in this order
            gathered: Any = idist.all_gather(cases)
            cases = [name for part in gathered for name in part]
        state = evaluator.state
        key = state.key_metric_name
        tables = {name: state.metric_details[name].tolist() for name in dict.fromkeys([key, *state.metric_details])}
        if idist.get_rank() != 0 or state.best_metric_epoch not in (-1, state.epoch):
            return
        if len(tables[key]) != len(cases):
            logger.warning("%s is not written: %d cases have %d scores", self.path.name, len(cases), len(tables[key]))
            return
        of_case: dict[str, list[int]] = {}
        for number, case in enumerate(cases):
            of_case.setdefault(case, []).append(number)  # several patches of a case: their mean
        with replacing(self.path, is_optional=True) as part, part.open("w", encoding="utf-8") as file:
            for case, numbers in of_case.items():
                scores = {metric: self._named([rows[n] for n in numbers]) for metric, rows in tables.items()}
                patient = {"patient": self.patients[case]} if case in self.patients else {}
                file.write(json.dumps({"case": case, **patient, "epoch": state.epoch, **scores}) + "\n")

    def _named(self, rows: Sequence[Sequence[float]]) -> dict[str, float | None]:
        """Return the mean of each column over the rows in which it is finite, by name; None if there are none."""
        means: list[float | None] = []
        for column in zip(*rows, strict=True):
            finite = [value for value in column if math.isfinite(value)]
            means.append(sum(finite) / len(finite) if finite else None)
        return dict(zip(self.names or [str(n) for n in range(1, len(means) + 1)], means, strict=True))
