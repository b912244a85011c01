"""Say what a run will do before it runs: cases with models and outputs, what is left out, and how long it will take.

The time is an estimate: for each model some scans of different sizes are read, and `inference.estimate` says what they
cost; the other scans are interpolated by their numbers of voxels, which their headers state.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from napari_seg.bundles.spec import Bundle
from napari_seg.cohort.case import Case
from napari_seg.cohort.naming import CONFIDENCE_MAPS
from napari_seg.cohort.outputs import STATISTICS, result_paths
from napari_seg.cohort.scan_files import input_bytes
from napari_seg.cohort.select import SelectedCases, UnusedScan
from napari_seg.cohort.settings import RunSettings
from napari_seg.cohort.used_models import CODES_OF_ALL_CASES, ends_run
from napari_seg.errors import BundleError, InputError, NapariSegError, Notice
from napari_seg.formats.channels import ChannelSet
from napari_seg.formats.facts import ScanFacts, facts_of
from napari_seg.formats.kinds import DICOM_FORMATS
from napari_seg.formats.label_maps import label_map_doubts
from napari_seg.formats.scan import ReadOptions, Scan
from napari_seg.inference.fitness import check_modality, modality_doubts
from napari_seg.worker import WorkerError, WorkerProcess

MAX_EXAMPLES = 3
"""Number of scans of each model whose costs are estimated."""

MAX_LABEL_BYTES = 1.1
MAX_PACKED_LABEL_BYTES = 0.25
"""Bytes for each voxel up to which a file may be a label map: of a file that is not compressed, and of others."""

MAX_TRIES = 6
"""Number of scans of each model that are read at most, since some can't be."""


@dataclass(frozen=True)
class PlannedCase:
    """A case that will run.

    Attributes:
        case: the case.
        model: its model, as `--model` takes it.
        outputs: its files, relative to the output folder.
        voxels: number of voxels that its header states.
        is_done: whether an earlier run finished it, so that it is run again only with other settings.
        seconds: estimated time from the loaded model to the labels; None if unknown.
        windows: estimated number of windows of the network; None if unknown.
        notices: why the scan may not be one that the model segments; it runs all the same.
    """

    case: Case
    model: str
    outputs: tuple[str, ...]
    voxels: int
    is_done: bool = False
    seconds: float | None = None
    windows: int | None = None
    notices: tuple[Notice, ...] = ()


@dataclass(frozen=True)
class RunPlan:
    """What a run will do.

    Attributes:
        cases: cases that will run.
        skipped: scans that filters or rules leave out.
        refused: scans and inputs that can't be segmented; they will count as failed.
        other_files: code of a skip -> number of files that are no scan.
        repeated: scans that were found again, below another input or in another line of a list.
        examples: number of scans that the estimate of the time was made from; 0 without an estimate.
        doubts: why the time of a model is unknown.
        results_left_out: as for `Cohort`, after the run.
        results_renamed: as for `Cohort`, after the run.
    """

    cases: tuple[PlannedCase, ...]
    skipped: tuple[UnusedScan, ...] = ()
    refused: tuple[UnusedScan, ...] = ()
    other_files: Mapping[str, int] = field(default_factory=dict)
    repeated: int = 0
    examples: int = 0
    doubts: tuple[str, ...] = ()
    results_left_out: int = 0
    results_renamed: int = 0

    @property
    def to_run(self) -> tuple[PlannedCase, ...]:
        """Cases that no earlier run finished."""
        return tuple(one for one in self.cases if not one.is_done)

    @property
    def voxels(self) -> int:
        """Number of voxels of the cases that are left to run."""
        return sum(one.voxels for one in self.to_run)

    @property
    def seconds(self) -> float | None:
        """Estimated time of the cases that are left, one after the other; None if that of a case is unknown."""
        return _sum([one.seconds for one in self.to_run])

    @property
    def windows(self) -> int | None:
        """Estimated number of windows of the cases that are left; None if that of a case is unknown."""
        return _sum([one.windows for one in self.to_run])

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "cases": [
                {
                    "name": one.case.key,
                    "source": one.case.source,
                    "format": one.case.scan.format,
                    "model": one.model,
                    "outputs": list(one.outputs),
                    "voxels": one.voxels,
                    "done": one.is_done,
                    "seconds": None if one.seconds is None else round(one.seconds, 2),
                    "windows": one.windows,
                    "notices": [{"code": notice.code, "message": notice.message} for notice in one.notices],
                }
                for one in self.cases
            ],
            **{
                state: [
                    {"name": one.key, "source": one.source, "code": one.code, "message": one.message} for one in scans
                ]
                for state, scans in (("skipped", self.skipped), ("refused", self.refused))
            },
            "other_files": dict(self.other_files),
            "repeated": self.repeated,
            "total": {
                "cases": len(self.to_run),
                "voxels": self.voxels,
                "windows": self.windows,
                "hours": None if self.seconds is None else round(self.seconds / 3600, 3),
                "estimated_from": self.examples,
            },
            "doubts": list(self.doubts),
            "results_left_out": self.results_left_out,
            "results_renamed": self.results_renamed,
        }


