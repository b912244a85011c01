"""Record the scores of each case in the best validation, one line of JSON per case: `validation.jsonl`.

    {"case": "case_07", "epoch": 44, "mean_dice": {"anterior": 0.91, "posterior": null}}

A score is null where it is undefined, such as the Dice of a class that neither reference nor prediction contains.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
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
    """

    def __init__(self, path: str | Path, names: Sequence[str] = ()) -> None:
        self.path = Path(path)
        self.names = tuple(names)
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
        rows = state.metric_details[state.key_metric_name].tolist()
        if idist.get_rank() != 0 or state.best_metric_epoch not in (-1, state.epoch):
            return
        if len(rows) != len(cases):
            logger.warning("%s is not written: %d cases have %d scores", self.path.name, len(cases), len(rows))
            return
        with replacing(self.path) as part, part.open("w", encoding="utf-8") as file:
            for case, row in zip(cases, rows, strict=True):
                names = self.names or [str(n) for n in range(1, len(row) + 1)]
                scores = {n: value if math.isfinite(value) else None for n, value in zip(names, row, strict=True)}
                file.write(json.dumps({"case": case, "epoch": state.epoch, state.key_metric_name: scores}) + "\n")
