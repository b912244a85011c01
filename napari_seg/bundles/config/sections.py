"""The parts of an inference config that segment a scan, wherever the config has them; plain data, nothing runs."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from napari_seg.bundles.config.allowed import is_reading, target_name
from napari_seg.bundles.config.resolve import ResolveError, Resolver, normal_id
from napari_seg.bundles.dimensions import REFERENCE_KEYS

_NETWORKS = ("network_def", "network", "net", "model")
_PREPROCESSINGS = ("preprocessing", "preprocess", "preprocessing_transforms", "pre_transforms", "transforms")
_INFERERS = ("inferer", "inferrer", "windows")

_REFERENCE = re.compile(r"\$?\s*@(\w+(?:(?:::|#)\w+)*)\s*")
_MAX_REFERENCES = 20

_COMBINING = ("ConcatItemsd", "CopyItemsd")
"""Transforms whose result for one key depends on the others."""
_OTHER_KEYS = ("source_key", "mask_key")
"""Arguments that name another key that a transform needs."""


@dataclass(frozen=True)
class Sections:
    """Ids of the entries that segment a scan.

    Attributes:
        network: the network.
        preprocessing: its transforms: a Compose or a list.
        inferer: lays the windows; "" for MONAI's default, the whole image at once.
        image_keys: keys of the images that the preprocessing reads; one, unless a case has several.
    """

    network: str
    preprocessing: str
    inferer: str
    image_keys: tuple[str, ...]


def find_sections(resolver: Resolver) -> Sections:
    """Return the sections of a config: by the ids of the specification, else what its only evaluator names.

    Raises:
        ResolveError: one is missing.
    """
    evaluator = _evaluator(resolver)

    def find(what: str, usual: tuple[str, ...], path: tuple[str, ...]) -> str:
        if usual[0] in resolver:
            return usual[0]
        id = _followed(resolver, evaluator, path) if evaluator else ""
        return id or next((name for name in usual if name in resolver), "")

    network = find("network", _NETWORKS, ("network",))
    preprocessing = find("preprocessing", _PREPROCESSINGS, ("val_data_loader", "dataset", "transform"))
    inferer = find("inferer", _INFERERS, ("inferer",))
    missing = [name for name, id in (("network_def", network), ("preprocessing", preprocessing)) if not id]
    if not inferer and not evaluator:
        missing.append("inferer")
    if missing:
        raise ResolveError(f"it has no {' and no '.join(missing)}")
    return Sections(network, preprocessing, inferer, _image_keys(resolver, preprocessing))


def missing_keys(resolver: Resolver, sections: Sections) -> list[str]:
    """Return which steps of the preprocessing need entries that a scan does not have, such as its reference label map.

    A listed transform that treats a label map like the image, each by itself, needs none: the label map is left out.
    After a step that may add entries of its own, nothing is known.
    """
    present, found = set(sections.image_keys), []
    for step in _steps(resolver.plain(sections.preprocessing)):
        target = str(step.get("_target_"))
        if is_reading(target):
            continue
        name = target_name(target).rpartition(".")[2]
        keys, names = (_texts(step.get(argument)) for argument in ("keys", "name" if "Concat" in name else "names"))
        needed = [] if step.get("allow_missing_keys") is True or name == "DeleteItemsd" else keys
        if name and name not in _COMBINING:
            needed = [key for key in needed if key not in REFERENCE_KEYS]
        needed = [*needed, *(key for argument in _OTHER_KEYS for key in _texts(step.get(argument)))]
        missing = [key for key in dict.fromkeys(needed) if key not in present and key.isidentifier()]
        if missing:
            found.append(f"{sections.preprocessing}: {target} needs {', '.join(missing)}, which a scan does not have")
        if not name:
            break
        present |= {*names}
    return found


def _steps(value: Any) -> list[dict[str, Any]]:
    """Return the transforms of a Compose or a list, those of inner ones too; plain data."""
    found: list[dict[str, Any]] = []
    steps = value.get("transforms") if isinstance(value, dict) else value
    for step in steps if isinstance(steps, list) else ():
        if isinstance(step, dict):
            found += _steps(step) if "transforms" in step else [step]
        elif isinstance(step, list):
            found += _steps(step)
    return found


def _texts(value: Any) -> list[str]:
    return [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, str)]


def targets(resolver: Resolver) -> list[tuple[str, str]]:
    """Return the id and the `_target_` of all components that are not disabled."""
    return [(id, str(value["_target_"])) for id, value in components(resolver)]


def components(resolver: Resolver) -> list[tuple[str, dict[str, Any]]]:
    """Return the ids of all components that are not disabled, and what is written there."""
    found: list[tuple[str, dict[str, Any]]] = []
    waiting: list[tuple[str, Any]] = [("", resolver.entries)]
    while waiting:
        id, value = waiting.pop(0)
        if isinstance(value, dict) and "_target_" in value:
            with suppress(ResolveError):  # whether it is disabled is known only at run time
                if resolver.is_disabled(value, id):
                    continue
            found.append((id, value))
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(one, dict | list):
                waiting.append((f"{id}::{key}" if id else str(key), one))
    return found


def _evaluator(resolver: Resolver) -> str:
    """Return the id of the only evaluator; "" if there is none or there are several."""
    ids = [id for id, target in targets(resolver) if target.rpartition(".")[2].endswith("Evaluator")]
    return ids[0] if len(ids) == 1 else ""


def _followed(resolver: Resolver, id: str, path: tuple[str, ...]) -> str:
    """Return the id at the end of a path of arguments, through references; "" if an argument is missing.

    Raises:
        ResolveError: a reference leads nowhere.
    """
    for key in path:
        id = f"{id}::{key}"
        if id not in resolver:
            return ""
        for _ in range(_MAX_REFERENCES):
            value = resolver.entry(id)
            reference = _REFERENCE.fullmatch(value) if isinstance(value, str) else None
            if reference is None:
                break
            id = normal_id(reference.group(1))
    return id


def _image_keys(resolver: Resolver, preprocessing: str) -> tuple[str, ...]:
    """Return the keys of the images that the preprocessing reads; "image" if it reads none."""
    plain = resolver.plain(preprocessing)
    steps = plain.get("transforms") if isinstance(plain, dict) else plain
    keys: list[str] = []
    for step in steps if isinstance(steps, list) else ():
        if isinstance(step, dict) and str(step.get("_target_")).rpartition(".")[2] in (
            "LoadImaged",
            "LoadImageD",
            "LoadImageDict",
        ):
            given = step.get("keys")
            keys += [str(key) for key in (given if isinstance(given, list) else [given])]
    keys = [key for key in dict.fromkeys(keys) if key not in REFERENCE_KEYS]
    return ("image",) if "image" in keys or not keys else tuple(keys)
