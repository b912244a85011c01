"""A simulated case, as it runs on a worker: it sleeps and writes three small files.

A module of its own, so that a worker imports no more than for a real case.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import PurePosixPath

from napari_seg.cohort.outcome import Outcome
from napari_seg.cohort.outputs import staged_file
from napari_seg.cohort.workers import Failed, Finished, Work
from napari_seg.errors import Cancelled
from napari_seg.progress import Progress

_ENDINGS = {"labels": ".nii.gz", "overlay": ".png", "record": ".json"}


def sleep(
    work: Work,
    *,
    on_step: Progress,
    on_plan: Callable[[str], None],
    is_stopping: Callable[[], bool],
    seconds: float,
) -> Finished | Failed:
    """Sleep instead of segmenting, and write small files that depend on the name of the case only."""
    on_step("segmenting", 0, 1)
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if is_stopping():
            return Failed(work.number, Cancelled())
        time.sleep(min(left, 0.1))
    outputs = {}
    for role, ending in _ENDINGS.items():
        target = PurePosixPath(f"{work.case.name}_seg{ending}")
        (work.staging / target).write_text(json.dumps({"case": work.case.name, "role": role}))
        outputs[role] = staged_file(work.staging / target, target)
    return Finished(work.number, Outcome(outputs, {"simulated": 1.0}, seconds=seconds))