def plan_run(selected: SelectedCases, settings: RunSettings, done: Collection[str] = ()) -> RunPlan:
    """Return the plan of a run without times; headers are read, voxels are not.

    Args:
        selected: what the run consists of.
        settings: settings of the run.
        done: keys of the cases that an earlier run finished.
    """
    names = {id(bundle): name for name, bundle in selected.models.items()}
    cases: list[PlannedCase] = []
    refused = [*selected.faults, *selected.refused]
    facts: dict[Path, ScanFacts] = {}
    for case in selected.cases:
        file, bundle = case.scan.files[0], case.bundle
        assert bundle is not None
        try:
            if isinstance(case.scan, ChannelSet) and case.scan.problem is not None:
                raise case.scan.problem
            if file not in facts:
                facts[file] = facts_of(case.scan)
            if case.key not in done and _states_modality(case.scan):  # others get a notice
                check_modality(facts[file].modality, bundle)
        except (InputError, BundleError) as error:
            refused.append(_refused(case, error))
            continue
        is_done = case.key in done
        notices = () if is_done else modality_doubts(facts[file].modality, bundle)
        model, outputs = names.get(id(bundle), bundle.name), _outputs(case, settings)
        cases.append(PlannedCase(case, model, outputs, facts[file].voxels, is_done, notices=notices))
    others = dict(sorted(selected.other_files.items()))
    return RunPlan(tuple(cases), selected.skipped, tuple(refused), others, selected.repeated)


def with_estimates(
    plan: RunPlan,
    settings: RunSettings,
    process: WorkerProcess | None = None,
    report: Callable[[str], None] = lambda text: None,
) -> RunPlan:
    """Return a plan with the estimated time of each case, and with notices on scans that may be label maps.

    A case that can't be estimated will fail for the same reason, and is refused.

    Args:
        plan: a plan of `plan_run`.
        settings: settings of the run.
        process: process that reads scans and loads models; None for one that ends with this call.
        report: called with a line of text before each scan that is read.

    Raises:
        NapariSegError: every case would fail with it.
    """
    worker = process or WorkerProcess()
    of_model: dict[str, list[PlannedCase]] = {}
    for one in plan.to_run:
        of_model.setdefault(one.model, []).append(one)
    costs: dict[str, list[_Cost]] = {}
    doubts: list[str] = []
    faults: dict[str, NapariSegError] = {}
    try:
        for model, cases in of_model.items():
            try:
                costs[model], doubt = _costs(cases, settings.for_scans(len(cases)), worker, report, faults)
            except NapariSegError as error:
                if ends_run(error, len({one.model for one in plan.cases})):
                    raise
                faults |= {one.case.key: error for one in cases}
            if not costs.get(model) and not all(one.case.key in faults for one in cases):
                doubts.append(f"the time of {model} is unknown: {doubt}")
    finally:
        if process is None:
            worker.close()
    left = [one for one in plan.cases if one.case.key not in faults]
    cases = [one if one.is_done else _estimated(_looked_into(one, settings), costs[one.model]) for one in left]
    refused = [_refused(one.case, faults[one.case.key]) for one in plan.to_run if one.case.key in faults]
    return replace(
        plan,
        cases=tuple(cases),
        refused=(*plan.refused, *refused),
        examples=sum(map(len, costs.values())),
        doubts=tuple(doubts),
    )


def _refused(case: Case, error: NapariSegError) -> UnusedScan:
    return UnusedScan(case.key, case.source, case.scan.format, error.code, error.message)


_Cost = tuple[int, float, int]
"""Voxels, seconds and windows of a scan."""


