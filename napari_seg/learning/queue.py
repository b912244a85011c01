"""Which case next: rank the cases of a finished run by how much a correction of each would teach the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from napari_seg.bundles.read import read_bundle
from napari_seg.bundles.spec import Bundle
from napari_seg.cohort.case import Case
from napari_seg.cohort.rows import CaseRow
from napari_seg.errors import InputError, NapariSegError
from napari_seg.inference.options import SegmentOptions
from napari_seg.inference.second_look import SecondLook
from napari_seg.learning.finished_run import AcceptedScan, FinishedRun, Looker, accepted_scans, scans_of
from napari_seg.learning.ranking import UNRELATED, Choice, choose
from napari_seg.learning.second_looks import SecondLooks
from napari_seg.learning.strategies import Strategy
from napari_seg.progress import Progress, ignore_progress

Basis = Literal["disagreement", "confidence"]
"""What the uncertainty is: 1 minus the mean pairwise Dice of the model's members, or 1 minus the mean probability."""


@dataclass(frozen=True)
class RankedCase:
    """A case in the queue.

    Attributes:
        name: name of the case in the run.
        rank: place in the queue, from 1; None: the case could not be ranked, see `code`.
        uncertainty: from 0 to 1, the mean over the structures; None if it is unknown.
        structures: name of a structure -> its uncertainty.
        basis: what the uncertainty is.
        distance: to the nearest case that is accepted or has a lower rank, in units of the cohort: about 1.4 between
            two unrelated cases; None: the strategy takes no account of it, or there is no such case.
        why: the reason for the rank in words.
        source: path of the scan, relative to the folder of the inputs of the run.
        scan: first file of the scan; None if it was not looked for or not found.
        labels: file of the run's label map.
        is_accepted: whether the scan is one of the accepted cases; these are last.
        code: code of the error; "" if the case was ranked.
        message: the same in words.
    """

    name: str
    rank: int | None = None
    uncertainty: float | None = None
    structures: Mapping[str, float] = field(default_factory=dict)
    basis: Basis = "disagreement"
    distance: float | None = None
    why: str = ""
    source: str = ""
    scan: Path | None = None
    labels: Path | None = None
    is_accepted: bool = False
    code: str = ""
    message: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "name": self.name,
            "rank": self.rank,
            "uncertainty": None if self.uncertainty is None else round(self.uncertainty, 4),
            "structures": {name: round(value, 4) for name, value in self.structures.items()},
            "basis": self.basis,
            "distance": None if self.distance is None else round(self.distance, 4),
            "why": self.why,
            "source": self.source,
            "scan": None if self.scan is None else str(self.scan),
            "labels": None if self.labels is None else str(self.labels),
            "is_accepted": self.is_accepted,
            "code": self.code,
            "message": self.message,
        }


def rank(
    results: str | Path,
    *,
    scans: str | Path | None = None,
    model: Bundle | str | Path | None = None,
    accepted: str | Path | None = None,
    strategy: Strategy = "uncertain-diverse",
    count: int | None = None,
    seed: int = 0,
    options: SegmentOptions | None = None,
    progress: Progress | None = None,
) -> list[RankedCase]:
    """Return the finished cases of a run in the order in which a person should correct them.

    With the scans, the model looks at each of them again: the uncertainty is the disagreement of its members, and
    distances are those of the features of its network. What it finds is kept in the folder of the run, so that only new
    scans are looked at next time. Without the scans and without such finds, the uncertainty comes from the confidence
    in the manifest, and distances from the volumes; an accepted case is then known by the digest of its files only,
    which training sets of earlier versions do not keep.

    Args:
        results: output folder of the run.
        scans: folder of the scans of the run; None: rank by what is known of them.
        model: the model to improve, its folder or its name; None: the one that made the results.
        accepted: folder or list of the accepted cases; cases that are similar to them are ranked lower.
        strategy: "uncertain-diverse", "uncertain", or "random", the control; see `ranking`.
        count: number of cases to rank, without the accepted ones behind them; None: all.
        seed: of the strategy "random".
        options: where the network runs and how much memory it may use; the rest is as in the run.
        progress: called with "looking", the number of scans that were looked at, and the number of all.

    Returns:
        The ranked cases, and behind them those that could not be ranked, with a code.

    Raises:
        CohortError: `cohort.no_manifest`, `cohort.manifest`.
        InputError: `queue.model`, the model of the run is unknown or changed, or there are several; `queue.empty`, no
            case is finished; `input.missing`, the folder of the scans is not there.
        BundleError: the model is unknown, untrusted or incomplete.
        OutputError: `output.folder`, `output.disk_full`, the looks can't be kept in the folder of the run.
        Cancelled: `progress` raised it; what was found so far is kept.
    """
    run = FinishedRun.read(Path(results))
    chosen = None if model is None else read_bundle(model)
    digest = run.digest(chosen)
    rows = run.finished(digest)
    corrected, faults = ([], {}) if accepted is None else accepted_scans(Path(accepted), chosen)
    cases: dict[str, Case] = {}
    with SecondLooks(run.folder, digest, run.kept_options) as looks:
        is_known = any(looks.get(row.input_sha256) for row in rows)
        if scans is not None or (corrected and is_known and strategy != "random"):
            bundle = chosen or run.bundle(digest)
            if scans is not None:
                cases, absent = scans_of(rows, Path(scans), bundle)
                faults |= absent
            pool = [(row.name, row.input_sha256, cases[row.name].scan) for row in rows if row.name in cases]
            looker = Looker(run, looks, options or SegmentOptions(), progress or ignore_progress)
            if strategy == "random":
                if corrected:
                    looker.read_voxels(bundle, pool)
            else:
                others = [(one.name, one.digest, one.scan) for one in corrected if one.is_trained and one.scan]
                faults |= looker.look(bundle, pool, others)
        known = _Known.read(looks, rows, corrected)
    if strategy != "random" and (scans is not None or known.looks):
        text = "the model did not look at this scan yet; name the folder of the scans with --scans"
        for row in rows:
            if row.name not in faults and row.input_sha256 not in known.looks:
                faults[row.name] = InputError("queue.no_look", text)
    queue = _Queue(run, [row for row in rows if row.name not in faults], known, corrected, cases)
    return [*queue.ranked(strategy, count, seed), *queue.failed(rows, faults)]


