"""What the output of a network means: how its values become labels, read from a config as plain data.

`read_output` reads the postprocessing of a MONAI bundle step by step, in the order of the config. The engine then
gives the labels that these steps give in MONAI. A step that is not recognised is returned by name, and the bundle is
not run by the engine. Nothing of the bundle runs here: a lambda is recognised by its syntax tree.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import log
from typing import Any, Literal

import numpy as np

from napari_seg.errors import one_line
from napari_seg.volume import MAX_LABEL

_MAX_LENGTH = 80

_MAX_REFERENCES = 50
"""Limit for references that lead from one entry to the next; more are a circle."""

_MAX_ENTRIES = 200
"""Limit for the transforms of a postprocessing."""

_NO_LABELS = {"image", "label"}
"""Keys of MONAI's dictionaries that do not hold the network's output."""

_BACKGROUND = re.compile(r"(?<![a-z])(background|other|none|void|air|bg|unlabell?ed|clear|outside)(?![a-z])")
"""Names of channel 0 that mean no structure; "airway" does not match."""

_LIKE_NAME = re.compile("(?i)post_?(process(ing)?|trans(form)?s?|pred)(_transforms?)?$")
"""Other ids of the postprocessing; their entries count if they may be transforms."""

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

_EXACT_TYPES = {"float", "float32", "float64", "double"}
"""Types that keep a value as it is."""

_INTEGER_TYPES = {"byte", "uint8", "uint16", "short", "int16", "int", "int32", "long", "int64"}
"""Types that keep a label as it is."""


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
    for chain in _chains(config) or [[]]:
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
        kept = _EXACT_TYPES if self.content == "values" else _EXACT_TYPES | _INTEGER_TYPES
        if dtype is not None and str(dtype).lstrip("$").rpartition(".")[2] not in kept:
            self.faults += arguments.set_ones("dtype")
        elif self._is_unrounded() and str(dtype).rpartition(".")[2] in _INTEGER_TYPES:
            self.faults.append(f"{arguments.target} of labels that are interpolated linearly")

    def _is_unrounded(self) -> bool:
        """Return whether MONAI's labels may lie between two labels now."""
        return self.decided_on == "network" and self.inverse == "linear" and not self.rounds

    def _read_label_step(self, name: str, arguments: _Arguments) -> None:
        values = {key: arguments.whole(key) for key in arguments.names if arguments.whole(key) is not None}
        plain = all(_is_plain(value) for value in values.values()) and set(values) <= _LABEL_STEPS[name]
        is_complete = name != "MapLabelValue" or _is_map(values.get("orig_labels"), values.get("target_labels"))
        is_label_map = self.content == "classes" and not self.is_scaled and not self._is_unrounded()
        if not (plain and is_complete and is_label_map):
            self.faults.append(arguments.target)
            return
        grid: Literal["network", "scan"] = "scan" if self.inverse != "none" else "network"
        self.steps.append(LabelStep(name, tuple(sorted(values.items())), grid))

    def _read_lambda(self, arguments: _Arguments) -> None:
        function = _lambda(arguments.step.get("func")) if set(arguments.names) <= {"func"} else None
        rule = None if function is None else _label_rule(function)
        if function is not None and self.content != "values" and not self._is_unrounded():
            scale = _scale(function)
            if scale is not None:
                self.is_scaled |= scale != 1
                return
            if self.content == "one-hot classes" and _is_without_first(function):
                return
            is_known = rule is not None and all(channel < self.channel_count for channel, _ in rule)
            if self.content == "masks" and is_known and not self.own_thresholds and not self.is_scaled:
                self.rule, self.content = rule, "classes"
                return
        self.faults.append(arguments.target)


@dataclass
class _Arguments:
    """Arguments of one transform, for the network's output; one argument may hold one value for all keys, or a list."""

    config: dict[str, Any]
    step: dict[str, Any]
    target: str
    keys: list[Any] = field(init=False)

    def __post_init__(self) -> None:
        self.keys = [str(key) for key in _listed(self.config, self.step.get("keys"))]

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
        """Whether the transform leaves the network's output alone."""
        return bool(self.keys) and not self.output_keys

    def __getitem__(self, name: str) -> Any:
        """Return the value for the first key of the network's output; None: it is absent."""
        values = _listed(self.config, self.step.get(name))
        first = next((n for n, key in enumerate(self.keys) if key not in _NO_LABELS), 0)
        return values[min(first, len(values) - 1)] if values else None

    def whole(self, name: str) -> Any:
        """Return an argument that is the same for all keys; lists become tuples."""
        value = _resolved(self.config, self.step.get(name))
        return tuple(_listed(self.config, value)) if isinstance(value, list | tuple) else value

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
        resolved = _resolved(self.config, value)
        return isinstance(resolved, dict) and resolved is _resolved(self.config, self.config.get("preprocessing"))


