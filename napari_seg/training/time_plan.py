"""Plan the time of a training from the measured time of its parts."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

from napari_seg.training.memory_plan import PATCHES
from napari_seg.training.pace import Pace, measure_pace
from napari_seg.training.write import change_training

logger = logging.getLogger(__name__)

VALIDATION_FRACTION = 0.1
"""Largest fraction of the training's time for its validations."""
MIN_VALIDATION_CASES = 4
TIMED_VALIDATIONS = 10
"""Most validations of a training with a time limit (`segnets.training.Validation`)."""
START_SECONDS = 10.0
"""Seconds in which MONAI's command loads its libraries and checks the data set again."""
FEW = 0.25
"""Fraction of the planned steps below which a network has hardly learned anything."""


@dataclass(frozen=True)
class TimePlan:
    """Planned time of a training.

    Attributes:
        steps: planned steps.
        reached: steps that fit into the time limit, at most `steps`.
        validations: number of validations.
        training: seconds of the steps that are reached.
        validating: seconds of the validations.
        preparing: seconds in which the cases are prepared, before and during the first epoch.
        evaluating: seconds of the evaluation at the end.
        full_minutes: minutes that reach all planned steps, as `--max-minutes` counts them.
        few_minutes: minutes that reach the fraction `FEW` of them.
    """

    steps: int
    reached: int
    validations: int
    training: float
    validating: float
    preparing: float
    evaluating: float
    full_minutes: float
    few_minutes: float

    @property
    def minutes(self) -> float:
        """Return the minutes of the whole command, from its start to its end."""
        return (START_SECONDS + self.preparing + self.training + self.validating + self.evaluating) / 60


def plan_time(pace: Pace, settings: Mapping[str, Any], max_minutes: float | None = None) -> TimePlan:
    """Return the planned time of a training.

    Args:
        pace: measured seconds.
        settings: planned values of max_epochs, val_interval, batch_size, patches_per_case and val_cases, and the number
            of gpus, among which steps and validated cases are divided; the last three may be missing.
        max_minutes: time limit; None: no limit.
    """
    epochs, gpus = settings["max_epochs"], settings.get("gpus", 1)
    steps_per_epoch = ceil(pace.training_cases * settings.get("patches_per_case", 1) / (settings["batch_size"] * gpus))
    steps = epochs * steps_per_epoch
    validated = min(settings.get("val_cases") or pace.validation_cases, pace.validation_cases)
    divided = ceil(validated / gpus) if validated >= gpus else validated
    one = pace.validation * divided / max(pace.validation_cases, 1)
    regular = ceil(epochs / settings["val_interval"]) if validated else 0
    preparing = pace.case * (pace.training_cases + validated)

    def minutes(steps: float, validations: int) -> float:
        return (preparing + steps * pace.step + validations * one) / 60

    full = minutes(steps, regular)
    validations, reached = regular, steps
    if max_minutes is not None and full > max_minutes:
        seconds = max(60 * max_minutes - preparing, 0)
        within = min(TIMED_VALIDATIONS - 1, int(VALIDATION_FRACTION * seconds / one) if one else TIMED_VALIDATIONS)
        epochs_within = int((seconds - within * one) / (pace.step * steps_per_epoch))
        within = min(max(within, epochs_within // settings["val_interval"]), epochs_within)  # each ends an epoch
        validations = within + 1 if validated else 0  # the last one comes after the limit
        reached = min(max(int((seconds - within * one) / pace.step), 1), steps)
    return TimePlan(
        steps=steps,
        reached=reached,
        validations=validations,
        training=reached * pace.step,
        validating=validations * one,
        preparing=preparing,
        evaluating=pace.evaluation,
        full_minutes=full,
        few_minutes=minutes(FEW * steps, TIMED_VALIDATIONS),
    )


def effective_settings(written: Mapping[str, Any], **values: Any) -> dict[str, Any]:
    """Return the settings of a plan that determine its time, in effect.

    Args:
        written: content of plan.json.
        values: config id -> value that is set in this start.
    """
    planned = {name: entry["value"] for name, entry in written["settings"].items()}
    chosen = planned | written["choices"].get("settings", {}) | values
    names = ("max_epochs", "val_interval", "batch_size", "patches_per_case", "val_cases", "gpus")
    return {name: chosen[name] for name in names if name in chosen}


def needs_patches(pace: Pace, settings: Mapping[str, Any]) -> bool:
    """Return whether the validations take over twice `VALIDATION_FRACTION` even with `MIN_VALIDATION_CASES` cases.

    The planned length decides: a time limit holds for one start, and validations are rarer then.
    """
    count = min(settings.get("val_cases") or MIN_VALIDATION_CASES, MIN_VALIDATION_CASES)
    fewest = plan_time(pace, {**settings, "val_cases": count})
    return fewest.validating > 2 * VALIDATION_FRACTION * fewest.training


def affordable_cases(pace: Pace, settings: Mapping[str, Any]) -> int | None:
    """Return the number of validation cases if all would take over `VALIDATION_FRACTION` of the training, else None.

    The planned length decides, as in `needs_patches`.
    """
    whole = plan_time(pace, {**settings, "val_cases": None})
    if whole.validating <= VALIDATION_FRACTION * whole.training:
        return None
    fraction = VALIDATION_FRACTION * whole.training / whole.validating
    cases = max(MIN_VALIDATION_CASES, int(fraction * pace.validation_cases))
    return cases if cases < pace.validation_cases else None


def fit_time(
    written: dict[str, Any],
    root: Path,
    dataset_dir: Path,
    voxels: Mapping[str, int],
    device: str,
    limits: Mapping[str, float],
) -> None:
    """Measure the pace of a written bundle, and let it validate no longer than pays.

    Args:
        written: content of plan.json; the time and the settings that follow from it are added.
        root: folder of the bundle, whose configs are changed.
        dataset_dir: folder of the data set.
        voxels: path of a label map -> number of its voxels.
        device: name of the device.
        limits: max_minutes, max_epochs and gpus of this start, if given.
    """
    settings = effective_settings(written, **limits)
    chosen = written["choices"].get("settings", {})
    folds = written["choices"].get("folds")
    values = {} if folds is None else {"fold": 0, "folds": folds}
    try:
        pace = measure_pace(root, dataset_dir, voxels, device, values)
        options = written["options"]
        can_see_patches = "crops_balanced" in options and not {PATCHES, "slices_2d"} & options.keys()
        if can_see_patches and needs_patches(pace, settings):
            change_training(root, PATCHES)
            options[PATCHES] = "even a few whole cases would take over a fifth of the training"
            of_patches = measure_pace(root, dataset_dir, voxels, device, values)
            pace = replace(pace, validation=of_patches.validation, validation_cases=of_patches.validation_cases)
    except Exception as error:  # whatever it is, the training reports it with advice
        logger.warning("the time of a step was not measured: %s", str(error).splitlines()[0] if str(error) else error)
        return
    written["time"] = pace.as_dict()
    count = affordable_cases(pace, settings)
    if count is not None and "val_cases" not in chosen:
        why = f"{pace.validation_cases} cases would take over a tenth of the training; the same {count} each time"
        written["settings"]["val_cases"] = {"value": count, "why": why}
        change_training(root, {"val_cases": count})
