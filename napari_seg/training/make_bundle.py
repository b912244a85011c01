"""Make a bundle: check the data set, plan network and training, and write configs, metadata and plan."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_seg.bundles.nnunet.as_bundle import NNUNET, TRANSFORM
from napari_seg.errors import BundleError, TrainingError, counted, offered
from napari_seg.training.choices import (
    ALL,
    IGNORE,
    READING,
    Choices,
    check_names,
    check_packages,
    named_labels,
)
from napari_seg.training.gather.gather import Gathered
from napari_seg.training.gather.pair import unread_files
from napari_seg.training.history import RUN
from napari_seg.training.identity import identity_of
from napari_seg.training.segnets_modules import in_options
from napari_seg.training.start import state_origin
from napari_seg.training.time_plan import fit_time
from napari_seg.training.write import PLAN

if TYPE_CHECKING:
    from segnets.data import Dataset

    from napari_seg.training.fingerprint import Fingerprint
    from napari_seg.training.memory_plan import Device, Grids
    from napari_seg.training.plan import TrainingPlan

MAX_WORKERS = 8
UNFINISHED = f"{PLAN}.unfinished"
"""Marker of an incomplete bundle; after a kill, the next run starts it again."""


@dataclass(frozen=True)
class Timing:
    """How to time a training: folder of its data set, and max_minutes, max_epochs and gpus of this start, if given."""

    dataset_dir: Path
    limits: dict[str, float]


def make_bundle(
    dataset: Dataset,
    root: Path,
    out: Path,
    choices: Choices,
    counts: Mapping[str, int],
    replayed: int,
    timing: Timing | None,
    converted: Gathered | None,
) -> dict[str, Any]:
    """Check a data set, plan its training, write the bundle, and return the content of its plan.json.

    Args:
        dataset: the data set that the training reads.
        root: folder that the bundle is written into.
        out: folder that it is meant for; another one in a dry run.
        choices: choices of the user.
        counts: "training", "validation", "test" -> number of cases.
        replayed: number of replayed cases of the training part.
        timing: how to time the training; None: it is not timed.
        converted: how the data set was converted; None: it is read as it is.
    """
    from segnets.data import ClassValues, check
    from segnets.data.epochs import passage_length
    from segnets.data.faults import REPEATED, repeated_images
    from segnets.data.file_facts import read_all
    from segnets.data.labels import ranges
    from segnets.data.split import unused_parts

    from napari_seg.training.advice import advise
    from napari_seg.training.fingerprint import fingerprint
    from napari_seg.training.label_table import background_note, check_values, label_table
    from napari_seg.training.memory_plan import find_device, grids_of
    from napari_seg.training.write import check_arguments, class_names, fine_tuning_rate, networks, write_bundle

    keeps_network = choices.network == NNUNET and "network_def" in choices.settings
    if choices.network not in (None, *networks()) and not keeps_network:
        expected = offered(str(choices.network).replace("+", "plus"), networks())
        raise BundleError("bundle.network_name", f"found network {choices.network!r}{expected}")
    check_arguments(choices)
    name = out.name
    check_packages(choices.options)
    check_names([name, *choices.labels, *dataset.labels, *dataset.channels])
    labels = named_labels(choices.labels, dataset)
    if converted and converted.data_sets:
        labels.pop(IGNORE, None)  # its values are those of the single data sets
    if IGNORE in labels:
        added = {value for low, high in ranges(labels[IGNORE]) for value in range(low, high + 1)}
        dataset = replace(dataset, ignored=tuple(sorted({*dataset.ignored, *added})))
    classes = _chosen_classes(labels, dataset)
    if classes and not set(classes) - {"background"}:
        raise TrainingError("labels.no_class", "the labels name nothing but background; expected a class")
    facts = read_all(dataset.cases, root / RUN / "cache", dataset.soft)
    if not dataset.soft and not choices.settings.get("allow_empty"):
        check_values(dataset, facts, {name: values for name, values in labels.items() if name != IGNORE})
    if dataset.soft and not classes:
        count = max((facts[case["label"]].get("channels", 1) for case in dataset.cases), default=1)
        classes = {f"label {value}": (value,) for value in range(1, count + 1)}
    regions = _regions(dataset, classes, choices, facts)
    names = {str(number): label for number, label in enumerate(class_names(classes, bool(regions)))}
    slices = choices.settings.get("annotated_slices")
    values_of = ClassValues(dataset, names, labels or None, bool(regions), slices)
    check(dataset, values_of if classes else None, allow_empty=choices.settings.get("allow_empty", False), facts=facts)
    found = replace(
        fingerprint(dataset, facts, every_case=choices.plan == "nnunet"),
        trained_on=counts["training"],
        is_sparse=bool(dataset.ignored) or "annotated_slices" in choices.settings,
    )
    if keeps_network and found.is_2d:
        text = "found 2D images for a model of nnU-Net, which is trained further on volumes or their slices only"
        raise BundleError("bundle.dims", f"{text}; expected volumes, or train without --fine-tune")
    if keeps_network:
        _check_channels(found.channels, choices, out)
    values = {label: list(of_label) for label, of_label in _classes(found, classes).items()}
    values |= {label: list(of_label) for label, of_label in labels.items() if label == IGNORE}
    device = find_device()
    outputs = len(class_names(values, bool(regions)))
    parts = len(values_of.parts) if values_of is not None and values_of.parts else None
    share = choices.settings.get("replay_share", 0.5)
    of_epoch = replace(
        found,
        cases=passage_length(len(dataset.cases) - len(dataset.replayed), len(dataset.replayed), share),
        trained_on=passage_length(max(1, counts["training"] - replayed), replayed, share),
    )
    grids = grids_of(dataset.cases, facts, _nnunet_step(choices) if keeps_network else None)
    plan, network = _plan_network(of_epoch, choices, device, outputs, parts, grids, compared=timing is not None)
    if regions and "regions" not in choices.options:
        what = "the labels are fractions" if dataset.soft else "the data set's classes overlap"
        plan.use("regions", f"{what}: each gets a sigmoid of its own")
    if choices.fine_tune:
        why = "a tenth of the usual rate, so that the initial weights are not lost"
        plan.set("learning_rate", fine_tuning_rate(choices.options), why)
    settings = choices.settings
    if converted:  # the converted data set is read as such, however the data set of the user is read
        settings = {key: value for key, value in settings.items() if key not in READING}
        settings |= {"anywhere": True} if converted.data_sets else {}
    write_bundle(root, name, plan, found, values, replace(choices, settings=settings), regions)
    weights = (out / choices.fine_tune["file"]).resolve() if choices.fine_tune else out
    if model := choices.fine_tune.get("model"):
        state_origin(root, weights, model, choices.fine_tune.get("licence", ""))
    named = {label: of_label for label, of_label in values.items() if label != IGNORE}
    table = label_table(dataset, facts, named, converted.listed if converted else None)
    written = {
        "dataset": converted.identity if converted else identity_of(dataset),
        "choices": choices.as_dict(),
        "fingerprint": found.as_dict(),
        "patients": len(set(dataset.patients.values())),
        "parts": dict(counts),
        "labels": values,
        **({"regions": regions} if regions else {}),
        "label table": [row._asdict() | {"remarks": list(row.remarks)} for row in table],
        "options": {option: plan.why[option] for option in plan.options},
        "settings": {key: {"value": value, "why": plan.why[key]} for key, value in plan.settings.items()},
        "network": network,
        "advice": [] if keeps_network else advise(plan, found),  # such a model decides dimensions and spacing
    }
    if choices.fine_tune:
        written["fine-tuning"] = _describe_origins(class_names(values, bool(regions)), weights, choices)
    elif choices.settings.get("classes_from"):
        raise TrainingError("weights.classes", "found --classes-from without --fine-tune; expected both, or neither")
    left = converted.passed_over if converted else unread_files(dataset.unread)
    notes = [*map(in_options, (*dataset.unused, *(converted.unused if converted else ())))]
    if text := background_note(table, dataset.labels, named):
        notes.append(text)
    if choices.settings.get("fold") != ALL and (text := unused_parts(dataset)):
        notes.append(text)
    if repeated := repeated_images(dataset, dataset.cases, facts):
        notes.append(f"{REPEATED} ({counted(len(repeated), 'image')}; the log of the training names the cases)")
    if notes:
        written["notes"] = notes
    written["passed over"] = [asdict(one) for one in left]
    if converted:
        written["converted"] = converted.as_dict()
    if timing is not None:
        voxels = {path: prod(of_file["shape"]) for path, of_file in facts.items()}
        fit_time(written, root, timing.dataset_dir, voxels, device.name, timing.limits)
    (root / UNFINISHED).write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    (root / UNFINISHED).replace(root / PLAN)
    return written


def _describe_origins(classes: list[str], weights: Path, choices: Choices) -> str:
    """Return from which classes of the initial weights those of the new network begin.

    Raises:
        TrainingError: `weights.classes`, `--classes-from` does not fit them.
    """
    from segnets.training.matching import match_classes, stated_names

    classes_from = choices.settings.get("classes_from")
    origins = match_classes(classes, stated_names(weights)[0], classes_from)
    model = f"{model}: " if (model := choices.fine_tune.get("model")) else ""
    if origins is not None:
        return f"{model}{origins}"
    left = "no class has the name of one in the initial weights; the last layer is copied only if their number is equal"
    return f"{model}{left}"


def _check_channels(channels: Sequence[str], choices: Choices, out: Path) -> None:
    """Check that a data set has the channels of a network that keeps its preprocessing, in their order.

    Raises:
        TrainingError: `weights.channels`.
    """
    from segnets.training.matching import match_channels, stated_names

    count = choices.settings["network_def"]["in_channels"]
    old = stated_names((out / choices.fine_tune["file"]).resolve())[1] if choices.fine_tune else ()
    order = match_channels(channels, old) or ()
    if len(channels) != count or any(index not in (None, n) for n, index in enumerate(order)):
        found = ", ".join(channels)
        expected = ", ".join(old) if len(old) == count else f"{count} channels"
        raise TrainingError(
            "weights.channels",
            f"the data set has {found}; expected {expected}, as the model has its preprocessing for each of them; "
            "write the files with these numbers, or train without --fine-tune",
        )


def _regions(
    dataset: Dataset, classes: dict[str, Any], choices: Choices, facts: Mapping[str, Mapping[str, Any]]
) -> dict[str, int]:
    """Return name -> label in results of classes that overlap, in ascending order of precedence; empty if none do.

    Structures of less volume, the sum of their fractions, take precedence; of hard labels those of fewer values.

    Raises:
        BundleError: `network.regions`, the network can't segment classes that overlap.
    """
    from segnets.data.declarations import region_labels
    from segnets.data.labels import ranges

    foreground = {name: values for name, values in classes.items() if name != "background"}
    given = classes is not dataset.labels and foreground != dataset.labels
    is_chosen = dataset.soft or "regions" in choices.options
    if not is_chosen and (given or not dataset.regions):
        return {}
    if choices.network == "MultiView":
        raise BundleError("network.regions", "found network MultiView for classes that overlap; expected another one")
    is_stated = not dataset.soft or dataset.regions != region_labels(dataset.labels)
    if not given and dataset.regions and is_stated:
        return dict(dataset.regions)
    values = {
        name: [value for low, high in ranges(of_class) for value in range(low, high + 1)]
        for name, of_class in classes.items()
        if name != "background"
    }
    if not dataset.soft:
        return region_labels(values)
    volumes: Counter[str] = Counter()
    for case in dataset.cases:
        volumes.update(facts[case["label"]].get("volumes", {}))
    return region_labels(values, volumes={name: sum(volumes[str(n)] for n in set(of)) for name, of in values.items()})


def _nnunet_step(choices: Choices) -> dict[str, Any] | None:
    """Return the arguments of nnU-Net's preprocessing that a training takes over; None without it."""
    steps = choices.settings.get("preprocessing", {}).get("transforms", ())
    return next((one for one in steps if one.get("_target_") == TRANSFORM), None)


