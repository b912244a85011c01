"""Measure how long a step and a validation take on this device, and plan the time of a training from that.

The written bundle's own objects are timed: a few cases are prepared, augmented by the data loader's processes and
trained on, and one is validated. So the time includes whatever the configs contain.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from math import ceil
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from napari_seg.bundles.spec import METADATA
from napari_seg.training.history import RUN

if TYPE_CHECKING:
    from monai.bundle import ConfigParser

STEPS, SECONDS = 12, 10.0
"""Steps that are timed after those whose batches were ready before, and seconds after which no further one is."""
VALIDATION_FRACTION = 0.1
"""Largest fraction of the training's time for its validations."""
MIN_VALIDATION_CASES = 4
TIMED_VALIDATIONS = 10
"""Most validations of a training with a time limit (`segnets.training.Validation`)."""
START_SECONDS = 10.0
"""Seconds in which MONAI's command loads its libraries and checks the data set again."""
WORTH = 0.8
"""Largest ratio of a step's seconds in bfloat16 to those in float32 with which a CPU trains in bfloat16."""
LONG_SECONDS = 120.0
"""Seconds of a training above which bfloat16 is tried."""
FEW = 0.25
"""Fraction of the planned steps below which a network has hardly learned anything."""


@dataclass(frozen=True)
class Pace:
    """Seconds that the parts of a training take on a device.

    Attributes:
        device: name of the device.
        step: a step, while other processes augment the next cases.
        case: preparing a case once, before its first step.
        validation: a validation of all validation cases.
        training_cases: number of cases of the training part that an epoch shows.
        validation_cases: number of cases of the validation part.
    """

    device: str
    step: float
    case: float
    validation: float
    training_cases: int
    validation_cases: int

    def as_dict(self) -> dict[str, Any]:
        """Return the values rounded to three digits, for plan.json."""
        return {
            name: float(f"{value:.3g}") if isinstance(value, float) else value for name, value in asdict(self).items()
        }


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
        full_minutes: minutes that reach all planned steps, as `--max-minutes` counts them.
        few_minutes: minutes that reach the fraction `FEW` of them.
    """

    steps: int
    reached: int
    validations: int
    training: float
    validating: float
    preparing: float
    full_minutes: float
    few_minutes: float

    @property
    def minutes(self) -> float:
        """Return the minutes of the whole command, from its start to its end."""
        return (START_SECONDS + self.preparing + self.training + self.validating) / 60


def plan_time(pace: Pace, settings: Mapping[str, Any], max_minutes: float | None = None) -> TimePlan:
    """Return the planned time of a training.

    Args:
        pace: measured seconds.
        settings: planned values of max_epochs, val_interval, batch_size, patches_per_case and val_cases; the last two
            may be missing.
        max_minutes: time limit; None: no limit.
    """
    epochs = settings["max_epochs"]
    steps_per_epoch = ceil(pace.training_cases * settings.get("patches_per_case", 1) / settings["batch_size"])
    steps = epochs * steps_per_epoch
    validated = min(settings.get("val_cases") or pace.validation_cases, pace.validation_cases)
    one = pace.validation * validated / pace.validation_cases
    regular = ceil(epochs / settings["val_interval"])
    preparing = pace.case * (pace.training_cases + validated)

    def minutes(steps: float, validations: int) -> float:
        return (preparing + steps * pace.step + validations * one) / 60

    full = minutes(steps, regular)
    validations, reached = regular, steps
    if max_minutes is not None and full > max_minutes:
        seconds = max(60 * max_minutes - preparing, 0)
        within = min(TIMED_VALIDATIONS - 1, int(VALIDATION_FRACTION * seconds / one) if one else TIMED_VALIDATIONS)
        within = min(within, int((seconds - within * one) / (pace.step * steps_per_epoch)))  # each ends an epoch
        validations = within + 1  # the last one comes after the limit
        reached = min(max(int((seconds - within * one) / pace.step), 1), steps)
    return TimePlan(
        steps=steps,
        reached=reached,
        validations=validations,
        training=reached * pace.step,
        validating=validations * one,
        preparing=preparing,
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
    names = ("max_epochs", "val_interval", "batch_size", "patches_per_case", "val_cases")
    return {name: chosen[name] for name in names if name in chosen}


def is_long(pace: Pace, settings: Mapping[str, Any], max_minutes: float | None = None) -> bool:
    """Return whether the steps of a training take so long that a faster type of numbers is worth a measurement."""
    return plan_time(pace, settings, max_minutes).training > LONG_SECONDS


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


def measure_pace(
    root: Path, dataset_dir: Path, voxels: Mapping[str, int], device: str, values: Mapping[str, Any]
) -> Pace:
    """Return the measured pace of a written bundle; call it within `with_segnets`.

    Prepared cases stay in the cache of the run, where the training finds them.

    Args:
        root: folder of the bundle.
        dataset_dir: folder of the data set.
        voxels: path of a label map -> number of its voxels.
        device: name of the device.
        values: config id -> value that differs from the written one, such as `fold` and `folds`.
    """
    from segnets.data.epochs import passage_length

    parser = read_configs(root, dataset_dir)
    for name, value in values.items():
        parser[name] = value
    split = parser.get_parsed_content("cases")
    names = {case["name"] for case in split("training")}
    replayed = len(names.intersection(parser.get_parsed_content("found_dataset").replayed))
    sizes, timed = {}, {}
    chosen: dict[str, Any] = {"train#sampler#replayed": []}  # of the few timed cases none is replayed
    for part, section, count in (("training", "train", 2), ("validation", "validate", 1)):
        sizes[part] = [voxels[case["label"]] for case in split(part)]
        picked = _typical(sizes[part], count)
        timed[part] = sum(sizes[part][n] for n in picked)
        # indices, not cases: text that begins with $, such as a case's name, would be run as code
        listed = "validated" if part == "validation" else "train#dataset#data"
        chosen[listed] = f"$[c for n, c in enumerate(@cases(part='{part}')) if n in {picked}]"
        chosen[f"{section}#handlers"] = []
    for name, value in chosen.items():
        parser[name] = value
    training_set = parser.get_parsed_content("train#dataset")
    begin = time.monotonic()
    for number in range(len(training_set)):
        training_set.cases[number]
    preparing = time.monotonic() - begin
    step = _time_steps(parser)
    gc.collect()  # ends the processes of the data loader
    return Pace(
        device=device,
        step=step,
        case=preparing * mean(sizes["training"]) / timed["training"],
        validation=_time_validation(parser) * sum(sizes["validation"]) / timed["validation"],
        training_cases=passage_length(
            len(sizes["training"]) - replayed, replayed, parser.get_parsed_content("replay_share")
        ),
        validation_cases=len(sizes["validation"]),
    )


def read_configs(root: Path, dataset_dir: Path) -> ConfigParser:
    """Return the parser of a written bundle's train.yaml; call it within `with_segnets`."""
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(str(root / "configs" / "train.yaml"))
    parser.read_meta(str(root / METADATA))
    parser["dataset_dir"], parser["output_dir"] = str(dataset_dir), str(root / RUN)
    return parser


