"""Rank the cases of a run in a worker process, which alone loads torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from napari_seg.errors import one_line, printable
from napari_seg.inference.options import SegmentOptions

if TYPE_CHECKING:
    from napari_seg.bundles.spec import Bundle

_MAX_TITLE = 200


@dataclass(frozen=True)
class QueuedCase:
    """A case in the order in which a person should correct them.

    Attributes:
        name: name of the case in the run.
        rank: place in the queue, from 1; None: the case could not be ranked.
        uncertainty: from 0 to 1; None if it is unknown.
        basis: "disagreement" of the model's members, or "confidence".
        why: reason for the place, or why the case could not be ranked.
        scan: first file of the scan; None if it was not found.
        is_accepted: whether the scan is one of the accepted cases.
    """

    name: str
    rank: int | None
    uncertainty: float | None
    basis: Literal["disagreement", "confidence"]
    why: str
    scan: Path | None
    is_accepted: bool = False

    @property
    def title(self) -> str:
        """Name on one line, for a person."""
        return one_line(self.name, _MAX_TITLE)


def rank_cases(
    results: Path,
    scans: Path | None,
    bundle: Bundle,
    accepted: Path | None,
    options: SegmentOptions,
    progress: Callable[[str, int, int], None],
) -> list[QueuedCase]:
    """Return the cases of a finished run in the order in which a person should correct them.

    Args:
        results: output folder of the run.
        scans: folder of its scans; None: rank by what is known of them.
        bundle: the model to improve.
        accepted: training set of the accepted cases; None if there is none yet.
        options: where the network runs and how much memory it may use.
        progress: called with "looking", the number of scans that were looked at, and the number of all.

    Raises:
        NapariSegError: see `napari_seg.learning.queue.rank`.
    """
    from napari_seg.learning.queue import rank

    found = rank(results, scans=scans, model=bundle, accepted=accepted, options=options, progress=progress)
    return [
        QueuedCase(
            case.name,
            case.rank,
            case.uncertainty,
            case.basis,
            printable(f"{case.message} ({case.code})" if case.code else case.why),
            case.scan,
            case.is_accepted,
        )
        for case in found
    ]
