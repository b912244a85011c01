"""Prepare a training: check the data set, plan the training, and write the bundle."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from napari_seg.errors import BundleError, OutputError, TrainingError
from napari_seg.formats.temporary import TemporaryFolder
from napari_seg.training.choices import (
    IGNORE,
    READING,
    Choices,
    check_folds,
    check_names,
    check_packages,
    check_same,
    check_same_labels,
    check_values,
    identity,
    named_labels,
)
from napari_seg.training.comparison import COMPARISON
from napari_seg.training.gather.combine import combine
from napari_seg.training.gather.gather import DATA, Continued, Gathered, gather
from napari_seg.training.gather.pair import unread_files
from napari_seg.training.history import RUN
from napari_seg.training.run import writing
from napari_seg.training.segnets_modules import with_segnets
from napari_seg.training.time_plan import fit_time
from napari_seg.training.write import PLAN

if TYPE_CHECKING:
    from segnets.data import Dataset

    from napari_seg.training.fingerprint import Fingerprint
    from napari_seg.training.memory_plan import Device
    from napari_seg.training.plan import TrainingPlan

logger = logging.getLogger(__name__)

MAX_WORKERS = 8
_UNFINISHED = f"{PLAN}.unfinished"
"""Marker of an incomplete bundle; after a kill, the next run starts it again."""
_LOCK = f"{PLAN}.lock"
_OWN = ("segnets", "configs", "docs", "models", RUN, "LICENSE")
"""What a failed run removes again. Converted cases are kept, so that the next run need not convert them again."""


def data_folder(dataset_dir: Path, out: Path, plan: dict[str, Any]) -> Path:
    """Return the folder that a planned training reads: the converted data set, or the data set as it is.

    Args:
        dataset_dir: data set that was planned.
        out: folder of the bundle.
        plan: its plan.
    """
    return out / DATA if "converted" in plan else dataset_dir


def plan_bundle(
    dataset_dir: Path,
    out: Path,
    choices: Choices,
    *,
    fold: int | None = None,
    dry_run: bool = False,
    trust: bool = False,
    more: Sequence[Path] = (),
    replay: Sequence[Path] = (),
    timed: bool = False,
    limits: Mapping[str, float] | None = None,
    report: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Return the plan of the bundle in `out` (the content of plan.json); write the bundle first if it does not exist.

    All pairs of the data set are checked first. plan.json is written last: a bundle with plan.json is complete. A
    failed run leaves nothing behind; after a kill, the next run starts again.

    Args:
        dataset_dir: data set in one of the layouts of `segnets.data.find_dataset`, or one that `gather` converts; then
            training reads `data_folder`.
        out: folder of the bundle: missing, empty, or planned before for the same data set.
        choices: choices of the user. For an existing bundle they must agree with its plan, except for settings that may
            change at each start (`changed_settings`).
        fold: the only fold to train.
        dry_run: plan, and write nothing.
        trust: allow an existing bundle to run its own code.
        more: further data sets, which are combined with the first one.
        replay: data sets of an earlier training, which are combined too and mixed into each epoch at a share.
        timed: measure how long a step and a validation of a new bundle take ("time" in the plan), and validate fewer
            cases if all would take too long.
        limits: max_minutes and max_epochs of this start, if given, for the number of validated cases.
        report: function that prints a line of progress.

    Raises:
        TrainingError: the data set is not suitable for training (`dataset.*`, `data.faults`, `labels.*`,
            `split.too_few`).
        BundleError: an unknown network, option or config id; `bundle.folds`, fewer than two folds; `bundle.fold`,
            no such fold; `bundle.untrusted`, the existing bundle contains other code.
        EnvironmentFault: `environment.package`, an option needs a package that is not installed.
        OutputError: `output.exists`, `out` contains other files; `output.not_written`, `output.disk_full`.
    """
    if (out / COMPARISON).is_file():
        raise OutputError(
            "output.exists", f"{out} compares configurations; continue it with napari-seg train, or choose a new folder"
        )
    sources, replayed = [dataset_dir, *more, *replay], len(replay)
    with with_segnets(), writing(out):
        check_values(choices.settings | dict(limits or {}))
        if (out / PLAN).is_file():
            return _planned(sources, replayed, out, choices, fold, dry_run, trust, report)
        existing = {path.name for path in out.iterdir()} if out.is_dir() else set()
        if not (out / _LOCK).is_symlink():  # locking a link would empty the file that it leads to
            existing -= {_LOCK}
        ours = {_UNFINISHED, *_OWN, DATA}
        if (out.exists() and not out.is_dir()) or (existing and not {_UNFINISHED} <= existing <= ours):
            raise OutputError(
                "output.exists",
                f"{out} contains files that napari-seg train did not write; choose a new or empty folder",
            )
        check_folds(choices.folds, fold)
        timing = dict(limits or {}) if timed else None
        if dry_run:
            with TemporaryFolder() as root, writing(root):
                return _plan(sources, replayed, root, out, choices, timing, report)
        with _alone(out):
            if (out / PLAN).is_file():  # another process has finished it since
                return _planned(sources, replayed, out, choices, fold, dry_run, trust, report)
            try:
                return _plan(sources, replayed, out, out, choices, timing, report)
            except BaseException:
                _clear(out)
                if (out / DATA).exists():
                    (out / _UNFINISHED).touch()  # says that the converted cases are ours
                raise


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Create a bundle's folder if it is missing, and keep other processes from planning in it.

    A folder that is empty at the end is removed, unless it was there before.

    Raises:
        TrainingError: `run.in_use`, another process plans in it.
    """
    is_new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / _LOCK)
    try:
        with suppress(NotImplementedError):  # a file system without locks
            lock.acquire(timeout=0)
    except Timeout as error:
        text = f"another process plans a training in {out}; wait for its end, or choose another folder with -o"
        raise TrainingError("run.in_use", text) from error
    try:
        yield
    finally:
        with suppress(OSError):  # while it is locked: FileLock takes no lock on a file without a name for one
            (out / _LOCK).unlink()
        lock.release()  # on Windows this removes it
        if is_new:
            with suppress(OSError):
                out.rmdir()


def _planned(
    sources: Sequence[Path],
    replayed: int,
    out: Path,
    choices: Choices,
    fold: int | None,
    dry_run: bool,
    trust: bool,
    report: Callable[[str], None],
) -> dict[str, Any]:
    """Return the plan of an existing bundle, if it was made for the same data and choices.

    Converted cases stay as they are; those that are missing are converted again.
    """
    from segnets.data import Dataset

    from napari_seg.training.trust import check_code

    written: dict[str, Any] = json.loads((out / PLAN).read_text(encoding="utf-8"))
    if not trust:
        check_code(out, choices)
    _check_number(written, len(sources))
    planned = written.get("converted", {}).get("data sets", [])

    def check(names: Sequence[str], data_sets: Sequence[dict[str, Any]]) -> None:
        found = Dataset("decathlon", tuple({"name": name} for name in names))
        check_same(written, identity(found), choices, str(out))
        if list(data_sets) != planned:
            raise OutputError(
                "output.exists",
                f"{out} was planned for data sets with other classes, or in another order, or to replay others; "
                "give the same ones in the same order, or choose a new folder with -o",
            )

    reading = Choices(settings=written["choices"].get("settings", {})).reading | choices.reading
    labels = written["choices"].get("labels", {})
    continued = Continued(check, is_dry=dry_run)
    converted = _converted(sources, replayed, out / DATA, reading, labels, report, continued=continued)
    if converted is None or not dry_run:
        dataset = _dataset(sources, converted, reading)
        check_same(written, identity(dataset), choices, str(out))
        check_same_labels(written, dataset, str(out))
    check_folds(written["choices"].get("folds"), fold)
    check_packages(written["choices"].get("options", ()))
    return written


def _plan(
    sources: Sequence[Path],
    replayed: int,
    root: Path,
    out: Path,
    choices: Choices,
    limits: dict[str, float] | None,
    report: Callable[[str], None],
) -> dict[str, Any]:
    """Convert the data set if necessary, and write a new bundle into a folder; see `_make`."""
    from segnets.data import Split

    marker = root / _UNFINISHED
    converted = _converted(sources, replayed, root / DATA, choices.reading, choices.labels, report, marker)
    dataset = _dataset(sources, converted, choices.reading)
    data = sources[0] if converted is None else converted.folder
    timing = _Timing(data, limits) if limits is not None else None
    split = {name: choices.settings[name] for name in ("fold", "folds") if name in choices.settings}
    split |= {} if choices.folds is None else {"fold": 0, "folds": choices.folds}
    trained_on = len(Split(dataset, **split)("training"))
    _clear(root)
    marker.touch()
    return _make(dataset, root, out, choices, trained_on, timing, converted)


@dataclass(frozen=True)
class _Timing:
    dataset_dir: Path
    limits: dict[str, float]


def _check_number(written: dict[str, Any], number: int) -> None:
    """Check that a bundle was planned for so many data sets, before anything of them is converted.

    Raises:
        OutputError: `output.exists`.
    """
    planned = len(written.get("converted", {}).get("data sets", ())) or 1
    if planned != number:
        raise OutputError(
            "output.exists",
            f"the folder was planned for {planned} data sets, now {number}; give the same ones in the same order, or "
            "choose a new folder with -o",
        )


def _converted(
    sources: Sequence[Path],
    replayed: int,
    into: Path,
    reading: dict[str, Any],
    labels: dict[str, Any],
    report: Callable[[str], None],
    marker: Path | None = None,
    continued: Continued | None = None,
) -> Gathered | None:
    """Convert the data set for a training; return None if it is read as it is.

    Args:
        sources: data sets as the user has them; several are combined.
        replayed: number of the last ones that are replayed.
        into: folder of the converted data set.
        reading: settings that say how the data sets are read.
        labels: class -> values or names, as in `Choices`.
        report: function that prints a line of progress.
        marker: file that marks the folder of an incomplete bundle; written before anything is converted.
        continued: how to continue a planned training.
    """
    if len(sources) > 1:
        return combine(sources, into, reading, labels, report, marker, continued, replayed)
    return gather(sources[0], into, reading, report, marker, continued=continued)


def _dataset(sources: Sequence[Path], converted: Gathered | None, reading: dict[str, Any]) -> Dataset:
    """Return the data set that a training reads."""
    from segnets.data import find_dataset

    if converted is None:
        return find_dataset(sources[0], **reading)
    is_combined = len(sources) > 1  # files that need no conversion stay where they are
    return find_dataset(converted.folder, "decathlon", anywhere=is_combined)  # the patients are stated


def _clear(out: Path) -> None:
    for name in _OWN:
        shutil.rmtree(out / name) if (out / name).is_dir() else (out / name).unlink(missing_ok=True)
    (out / _UNFINISHED).unlink(missing_ok=True)


def _make(
    dataset: Dataset,
    root: Path,
    out: Path,
    choices: Choices,
    trained_on: int,
    timing: _Timing | None,
    converted: Gathered | None,
) -> dict[str, Any]:
    """Plan and write a bundle into `root`, as if that were `out`, and return its plan."""
    from segnets.data import ClassValues, check
    from segnets.data.epochs import passage_length
    from segnets.data.file_facts import read_all
    from segnets.data.labels import ranges

    from napari_seg.training.advice import advise
    from napari_seg.training.fingerprint import fingerprint
    from napari_seg.training.label_table import label_table
    from napari_seg.training.memory_plan import find_device
    from napari_seg.training.write import class_names, fine_tuning_rate, networks, write_bundle

    if choices.network not in (None, *networks()):
        raise BundleError(
            "bundle.network_name", f"found network {choices.network!r}; expected one of {', '.join(networks())}"
        )
    name = out.name
    check_packages(choices.options)
    check_names([name, *choices.labels, *dataset.labels, *dataset.channels])
    labels = named_labels(choices.labels, dataset)
    if converted and converted.data_sets:
        labels.pop(IGNORE, None)  # its values are those of the single data sets
    if IGNORE in labels:
        added = {value for low, high in ranges(labels[IGNORE]) for value in range(low, high + 1)}
        dataset = replace(dataset, ignored=tuple(sorted({*dataset.ignored, *added})))
    classes = {label: values for label, values in labels.items() if label != IGNORE} or dataset.labels
    if classes and not set(classes) - {"background"}:
        raise TrainingError("labels.no_class", "the labels name nothing but background; expected a class")
    regions = _regions(dataset, classes, choices)
    names = {str(number): label for number, label in enumerate(class_names(classes, bool(regions)))}
    slices = choices.settings.get("annotated_slices")
    values_of = ClassValues(dataset, names, labels or None, bool(regions), slices)
    facts = read_all(dataset.cases, root / RUN / "cache")
    check(dataset, values_of if classes else None, allow_empty=choices.settings.get("allow_empty", False), facts=facts)
    found = replace(
        fingerprint(dataset, facts, every_case=choices.plan == "nnunet"),
        trained_on=trained_on,
        is_sparse=bool(dataset.ignored) or "annotated_slices" in choices.settings,
    )
    values = {label: list(of_label) for label, of_label in _classes(found, classes).items()}
    values |= {label: list(of_label) for label, of_label in labels.items() if label == IGNORE}
    device = find_device()
    outputs = len(class_names(values, bool(regions)))
    parts = len(values_of.parts) if values_of is not None and values_of.parts else None
    share = choices.settings.get("replay_share", 0.5)
    others, replayed = len(dataset.cases) - len(dataset.replayed), len(dataset.replayed)
    of_epoch = replace(
        found,
        cases=passage_length(others, replayed, share),
        trained_on=passage_length(max(1, trained_on - replayed), replayed, share),  # replayed cases only train
    )
    plan, network = _plan_network(of_epoch, choices, device, outputs, parts, compared=timing is not None)
    if regions and "regions" not in choices.options:
        plan.use("regions", "the data set's classes overlap: each gets a sigmoid of its own")
    if choices.fine_tune:
        why = "a tenth of the usual rate, so that the initial weights are not lost"
        plan.set("learning_rate", fine_tuning_rate(choices.options), why)
    settings = choices.settings
    if converted:  # the converted data set is read as such, however the data set of the user is read
        settings = {key: value for key, value in settings.items() if key not in READING}
        settings |= {"anywhere": True} if converted.data_sets else {}
    write_bundle(root, name, plan, found, values, replace(choices, settings=settings), regions)
    named = {label: of_label for label, of_label in values.items() if label != IGNORE}
    table = label_table(dataset, facts, named, converted.listed if converted else None)
    written = {
        "dataset": identity(dataset),
        "choices": choices.as_dict(),
        "fingerprint": found.as_dict(),
        "labels": values,
        **({"regions": regions} if regions else {}),
        "label table": [row._asdict() | {"remarks": list(row.remarks)} for row in table],
        "options": {option: plan.why[option] for option in plan.options},
        "settings": {key: {"value": value, "why": plan.why[key]} for key, value in plan.settings.items()},
        "network": network,
        "advice": advise(plan, found),
    }
    if choices.fine_tune:
        weights = (out / choices.fine_tune["file"]).resolve()
        written["fine-tuning"] = _describe_origins(class_names(values, bool(regions)), weights, choices)
    elif choices.settings.get("classes_from"):
        raise TrainingError("weights.classes", "found --classes-from without --fine-tune; expected both, or neither")
    left = converted.passed_over if converted else unread_files(dataset.unread)
    written["passed over"] = [asdict(one) for one in left]
    if converted:
        written["converted"] = converted.as_dict()
    if timing is not None:
        voxels = {path: prod(of_file["shape"]) for path, of_file in facts.items()}
        fit_time(written, root, timing.dataset_dir, voxels, device.name, timing.limits)
    (root / _UNFINISHED).write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    (root / _UNFINISHED).replace(root / PLAN)
    return written


def _describe_origins(classes: list[str], weights: Path, choices: Choices) -> str:
    """Return from which classes of the initial weights those of the new network begin.

    Raises:
        TrainingError: `weights.classes`, `--classes-from` does not fit them.
    """
    from segnets.training.matching import match_classes, stated_names

    classes_from = choices.settings.get("classes_from")
    origins = match_classes(classes, stated_names(weights)[0], classes_from)
    if origins is not None:
        return str(origins)
    return "no class has the name of one in the initial weights; the last layer is copied only if their number is equal"


def _regions(dataset: Dataset, classes: dict[str, Any], choices: Choices) -> dict[str, int]:
    """Return name -> label in results of classes that overlap, in ascending order of precedence; empty if none do.

    Raises:
        BundleError: `network.regions`, the network can't segment classes that overlap.
    """
    from segnets.data.declarations import region_labels
    from segnets.data.labels import ranges

    given = classes is not dataset.labels
    if "regions" not in choices.options and (given or not dataset.regions):
        return {}
    if choices.network == "MultiView":
        raise BundleError("network.regions", "found network MultiView for classes that overlap; expected another one")
    if not given and dataset.regions:
        return dict(dataset.regions)
    values = {
        name: [value for low, high in ranges(of_class) for value in range(low, high + 1)]
        for name, of_class in classes.items()
        if name != "background"
    }
    return region_labels(values)


def _plan_network(
    found: Fingerprint, choices: Choices, device: Device, outputs: int, parts: int | None, compared: bool
) -> tuple[TrainingPlan, dict[str, Any]]:
    """Return a plan that fits into the memory, and a description of its network with its cost.

    Args:
        found: fingerprint of the data set.
        choices: choices of the user.
        device: device of the training.
        outputs: number of classes, background included; of regions, if there are.
        parts: see `make_nnunet_plan`.
        compared: describe the cost of all presets too.
    """
    from napari_seg.training.memory_plan import fit_memory, needed_bytes, split_batch
    from napari_seg.training.network_cost import NetworkCost, measure_cost
    from napari_seg.training.network_plan import SIZES
    from napari_seg.training.nnunet_plan import make_nnunet_plan
    from napari_seg.training.plan import make_plan
    from napari_seg.training.write import network_definition, planned_network

    name = choices.network or "UNet"
    make = partial(
        make_plan,
        found,
        dims=choices.dims,
        device=device.kind,
        chosen=choices.settings,
        network=name,
        size=choices.size,
    )

    def cost_of(plan: TrainingPlan) -> NetworkCost | None:
        try:
            return measure_cost(
                lambda: planned_network(plan, found, choices, outputs),
                len(found.channels),
                choices.settings.get("patch_size", plan.settings["patch_size"]),
            )
        except Exception:  # a network may raise any error; write_bundle builds it again and reports the error
            return None

    def describe(plan: TrainingPlan, cost: NetworkCost) -> dict[str, Any]:
        return {
            "parameters": cost.parameters,
            "operations per step": cost.operations * plan.settings["batch_size"],
            "bytes": needed_bytes(plan, cost, device.kind),
        }

    configuration = None
    if choices.plan == "nnunet":
        if name != "UNet" or choices.size is not None:
            unsuitable = f"--size {choices.size}" if choices.size is not None else f"--network {name}"
            raise BundleError(
                "bundle.plan", f"found {unsuitable} beside --plan nnunet, which plans its own U-Net; leave one out"
            )
        plan, configuration = make_nnunet_plan(found, outputs, parts=parts, dims=choices.dims, chosen=choices.settings)
        cost = cost_of(plan)
        if cost is not None and needed_bytes(plan, cost, device.kind) > device.free_bytes:
            split_batch(plan, cost, device)
    else:
        plan, cost = fit_memory(make, cost_of, found, device)
    if device.kind == "cuda":
        workers = min(MAX_WORKERS, max(1, (os.cpu_count() or 2) - 1))
        plan.set("num_workers", workers, "processes that augment the next cases, so that the GPU does not wait")
    definition = network_definition(plan, found, choices)
    arguments = {argument: value for argument, value in definition.items() if argument != "_target_"}
    network: dict[str, Any] = {
        "class": name,
        "size": plan.size,
        "arguments": plan.network or arguments,
        "why": plan.network_why,
    }
    if cost is not None:
        network |= describe(plan, cost)
    if configuration is not None:
        network["nnU-Net"] = configuration
    if plan.size is not None and compared:
        network["sizes"] = {}
        for size in SIZES:
            other, of_size = fit_memory(partial(make, size=size), cost_of, found, device)
            if of_size is not None:
                network["sizes"][size] = describe(other, of_size)
    return plan, network


def _classes(found: Fingerprint, classes: dict[str, Any]) -> dict[str, Any]:
    if classes:
        return classes
    count = len(found.values)
    if not 0 < count <= 50:
        smoothed = "; if they have few classes, they were smoothed or saved as JPEG: export them again" * (count > 50)
        raise TrainingError(
            "labels.unnamed",
            f"the data set has no label names, and its label maps contain {count} values other than 0; "
            f"name them, for example --labels liver=1 tumour=2,3 vessel=10-19{smoothed}",
        )
    return {f"label {value}": [value] for value in found.values}
