"""Train several configurations on the same folds, and make the best one, or the best two together, the bundle.

As in nnU-Net (Isensee et al. 2021, Nature Methods 18:203) these are a 2D network on slices, a 3D network, and, if a
patch at the full resolution shows little of a typical image, a 3D network at a lower one. A cascade, which takes part
only if it is named, is a 3D network at the full resolution that is shown the labels of the lower one. Each is a
complete bundle in the run's folder, planned and cross-validated like any other, so that a comparison goes on after a
kill as they do. The files of the best bundle are copied into the folder of the comparison. A pair becomes a bundle
whose members are the two, and whose probabilities are averaged.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import combinations
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from napari_seg.bundles.litter import is_litter
from napari_seg.errors import BundleError, Cancelled, EnvironmentFault, NapariSegError, OutputError
from napari_seg.formats.atomic import atomic_write
from napari_seg.formats.temporary import TemporaryFolder
from napari_seg.training.advice import SEEN_FRACTION, lower_resolution
from napari_seg.training.cascade import begin_second_stage
from napari_seg.training.choices import IGNORE, READING, Choices
from napari_seg.training.chosen import copy_bundle, copy_ensemble
from napari_seg.training.comparison import COMPARISON, Row, name_of_pair, rank, read_comparison, write_comparison
from napari_seg.training.folds import cross_validate, cross_validated_cases, cross_validated_patients
from napari_seg.training.gather.gather import DATA, Continued, Gathered, check_number, gather
from napari_seg.training.history import RUN, read_history
from napari_seg.training.identity import check_recorded
from napari_seg.training.pace import Pace
from napari_seg.training.pairs import Pair, score_pairs
from napari_seg.training.prepare import plan_bundle
from napari_seg.training.report import write_report
from napari_seg.training.run import STOP, window_values, writing
from napari_seg.training.scores import Cases, write_scores
from napari_seg.training.segnets_modules import in_options, naming, with_segnets
from napari_seg.training.time_plan import effective_settings, plan_time
from napari_seg.training.trust import check_stored_choices
from napari_seg.training.write import PLAN

LOWRES, CASCADE = "3d_lowres", "3d_cascade"
CONFIGURATIONS = ("2d", "3d", LOWRES, CASCADE)
_DEFAULT = CONFIGURATIONS[:-1]
"""A cascade costs a training more, so it has to be named."""
MIN_FACTOR = 2.0
"""The lower resolution has at least so many times fewer voxels; otherwise it is left out, as in nnU-Net."""
_MARGIN = 1.1
"""Patches have edges of multiples of 8 voxels, and may show a bit less than planned."""


@dataclass(frozen=True)
class Configurations:
    """Planned configurations.

    Attributes:
        data: folder that all of them read: the data set, or the converted one in the folder of the comparison.
        plans: name -> plan.
        folders: name -> folder of its bundle.
        choices: name -> choices that it was planned with.
        left_out: name -> reason.
    """

    data: Path
    plans: dict[str, dict[str, Any]] = field(default_factory=dict)
    folders: dict[str, Path] = field(default_factory=dict)
    choices: dict[str, Choices] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def plan_configurations(
    dataset_dir: Path,
    out: Path,
    choices: Choices,
    names: Sequence[str],
    *,
    dry_run: bool = False,
    more: Sequence[Path] = (),
    report: Callable[[str], None] = lambda text: None,
    **options: Any,
) -> Configurations:
    """Plan the configurations that suit a data set, and write their bundles; those that exist must agree.

    Data that have to be converted are converted once, for all configurations. After a failure or a kill converted cases
    and complete plans stay.

    Args:
        dataset_dir: data set.
        out: folder of the comparison.
        choices: choices of the user for all configurations.
        names: configurations; empty: those of an existing comparison, else all but the cascade, which brings its first
            stage along if it is named.
        dry_run: plan, and write nothing.
        more: further data sets, which are combined with the first one.
        report: function that prints a line of progress.
        options: further arguments of `plan_bundle`.

    Raises:
        BundleError: `bundle.compare`, choices that a comparison can't have, or one configuration only.
        OutputError: `output.exists`, the folder holds something else.
    """
    record = read_comparison(out)
    if record is None and out.exists() and (not out.is_dir() or not all(map(is_litter, out.iterdir()))):
        raise OutputError(
            "output.exists", f"{out} contains files, but no comparison; choose a new or empty folder for --compare"
        )
    wanted = {*(names or (record or {}).get("compared", _DEFAULT))}
    wanted |= {LOWRES} if CASCADE in wanted else set()
    names = [name for name in CONFIGURATIONS if name in wanted]
    if record is not None and _is_planned(out):
        if not options.get("trust"):
            check_stored_choices(record["choices"], choices, out / COMPARISON)
        first = _merged(record["choices"], choices, out)
    else:  # nothing is planned yet, so nothing has to agree
        first, record = choices, {"compared": names, "choices": choices.as_dict()}
    _check(first)
    is_first = not _is_planned(out)
    sources = [dataset_dir, *more]
    options |= {"report": report, "dry_run": dry_run}
    with ExitStack() as stack, writing(out):
        if dry_run:
            root = stack.enter_context(TemporaryFolder()) if "dataset" not in record else out
            read, _ = _convert(sources, root, first, record, report, dry_run)
            with naming(sources, read.folder):
                found = _plan(read, out, first, choices, names, options)
            return replace(found, data=out / DATA if read.folder != dataset_dir else dataset_dir)
        is_new = not out.exists()
        out.mkdir(parents=True, exist_ok=True)
        try:
            write_comparison(out, record)
            read, facts = _convert(sources, out, first, record, report, dry_run)
            write_comparison(out, record | facts)
            with naming(sources, read.folder):
                return _plan(read, out, first, choices, names, options)
        except BaseException as error:
            is_unsuited = isinstance(error, BundleError) and error.code == "bundle.compare"
            if is_first and (is_unsuited or not _is_planned(out)) and not (out / DATA).exists():
                shutil.rmtree(out / RUN, ignore_errors=True)
                (out / COMPARISON).unlink(missing_ok=True)
                if is_new:
                    out.rmdir()
            raise


def _is_planned(out: Path) -> bool:
    return any((out / RUN / name / PLAN).is_file() for name in CONFIGURATIONS)


@dataclass(frozen=True)
class _Read:
    """The data set that all configurations read.

    Attributes:
        folder: its folder.
        is_converted: whether it is not the user's own.
        is_combined: whether it was combined of several, so that it states itself what it ignores.
    """

    folder: Path
    is_converted: bool
    is_combined: bool

    def choices(self, choices: Choices) -> Choices:
        """Return the choices without those that say how the user's own data are read."""
        if not self.is_converted:
            return choices
        settings = {name: value for name, value in choices.settings.items() if name not in READING}
        settings |= {"anywhere": True} if self.is_combined else {}  # its images stay where they are
        labels = {name: of for name, of in choices.labels.items() if not (self.is_combined and name == IGNORE)}
        return replace(choices, settings=settings | {"layout": "decathlon"}, labels=labels)


