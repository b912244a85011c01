"""The postprocessing of a MONAI bundle, read from its config as plain data; nothing of the bundle runs.

`read_output` reads it step by step, in the order of the config. The engine then gives the labels that these steps give
in MONAI. A step that is not recognised is returned by name, and the engine does not run the bundle.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import log
from typing import Any, Literal

from napari_seg.bundles.config.references import listed, postprocessings, resolved
from napari_seg.bundles.lambdas import (
    EXACT_TYPES,
    INTEGER_TYPES,
    is_without_first,
    label_rule,
    parsed_lambda,
    scale_of,
)
from napari_seg.bundles.output import Channel, LabelStep, Output, independent_channels
from napari_seg.errors import one_line
from napari_seg.volume import MAX_LABEL

_MAX_LENGTH = 80

_NO_LABELS = {"image", "label"}
"""Keys of MONAI's dictionaries that do not hold the network's output."""

_BACKGROUND = re.compile(r"(?<![a-z])(background|other|none|void|air|bg|unlabell?ed|clear|outside)(?![a-z])")
"""Names of channel 0 that mean no structure; "airway" does not match."""

_NEUTRAL = {
    "CopyItems",
    "DataStats",
    "DeleteItems",
    "EnsureChannelFirst",
    "FromMetaTensor",
    "Identity",
    "SaveImage",
    "SelectItems",
    "ToCupy",
    "ToDevice",
    "ToNumpy",
    "ToTensor",
}
"""MONAI's transforms that change no value."""

_CASTS = {"CastToType", "EnsureType"}

_LABEL_STEPS = {
    "FillHoles": {"applied_labels", "connectivity"},
    "KeepLargestConnectedComponent": {
        "applied_labels",
        "connectivity",
        "independent",
        "is_onehot",
        "num_components",
    },
    "LabelFilter": {"applied_labels"},
    "MapLabelValue": {"orig_labels", "target_labels"},
    "RemoveSmallObjects": {"connectivity", "independent_channels", "min_size"},
}
"""MONAI's transforms of label maps that the engine applies -> their arguments."""


def read_output(
    config: dict[str, Any], channels: int, thresholds: Sequence[float] = (), background: str = ""
) -> Output | tuple[str, ...]:
    """Return what the output of a config's network means, or the steps that are not recognised, by name.

    Args:
        config: from `read_config`.
        channels: number of channels of the network.
        thresholds: probability of each channel above which its structure is present, if the metadata declares them;
            they replace those of the config.
        background: name of channel 0 in the metadata; "" if it has none.
    """
    outputs: dict[Output, None] = {}
    faults: list[str] = []
    for chain in postprocessings(config) or [[]]:
        reader = _Reader(config, channels, tuple(thresholds))
        for step in chain:
            reader.read(step)
        found = reader.output(background)
        if isinstance(found, Output):
            outputs[found] = None
        else:
            faults += found
    if len(outputs) > 1:
        faults.append(f"{len(outputs)} different postprocessings")
    return tuple(dict.fromkeys(faults)) or next(iter(outputs))


