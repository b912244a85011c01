"""Which case next: rank the cases of a finished run by how much a correction of each would teach the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from napari_seg.bundles.read import read_bundle
from napari_seg.bundles.spec import Bundle
from napari_seg.cohort.case import Case
from napari_seg.cohort.rows import CaseRow
from napari_seg.errors import InputError, NapariSegError
from napari_seg.inference.options import SegmentOptions
from napari_seg.inference.second_look import SecondLook
from napari_seg.learning.finished_run import FinishedRun, Looker, accepted_cases, scans_of
from napari_seg.learning.ranking import Choice, Strategy, choose
from napari_seg.learning.second_looks import SecondLooks
from napari_seg.progress import Progress, ignore_progress

_ACCEPTED = "accepted case"

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
    in the manifest, and distances from the volumes.

    Args:
        results: output folder of the run.
        scans: folder of the scans of the run; None: rank by what is known of them.
        model: the model to improve, its folder or its name; None: the one that made the results.
        accepted: folder or list of the accepted cases, whose like need no correction.
        strategy: "uncertain-diverse", uncertainty times distance; "uncertain"; or "random", the control.
        count: number of cases to rank; None: all.
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
    corrected = [] if accepted is None else accepted_cases(Path(accepted), chosen)
    if strategy == "random":
        return _ranked(run, rows, {}, corrected, {}, strategy, count, seed)
    with SecondLooks(run.folder, digest, run.kept_options) as looks:
        faults: dict[str, NapariSegError] = {}
        cases: dict[str, Case] = {}
        looker = Looker(run, looks, options or SegmentOptions(), progress or ignore_progress)
        if scans is not None:
            bundle = chosen or run.bundle(digest)
            cases, faults = scans_of(rows, Path(scans), bundle)
            pool = [(row.name, row.input_sha256, cases[row.name]) for row in rows if row.name in cases]
            others = [(f"{_ACCEPTED} {case.key}", sha256, case) for sha256, case in corrected]
            faults |= looker.look(bundle, pool, others)
        elif corrected and any(looks.get(row.input_sha256) for row in rows):
            others = [(f"{_ACCEPTED} {case.key}", sha256, case) for sha256, case in corrected]
            faults |= looker.look(chosen or run.bundle(digest), [], others)
        known = {sha256: look for sha256 in _digests(rows, corrected) if (look := looks.get(sha256)) is not None}
    if scans is not None or any(row.input_sha256 in known for row in rows):
        for row in rows:
            if row.name not in faults and row.input_sha256 not in known:
                text = "the model did not look at this scan yet; name the folder of the scans with --scans"
                faults[row.name] = InputError("queue.no_look", text)
    else:
        known = {}
    return _ranked(run, rows, known, corrected, faults, strategy, count, seed, cases)


def _digests(rows: Sequence[CaseRow], corrected: Sequence[tuple[str, Case]]) -> set[str]:
    return {row.input_sha256 for row in rows} | {sha256 for sha256, _ in corrected}


def _ranked(
    run: FinishedRun,
    rows: Sequence[CaseRow],
    known: Mapping[str, SecondLook],
    corrected: Sequence[tuple[str, Case]],
    faults: Mapping[str, NapariSegError],
    strategy: Strategy,
    count: int | None,
    seed: int,
    cases: Mapping[str, Case] | None = None,
) -> list[RankedCase]:
    """Return the cases in their order, the accepted ones behind them, and those with a fault at the end.

    Args:
        run: the run.
        rows: its finished cases.
        known: digest of a scan -> look; empty: rank by the manifest alone.
        corrected: digest and case of the accepted scans.
        faults: name -> error.
        strategy: how to rank.
        count: number of cases to rank.
        seed: of the strategy "random".
        cases: name -> scan, as far as they were found.
    """
    accepted = {sha256: case for sha256, case in corrected}
    every = {row.name: _case(run, row, known.get(row.input_sha256), (cases or {}).get(row.name)) for row in rows}
    open_rows = [row for row in rows if row.name not in faults and row.input_sha256 not in accepted]
    others = [case.key for sha256, case in corrected if sha256 in known]
    if known:
        length = max(len(look.embedding) for look in known.values())
        embeddings = _stacked([known[row.input_sha256].embedding for row in open_rows], length)
        near = _stacked([known[sha256].embedding for sha256, _ in corrected if sha256 in known], length)
    else:
        embeddings, near = _from_manifest(open_rows), np.zeros((0, 0))
        others = []
    names = [row.name for row in open_rows]
    uncertainty = [float(every[name].uncertainty or 0.0) for name in names]
    order = choose(names, uncertainty, embeddings, near, strategy, count, seed)
    result = []
    for place, choice in enumerate(order):
        case = every[names[choice.number]]
        why = _why(case, choice, strategy, names, others)
        result.append(replace(case, rank=place + 1, distance=choice.distance, why=why))
    for row in rows:
        if row.input_sha256 in accepted and row.name not in faults and (count is None or len(result) < count):
            why = f"already accepted as {accepted[row.input_sha256].key}"
            result.append(replace(every[row.name], rank=len(result) + 1, is_accepted=True, distance=0.0, why=why))
    for name, fault in faults.items():
        case = every.get(name, RankedCase(name, is_accepted=True))
        result.append(replace(case, uncertainty=None, structures={}, code=fault.code, message=fault.message))
    return result


def _case(run: FinishedRun, row: CaseRow, look: SecondLook | None, case: Case | None) -> RankedCase:
    """Return a case with its uncertainty, not ranked yet."""
    labels = row.outputs.get("labels")
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
        labels=None if labels is None else run.folder / labels.path,
    )


def _why(case: RankedCase, choice: Choice, strategy: Strategy, names: Sequence[str], others: Sequence[str]) -> str:
    """Return the reason for a rank in words."""
    if strategy == "random":
        return "chosen at random"
    if not case.structures:
        reasons = ["no structure was found"]
    else:
        worst = max(case.structures, key=lambda name: case.structures[name])
        reasons = [f"{case.basis} on {worst}" if case.basis == "disagreement" else f"low confidence in {worst}"]
        reasons = [f"{reasons[0]} ({case.structures[worst]:.2f})"]
    if choice.nearest is not None:
        is_open = choice.nearest < len(names)
        nearest = names[choice.nearest] if is_open else f"accepted {others[choice.nearest - len(names)]}"
        reasons.append(f"distance {choice.distance:.2f} to {nearest}")
    return ", ".join(reasons)


def _stacked(embeddings: Sequence[NDArray[np.float32]], length: int) -> NDArray[np.float64]:
    """Return embeddings (n, F) with zeros behind shorter ones, of scans too small for a feature map."""
    stacked = np.zeros((len(embeddings), length))
    for row, embedding in zip(stacked, embeddings, strict=True):
        row[: len(embedding)] = embedding
    return stacked


def _from_manifest(rows: Sequence[CaseRow]) -> NDArray[np.float64]:
    """Return what stands for embeddings without the scans: volumes and confidence of all structures, (n, F)."""
    names = sorted({name for row in rows for name in (*row.volumes_ml, *row.confidence)})
    figures = [
        [np.log1p(row.volumes_ml.get(name, 0.0)) for name in names] + [row.confidence.get(name, 0.0) for name in names]
        for row in rows
    ]
    return np.array(figures, dtype=float).reshape(len(rows), 2 * len(names))