def _convert(
    sources: Sequence[Path],
    root: Path,
    choices: Choices,
    record: Mapping[str, Any],
    report: Callable[[str], None],
    dry_run: bool,
) -> tuple[_Read, dict[str, Any]]:
    """Convert the data sets if necessary; return what is read, and facts about it for the record.

    Args:
        sources: data sets as the user has them.
        root: folder of the comparison, or a temporary one.
        choices: choices of the user, with those of the first start.
        record: record of the comparison; with "dataset" it was converted before and must be the same.
        report: function that prints a line of progress.
        dry_run: write nothing if it was converted before.
    """
    with with_segnets():
        from napari_seg.training.gather.combine import combine

        planned = record.get("converted", {}).get("data sets", [])

        def check(found: Mapping[str, Any], data_sets: Sequence[dict[str, Any]]) -> None:
            if found != record["dataset"] or list(data_sets) != planned:
                raise OutputError(
                    "output.exists",
                    f"{root} compares configurations for other data; give the same data sets in the same order, or "
                    "choose a new folder with -o",
                )

        continued = None
        if "converted" in record:
            check_recorded(record, root)
            check_number(planned, len(sources))
            continued = Continued(check, dry_run, planned)
        into, marker = root / DATA, root / COMPARISON
        if len(sources) > 1:
            converted: Gathered | None = combine(
                sources, into, choices.reading, choices.labels, report, marker, continued, 0
            )
        else:
            converted = gather(sources[0], into, choices.reading, report, marker, continued=continued)
        if converted is None:
            return _Read(sources[0], False, False), {}
        for text in converted.unused:
            report(in_options(text))
        facts = {"converted": converted.as_dict(), "dataset": converted.identity}
        return _Read(converted.folder, True, len(sources) > 1), facts


