"""What the output of a network means: how its values become labels. Plain data, for every kind of bundle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import Any, Literal

import numpy as np


@dataclass(frozen=True)
class Channel:
    """A structure with a channel of its own.

    Attributes:
        number: channel of the network.
        threshold: the structure is present where the channel's value is at least this; after the activation, if the
            output has one, and a logit otherwise.
        label: label of the structure.
    """

    number: int
    threshold: float
    label: int


@dataclass(frozen=True)
class LabelStep:
    """A transform of the label map.

    Attributes:
        name: MONAI's transform of an array, such as "FillHoles".
        arguments: its arguments.
        grid: grid of the label map that it is applied to.
    """

    name: str
    arguments: tuple[tuple[str, Any], ...]
    grid: Literal["network", "scan"]

    @property
    def map(self) -> dict[int, int]:
        """Label before -> after a MapLabelValue; empty for all other steps."""
        arguments = dict(self.arguments)
        return dict(zip(arguments.get("orig_labels", ()), arguments.get("target_labels", ()), strict=True))

    @property
    def new_labels(self) -> set[int]:
        """Labels that the step can make."""
        return set(self.map.values())


@dataclass(frozen=True)
class Output:
    """How the values of a network become labels on the scan's grid.

    Attributes:
        activation: applied to the values on the network's grid, before anything is interpolated.
        decision: "argmax": the channel of the greatest value wins, and channel 0 is background; "thresholds":
            `channels` say where structures are present, and the last of those that are present wins.
        decided_on: "scan": values are interpolated on the scan's grid, and labels decided there; "network": labels are
            decided on the network's grid, and the labels are carried.
        carried: how labels are carried from the network's grid: the nearest one, or interpolated linearly and rounded.
        channels: structures with channels of their own, in order.
        steps: transforms of the label map, in order.
        has_order: whether the bundle says which structure wins where several are present.
        rounds: whether the bundle itself rounds the labels that are interpolated linearly.
    """

    activation: Literal["none", "softmax", "sigmoid"] = "none"
    decision: Literal["argmax", "thresholds"] = "argmax"
    decided_on: Literal["scan", "network"] = "scan"
    carried: Literal["nearest", "linear"] = "nearest"
    channels: tuple[Channel, ...] = ()
    steps: tuple[LabelStep, ...] = ()
    has_order: bool = True
    rounds: bool = False

    @property
    def class_labels(self) -> dict[int, int]:
        """Label of each class by thresholds: class n is the structure of `channels[n - 1]`."""
        return {n: channel.label for n, channel in enumerate(self.channels, start=1)}

    def channels_of_labels(self, count: int) -> dict[int, int]:
        """Return label in the result -> the first channel that it stands for; background is excluded.

        Args:
            count: number of channels of the network.
        """
        if self.decision == "argmax":
            labels = {n: n for n in range(count)}
        else:
            labels = {channel.label: channel.number for channel in self.channels}
        for step in self.steps:
            mapped: dict[int, int] = {}
            for label, channel in labels.items():
                mapped.setdefault(step.map.get(label, label), channel)
            labels = mapped
        return {label: labels[label] for label in sorted(labels) if label > 0}


def independent_channels(thresholds: Sequence[float], activation: Literal["none", "sigmoid"]) -> tuple[Channel, ...]:
    """Return channels whose probability must be above a threshold; channel n means label n + 1.

    Args:
        thresholds: probability for each channel, between 0 and 1.
        activation: "none": the values are logits.
    """
    values = [log(t / (1 - t)) if activation == "none" else t for t in thresholds]
    above = [float(np.nextafter(np.float32(value), np.float32(np.inf))) for value in values]
    return tuple(Channel(n, value, n + 1) for n, value in enumerate(above))