def _costs(
    cases: Sequence[PlannedCase],
    settings: RunSettings,
    worker: WorkerProcess,
    report: Callable[[str], None],
    faults: dict[str, NapariSegError],
) -> tuple[list[_Cost], str]:
    """Return the costs of scans of one model, from the smallest to the largest, or the reason why they are unknown.

    Args:
        cases: the cases.
        settings: settings of the run.
        worker: process that reads scans and loads models.
        report: as for `with_estimates`.
        faults: takes the error of each case that has one, by its key.

    Raises:
        NapariSegError: every case of the model would fail with it.
    """
    ordered = sorted(cases, key=lambda one: one.voxels)
    # smallest, largest and middle first, then others between them if some can't be read
    order = [0, len(ordered) - 1, len(ordered) // 2, len(ordered) // 4, 3 * len(ordered) // 4, 1]
    found: list[_Cost] = []
    reason = ""
    for number in list(dict.fromkeys(n for n in order if n < len(ordered)))[:MAX_TRIES]:
        one = ordered[number]
        if len(found) == MAX_EXAMPLES:
            break
        if any(cost[0] == one.voxels for cost in found):
            continue
        report(f"estimating the time of {one.case.key} with {one.model}")
        try:
            cost = worker.run(estimate_case, one.case, one.case.bundle, settings)
        except NapariSegError as error:
            if error.code in CODES_OF_ALL_CASES:
                raise
            faults[one.case.key], reason = error, str(error)
            continue
        except (MemoryError, WorkerError) as error:
            reason = str(error) or type(error).__name__
            continue
        if cost is None:
            return [], "its windows are not known before it runs"
        found.append((one.voxels, *cost))
    return sorted(found), reason


def _looked_into(one: PlannedCase, settings: RunSettings) -> PlannedCase:
    """Return a case with a notice if its scan has the values of a label map.

    Only a file that is small for its number of voxels is read: compressed, a label map has a few bits for each voxel, a
    scan a byte or more; a label map that is not compressed mostly has a byte.
    """
    scan = one.case.scan
    most = MAX_LABEL_BYTES if scan.files[0].name.lower().endswith(".nii") else MAX_PACKED_LABEL_BYTES
    if scan.format not in ("nifti", "itk") or len(scan.files) > 1 or input_bytes(scan) > most * one.voxels:
        return one
    limit: Any = {"memory_bytes": settings.options.memory_bytes, **settings.reading}
    try:
        volume = scan.read(**limit)
    except (NapariSegError, MemoryError):  # the run says so
        return one
    return replace(one, notices=(*one.notices, *label_map_doubts(volume)))


def estimate_case(case: Case, bundle: Bundle, settings: RunSettings) -> tuple[float, int] | None:
    """Return the estimated seconds and windows of a case; None if they are unknown. Runs in a worker process.

    Raises:
        NapariSegError: the scan can't be read, or the model can't be loaded.
    """
    from napari_seg.inference.estimate import estimate

    within: ReadOptions = {"memory_bytes": settings.options.memory_bytes, **settings.reading}
    within["one_slice"] = bool(bundle.takes_one_slice)
    volume = case.scan.read(**within, channels=bundle.in_channels)
    found = estimate(volume, bundle, settings.options)
    return None if found is None else (found.seconds, found.windows)


def _estimated(one: PlannedCase, costs: Sequence[_Cost]) -> PlannedCase:
    """Return a case with its costs: between scans interpolated, outside of them in proportion to the voxels."""
    if not costs:
        return one
    voxels, seconds, windows = (np.array(column, float) for column in zip(*costs, strict=True))
    nearest = 0 if one.voxels < voxels[0] else -1
    factor = one.voxels / max(voxels[nearest], 1) if not voxels[0] <= one.voxels <= voxels[-1] else 1.0
    at = float(np.clip(one.voxels, voxels[0], voxels[-1]))
    of_windows = round(float(np.interp(at, voxels, windows)) * factor)
    return replace(one, seconds=float(np.interp(at, voxels, seconds)) * factor, windows=max(1, of_windows))


def _states_modality(scan: Scan | ChannelSet) -> bool:
    """Return whether the modality of a scan is known when it is read; other files only suggest one by their names."""
    first = scan.channels[0][1] if isinstance(scan, ChannelSet) else scan
    return first.format == "dicom"


def _outputs(case: Case, settings: RunSettings) -> tuple[str, ...]:
    """Return the files that a case will have, if every format can hold it."""
    roles = {"labels", "record"} | ({"overlay"} if settings.preview else set())
    roles |= {kind for kind in settings.also if kind not in DICOM_FORMATS or case.scan.format == "dicom"}
    roles |= set(CONFIDENCE_MAPS) if settings.options.confidence_maps else set()
    roles |= {STATISTICS} if settings.statistics else set()
    return tuple(str(path) for role, path in result_paths(case).items() if role in roles)


def _sum(values: Sequence[Any]) -> Any:
    """Return the sum of values; None if one of them is."""
    return None if any(value is None for value in values) else sum(values)