def _plan(
    read: _Read, out: Path, first: Choices, choices: Choices, names: Sequence[str], options: dict[str, Any]
) -> Configurations:
    """Plan the configurations one after another.

    Args:
        read: data set that they read.
        out: folder of the comparison.
        first: choices of the first start and of this one, for configurations that are not planned yet.
        choices: choices of this start, which must agree with those of configurations that are planned.
        names: configurations.
        options: further arguments of `plan_bundle`.
    """
    found = Configurations(read.folder)
    for name in names:
        folder = out / RUN / name
        is_planned = (folder / PLAN).is_file()
        chosen = replace(read.choices(choices if is_planned else first), dims=2 if name == "2d" else 3)
        if name == CASCADE:
            if (reason := _why_no_cascade(found, chosen)) and not is_planned:
                found.left_out[name] = reason
                continue
            chosen = replace(chosen, previous=LOWRES)
        if name == LOWRES and not is_planned:
            full = found.plans.get("3d") or plan_bundle(read.folder, folder, chosen, dry_run=True)
            spacing, reason = lowres_spacing(full)
            if spacing is None:
                found.left_out[name] = reason
                continue
            chosen = replace(chosen, settings={**chosen.settings, "spacing_mm": spacing})
        plan = plan_bundle(read.folder, folder, chosen, **options)
        if plan["fingerprint"]["modality"] == "image2d":
            raise BundleError(
                "bundle.compare", "found 2D images, for which there is one configuration; leave --compare out"
            )
        found.plans[name], found.folders[name], found.choices[name] = plan, folder, chosen
    if len(found.plans) < 2:
        reasons = "".join(f"; {name} is left out: {reason}" for name, reason in found.left_out.items())
        raise BundleError(
            "bundle.compare",
            f"found {', '.join(found.plans) or 'nothing'} to compare; expected two configurations{reasons}; give "
            "--compare 2d 3d, or leave --compare out",
        )
    return found


def _why_no_cascade(found: Configurations, choices: Choices) -> str:
    """Return the reason against a cascade, whose first stage is planned if it makes sense; "" if there is none."""
    if LOWRES not in found.plans:
        return f"there is no {LOWRES}, whose labels it needs"
    for name in choices.settings:
        if name.lstrip("+~").replace("::", "#") in ("preprocessing", "preprocessing#transforms"):
            return f"--set {name} replaces the steps that add the labels of {LOWRES}"
    return "its structures may overlap" if found.plans[LOWRES].get("regions") else ""


def _check(choices: Choices) -> None:
    if choices.folds is None:
        raise BundleError(
            "bundle.compare", "found --compare without --folds; add the number of folds, such as --folds 5"
        )
    if choices.dims is not None or choices.fine_tune:
        found = "--fine-tune" if choices.fine_tune else f"--dims {choices.dims}"
        raise BundleError("bundle.compare", f"found {found} with --compare, which plans other networks; leave one out")


def _merged(stored: dict[str, Any], choices: Choices, out: Path) -> Choices:
    """Return the choices of the first start, with those of this start."""
    try:
        first = Choices(**{**stored, "options": tuple(stored.get("options", ()))})
    except TypeError as error:
        raise BundleError("bundle.compare", f"{out / COMPARISON} is damaged; choose a new folder with -o") from error
    made = {name: value for name, value in choices.as_dict().items() if name not in ("settings", "options")}
    return replace(
        first, **made, options=choices.options or first.options, settings={**first.settings, **choices.settings}
    )


