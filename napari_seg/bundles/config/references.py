"""References between the entries of a config, and the transforms of its postprocessing; plain data, nothing runs."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from napari_seg.bundles.config.expression import MAX_LENGTH

_NO_LITERAL = object()

_MAX_REFERENCES = 50
"""Limit for references that lead from one entry to the next; more are a circle."""

_MAX_ENTRIES = 200
"""Limit for the transforms of a postprocessing."""

_LIKE_NAME = re.compile("(?i)post_?(process(ing)?|trans(form)?s?|pred)(_transforms?)?$")
"""Other ids of the postprocessing; their entries count if they may be transforms."""


def parts(config: dict[str, Any]) -> Iterator[dict[str, Any] | list[Any]]:
    """Yield a config and all dictionaries and lists in it, each once."""
    waiting: list[Any] = [config]
    seen: set[int] = set()
    while waiting:
        entry = waiting.pop()
        if id(entry) in seen:  # aliases in YAML can repeat one entry any number of times
            continue
        seen.add(id(entry))
        yield entry
        inner = entry.values() if isinstance(entry, dict) else entry
        waiting += [value for value in inner if isinstance(value, dict | list)]


def postprocessings(config: dict[str, Any]) -> list[list[Any]]:
    """Return the different postprocessings of a config, each a list of transforms."""
    chains = {}
    for entry in _entries(config):
        steps = _steps(config, entry)
        chains[tuple(map(id, steps))] = steps
    return [steps for steps in chains.values() if steps]


def _entries(config: dict[str, Any]) -> Iterator[Any]:
    """Yield all entries with the id "postprocessing" or a similar one, and those of a handler PostProcessing."""
    for entry in parts(config):
        if isinstance(entry, dict):
            for key, value in entry.items():
                plain = str(key).lstrip("+").replace("::", "#")
                if plain == "postprocessing" or (_LIKE_NAME.match(plain) and isinstance(value, dict | list)):
                    yield value
                elif plain.startswith("postprocessing#"):  # in MONAI it changes one argument
                    yield plain
            if str(entry.get("_target_", "")).rpartition(".")[2] == "PostProcessing":
                yield entry.get("transform")


def _steps(config: dict[str, Any], postprocessing: Any) -> list[Any]:
    """Return the transforms of a postprocessing, those of a Compose one by one; an unreadable entry as it is."""
    steps: list[Any] = []
    waiting, count = [postprocessing], 0
    while waiting:
        entry, count = resolved(config, waiting.pop()), count + 1
        if count > _MAX_ENTRIES:  # entries can refer to each other, or repeat one entry any number of times
            return [*steps, f"more than {_MAX_ENTRIES} transforms"]
        if isinstance(entry, list):
            waiting += reversed(entry)
        elif isinstance(entry, dict) and _is_compose(entry):
            waiting.append(entry.get("transforms"))
        elif isinstance(entry, dict):
            disabled = resolved(config, entry.get("_disabled_"))
            if isinstance(disabled, str) and disabled.lower().strip() not in ("true", "false"):
                steps.append(f"{entry.get('_target_')}(_disabled_={disabled})")  # it can't be read, nor left out
            elif str(disabled).lower().strip() != "true":
                steps.append(entry)
        elif entry is not None:
            steps.append(entry)
    return steps


def _is_compose(entry: dict[str, Any]) -> bool:
    """Return whether an entry is MONAI's Compose."""
    module, _, name = str(entry.get("_target_", "")).rpartition(".")
    return name == "Compose" and module.partition(".")[0] in ("", "monai")


def listed(config: dict[str, Any], value: Any) -> list[Any]:
    """Return the values of an argument; it may hold one value for all keys, or one for each."""
    value = resolved(config, value)
    if value is None:
        return []
    return [resolved(config, one) for one in value] if isinstance(value, list | tuple) else [value]


@lru_cache(maxsize=512)  # aliases in YAML can repeat one text any number of times
def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except Exception:  # an expression that only the bundle's own code can evaluate
        return _NO_LITERAL


def resolved(config: dict[str, Any], value: Any, depth: int = 0) -> Any:
    """Return the value of a reference ("@id") or of a literal expression ("$True"); anything else unchanged."""
    if not isinstance(value, str) or depth > _MAX_REFERENCES or len(value) > MAX_LENGTH:
        return value
    if value.startswith("$"):
        text = value[1:].strip()
        if text.startswith("@") and text[1:].replace("_", "").replace("#", "").replace("::", "").isalnum():
            return resolved(config, text, depth + 1)
        literal = _literal(text)
        return value if literal is _NO_LITERAL else literal
    if value.startswith(("@", "%")):
        found: Any = config
        for part in value[1:].replace("::", "#").split("#"):
            try:
                found = found[int(part)] if isinstance(found, list) else found[part]
            except (KeyError, ValueError, IndexError, TypeError):
                return value
        return resolved(config, found, depth + 1)
    return value
