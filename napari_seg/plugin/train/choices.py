"""Choices of a training in the Train tab, without Qt; the plan makes those that are left open."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from napari_seg.bundles.spec import WEIGHTS
from napari_seg.errors import TrainingError
from napari_seg.training.choices import IGNORE, Choices
from napari_seg.training.start import with_start

NETWORKS = ("UNet", "FCN", "DeepLabV3", "DeepLabV3Plus", "MultiView")
"""Values of `--network`; the modules of the networks need torch, which the window does not load."""

BACKGROUND = "background"

Labels = dict[str, list[int | str]]
"""Class -> its values, as in `training.choices.Choices.labels`."""


@dataclass(frozen=True)
class TrainChoices:
    """Choices of a training; each is empty or 0 if the plan makes it.

    Attributes:
        network: one of `NETWORKS`; "" means UNet.
        size: preset of the U-Net.
        dims: 2 or 3 dimensions of the network.
        folds: number of folds of a cross-validation.
        plan: "nnunet" plans by nnU-Net's rules.
        fine_tune: file of the initial weights, or folder of their bundle.
        labels: text as after `--labels`, such as "liver=1 tumour=2,3".
    """

    network: str = ""
    size: str = ""
    dims: int = 0
    folds: int = 0
    plan: str = ""
    fine_tune: Path | None = None
    labels: str = ""

    @classmethod
    def of_plan(cls, made: Mapping[str, Any], output: Path) -> TrainChoices:
        """Return the choices in plan.json, of which a run of the folder `output` was made."""
        weights = made.get("fine_tune", {}).get("file")
        path = None if weights is None else (output / weights).resolve()
        if path is not None and path.parts[-2:] == Path(WEIGHTS).parts:  # of a bundle
            path = path.parents[1]
        return cls(
            network=made["network"] if made.get("network") in NETWORKS else "",  # nnU-Net's is that of its start
            size=made.get("size") or "",
            dims=made.get("dims") or 0,
            folds=made.get("folds") or 0,
            plan=made.get("plan") or "",
            fine_tune=path,
            labels=text_of(made.get("labels", {})),
        )

    @property
    def offers_network(self) -> bool:
        """Return whether a network can be chosen: nnU-Net's plan has its own."""
        return not self.plan

    @property
    def offers_size(self) -> bool:
        """Return whether a size can be chosen: only our plan of a U-Net has sizes."""
        return not self.plan and self.network in ("", "UNet")

    def __str__(self) -> str:
        """Return the choices that were made in a few words; "" if there are none."""
        words = [
            self.network if self.offers_network else "nnU-Net's plan",
            self.size if self.offers_size else "",
            f"{self.dims}D" if self.dims else "",
            f"{self.folds} folds" if self.folds else "",
            "" if self.fine_tune is None else "fine-tuned",
            "labels" if self.labels else "",
        ]
        return ", ".join(filter(None, words))

    def as_choices(self, output: Path) -> Choices:
        """Return the choices for `plan_bundle`; reads the initial weights, so call it in a job.

        Args:
            output: folder of the bundle that is trained.

        Raises:
            TrainingError: `labels.bad_value`; `weights.missing`.
            BundleError: as for `with_start`.
        """
        labels = labels_of(self.labels)
        values = [value for name, of_class in labels.items() if name != IGNORE for value in of_class]
        choices = Choices(
            network=(self.network or None) if self.offers_network else None,
            dims=self.dims or None,
            size=(self.size or None) if self.offers_size else None,
            plan=self.plan or None,
            options=("regions",) if len(values) > len(set(values)) else (),
            labels=labels,
            folds=self.folds or None,
        )
        return choices if self.fine_tune is None else with_start(choices, self.fine_tune, output)


def labels_of(text: str) -> Labels:
    """Return class -> values from a text as after `--labels`; names with spaces are quoted.

    Raises:
        TrainingError: `labels.bad_value`.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:  # a quotation mark is missing
        message = f"found {text!r} in the labels; expected a closing quotation mark; add it"
        raise TrainingError("labels.bad_value", message) from error
    labels: Labels = {}
    for word in words:
        name, _, values = word.rpartition("=")
        found = [value.strip() for value in values.split(",") if value.strip()]
        if not (name and found):
            raise TrainingError(
                "labels.bad_value", f"found {word!r} in the labels; expected NAME=VALUE, such as liver=1 tumour=2,3"
            )
        labels.setdefault(name, []).extend(_value(value) for value in found)
    return labels


def _value(text: str) -> int | str:
    """Return a value as a number, or a range such as "120-135" as it is; `segnets.data.labels.ranges` checks it."""
    try:
        return int(text)
    except ValueError:
        return text


def text_of(labels: Mapping[str, Any]) -> str:
    """Return a text from which `labels_of` returns the same labels."""
    words = []
    for name, values in labels.items():
        listed = values if isinstance(values, list | tuple) else [values]
        words.append(f"{shlex.quote(name)}={shlex.quote(','.join(map(str, listed)))}")
    return " ".join(words)


def renamed(labels: Mapping[str, Any], value: int | str, names: str) -> Labels:
    """Return labels in which a value belongs to other classes.

    Args:
        labels: class -> its values; for several data sets, the names that these give their classes.
        value: value in the label maps, or name.
        names: class; several with " + " between them, which overlap then; "background", or "ignore" for voxels that are
            not annotated.
    """
    found: Labels = {}
    for name, values in labels.items():
        listed = list(values) if isinstance(values, list | tuple) else [values]
        found[name] = [part for one in listed for part in _without(one, value)]
    wanted = [names.strip()] if names.strip() in found else [name.strip() for name in names.split(" + ")]
    emptied = [name for name, values in labels.items() if values and not found[name]]
    for name in filter(None, wanted):
        key = next((one for one in found if one.casefold() == name.casefold()), name)
        if key == name and key not in found and len(emptied) == 1 and len(wanted) == 1:  # it keeps its place
            found = {(name if one == emptied[0] else one): values for one, values in found.items()}
        found.setdefault(key, []).append(value)
    return {name: values for name, values in found.items() if values}


def completed(labels: Labels, own: Labels) -> Labels:
    """Return labels with the classes of a plan that they do not name, by class, value or name in the data set.

    Args:
        labels: class -> its values, or names in the data set.
        own: those of the plan.
    """
    words = [one for values in labels.values() for word in values for one in _numbers(word)]
    named = {str(name).casefold() for name in (*labels, *words)}
    found: Labels = {}
    for name, parts in own.items():
        if name.casefold() not in named:
            for word in words:
                parts = [one for part in parts for one in _without(part, word)]
            found |= {name: parts} if parts else {}
    return labels | found


def _numbers(part: int | str) -> list[int | str]:
    """Return the values of a range; another value or a name alone."""
    low, _, high = str(part).partition("-")
    return [*range(int(low), int(high) + 1)] if low.isdigit() and high.isdigit() else [part]


def words_of(labels: Labels, name: str) -> list[int | str]:
    """Return the values or names of a class, regardless of case."""
    return [word for key, words in labels.items() if key.casefold() == name.casefold() for word in words]


def _without(part: int | str, value: int | str) -> list[int | str]:
    """Return a value, range or name without one of its values, or without the name."""
    low, _, high = str(part).partition("-")
    if isinstance(value, str) or not (low.isdigit() and high.isdigit()):
        return [] if str(part).casefold() == str(value).casefold() else [part]
    if not int(low) <= value <= int(high):
        return [part]
    parts = [(int(low), value - 1), (value + 1, int(high))]
    return [first if first == last else f"{first}-{last}" for first, last in parts if first <= last]