def lowres_spacing(full: Mapping[str, Any]) -> tuple[list[float] | None, str]:
    """Return the spacing at which a patch shows a quarter of a typical image, or None and the reason against it.

    Args:
        full: plan of the 3D network at the full resolution.
    """
    found, settings = full["fingerprint"], full["settings"]
    spacing = np.array(settings["spacing_mm"]["value"], dtype=float)
    shape = np.array(found["median shape"]) * np.array(found["median spacing_mm"]) / spacing
    seen = prod(settings["patch_size"]["value"]) / float(np.prod(shape))
    if seen >= SEEN_FRACTION / MIN_FACTOR:
        return None, f"a patch of 3d shows {min(seen, 1):.0%} of a typical image, so that it would gain little"
    coarser = lower_resolution(spacing, _MARGIN * SEEN_FRACTION / seen)
    return [round(float(length), 2) for length in coarser], ""


def total_minutes(planned: Configurations, limits: Mapping[str, Any]) -> float | None:
    """Return the estimated minutes of all folds of all configurations; None if a plan was not timed.

    Args:
        planned: planned configurations.
        limits: max_minutes, max_epochs and gpus of this start, if given.
    """
    total = 0.0
    for plan in planned.plans.values():
        if "time" not in plan:
            return None
        time = plan_time(Pace(**plan["time"]), effective_settings(plan, **limits), limits.get("max_minutes"))
        total += plan["choices"]["folds"] * time.minutes
        if first := planned.plans.get(plan["choices"].get("previous", "")):  # its labels in each case
            total += plan["choices"]["folds"] * Pace(**first["time"]).evaluation / 60
    return total + (pair_minutes(planned) or 0.0 if pair_names(planned) else 0.0)


def pair_minutes(planned: Configurations) -> float | None:
    """Return the estimated minutes of comparing pairs: an evaluation of each fold; None if a plan was not timed."""
    if not all("time" in plan for plan in planned.plans.values()):
        return None
    seconds = (plan["choices"]["folds"] * Pace(**plan["time"]).evaluation for plan in planned.plans.values())
    return sum(seconds) / 60


def pair_names(planned: Configurations) -> list[str]:
    """Return the names of the pairs that are compared; none for regions, whose label map is made of several masks."""
    if any(plan.get("regions") for plan in planned.plans.values()):
        return []
    return [name_of_pair(pair) for pair in combinations(planned.plans, 2)]