def _is_map(old: Any, new: Any) -> bool:
    """Return whether two arguments are labels and the labels that they become."""
    if not (isinstance(old, tuple) and isinstance(new, tuple) and len(old) == len(new) == len(set(old))):
        return False
    return all(type(label) is int and 0 <= label <= MAX_LABEL for label in old + new)


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(isinstance(one, int) for one in value)
    return isinstance(value, bool | int)


# lambdas, recognised by their syntax trees


def _lambda(text: Any) -> ast.Lambda | None:
    """Return the tree of a lambda with one argument; None for anything else."""
    if not isinstance(text, str) or not text.startswith("$"):
        return None
    try:
        tree = ast.parse(text[1:].strip(), mode="eval").body
    except Exception:  # a text that is no Python, or nested too deep
        return None
    if not isinstance(tree, ast.Lambda):
        return None
    named = tree.args
    is_simple = len(named.args) == 1 and not (
        named.posonlyargs or named.kwonlyargs or named.defaults or named.vararg or named.kwarg
    )
    return tree if is_simple else None


def _label_rule(function: ast.Lambda) -> list[tuple[int, int]] | None:
    """Return (channel, label) in ascending order of precedence for a nest of `torch.where`; None for anything else.

    `torch.where(x[[2]] > 0, 4, torch.where(x[[0]] > 0, 1, 0))` gives [(0, 1), (2, 4)].
    """
    found: list[tuple[int, int]] = []
    body = function.body
    while isinstance(body, ast.Call):
        match body:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr="where"), args=[_, _, _], keywords=[]):
                pass
            case _:
                return None
        channel = _present_channel(body.args[0], function.args.args[0].arg)
        label = body.args[1].value if isinstance(body.args[1], ast.Constant) else None
        if channel is None or type(label) is not int or label < 1:
            return None
        found.append((channel, label))
        body = body.args[2]
    ends_with_background = isinstance(body, ast.Constant) and type(body.value) is int and body.value == 0
    channels = [channel for channel, _ in found]
    labels = {label for _, label in found}
    if not found or not ends_with_background or len(set(channels)) < len(found) or len(labels) < len(found):
        return None
    return found[::-1]


def _present_channel(condition: ast.expr, name: str) -> int | None:
    """Return the channel n of the conditions `x[[n]] > 0` and `x[n:n+1] == 1`; None for anything else."""
    if not isinstance(condition, ast.Compare) or len(condition.ops) != 1:
        return None
    match condition.ops[0], condition.comparators[0]:
        case ast.Gt(), ast.Constant(value=int() | float() as limit):
            is_presence = 0 <= limit < 1
        case ast.GtE(), ast.Constant(value=int() | float() as limit):
            is_presence = 0 < limit <= 1
        case ast.Eq(), ast.Constant(value=limit):
            is_presence = limit == 1
        case _:
            return None
    part = condition.left
    if not is_presence or not isinstance(part, ast.Subscript) or not _is_name(part.value, name):
        return None
    match part.slice:
        case ast.List(elts=[ast.Constant(value=int(n))]) if type(n) is int and n >= 0:
            return n
        case ast.Slice(lower=ast.Constant(value=int(n)), upper=ast.Constant(value=int(end)), step=None) if end == n + 1:
            return n
    return None


def _is_without_first(function: ast.Lambda) -> bool:
    """Return whether a lambda returns all channels but the first."""
    match function.body:
        case ast.Subscript(value=value, slice=ast.Slice(lower=ast.Constant(value=1), upper=None, step=None)):
            return _is_name(value, function.args.args[0].arg)
    return False


def _scale(function: ast.Lambda) -> float | None:
    """Return the number by which a lambda multiplies labels, 1 if it changes only their type; None for all else."""
    name, scale, body = function.args.args[0].arg, 1.0, function.body
    while True:
        match body:
            case ast.Name(id=found) if found == name:
                return scale
            case ast.BinOp(left=inner, op=ast.Mult(), right=ast.Constant(value=int() | float() as number)) if (
                number > 0
            ):
                scale, body = scale * number, inner
            case ast.Call(func=ast.Attribute(value=inner, attr="to" | "astype" | "type"), args=[dtype], keywords=[]):
                if not isinstance(dtype, ast.Attribute) or dtype.attr not in _EXACT_TYPES | _INTEGER_TYPES:
                    return None
                body = inner
            case ast.Call(func=ast.Attribute(value=inner, attr=attribute), args=[], keywords=[]):
                if attribute not in {"cpu", "contiguous", "detach", "clone"} | _EXACT_TYPES | _INTEGER_TYPES:
                    return None
                body = inner
            case _:
                return None


def _is_name(tree: ast.expr, name: str) -> bool:
    return isinstance(tree, ast.Name) and tree.id == name


# steps of a config


