"""A plan in words, for the command line, the plugin and the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from napari_seg.errors import counted
from napari_seg.memory import describe_bytes
from napari_seg.training.memory_plan import PATCHES
from napari_seg.training.pace import Pace
from napari_seg.training.time_plan import FEW, effective_settings, plan_time

if TYPE_CHECKING:
    from napari_seg.training.memory_plan import Device


MAX_VALUES = 30
"""Number of label values that are listed although nothing is odd about them."""


def plan_rows(plan: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the content of plan.json as headings and sentences.

    Args:
        plan: content of plan.json, as `plan_bundle` returns it.
    """
    found = plan["fingerprint"]
    patients = plan.get("patients", found["cases"])
    of_patients = f" of {counted(patients, 'patient')}" if patients != found["cases"] else ""
    rows = [
        (
            "data",
            f"{counted(found['cases'], 'case')}{of_patients}, {', '.join(found['channels'])} ({found['modality']})",
        ),
        *(
            (
                "",
                f"data set {number}{' (replayed)' if one.get('replayed') else ''}: {counted(one['cases'], 'case')} "
                f"with {', '.join(one['classes'])}",
            )
            for number, one in enumerate(_data_sets(plan), 1)
        ),
        *_parts(plan),
        ("labels", _labels(plan["labels"])),
    ]
    rows += _label_rows(plan)
    rows += [("plan", f"option {option}: {why}") for option, why in plan["options"].items()]
    for name, entry in plan["settings"].items():
        if name == "val_interval" and _all_train(plan):
            continue
        value = entry["value"]["_target_"].rpartition(".")[2] if isinstance(entry["value"], dict) else entry["value"]
        rows.append(("plan", f"{name} {value}: {entry['why']}"))
    rows += [("begin", plan["fine-tuning"])] if "fine-tuning" in plan else []
    rows += [("advice", proposal) for proposal in plan.get("advice", ())]
    return [*rows, ("options", ", ".join(_chosen(plan["choices"])) or "none")]


def _chosen(choices: Mapping[str, Any]) -> list[str]:
    """Return the choices of the user in words; those of the labels are shown with the labels."""
    chosen = dict(choices)
    settings, weights = chosen.pop("settings", {}), chosen.pop("fine_tune", {})
    words = [
        f"{name} {' '.join(map(str, value)) if isinstance(value, list | tuple) else value}"
        for name, value in chosen.items()
        if name != "labels"
    ]
    words += [f"fine_tune {weights['file']}"] if weights else []
    return [*words, *(f"{name}={value}" for name, value in settings.items())]


def _labels(labels: Mapping[str, Sequence[Any]]) -> str:
    """Return the classes with their values; those without names as values only."""
    unnamed = [name for name, values in labels.items() if [name] == [f"label {value}" for value in values]]
    text = "; ".join(
        str(values[0]) if name in unnamed else " ".join(map(str, [name, *values])) for name, values in labels.items()
    )
    return f"{text} (no names; --labels NAME={labels[unnamed[0]][0]} ... names them)" if unnamed else text


def _parts(plan: dict[str, Any]) -> list[tuple[str, str]]:
    """Return how many cases train, choose the weights and are kept for a test, as a list of at most one row."""
    if "parts" not in plan or plan["choices"].get("folds"):
        return []
    training, validation, test = (plan["parts"][part] for part in ("training", "validation", "test"))
    if _all_train(plan):
        tested = f"; {test} test them at the end" if test else "; none chooses the weights or is left for a test"
        return [("split", f"all {training} train{tested}: the last weights are taken")]
    kept = f"{test} test them at the end" if test else "none is left for a test"
    return [("split", f"{training} train, {validation} choose the best weights, {kept}")]


def _all_train(plan: Mapping[str, Any]) -> bool:
    """Return whether no case is held out to choose the weights."""
    return "parts" in plan and not plan["choices"].get("folds") and plan["parts"]["validation"] == 0