class _Known(NamedTuple):
    """What is kept of scans, by their digests.

    Attributes:
        looks: complete looks at scans of the run.
        accepted: looks at the accepted scans that models learn from.
        voxels: digests of the voxels of scans of the run.
    """

    looks: Mapping[str, SecondLook]
    accepted: Mapping[str, SecondLook]
    voxels: Mapping[str, str]

    @classmethod
    def read(cls, looks: SecondLooks, rows: Sequence[CaseRow], corrected: Sequence[AcceptedScan]) -> _Known:
        """Read it from the file of the run."""
        found = {row.input_sha256: looks.get(row.input_sha256) for row in rows}
        of_accepted = {one.digest: looks.get(one.digest) for one in corrected if one.is_trained}
        return cls(
            {digest: one.look for digest, one in found.items() if one is not None and one.is_complete},
            {digest: one.look for digest, one in of_accepted.items() if one is not None},
            {row.input_sha256: looks.voxels(row.input_sha256) for row in rows},
        )


@dataclass(frozen=True)
class _Queue:
    """What a queue is made of.

    Attributes:
        run: the run.
        rows: its finished cases that can be ranked.
        known: the looks; without those of scans of the run, the manifest alone ranks.
        corrected: the accepted scans.
        cases: name -> scan, as far as they were found.
    """

    run: FinishedRun
    rows: Sequence[CaseRow]
    known: _Known
    corrected: Sequence[AcceptedScan]
    cases: Mapping[str, Case]

    def ranked(self, strategy: Strategy, count: int | None, seed: int) -> list[RankedCase]:
        """Return the cases in their order, the accepted ones behind the others."""
        names_of_accepted = {
            digest: one.name for one in self.corrected for digest in (one.digest, one.input_sha256) if digest
        }
        accepted = {row.name: name for row in self.rows if (name := self._accepted_as(row, names_of_accepted))}
        rows = [row for row in self.rows if row.name not in accepted]
        names, others = [row.name for row in rows], [one for one in self.corrected if one.digest in self.known.accepted]
        found = {row.name: self._case(row) for row in self.rows}
        uncertainty = [float(found[name].uncertainty or 0.0) for name in names]
        embeddings, near = self._embeddings(rows, others)
        medians = _medians(found.values())
        result: list[RankedCase] = []
        for choice in choose(names, uncertainty, embeddings, near, strategy, count, seed):
            case = found[names[choice.number]]
            why = _why(case, choice, strategy, [*names, *(f"accepted {one.name}" for one in others)], medians)
            result.append(replace(case, rank=len(result) + 1, distance=choice.distance, why=why))
        for name in sorted(accepted):
            why = f"already accepted as {accepted[name]}"
            result.append(replace(found[name], rank=len(result) + 1, is_accepted=True, distance=0.0, why=why))
        return result

    def failed(self, rows: Sequence[CaseRow], faults: Mapping[str, NapariSegError]) -> list[RankedCase]:
        """Return the cases that could not be ranked, and the accepted scans that could not be looked at."""
        by_name = {row.name: row for row in rows}
        result = []
        for name, fault in faults.items():
            case = self._case(by_name[name]) if name in by_name else RankedCase(name, is_accepted=True)
            result.append(replace(case, uncertainty=None, structures={}, code=fault.code, message=fault.message))
        return result

    def _accepted_as(self, row: CaseRow, names: Mapping[str, str]) -> str:
        """Return the name under which a scan was accepted; "" if it was not."""
        return names.get(row.input_sha256) or names.get(self.known.voxels.get(row.input_sha256, ""), "")

    def _embeddings(
        self, rows: Sequence[CaseRow], others: Sequence[AcceptedScan]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the embeddings of cases and of accepted scans; without looks, those from the manifest."""
        if not self.known.looks:
            return _from_manifest(rows), np.zeros((0, 0))
        found = [self.known.looks.get(row.input_sha256) for row in rows]
        every = [*found, *(self.known.accepted[one.digest] for one in others)]
        embeddings = [None if one is None else one.embedding for one in every]
        if len({0 if one is None else len(one) for one in embeddings}) > 1:  # all are compared by what all have
            embeddings = [None if one is None else one.description for one in every]
        length = min((len(one) for one in embeddings if one is not None), default=0)
        stacked = np.array([np.zeros(length) if one is None else one[:length] for one in embeddings])
        stacked = stacked.reshape(len(every), length)
        return stacked[: len(rows)], stacked[len(rows) :]

    def _case(self, row: CaseRow) -> RankedCase:
        """Return a case with its uncertainty, not ranked yet."""
        labels, case = row.outputs.get("labels"), self.cases.get(row.name)
        look = self.known.looks.get(row.input_sha256)
        found = None if look is None else look.disagreement
        if found is not None:
            structures, uncertainty, basis = dict(found.structures), found.overall, "disagreement"
        else:
            structures = {name: 1 - mean for name, mean in row.confidence.items()}
            uncertainty, basis = float(np.mean(list(structures.values()))) if structures else 1.0, "confidence"
        return RankedCase(
            row.name,
            uncertainty=uncertainty,
            structures=structures,
            basis=basis,  # type: ignore[arg-type]
            source=row.source,
            scan=None if case is None else case.scan.files[0],
            labels=None if labels is None else self.run.folder / labels.path,
        )


def _why(
    case: RankedCase,
    choice: Choice,
    strategy: Strategy,
    names: Sequence[str],
    medians: Mapping[tuple[Basis, str], float],
) -> str:
    """Return the reason for a rank in words.

    Args:
        case: the case.
        choice: its choice.
        strategy: how it was chosen.
        names: names of the cases and of the accepted ones, in the order of `Choice.nearest`.
        medians: basis and name of a structure -> median of its uncertainty in all cases.
    """
    if strategy == "random":
        return "chosen at random"
    reasons = ["the model found no structure"]
    if case.structures:
        worst = max(case.structures, key=lambda name: case.structures[name])
        here, usual = (f"{1 - one:.2f}" for one in (case.structures[worst], medians[case.basis, worst]))
        what = "its predictions overlap with Dice" if case.basis == "disagreement" else "mean probability"
        reasons = [f"most uncertain: {worst}, {what} {here}, median of all cases {usual}"]
    if choice.nearest is not None:
        nearest = f"nearest of the accepted and earlier cases: {names[choice.nearest]}"
        unrelated = f" (unrelated cases: about {UNRELATED})" if case.basis == "disagreement" else ""  # not of volumes
        reasons.append(f"{nearest}, distance {choice.distance:.2f}{unrelated}")
    elif strategy == "uncertain-diverse":
        reasons.append("typical of the cases that the model is uncertain about")
    return "; ".join(reasons)


def _medians(cases: Iterable[RankedCase]) -> dict[tuple[Basis, str], float]:
    """Return basis and name of a structure -> median of its uncertainty."""
    found: dict[tuple[Basis, str], list[float]] = {}
    for case in cases:
        for name, value in case.structures.items():
            found.setdefault((case.basis, name), []).append(value)
    return {key: median(values) for key, values in found.items()}


def _from_manifest(rows: Sequence[CaseRow]) -> NDArray[np.float64]:
    """Return what stands for embeddings without the scans: volumes and confidence of all structures, (n, F)."""
    names = sorted({name for row in rows for name in (*row.volumes_ml, *row.confidence)})
    figures = [
        [np.log1p(row.volumes_ml.get(name, 0.0)) for name in names] + [row.confidence.get(name, 0.0) for name in names]
        for row in rows
    ]
    return np.array(figures, dtype=float).reshape(len(rows), 2 * len(names))