def image_dimensions(config: dict[str, Any], spatial_shape: Any = None) -> Literal[2, 3]:
    """Return 2 if the transforms and the network take 2D images (C, I, J), 3 if they take volumes or their slices.

    Args:
        config: from `read_config`.
        spatial_shape: of the network's image, from the metadata; None if it has none.
    """
    waiting, seen, names = [_resolved(config, config.get("inferer"))], set(), []
    while waiting:
        entry = waiting.pop()
        if id(entry) in seen or not isinstance(entry, dict):
            continue
        seen.add(id(entry))
        names.append(str(entry.get("_target_", "")).rpartition(".")[2])
        size = _resolved(config, entry.get("roi_size"))
        if names == ["SlidingWindowInferer"] and isinstance(size, list | tuple):
            return 2 if len(size) == 2 else 3
        waiting += [_resolved(config, value) for value in entry.values()]
    if set(names) - {"SimpleInferer", "SlidingWindowInferer"}:
        return 3  # slices of a volume, or a way of the bundle's own
    network = _resolved(config, config.get("network_def"))
    if isinstance(network, dict):
        dimensions = [_resolved(config, network.get(key)) for key in ("spatial_dims", "dimensions")]
        if found := next((n for n in dimensions if n in (2, 3)), None):
            return 2 if found == 2 else 3
    return 2 if isinstance(spatial_shape, list) and len(spatial_shape) == 2 else 3


def _chains(config: dict[str, Any]) -> list[list[Any]]:
    """Return the different postprocessings of a config, each a list of transforms."""
    chains = {}
    for entry in _postprocessings(config):
        steps = _steps(config, entry)
        chains[tuple(map(id, steps))] = steps
    return [steps for steps in chains.values() if steps]


def _postprocessings(config: dict[str, Any]) -> Iterator[Any]:
    """Yield all entries with the id "postprocessing" or a similar one, and those of a handler PostProcessing."""
    waiting: list[Any] = [config]
    seen: set[int] = set()
    while waiting:
        entry = waiting.pop()
        if id(entry) in seen:  # aliases in YAML can repeat one entry any number of times
            continue
        seen.add(id(entry))
        if isinstance(entry, dict):
            for key, value in entry.items():
                plain = str(key).lstrip("+").replace("::", "#")
                if plain == "postprocessing" or (_LIKE_NAME.match(plain) and isinstance(value, dict | list)):
                    yield value
                elif plain.startswith("postprocessing#"):  # in MONAI it changes one argument
                    yield plain
            if str(entry.get("_target_", "")).rpartition(".")[2] == "PostProcessing":
                yield entry.get("transform")
        inner = entry.values() if isinstance(entry, dict) else entry
        waiting += [value for value in inner if isinstance(value, dict | list)]


def _steps(config: dict[str, Any], postprocessing: Any) -> list[Any]:
    """Return the transforms of a postprocessing, those of a Compose one by one; an unreadable entry as it is."""
    steps: list[Any] = []
    waiting, count = [postprocessing], 0
    while waiting:
        entry, count = _resolved(config, waiting.pop()), count + 1
        if count > _MAX_ENTRIES:  # entries can refer to each other, or repeat one entry any number of times
            return [*steps, f"more than {_MAX_ENTRIES} transforms"]
        if isinstance(entry, list):
            waiting += reversed(entry)
        elif isinstance(entry, dict) and _name(entry) == "Compose":
            waiting.append(entry.get("transforms"))
        elif entry is None or (isinstance(entry, dict) and _resolved(config, entry.get("_disabled_")) is True):
            continue
        else:
            steps.append(entry)
    return steps


def _name(entry: dict[str, Any]) -> str:
    """Return a transform's name: that of the array version if it is MONAI's, else with its module."""
    target = str(entry.get("_target_", ""))
    module, _, name = target.rpartition(".")
    if module and module.partition(".")[0] != "monai":
        return target
    for ending in ("Dict", "D", "d"):
        plain = name.removesuffix(ending)
        known = {"Activations", "AsDiscrete", "Compose", "Invert", "Lambda"}
        if plain in _NEUTRAL | _CASTS | _LABEL_STEPS.keys() | known:
            return plain
    return name


def _listed(config: dict[str, Any], value: Any) -> list[Any]:
    """Return the values of an argument; it may hold one value for all keys, or one for each."""
    value = _resolved(config, value)
    if value is None:
        return []
    return [_resolved(config, one) for one in value] if isinstance(value, list | tuple) else [value]


def _resolved(config: dict[str, Any], value: Any, depth: int = 0) -> Any:
    """Return the value of a reference ("@id") or of a literal expression ("$True"); anything else unchanged."""
    if not isinstance(value, str) or depth > _MAX_REFERENCES:
        return value
    if value.startswith("$"):
        text = value[1:].strip()
        if text.startswith("@") and text[1:].replace("_", "").replace("#", "").replace("::", "").isalnum():
            return _resolved(config, text, depth + 1)
        try:
            return ast.literal_eval(text)
        except Exception:  # an expression that only the bundle's own code can evaluate
            return value
    if value.startswith(("@", "%")):
        found: Any = config
        for part in value[1:].replace("::", "#").split("#"):
            try:
                found = found[int(part)] if isinstance(found, list) else found[part]
            except (KeyError, ValueError, IndexError, TypeError):
                return value
        return _resolved(config, found, depth + 1)
    return value
