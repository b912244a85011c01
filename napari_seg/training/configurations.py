"""Train several configurations on the same folds, and make the best one the bundle.

As in nnU-Net (Isensee et al. 2021, Nature Methods 18:203) these are a 2D network on slices, a 3D network, and a 3D
network at a lower resolution, if a patch at the full one shows little of a typical image. Each is a complete bundle in
the run's folder, planned and cross-validated like any other, so that a comparison goes on after a kill as they do. The
files of the best bundle are copied into the folder of the comparison.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from napari_seg.bundles.spec import METADATA, WEIGHTS
from napari_seg.errors import BundleError, OutputError
from napari_seg.formats.atomic import atomic_file, atomic_write
from napari_seg.training.advice import SEEN_FRACTION, lower_resolution
from napari_seg.training.choices import IGNORE, READING, Choices
from napari_seg.training.comparison import COMPARISON, Row, rank, read_comparison, write_comparison
from napari_seg.training.folds import cross_validate, cross_validated_cases
from napari_seg.training.history import RUN, read_history
from napari_seg.training.pace import Pace
from napari_seg.training.prepare import data_folder, plan_bundle
from napari_seg.training.report import write_report
from napari_seg.training.run import STOP, writing
from napari_seg.training.time_plan import effective_settings, plan_time
from napari_seg.training.trust import check_stored_choices
from napari_seg.training.write import PLAN

CONFIGURATIONS = ("2d", "3d", "3d_lowres")
MIN_FACTOR = 2.0
"""The lower resolution has at least so many times fewer voxels; otherwise it is left out, as in nnU-Net."""
_MARGIN = 1.1
"""Patches have edges of multiples of 8 voxels, and may show a bit less than planned."""
_BUNDLE = ("segnets", "configs", "docs", "LICENSE", PLAN)


@dataclass(frozen=True)
class Configurations:
    """Planned configurations.

    Attributes:
        plans: name -> plan.
        folders: name -> folder of its bundle.
        data: name -> data set that it was planned for; `data_folder` gives the one that training reads.
        left_out: name -> reason.
    """

    plans: dict[str, dict[str, Any]]
    folders: dict[str, Path]
    data: dict[str, Path]
    left_out: dict[str, str]


def plan_configurations(
    dataset_dir: Path,
    out: Path,
    choices: Choices,
    names: Sequence[str],
    *,
    dry_run: bool = False,
    more: Sequence[Path] = (),
    **options: Any,
) -> Configurations:
    """Plan the configurations that suit a data set, and write their bundles; those that exist must agree.

    Args:
        dataset_dir: data set.
        out: folder of the comparison.
        choices: choices of the user for all configurations.
        names: configurations; empty: those of an existing comparison, else all.
        dry_run: plan, and write nothing.
        more: further data sets, which are combined with the first one.
        options: further arguments of `plan_bundle`.

    Raises:
        BundleError: `bundle.compare`, choices that a comparison can't have, or one configuration only.
        OutputError: `output.exists`, the folder holds something else.
    """
    before = read_comparison(out)
    names = [name for name in CONFIGURATIONS if name in (names or (before or {}).get("compared", CONFIGURATIONS))]
    if before is not None:
        first = _merged(before["choices"], choices, out)
        if not options.get("trust"):
            check_stored_choices(before["choices"], choices, out / COMPARISON)
        _check(first)
        return _plan(dataset_dir, out, first, choices, names, dry_run, more, options)
    _check(choices)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(
            "output.exists", f"{out} contains files, but no comparison; choose a new or empty folder for --compare"
        )
    if dry_run:
        return _plan(dataset_dir, out, choices, choices, names, dry_run, more, options)
    with writing(out):
        is_new = not out.exists()
        out.mkdir(parents=True, exist_ok=True)
        try:
            write_comparison(out, {"compared": names, "choices": choices.as_dict()})
            return _plan(dataset_dir, out, choices, choices, names, dry_run, more, options)
        except BaseException:
            shutil.rmtree(out / RUN, ignore_errors=True)
            (out / COMPARISON).unlink(missing_ok=True)
            if is_new:
                out.rmdir()
            raise


def _plan(
    dataset_dir: Path,
    out: Path,
    first: Choices,
    choices: Choices,
    names: Sequence[str],
    dry_run: bool,
    more: Sequence[Path],
    options: dict[str, Any],
) -> Configurations:
    """Plan the configurations one after another; what the first one converts is read by all.

    Args:
        dataset_dir: data set.
        out: folder of the comparison.
        first: choices of the first start and of this one, for configurations that are not planned yet.
        choices: choices of this start, which must agree with those of configurations that are planned.
        names: configurations.
        dry_run: plan, and write nothing.
        more: further data sets.
        options: further arguments of `plan_bundle`.
    """
    found = Configurations({}, {}, {}, {})
    for name in names:
        folder = out / RUN / name
        is_planned = (folder / PLAN).is_file()
        chosen = replace(choices if is_planned else first, dims=2 if name == "2d" else 3)
        if name == "3d_lowres" and not is_planned:
            full = found.plans.get("3d") or plan_bundle(dataset_dir, folder, chosen, dry_run=True, more=more)
            spacing, reason = lowres_spacing(full)
            if spacing is None:
                found.left_out[name] = reason
                continue
            chosen = replace(chosen, settings={**chosen.settings, "spacing_mm": spacing})
        plan = plan_bundle(dataset_dir, folder, chosen, dry_run=dry_run, more=more, **options)
        if plan["fingerprint"]["modality"] == "image2d":
            raise BundleError(
                "bundle.compare", "found 2D images, for which there is one configuration; leave --compare out"
            )
        found.plans[name], found.folders[name], found.data[name] = plan, folder, dataset_dir
        if "converted" in plan and not dry_run:
            first, choices = (_for_converted(one, is_combined=bool(more)) for one in (first, choices))
            dataset_dir, more = data_folder(dataset_dir, folder, plan), ()
    if len(found.plans) < 2:
        reasons = "".join(f"; {name} is left out: {reason}" for name, reason in found.left_out.items())
        raise BundleError("bundle.compare", f"found {len(found.plans)} configuration to compare; expected two{reasons}")
    return found


def _check(choices: Choices) -> None:
    if choices.folds is None:
        raise BundleError("bundle.compare", "found --compare without --folds; expected the number of folds, such as 5")
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


def _for_converted(choices: Choices, is_combined: bool) -> Choices:
    """Return the choices without those that say how the user's data are read; combined data state what they ignore."""
    settings = {name: value for name, value in choices.settings.items() if name not in READING or name == "patient"}
    labels = {name: of for name, of in choices.labels.items() if not (is_combined and name == IGNORE)}
    return replace(choices, settings=settings, labels=labels)


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
        limits: max_minutes and max_epochs of this start, if given.
    """
    total = 0.0
    for plan in planned.plans.values():
        if "time" not in plan:
            return None
        time = plan_time(Pace(**plan["time"]), effective_settings(plan, **limits), limits.get("max_minutes"))
        total += plan["choices"]["folds"] * time.minutes
    return total


def compare_configurations(
    out: Path,
    planned: Configurations,
    only: int | None,
    report: Callable[[str], None],
    values_of: Mapping[str, Mapping[str, Any]],
) -> list[Row] | None:
    """Train the unfinished folds of all configurations; once all are finished, make the best one the bundle.

    Args:
        out: folder of the comparison.
        planned: planned configurations.
        only: index of the only fold to train; None trains all.
        report: function that prints a line of progress.
        values_of: configuration -> arguments of `training_command`.

    Returns:
        The configurations, best first; None before all folds are finished.

    Raises:
        TrainingError: one of the commands failed.
        Cancelled: a command was interrupted; finished folds are kept.
    """
    scores = {}
    for name, plan in planned.plans.items():
        report(f"configuration {name}")
        folder, folds = planned.folders[name], plan["choices"]["folds"]
        data = data_folder(planned.data[name], folder, plan)
        cross_validate(folder, data, folds, only, report, stop_file=out / STOP, **values_of[name])
        scores[name] = cross_validated_cases(folder, folds)
    finished = {name: cases for name, cases in scores.items() if cases}
    if len(finished) < len(scores):
        return None
    minutes = {name: _minutes(planned.folders[name]) for name in scores}
    parameters = {name: plan["network"].get("parameters") for name, plan in planned.plans.items()}
    rows = rank(finished, minutes, parameters)
    record = read_comparison(out) or {}
    record |= {"compared": list(scores), "left out": planned.left_out, "results": [row.as_dict() for row in rows]}
    write_comparison(out, record)
    best = rows[0].name
    copy_bundle(planned.folders[best], out)
    write_report(out, planned.folders[best], [row.cells() for row in rows])
    return rows


def copy_bundle(source: Path, out: Path) -> None:
    """Copy the files of a trained bundle, without its runs, to another folder; its weights come last.

    Args:
        source: folder of the bundle.
        out: folder of the copy; a bundle that is there is replaced.
    """
    for name in ("models", *_BUNDLE):  # a link is removed, not followed
        if (out / name).is_dir() and not (out / name).is_symlink():
            shutil.rmtree(out / name)
        else:
            (out / name).unlink(missing_ok=True)
    for name in _BUNDLE:
        if (source / name).is_dir():
            shutil.copytree(source / name, out / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source / name, out / name)
    metadata = json.loads((out / METADATA).read_text(encoding="utf-8")) | {"name": out.name}
    atomic_write(out / METADATA, json.dumps(metadata, indent=4) + "\n")
    page = out / "docs" / "README.md"
    page.write_text(f"# {out.name}\n" + page.read_text(encoding="utf-8").partition("\n")[2], encoding="utf-8")
    (out / WEIGHTS).parent.mkdir(exist_ok=True)
    with atomic_file(out / WEIGHTS) as unfinished:
        shutil.copyfile(source / WEIGHTS, unfinished)


def _minutes(root: Path) -> float:
    """Return the minutes of training of all folds."""
    last = [[line["seconds"] for line in read_history(folder) if "seconds" in line] for folder in root.glob("fold_*")]
    return sum(seconds[-1] for seconds in last if seconds) / 60