def _typical(sizes: Sequence[int], count: int) -> list[int]:
    """Return the indices of the cases whose sizes are closest to the mean."""
    return sorted(range(len(sizes)), key=lambda n: abs(sizes[n] - mean(sizes)))[:count]


def _time_steps(parser: ConfigParser) -> float:
    """Return the seconds of a step, while the processes of the data loader augment the next cases.

    The first step, which reserves memory, does not count, nor do those whose batches were made while nothing was
    computed yet: as many as the data loader keeps ready.
    """
    from ignite.engine import Events

    trainer = parser.get_parsed_content("train#trainer")
    parser.get_parsed_content("ema").attach(trainer)
    ready = parser.get_parsed_content("num_workers") * (trainer.data_loader.prefetch_factor or 0)
    trainer.state.max_epochs, trainer.state.epoch_length = 1, ready + STEPS + 1
    ended: list[float] = []

    def end_step() -> None:
        float(trainer.state.output["loss"])  # waits for a GPU
        ended.append(time.monotonic())
        if ended[-1] - ended[0] > SECONDS:
            trainer.terminate()

    trainer.add_event_handler(Events.ITERATION_COMPLETED, end_step)
    begin = time.monotonic()
    trainer.run()
    seconds = [after - before for before, after in pairwise(ended)] or [ended[0] - begin]
    return mean(seconds[ready:] or seconds)  # what other programs take counts, as it will in the training


def _time_validation(parser: ConfigParser) -> float:
    """Return the seconds of a validation of the selected cases, which are prepared before."""
    prepared, evaluator = parser.get_parsed_content("validate#dataset"), parser.get_parsed_content("validate#evaluator")
    for number in range(len(prepared)):
        prepared[number]
    seconds: list[float] = []
    while len(seconds) < 2 and sum(seconds) < SECONDS / 5:
        begin = time.monotonic()
        evaluator.run()
        seconds.append(time.monotonic() - begin)
    return seconds[-1]