class _Reader:
    """State between two steps of a postprocessing: what the values are, where they are, and what is not recognised.

    Attributes:
        faults: parts of steps that are not recognised.
    """

    def __init__(self, config: dict[str, Any], channels: int, thresholds: tuple[float, ...]) -> None:
        self.config = config
        self.channel_count = channels
        self.own_thresholds = thresholds
        self.faults: list[str] = []
        self.keys: set[str] = set()
        self.activation: Literal["none", "softmax", "sigmoid"] = "none"
        self.activated_on: Literal["network", "scan"] = "network"
        self.inverse: Literal["none", "nearest", "linear"] = "none"
        self.decided_on: Literal["network", "scan"] | None = None
        self.content: Literal["values", "classes", "one-hot classes", "masks"] = "values"
        self.threshold: float | None = None
        self.rule: list[tuple[int, int]] | None = None
        self.steps: list[LabelStep] = []
        self.is_scaled = False
        self.rounds = False

    def read(self, step: Any) -> None:
        """Read one transform."""
        if not isinstance(step, dict):
            self.faults.append(one_line(step, _MAX_LENGTH))
            return
        target = one_line(step.get("_target_", "an entry without _target_"), _MAX_LENGTH)
        arguments = _Arguments(self.config, step, target)
        self.faults += arguments.set_ones("_mode_", "_requires_")
        if arguments.is_for_other_keys:
            return
        self.keys |= arguments.output_keys
        name = _name(step)
        if name in _NEUTRAL:
            return
        read = {
            "Activations": self._read_activation,
            "AsDiscrete": self._read_decision,
            "Invert": self._read_inverse,
            "Lambda": self._read_lambda,
        }.get(name)
        if name in _CASTS:
            self._read_cast(arguments)
        elif name in _LABEL_STEPS:
            self._read_label_step(name, arguments)
        elif read is not None:
            read(arguments)
        else:
            self.faults.append(target)

    def output(self, background: str) -> Output | tuple[str, ...]:
        """Return the output after the last step, or the faults.

        Args:
            background: name of channel 0; "" if it has none.
        """
        if len(self.keys) > 1:
            self.faults.append(f"steps on several outputs ({one_line(', '.join(sorted(self.keys)), _MAX_LENGTH)})")
        is_decided = self.decided_on is not None
        has_channels = bool(self.own_thresholds) or self.threshold is not None
        if not is_decided and not self.own_thresholds:
            if self.activation == "sigmoid":
                self.faults.append("a sigmoid without thresholds")
            elif background and _BACKGROUND.search(background.lower()) is None:
                named = one_line(background, _MAX_LENGTH)
                self.faults.append(f"channel 0 named {named!r} in place of background, without an argmax")
        if not has_channels and self.channel_count == 1:
            self.faults.append("the argmax of a single channel, which is all background")
        if self.faults:
            return tuple(dict.fromkeys(self.faults))
        on_network = self.inverse == "nearest" or (
            is_decided and (self.inverse == "none" or self.decided_on == "network")
        )
        # softmax and argmax on one grid are the argmax alone
        is_between = self.activated_on == "network" and not (on_network and self.activation == "softmax")
        activation = self.activation if is_between else "none"
        return Output(
            activation=activation,
            decision="thresholds" if has_channels else "argmax",
            decided_on="network" if on_network else "scan",
            carried="linear" if on_network and self.inverse == "linear" else "nearest",
            channels=self._channels(activation) if has_channels else (),
            steps=tuple(self.steps),
            has_order=not self._may_overlap(),
            rounds=self.rounds,
        )

    def _may_overlap(self) -> bool:
        """Return whether structures can overlap, and the bundle does not say which one wins."""
        is_open = self.threshold is not None and self.rule is None
        return is_open and not self.own_thresholds and self.channel_count > 1

    def _channels(self, activation: str) -> tuple[Channel, ...]:
        kind: Literal["none", "sigmoid"] = "sigmoid" if activation == "sigmoid" else "none"
        if self.own_thresholds:
            return independent_channels(self.own_thresholds, kind)
        assert self.threshold is not None
        t = self.threshold
        value = t if kind == "sigmoid" else log(t / (1 - t))
        order = [(n, n + 1) for n in range(self.channel_count)] if self.rule is None else self.rule
        return tuple(Channel(number, value, label) for number, label in order)

    def _grid(self) -> Literal["network", "scan"]:
        return "network" if self.inverse == "none" else "scan"

    def _read_activation(self, arguments: _Arguments) -> None:
        softmax, sigmoid = (arguments.is_set(key) for key in ("softmax", "sigmoid"))
        faults = arguments.set_ones("other", "dim")
        given = arguments.set_ones("softmax", "sigmoid")
        if not softmax and not sigmoid:
            self.faults += faults
            return
        unclear = [key for key in ("softmax", "sigmoid") if not isinstance(arguments[key], bool | None)]
        if unclear or (softmax and sigmoid) or self.content != "values" or self.activation != "none":
            faults += given
        if self.own_thresholds and softmax:
            faults += arguments.set_ones("softmax")
        self.faults += faults
        self.activation, self.activated_on = "softmax" if softmax else "sigmoid", self._grid()

    def _read_decision(self, arguments: _Arguments) -> None:
        faults = arguments.set_ones("threshold_values", "dim", "keepdim", "n_classes")
        if _type_name(arguments["dtype"]) not in {"None"} | EXACT_TYPES | INTEGER_TYPES:
            faults += arguments.set_ones("dtype")
        if arguments.is_set("argmax"):
            if (
                arguments["argmax"] is not True
                or self.content != "values"
                or self.activation == "sigmoid"
                or self.own_thresholds
            ):
                faults += arguments.set_ones("argmax")
            faults += arguments.set_ones("threshold")
            self.content, self.decided_on = "classes", self._grid()
        elif arguments.is_set("threshold"):
            t = arguments["threshold"]
            is_probability = isinstance(t, float) and 0 < t < 1
            if not is_probability or self.content != "values" or self.activation != "sigmoid":
                faults += arguments.set_ones("threshold")
            else:
                self.threshold = t
            self.content = "classes" if self.channel_count == 1 else "masks"
            self.decided_on = self._grid()
        if arguments.is_set("to_onehot"):
            if self.content != "classes" or self.decided_on is None:
                faults += arguments.set_ones("to_onehot")
            self.content = "one-hot classes"
        if arguments.is_set("rounding"):
            if arguments["rounding"] != "torchrounding" or self.content == "values":
                faults += arguments.set_ones("rounding")
            self.rounds = True
        self.faults += faults

    def _read_inverse(self, arguments: _Arguments) -> None:
        faults = arguments.set_ones("post_func")
        if not arguments.is_preprocessing("transform"):
            faults += arguments.set_ones("transform")
        nearest = True if arguments["nearest_interp"] is None else arguments["nearest_interp"]
        is_fractional = nearest is False and self.content in ("one-hot classes", "masks")
        if not isinstance(nearest, bool) or is_fractional:
            state = f" of {self.content}" if is_fractional else ""
            faults.append(f"{arguments.target}(nearest_interp={one_line(nearest, _MAX_LENGTH)}){state}")
        if self.inverse != "none":
            faults.append(f"a second {arguments.target}")
        self.faults += faults
        self.inverse = "nearest" if nearest else "linear"

    def _read_cast(self, arguments: _Arguments) -> None:
        dtype = arguments["dtype"]
        kept = EXACT_TYPES if self.content == "values" else EXACT_TYPES | INTEGER_TYPES
        if _type_name(dtype) not in {"None"} | kept:
            self.faults += arguments.set_ones("dtype")
        elif self._is_unrounded() and _type_name(dtype) in INTEGER_TYPES:
            self.faults.append(f"{arguments.target} of labels that are interpolated linearly")

    def _is_unrounded(self) -> bool:
        """Return whether MONAI's labels may lie between two labels now."""
        return self.decided_on == "network" and self.inverse == "linear" and not self.rounds

    def _read_label_step(self, name: str, arguments: _Arguments) -> None:
        values = {key: arguments.whole(key) for key in arguments.names if arguments.whole(key) is not None}
        plain = all(_is_plain(value) for value in values.values()) and set(values) <= _LABEL_STEPS[name]
        is_complete = name != "MapLabelValue" or _is_map(values.get("orig_labels"), values.get("target_labels"))
        is_label_map = self.content == "classes" and not self.is_scaled and not self._is_unrounded()
        is_label_map &= not values.get("is_onehot")
        if not (plain and is_complete and is_label_map):
            self.faults.append(arguments.target)
            return
        grid: Literal["network", "scan"] = "scan" if self.inverse != "none" else "network"
        self.steps.append(LabelStep(name, tuple(sorted(values.items())), grid))

    def _read_lambda(self, arguments: _Arguments) -> None:
        function = parsed_lambda(arguments.step.get("func")) if set(arguments.names) <= {"func"} else None
        rule = None if function is None else label_rule(function)
        if function is not None and self.content != "values" and not self._is_unrounded():
            scale = scale_of(function)
            if scale is not None:
                self.is_scaled |= scale != 1
                return
            if self.content == "one-hot classes" and is_without_first(function):
                return
            is_known = rule is not None and all(channel < self.channel_count for channel, _ in rule)
            is_mask = self.content == "masks" or self._is_one_mask()
            if is_mask and is_known and not self.own_thresholds and not self.is_scaled:
                self.rule, self.content = rule, "classes"
                return
        self.faults.append(arguments.target)

    def _is_one_mask(self) -> bool:
        """Return whether the classes are the mask of the only channel, as its threshold gave it."""
        is_plain = self.content == "classes" and self.rule is None and not self.steps
        return is_plain and self.channel_count == 1 and self.threshold is not None


