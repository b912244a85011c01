"""Gather the facts of a run as a whole from its manifest; memory grows by two numbers for each volume."""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from napari_seg.cohort.manifest import Manifest
from napari_seg.cohort.report.distributions import Distribution, distribution
from napari_seg.cohort.rows import CaseRow, ModelRow, RunnerRow
from napari_seg.version import __version__

MAX_UNUSUAL = 500
"""Unusual volumes that are listed."""


@dataclass(frozen=True)
class Ended:
    """A case that failed or was skipped: what its group lists."""

    id: int
    name: str
    source: str
    message: str


@dataclass(frozen=True)
class Unusual:
    """A volume that is unusual for its structure.

    Attributes:
        id: number of the case.
        name: name of the case.
        structure: name of the structure.
        volume_ml: its volume.
        median_ml: median over the cases that have the structure.
        z: modified z-score; -inf for a structure without voxels.
    """

    id: int
    name: str
    structure: str
    volume_ml: float
    median_ml: float
    z: float


@dataclass
class Facts:
    """Facts of a run as a whole.

    Attributes:
        created: time of creation of the manifest, in seconds since 1970 UTC.
        counts: state -> number of cases.
        models: number -> model.
        runners: the processes that ran it.
        settings: number -> settings that decide results, of those that a case was run with.
        with_settings: number of settings -> number of finished cases.
        failed: code -> failed cases.
        skipped: code -> skipped cases.
        notices: code of a notice -> number of cases that have it.
        volumes: number of a model -> structure -> distribution, in the order in which the models write them.
        unusual: the most unusual volumes, most unusual first.
        unusual_count: number of all unusual volumes.
        case_seconds: median of the seconds of finished cases.
        part_seconds: sums of the seconds for reading, network and writing.
        peak_bytes: highest memory of a worker.
        started: time of the first start of a case; None before.
        ended: time of the last end of a case; None before.
        versions: versions of the program that ran the finished cases, in the order of their first runs; if there are
            none, the version that created the manifest.
        busy_seconds: time in which at least one runner ran.
        at_once: largest number of cases that ran, or whose files were put in place, at the same time; more than there
            are workers, which run the next case meanwhile.
    """

    created: float
    counts: dict[str, int]
    models: dict[int, ModelRow]
    runners: list[RunnerRow]
    settings: dict[int, dict[str, object]]
    with_settings: Counter[int] = field(default_factory=Counter)
    failed: dict[str, list[Ended]] = field(default_factory=dict)
    skipped: dict[str, list[Ended]] = field(default_factory=dict)
    notices: Counter[str] = field(default_factory=Counter)
    volumes: dict[int, dict[str, Distribution]] = field(default_factory=dict)
    unusual: list[Unusual] = field(default_factory=list)
    unusual_count: int = 0
    case_seconds: float = 0.0
    part_seconds: tuple[float, float, float] = (0.0, 0.0, 0.0)
    peak_bytes: int = 0
    started: float | None = None
    ended: float | None = None
    versions: tuple[str, ...] = ()
    busy_seconds: float = 0.0
    at_once: int = 0

    @property
    def total(self) -> int:
        """Number of all cases."""
        return sum(self.counts.values())

    @property
    def per_minute(self) -> float | None:
        """Number of cases a minute that ended, over the time in which a runner ran; None before the first start."""
        ended = 0 if self.started is None else self.counts["done"] + self.counts["failed"]
        return 60 * ended / self.busy_seconds if ended and self.busy_seconds > 0 else None

    def z(self, row: CaseRow, structure: str) -> float | None:
        """Return the modified z-score of a volume of a case; None if it can't be judged."""
        known = self.volumes.get(row.model or 0, {}).get(structure)
        return None if known is None else known.z(row.volumes_ml[structure])


