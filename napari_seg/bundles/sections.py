"""The parts of an inference config that segment a scan, wherever the config has them; plain data, nothing runs."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from napari_seg.bundles.resolve import ResolveError, Resolver, normal_id

_NETWORKS = ("network_def", "network", "net", "model")
_PREPROCESSINGS = ("preprocessing", "preprocess", "preprocessing_transforms", "pre_transforms", "transforms")
_INFERERS = ("inferer", "inferrer", "windows")

_REFERENCE = re.compile(r"\$?\s*@(\w+(?:(?:::|#)\w+)*)\s*")
_MAX_REFERENCES = 20


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
    keys = [key for key in dict.fromkeys(keys) if key != "label"]
    return ("image",) if "image" in keys or not keys else tuple(keys)
