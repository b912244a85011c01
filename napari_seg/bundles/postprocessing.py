"""The postprocessing of a MONAI bundle, read from its config as plain data; nothing of the bundle runs.

The engine turns logits into labels in one of two ways: softmax and argmax over the channels, or, if the metadata
declares `thresholds`, a threshold for each channel's sigmoid. A bundle with any other postprocessing would give other
labels in MONAI than here, so it is refused with the names of the unsupported steps.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any

from napari_seg.errors import one_line

_MAX_LENGTH = 80

_MAX_REFERENCES = 50
"""Limit for references that lead from one entry to the next; more are a circle."""

_NO_LABELS = {"image", "label"}
"""Keys of MONAI's dictionaries that do not hold the network's output."""

_BACKGROUND = re.compile(r"(?<![a-z])(background|other|none|void|air|bg|unlabell?ed|clear|outside)(?![a-z])")
"""Names of channel 0 that mean no structure; "airway" does not match."""

_LIKE_NAME = re.compile("(?i)post_?(process(ing)?|trans(form)?s?|pred)(_transforms?)?$")
"""Other ids of the postprocessing; their entries count if they may be transforms."""

_NEUTRAL = {
    "CastToType",
    "CopyItems",
    "DataStats",
    "DeleteItems",
    "EnsureChannelFirst",
    "EnsureType",
    "FromMetaTensor",
    "Identity",
    "Invert",
    "SaveImage",
    "SelectItems",
    "ToCupy",
    "ToDevice",
    "ToNumpy",
    "ToTensor",
}
"""MONAI's transforms that change no label, or that resample labels to the scan's grid as the engine does."""


def unsupported_steps(config: dict[str, Any], has_thresholds: bool, background: str) -> list[str]:
    """Return the steps of a config's postprocessing that the engine does not support, such as "MapLabelValued".

    Args:
        config: from `read_config`.
        has_thresholds: whether the metadata declares a threshold for each channel.
        background: name of channel 0 in the metadata; "" if it has none.
    """
    steps = _steps(config)
    found = [fault for step in steps for fault in _faults(config, step, has_thresholds)]
    is_background = not background or _BACKGROUND.search(background.lower()) is not None
    if not (found or has_thresholds or is_background or any(_has_argmax(config, step) for step in steps)):
        found.append(f"channel 0 named {one_line(background, _MAX_LENGTH)!r} in place of background, without an argmax")
    return list(dict.fromkeys(found))


def is_for_2d_images(config: dict[str, Any]) -> bool:
    """Return whether windows have two dimensions, which means 2D images rather than slices of a volume.

    Args:
        config: from `read_config`.
    """
    waiting, seen = [_resolved(config, config.get("inferer"))], set()
    while waiting:
        entry = waiting.pop()
        if id(entry) in seen or not isinstance(entry, dict):
            continue
        seen.add(id(entry))
        name = str(entry.get("_target_", "")).rpartition(".")[2]
        size = _resolved(config, entry.get("roi_size"))
        if name == "SlidingWindowInferer" and isinstance(size, list | tuple) and len(size) == 2:
            return True
        waiting += [_resolved(config, value) for value in entry.values()]
    return False


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


def _steps(config: dict[str, Any]) -> list[Any]:
    """Return all transforms of the postprocessing, those of a Compose one by one; an unreadable entry as it is."""
    steps: list[Any] = []
    waiting, seen = list(_postprocessings(config)), set()
    while waiting:
        entry = _resolved(config, waiting.pop())
        if id(entry) in seen or entry is None:
            continue
        seen.add(id(entry))
        if isinstance(entry, list):
            waiting += reversed(entry)
        elif isinstance(entry, dict) and _name(entry) == "Compose":
            waiting.append(entry.get("transforms"))
        elif not (isinstance(entry, dict) and _resolved(config, entry.get("_disabled_")) is True):
            steps.append(entry)
    return steps


def _faults(config: dict[str, Any], step: Any, has_thresholds: bool) -> list[str]:
    """Return the unsupported parts of one transform."""
    if not isinstance(step, dict):
        return [one_line(step, _MAX_LENGTH)]
    target = str(step.get("_target_", "an entry without _target_"))
    name = _name(step)
    keys = _listed(config, step.get("keys"))
    output_keys = [n for n, key in enumerate(keys) if key not in _NO_LABELS]
    if keys and not output_keys:
        return []

    def argument(key: str) -> Any:
        values = _listed(config, step.get(key))
        return values[min(output_keys[0] if output_keys else 0, len(values) - 1)] if values else None

    def given(*names: str) -> list[str]:
        values = {key: argument(key) for key in names}
        return [
            f"{one_line(target, _MAX_LENGTH)}({key}={one_line(value, _MAX_LENGTH)})"
            for key, value in values.items()
            if _is_set(value)
        ]

    if name == "Activations":
        return given("other", "softmax" if has_thresholds else "sigmoid")
    if name == "AsDiscrete":
        return given("rounding", *(("argmax",) if has_thresholds else ("threshold", "threshold_values")))
    return [] if name in _NEUTRAL else [one_line(target, _MAX_LENGTH)]


def _has_argmax(config: dict[str, Any], step: Any) -> bool:
    is_discrete = isinstance(step, dict) and _name(step) == "AsDiscrete"
    return is_discrete and any(_is_set(value) for value in _listed(config, step.get("argmax")))


def _name(entry: dict[str, Any]) -> str:
    """Return a transform's name: that of the array version if it is MONAI's, else with its module."""
    target = str(entry.get("_target_", ""))
    module, _, name = target.rpartition(".")
    if module and module.partition(".")[0] != "monai":
        return target
    for ending in ("Dict", "D", "d"):
        plain = name.removesuffix(ending)
        if plain in _NEUTRAL | {"Activations", "AsDiscrete", "Compose"}:
            return plain
    return name


def _listed(config: dict[str, Any], value: Any) -> list[Any]:
    """Return the values of an argument; it may hold one value for all keys, or one for each."""
    value = _resolved(config, value)
    if value is None:
        return []
    return [_resolved(config, one) for one in value] if isinstance(value, list | tuple) else [value]


def _is_set(value: Any) -> bool:
    """Return whether an argument switches something on; a number does, even 0, and so does an unreadable value."""
    return value is not None and value is not False


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