def _label_rows(plan: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the label values, those with remarks always, and what became no case."""
    table, cases = plan.get("label table", []), plan["fingerprint"]["cases"]
    total = sum(row["voxels"] for row in table) or 1
    shown = [row for n, row in enumerate(table) if n < MAX_VALUES or row["remarks"]]
    rows = []
    for row in shown:
        counts = f"in {row['cases']} of {counted(cases, 'case')}, {row['voxels']} voxels ({row['voxels'] / total:.2%})"
        origin = _origin(plan, row["value"])
        rows.append(("value", f"{row['value']} {row['name']}: {'; '.join([*origin, counts, *row['remarks']])}"))
    if len(shown) < len(table):
        rows.append(("value", f"... and {len(table) - len(shown)} more without remarks"))
    left = plan.get("passed over", ())
    rows += [("left", f"{one['count']} {one['ending']}: {one['code']}: {one['reason']}") for one in left]
    notices = [*plan.get("notes", ()), *plan.get("converted", {}).get("notices", ())]
    return rows + [("note", notice) for notice in notices]


def _data_sets(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the data sets that were combined; none if there was one."""
    data_sets: list[dict[str, Any]] = plan.get("converted", {}).get("data sets", [])
    return data_sets


def _origin(plan: dict[str, Any], value: int) -> list[str]:
    """Return the values in the single data sets that became a value, as a list of at most one sentence."""
    found = []
    for number, one in enumerate(_data_sets(plan), 1):
        if values := [old for old, new in one["values"].items() if new == value]:
            found.append(f"{', '.join(values)} in data set {number}")
    return ["was " + " and ".join(found)] if found else []


def network_rows(plan: dict[str, Any], device: Device | None = None) -> list[tuple[str, str]]:
    """Return the planned network, the cost of each size, and the memory as headings and sentences.

    Args:
        plan: content of plan.json; one of an older version has no network, and gives no rows.
        device: device of the training; without it, the row of the memory is left out.
    """
    network = plan.get("network")
    if network is None or "bytes" not in network:
        return []
    arguments = ", ".join(f"{name} {value}" for name, value in network["arguments"].items())
    rows = [("network", f"{network['class']}: {arguments}: {network['why']}")]
    seconds, sizes = size_seconds(plan), network.get("sizes", {})
    equal = {size: [other for other in sizes if sizes[other] == cost] for size, cost in sizes.items()}
    width = max((len(", ".join(group)) for group in equal.values()), default=0)
    for size, *others in dict.fromkeys(map(tuple, equal.values())):
        about = f", about {_seconds(seconds[size])}" if size in seconds else ""
        chosen = "  <- planned" * (network["size"] in (size, *others))
        same = "  (equal: they differ in the largest patch on a GPU only)" * bool(others)
        rows.append(("size", f"{', '.join([size, *others]):{width}} {_cost(sizes[size])}{about} a step{chosen}{same}"))
    if "sizes" not in network:
        rows.append(("", f"{_cost(network)} a step"))
    if device is not None:
        fits = network["bytes"] <= device.free_bytes
        smaller = "leave out --plan nnunet" if "nnU-Net" in network else "choose a smaller --size or patch_size"
        advice = "" if fits else f": too much; {smaller}"
        free = describe_bytes(device.free_bytes)
        rows.append(
            ("memory", f"about {describe_bytes(network['bytes'])} of {free} that may be used ({device.name}){advice}")
        )
        rows += _validation_rows(plan, device)
    return rows


def _validation_rows(plan: dict[str, Any], device: Device) -> list[tuple[str, str]]:
    """Return the memory of validations and of the evaluation at the end; nothing for a plan of an older version."""
    network = plan["network"]
    if "evaluation bytes" not in network or (_all_train(plan) and not plan["parts"]["test"]):
        return []
    shape = " x ".join(map(str, network["largest case"]))
    of_case = f"the largest case ({shape}, {network['channels']} classes with background)"
    validation = f"a validation of {of_case} about {describe_bytes(network['validation bytes'])}"
    if PATCHES in plan["options"]:
        validation = f"validations see patches; whole, {validation}"
    too_much = network["evaluation bytes"] > device.free_bytes
    advice = ": too much; choose a smaller patch_size, or the scores at the end may be missing" * too_much
    return [
        ("", f"{validation}, the evaluation at the end about {describe_bytes(network['evaluation bytes'])}{advice}")
    ]


def size_seconds(plan: dict[str, Any]) -> dict[str, float]:
    """Return size of the network -> estimated seconds of a step; empty if no step was timed, or sizes weren't compared.

    Args:
        plan: content of plan.json.
    """
    network, pace = plan.get("network", {}), plan.get("time")
    if pace is None or not network.get("operations per step"):
        return {}
    each = pace["step"] / network["operations per step"]
    return {size: each * cost["operations per step"] for size, cost in network.get("sizes", {}).items()}


def size_costs(plan: dict[str, Any]) -> dict[str, str]:
    """Return size of the network -> its cost in a few words; empty if sizes were not compared.

    Args:
        plan: content of plan.json.
    """
    seconds = size_seconds(plan)
    costs = {}
    for size, cost in plan.get("network", {}).get("sizes", {}).items():
        words = [f"{cost['parameters'] / 1e6:.3g} M parameters", describe_bytes(cost["bytes"])]
        costs[size] = ", ".join([f"{_seconds(seconds[size])} a step", *words] if size in seconds else words)
    return costs


def time_rows(plan: dict[str, Any], limits: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the planned time as headings and sentences; nothing for a plan whose steps were not timed.

    Args:
        plan: content of plan.json.
        limits: max_minutes, max_epochs and gpus of this start, if given.
    """
    if "time" not in plan:
        return []
    pace = Pace(**plan["time"])
    limit = limits.get("max_minutes")
    settings = effective_settings(plan, **limits)
    time = plan_time(pace, settings, limit)
    folds = plan["choices"].get("folds")
    reached = f"{time.reached} of {time.steps} steps" if time.reached < time.steps else f"{time.steps} steps"
    each = f", a validation {_seconds(time.validating / time.validations)}" if time.validations else ""
    validated = f"{counted(time.validations, 'validation')} {_minutes(time.validating)}, " if time.validations else ""
    evaluated = f", evaluation {_minutes(time.evaluating)}" if time.validations else ""
    rows = [
        ("time", f"a step takes {_seconds(pace.step)}{each} ({pace.device})"),
        (
            "",
            f"{reached} {_minutes(time.training)}, {validated}preparing the cases {_minutes(time.preparing)}"
            f"{evaluated}: about {_minutes(60 * time.minutes)} in all"
            + (f" for each of {folds} folds" if folds else ""),
        ),
    ]
    if (gpus := settings.get("gpus", 1)) > 1:
        batch, alone = settings["batch_size"], plan_time(pace, settings | {"gpus": 1}).steps
        rows += [
            ("", f"measured on one GPU and divided by {gpus}: the shortest time possible, if no GPU waits"),
            (
                "gpus",
                f"{gpus} x batch_size {batch}: {gpus * batch} cases a step, {time.steps} steps instead of {alone}; as "
                f"on one GPU about {batch * alone} cases are seen; a larger --max-epochs trains more steps",
            ),
        ]
    if time.validating > 0.12 * time.training:
        rows.append(("", f"validation takes {time.validating / time.training:.0%} of the training's time"))
    if time.reached < time.steps:
        advice = f"{_minutes(60 * time.full_minutes)} reach all"
        if time.reached < FEW * time.steps:
            advice = f"far too few; {_minutes(60 * time.few_minutes)} reach a quarter, {advice}"
        share = f"{time.reached / time.steps:.1%}"
        rows.append(
            ("limit", f"--max-minutes {limit:g} reaches about {time.reached} of {time.steps} steps ({share}): {advice}")
        )
    return rows


def _cost(cost: dict[str, Any]) -> str:
    return (
        f"{cost['parameters'] / 1e6:5.1f} million parameters, {describe_bytes(cost['bytes']):>8}, "
        f"{cost['operations per step'] / 1e12:6.2f} TFLOP"
    )


def _seconds(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s" if seconds < 120 else _minutes(seconds)


def _minutes(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"