@dataclass
class _Arguments:
    """Arguments of one transform, for the network's output; one argument may hold one value for all keys, or a list."""

    config: dict[str, Any]
    step: dict[str, Any]
    target: str
    keys: list[Any] = field(init=False)

    def __post_init__(self) -> None:
        self.keys = [str(key) for key in listed(self.config, self.step.get("keys"))]

    @property
    def names(self) -> list[str]:
        """Names of the arguments other than the keys."""
        return [key for key in self.step if key not in ("_target_", "_desc_", "keys", "allow_missing_keys")]

    @property
    def output_keys(self) -> set[str]:
        """Keys of the network's output."""
        return {str(key) for key in self.keys if key not in _NO_LABELS}

    @property
    def is_for_other_keys(self) -> bool:
        """True if the transform does not change the network's output."""
        return bool(self.keys) and not self.output_keys

    def __getitem__(self, name: str) -> Any:
        """Return the value for the first key of the network's output; None: it is absent."""
        values = listed(self.config, self.step.get(name))
        first = next((n for n, key in enumerate(self.keys) if key not in _NO_LABELS), 0)
        return values[min(first, len(values) - 1)] if values else None

    def whole(self, name: str) -> Any:
        """Return an argument that is the same for all keys; lists become tuples."""
        value = resolved(self.config, self.step.get(name))
        return tuple(listed(self.config, value)) if isinstance(value, list | tuple) else value

    def is_set(self, name: str) -> bool:
        """Return whether an argument switches something on; a number does, even 0, and so does an unreadable value."""
        return self[name] is not None and self[name] is not False

    def set_ones(self, *names: str) -> list[str]:
        """Return those of some arguments that are set, with their transform."""
        return [f"{self.target}({key}={one_line(self[key], _MAX_LENGTH)})" for key in names if self.is_set(key)]

    def is_preprocessing(self, name: str) -> bool:
        """Return whether an argument is the preprocessing of the config."""
        value = self.step.get(name)
        if isinstance(value, str) and value.removeprefix("$").strip() in ("@preprocessing", "%preprocessing"):
            return True
        entry = resolved(self.config, value)
        return isinstance(entry, dict) and entry is resolved(self.config, self.config.get("preprocessing"))


def _type_name(dtype: Any) -> str:
    """Return the name of a type such as "$torch.float32" without its module."""
    return str(dtype).lstrip("$").rpartition(".")[2]


def _is_map(old: Any, new: Any) -> bool:
    """Return whether two arguments are labels and the labels that they become."""
    if not (isinstance(old, tuple) and isinstance(new, tuple) and len(old) == len(new) == len(set(old))):
        return False
    return all(type(label) is int and 0 <= label <= MAX_LABEL for label in old + new)


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(isinstance(one, int) for one in value)
    return isinstance(value, bool | int)


def _name(entry: dict[str, Any]) -> str:
    """Return a transform's name: that of the array version if it is MONAI's, else with its module."""
    target = str(entry.get("_target_", ""))
    module, _, name = target.rpartition(".")
    if module and module.partition(".")[0] != "monai":
        return target
    for ending in ("Dict", "D", "d"):
        plain = name.removesuffix(ending)
        known = {"Activations", "AsDiscrete", "Invert", "Lambda"}
        if plain in _NEUTRAL | _CASTS | _LABEL_STEPS.keys() | known:
            return plain
    return name