def compare_configurations(
    out: Path,
    planned: Configurations,
    only: int | None,
    report: Callable[[str], None],
    values_of: Mapping[str, Mapping[str, Any]],
) -> list[Row] | None:
    """Train the unfinished folds of all configurations; once all are finished, make the best one or two the bundle.

    Args:
        out: folder of the comparison.
        planned: planned configurations.
        only: index of the only fold to train; None trains all.
        report: function that prints a line of progress.
        values_of: configuration -> arguments of `training_command`.

    Returns:
        The configurations and their pairs, the chosen one first; None before all folds are finished.

    Raises:
        TrainingError: one of the commands failed.
        Cancelled: a command was interrupted; finished folds are kept.
    """
    scores: dict[str, Cases] = {}
    for name, plan in planned.plans.items():
        report(f"configuration {name}")
        folder, folds = planned.folders[name], plan["choices"]["folds"]
        if first := plan["choices"].get("previous"):
            if not scores[first]:
                report(f"{name} is trained when all folds of {first} are finished")
                scores[name] = {}
                continue
            windows = window_values(values_of[first])
            try:
                begin_second_stage(folder, planned.folders[first], planned.data, folds, report, out / STOP, windows)
            except Cancelled:
                raise
            except NapariSegError as fault:
                report(f"{name} is left out, because the labels of {first} could not be written: {fault}")
                planned = _without(planned, name, first, fault)
                continue
        cross_validate(folder, planned.data, folds, only, report, stop_file=out / STOP, **values_of[name])
        scores[name] = cross_validated_cases(folder, folds)
    finished = {name: cases for name, cases in scores.items() if cases}
    if len(finished) < len(scores):
        return None
    minutes = _of_both_stages(planned, {name: _minutes(planned.folders[name]) for name in scores})
    parameters = {name: plan["network"].get("parameters") for name, plan in planned.plans.items()}
    parameters = _of_both_stages(planned, parameters)
    patients = [
        cross_validated_patients(planned.folders[name], planned.plans[name]["choices"]["folds"]) for name in scores
    ]
    pairs, seconds = _pairs(out, planned, report, values_of)
    rows = rank({**finished, **{pair.name: pair.cases for pair in pairs}}, patients[0], minutes, parameters, seconds)
    record = read_comparison(out) or {}
    record |= {"compared": list(scores), "left out": planned.left_out, "results": [row.as_dict() for row in rows]}
    write_comparison(out, record)
    single = next(row.name for row in rows if row.name in scores)
    if pair := next((pair for pair in pairs if pair.name == rows[0].name), None):
        best = next(row.name for row in rows if row.name in pair.members)
        copy_ensemble(pair, {name: planned.folders[name] for name in pair.members}, out, best)
        write_scores(out, "cross-validation", pair.cases, patients[0], [gain.as_dict() for gain in pair.gains])
    else:
        copy_bundle(planned.folders[best := single], out)
    if "converted" in record:  # for those who read the plan of the bundle
        plan = planned.plans[best] | {"converted": record["converted"]}
        atomic_write(out / PLAN, json.dumps(plan, indent=2) + "\n")
    write_report(out, planned.folders[single], [row.cells() for row in rows], planned.left_out)
    return rows


def _without(planned: Configurations, name: str, first: str, fault: NapariSegError) -> Configurations:
    """Return the configurations without a cascade for which the labels of its first stage could not be written."""
    text = str(fault) if isinstance(fault, EnvironmentFault) else fault.code  # other messages can name files
    left_out = planned.left_out | {name: f"the labels of {first} could not be written: {text}"}
    plans, folders = dict(planned.plans), dict(planned.folders)
    del plans[name], folders[name]
    return replace(planned, plans=plans, folders=folders, left_out=left_out)


def _pairs(
    out: Path, planned: Configurations, report: Callable[[str], None], values_of: Mapping[str, Mapping[str, Any]]
) -> tuple[list[Pair], dict[str, float]]:
    """Return the scores of the pairs, and configuration -> seconds for a case; none if they can't be compared."""
    folds = next(iter(planned.plans.values()))["choices"]["folds"]
    if len(planned.plans) < 2:
        return [], {}
    if not pair_names(planned):
        report("pairs of configurations are not compared, because the structures may overlap")
        return [], {}
    try:
        windows = {name: window_values(values_of[name]) for name in planned.folders}
        pairs, seconds = score_pairs(out, planned.data, planned.folders, folds, report, out / STOP, windows)
    except EnvironmentFault as fault:
        if fault.code != "environment.memory":
            raise
        report(f"pairs of configurations are not compared: {fault.message}")
        return [], {}
    for pair in pairs:
        for gain in pair.gains:
            report(f"{pair.name}: {gain.describe()}")
    return pairs, _of_both_stages(planned, seconds)


def _of_both_stages(planned: Configurations, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return configuration -> number; that of a cascade with the one of its first stage, None if either is unknown."""
    found = dict(values)
    for name, plan in planned.plans.items():
        first = plan["choices"].get("previous")
        if first and name in values:
            found[name] = None if None in (values[first], values[name]) else values[first] + values[name]
    return found


def _minutes(root: Path) -> float:
    """Return the minutes of training of all folds."""
    last = [[line["seconds"] for line in read_history(folder) if "seconds" in line] for folder in root.glob("fold_*")]
    return sum(seconds[-1] for seconds in last if seconds) / 60