def _plan_network(
    found: Fingerprint,
    choices: Choices,
    device: Device,
    outputs: int,
    parts: int | None,
    grids: Grids,
    compared: bool,
) -> tuple[TrainingPlan, dict[str, Any]]:
    """Return a plan that fits into the memory, and a description of its network with its cost.

    Args:
        found: fingerprint of the data set.
        choices: choices of the user.
        device: device of the training.
        outputs: number of classes, background included; of regions, if there are.
        parts: see `make_nnunet_plan`.
        grids: grids of all cases.
        compared: describe the cost of all presets too.
    """
    from napari_seg.training.memory_plan import (
        fit_memory,
        needed_bytes,
        split_batch,
        validate_within,
        validation_cost,
    )
    from napari_seg.training.network_cost import NetworkCost, measure_cost
    from napari_seg.training.network_plan import SIZES
    from napari_seg.training.nnunet_plan import make_nnunet_plan
    from napari_seg.training.plan import make_plan
    from napari_seg.training.write import (
        CASCADE,
        chosen_arguments,
        input_channels,
        network_definition,
        planned_network,
    )

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

    channels = input_channels(found, choices, outputs)

    def cost_of(plan: TrainingPlan) -> NetworkCost | None:
        try:
            return measure_cost(
                lambda: planned_network(plan, found, choices, outputs),
                channels,
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
                "bundle.plan",
                f"found {unsuitable} together with --plan nnunet, which plans its own U-Net; leave one out",
            )
        plan, configuration = make_nnunet_plan(found, outputs, parts=parts, dims=choices.dims, chosen=choices.settings)
        cost = cost_of(plan)
        if cost is not None and needed_bytes(plan, cost, device.kind) > device.free_bytes:
            split_batch(plan, cost, device)
    else:
        plan, cost = fit_memory(make, cost_of, found, device)
    if choices.previous:
        plan.use(CASCADE, f"the labels of {choices.previous} are further channels of the image")
    if device.kind == "cuda":
        workers = min(MAX_WORKERS, max(1, (os.cpu_count() or 2) - 1))
        plan.set("num_workers", workers, "processes that augment the next cases, so that the GPU does not wait")
    definition = network_definition(plan, found, choices) | {"in_channels": channels}
    if name == NNUNET:
        definition, plan.network_why = choices.settings["network_def"], "that of the nnU-Net model"
    arguments = {argument: value for argument, value in definition.items() if argument != "_target_"}
    network: dict[str, Any] = {
        "class": name,
        "size": plan.size,
        "arguments": (plan.network or arguments) | chosen_arguments(choices.settings),
        "why": plan.network_why,
    }
    if cost is not None:
        step = _nnunet_step(choices)
        of_case = validation_cost(
            plan,
            cost,
            grids,
            device.kind,
            channels=channels,
            classes=outputs,
            regions=parts is not None,
            options=choices.options,
            own_transforms="preprocessing" in choices.settings,
            plane_mm=step["spacing"] if step is not None and len(plan.axes) == 2 else (),
        )
        validate_within(plan, of_case, device, choices.options)
        network |= describe(plan, cost) | of_case.as_dict()
    if configuration is not None:
        network["nnU-Net"] = configuration
    if plan.size is not None and compared:
        network["sizes"] = {}
        for size in SIZES:
            other, of_size = fit_memory(partial(make, size=size), cost_of, found, device)
            if of_size is not None:
                network["sizes"][size] = describe(other, of_size)
    return plan, network


def _chosen_classes(labels: Mapping[str, Sequence[Any]], dataset: Dataset) -> dict[str, Any]:
    """Return class -> values without "ignore"; if labels name no class but "background", the others of the data set."""
    from segnets.data.labels import ranges

    chosen = {label: values for label, values in labels.items() if label != IGNORE}
    if set(chosen) - {"background"}:
        return chosen
    if not chosen:
        return dataset.labels
    outside = {value for low, high in ranges(chosen.get("background", [])) for value in range(low, high + 1)}
    return {name: values for name, values in dataset.labels.items() if not outside.issuperset(values)} | chosen


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