def gather(manifest: Manifest) -> Facts:
    """Return the facts of a run.

    Raises:
        CohortError: `cohort.manifest`, the file is damaged.
    """
    counts: dict[str, int] = {state: 0 for state in manifest.counts()}
    facts = Facts(
        created=float(manifest.meta("created") or 0),
        counts=counts,
        models={model.id: model for model in manifest.models()},
        runners=manifest.runners(),
        settings=manifest.all_settings() or {0: manifest.settings()},
    )
    volumes: dict[int, dict[str, array[float]]] = defaultdict(lambda: defaultdict(lambda: array("d")))
    cases: dict[int, dict[str, array[int]]] = defaultdict(lambda: defaultdict(lambda: array("q")))
    seconds, ends, parts = array("d"), array("d"), [0.0, 0.0, 0.0]
    runners: set[int | None] = set()
    groups = {"failed": facts.failed, "skipped": facts.skipped}
    for row in manifest.rows():
        counts[row.state] += 1
        if row.state in groups:
            groups[row.state].setdefault(row.code, []).append(Ended(row.id, row.name, row.source, row.message))
        if row.started is not None:
            facts.started = row.started if facts.started is None else min(facts.started, row.started)
        if row.ended is not None:
            facts.ended = row.ended if facts.ended is None else max(facts.ended, row.ended)
        facts.peak_bytes = max(facts.peak_bytes, row.peak_bytes)
        if row.state != "done":
            continue
        facts.with_settings[row.settings or 0] += 1
        runners.add(row.runner)
        seconds.append(row.seconds)
        ends.append(row.ended or 0.0)
        for n, part in enumerate((row.read_seconds, row.network_seconds, row.write_seconds)):
            parts[n] += part
        facts.notices.update({notice.code for notice in row.notices})
        for structure, volume_ml in row.volumes_ml.items():
            volumes[row.model or 0][structure].append(volume_ml)
            cases[row.model or 0][structure].append(row.id)
    versions = [one.version for one in facts.runners if one.id in runners] or [manifest.meta("version") or __version__]
    facts.versions = tuple(dict.fromkeys(versions))
    facts.volumes = {
        model: {structure: distribution(structure, known) for structure, known in structures.items()}
        for model, structures in sorted(volumes.items())
    }
    _find_unusual(facts, volumes, cases, manifest)
    facts.case_seconds = float(np.median(seconds)) if seconds else 0.0
    facts.part_seconds = (parts[0], parts[1], parts[2])
    facts.at_once = _most_at_once(np.asarray(ends) - np.asarray(seconds), np.asarray(ends))
    facts.busy_seconds = _covered((one.started, one.ended or facts.ended) for one in facts.runners)
    return facts


def _find_unusual(
    facts: Facts,
    volumes: dict[int, dict[str, array[float]]],
    cases: dict[int, dict[str, array[int]]],
    manifest: Manifest,
) -> None:
    """Fill in the unusual volumes of the facts."""
    found = [
        Unusual(case, "", structure, volume_ml, known.quartiles_ml[2], known.z(volume_ml) or 0.0)
        for model, structures in facts.volumes.items()
        for structure, known in structures.items()
        for case, volume_ml in zip(cases[model][structure], volumes[model][structure], strict=True)
        if known.is_unusual(volume_ml)
    ]
    found.sort(key=lambda one: (-abs(one.z), one.id))
    facts.unusual_count = len(found)
    listed = found[:MAX_UNUSUAL]
    wanted = {one.id for one in listed}
    names = {row.id: row.name for row in manifest.rows(("done",)) if row.id in wanted} if wanted else {}
    facts.unusual = [replace(one, name=names.get(one.id, "")) for one in listed]


def _most_at_once(starts: NDArray[np.float64], ends: NDArray[np.float64]) -> int:
    """Return the largest number of spans of time that overlap in one point."""
    times = np.concatenate([ends, starts])
    # a span that ends where another starts does not overlap it: ends are first in the stable order
    steps = np.repeat([-1, 1], len(starts))[np.argsort(times, kind="stable")]
    return int(np.cumsum(steps).max(initial=0))


def _covered(spans: Iterable[tuple[float, float | None]]) -> float:
    """Return the seconds that spans of time cover together; spans that end before they start cover nothing."""
    covered, last = 0.0, float("-inf")
    for start, end in sorted((start, end) for start, end in spans if end is not None and end > start):
        covered += max(0.0, end - max(start, last))
        last = max(last, end)
    return covered
