"""Measure how long the parts of a training take on this device.

The written bundle's own objects are timed: a few cases are prepared, augmented by the data loader's processes and
trained on, and one is validated. So the time includes whatever the configs contain.
"""

from __future__ import annotations

import gc
import multiprocessing
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from math import ceil, prod
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any, TypeVar

from napari_seg.bundles.read import shipped_root
from napari_seg.bundles.spec import METADATA
from napari_seg.training.history import RUN
from napari_seg.worker import WorkerProcess

if TYPE_CHECKING:
    from monai.bundle import ConfigParser

T = TypeVar("T")

STEPS, SECONDS = 12, 10.0
"""Steps that are timed after those whose batches were ready before, and seconds after which no further one is."""


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
        evaluation: the evaluation at the end, of the test part or, if there is none, of the validation part.
    """

    device: str
    step: float
    case: float
    validation: float
    training_cases: int
    validation_cases: int
    evaluation: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return the values rounded to three digits, for plan.json."""
        return {
            name: float(f"{value:.3g}") if isinstance(value, float) else value for name, value in asdict(self).items()
        }


def measure_pace(
    root: Path,
    dataset_dir: Path,
    voxels: Mapping[str, int],
    device: str,
    values: Mapping[str, Any],
) -> Pace:
    """Return the measured pace of a written bundle; call it within `with_segnets`.

    Prepared cases stay in the cache of the run, where the training finds them. The processes of the data loader get the
    data set by the names of its classes, unless they are forked, and `with_segnets` holds in this process only. So the
    pace is then measured in a process that finds the modules as the training does.

    Args:
        root: folder of the bundle.
        dataset_dir: folder of the data set.
        voxels: path of a label map -> number of its voxels.
        device: name of the device.
        values: config id -> value that differs from the written one, such as `fold` and `folds`.
    """
    return call_as_training(_measure, root, dataset_dir, voxels, device, values)


def call_as_training(
    function: Callable[..., T], *arguments: Any, callbacks: Mapping[str, Callable[..., None]] | None = None
) -> T:
    """Return what a function returns that takes steps of a training; where processes are not forked, in a worker.

    Args:
        function: function at the top level of a module.
        arguments: its positional arguments.
        callbacks: keyword argument -> function that is called in this process.
    """
    callbacks = callbacks or {}
    start_method = multiprocessing.get_context().get_start_method()
    if start_method == "fork":
        return function(*arguments, **callbacks)
    worker = WorkerProcess()
    try:
        found: T = worker.run(_call_in_worker, start_method, function, *arguments, callbacks=callbacks)
        return found
    finally:
        worker.close()


def _call_in_worker(start_method: str, function: Callable[..., T], *arguments: Any, **callbacks: Any) -> T:
    """Call a function in a worker process that imports the shipped modules by their public names."""
    multiprocessing.set_start_method(start_method, force=True)
    sys.path.insert(0, str(shipped_root()))
    return function(*arguments, **callbacks)


def _measure(root: Path, dataset_dir: Path, voxels: Mapping[str, int], device: str, values: Mapping[str, Any]) -> Pace:
    from segnets.data.epochs import passage_length

    parser = read_configs(root, dataset_dir)
    for name, value in values.items():
        parser[name] = value
    split = parser.get_parsed_content("cases")
    replayed = split.count_replayed()
    sizes, timed = {}, {}
    chosen: dict[str, Any] = {"train#sampler#replayed": []}  # of the few timed cases none is replayed
    for part, section, count in (("training", "train", 2), ("validation", "validate", 1)):
        sizes[part] = [voxels[case["label"]] for case in split(part)] if split.count(part) else []
        if not sizes[part]:  # all cases train
            continue
        picked = _typical(sizes[part], count)
        timed[part] = sum(sizes[part][n] for n in picked)
        # indices, not cases: text that begins with $, such as a case's name, would be run as code
        listed = "validated" if part == "validation" else "train#dataset#data"
        chosen[listed] = f"$[c for n, c in enumerate(@cases(part='{part}')) if n in {picked}]"
        chosen[f"{section}#handlers"] = []
    if "previous_dir" in parser.get():  # the labels of the previous stage do not exist yet
        chosen["previous_dir"] = None
    for name, value in chosen.items():
        parser[name] = value
    training_set = parser.get_parsed_content("train#dataset")
    begin = time.monotonic()
    for number in range(len(training_set)):
        training_set.cases[number]
    preparing = time.monotonic() - begin
    step = _time_steps(parser)
    validation = evaluation = 0.0
    if sizes["validation"]:
        validation = _time_validation(parser) / timed["validation"]  # for each voxel of a label map
        evaluated = split("test" if split.count("test") else "validation")
        evaluation = validation * sum(voxels[case["label"]] for case in evaluated) * _more_windows(parser)
    return Pace(
        device=device,
        step=step,
        case=preparing * mean(sizes["training"]) / timed["training"],
        validation=validation * sum(sizes["validation"]),
        training_cases=passage_length(
            len(sizes["training"]) - replayed, replayed, parser.get_parsed_content("replay_share")
        ),
        validation_cases=len(sizes["validation"]),
        evaluation=evaluation,
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
    gc.collect()  # ends the processes of the data loader
    seconds = [after - before for before, after in pairwise([begin, *ended])]
    return mean(seconds[ready + 1 :] or seconds[-1:])  # what other programs take counts, as it will in the training


def _more_windows(parser: ConfigParser) -> float:
    """Return how many times as many windows an evaluation of a typical case has as a validation of it."""
    dataset = parser.get_parsed_content("validate#dataset")
    whole = getattr(dataset, "cases", dataset)[0]["image"].shape[1:]
    seen = [dataset[number] for number in range(len(dataset))]
    seen = [one["image"].shape[1:] for item in seen for one in (item if isinstance(item, list) else [item])]
    evaluated = parser.get_parsed_content("inferer")
    validated = parser.get_parsed_content("validate#inferer").inferer
    if not all(hasattr(inferer, "overlap") for inferer in (evaluated, validated)):
        return 1.0
    return _windows(evaluated, whole) / sum(_windows(validated, shape) for shape in seen)


def _windows(inferer: Any, shape: Sequence[int]) -> int:
    """Return the number of windows that cover an image."""
    roi_size = _per_axis(inferer.roi_size, shape)
    if len(roi_size) < len(shape):  # of one slice
        roi_size.insert(inferer.spatial_dim, 1)
    patch = [size or edge for size, edge in zip(roi_size, shape, strict=True)]
    overlap = _per_axis(inferer.overlap, shape)
    steps = [max(1, int(size * (1 - part))) for size, part in zip(patch, overlap, strict=True)]
    return prod(ceil(max(edge - size, 0) / step) + 1 for edge, size, step in zip(shape, patch, steps, strict=True))


def _per_axis(value: Any, shape: Sequence[int]) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value] * len(shape)


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
