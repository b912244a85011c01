"""The weights that a bundle's config loads: which file, which part of it, and how they come into the network."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_seg.bundles.config.expression import ExpressionError, dotted_name, parse
from napari_seg.bundles.config.resolve import ResolveError, Resolver
from napari_seg.bundles.config.sections import components
from napari_seg.bundles.spec import described
from napari_seg.bundles.weights.links import how_to_get
from napari_seg.errors import BundleError, one_line

if TYPE_CHECKING:
    import torch

_DEFAULTS = ("models/model.pt", "models/model.pth", "models/model.safetensors")
_TORCHSCRIPT = ("models/model.ts",)

_KEYS = ("model", "state_dict", "model_state_dict", "net", "network", "network_weights")
"""Keys under which checkpoints hold a state dictionary."""

_PREFIXES = ("module.", "_orig_mod.")
"""Prefixes that torch's wrappers put before the names of all weights."""

_MAX_TEXT = 200


@dataclass(frozen=True)
class Weights:
    """A bundle's file of weights.

    Attributes:
        path: the file.
        key: key of the state dictionary in it; "" if the config names none.
        is_strict: whether the file may hold no other weights than the network's.
        is_torchscript: whether the file is a program of TorchScript, which needs consent.
    """

    path: Path
    key: str = ""
    is_strict: bool = True
    is_torchscript: bool = False


def find_weights(resolver: Resolver) -> Weights:
    """Return the file that a config loads; models/model.pt, .safetensors or .ts if it names none.

    Nothing is loaded.

    Raises:
        BundleError: `bundle.weights`, there is no such file.
    """
    root = resolver.root
    named = _checkpoint_loader(resolver) or _load_state_dict(resolver)
    if named is None:
        for name in (*_DEFAULTS, *_TORCHSCRIPT):
            if (root / name).is_file():
                return Weights(root / name, is_torchscript=name in _TORCHSCRIPT)
        raise _missing(root, _DEFAULTS[0])
    path = Path(os.path.normpath(root / named[0]))
    if not path.is_relative_to(root):
        found = f"the config of {described(root)} loads weights outside it ({one_line(named[0], _MAX_TEXT)})"
        raise BundleError("bundle.weights", f"{found}; copy them into its models folder and change the config")
    for one in (path, path.with_suffix(".safetensors")):
        with suppress(OSError):  # a name that no file system takes
            if one.is_file():
                return Weights(one, *named[1:])
    raise _missing(root, path.relative_to(root).as_posix())


def weight_files(root: Path) -> list[Path]:
    """Return all files in a bundle's models folder that end as weights do."""
    endings = (".pt", ".pth", ".ts", ".safetensors")
    return sorted(path for path in (root / "models").glob("**/*") if path.suffix in endings and path.is_file())


def load_weights(network: torch.nn.Module, weights: Weights) -> None:
    """Load a network's weights.

    Raises:
        BundleError: `bundle.weights`, they do not fit the network; `bundle.weights_unsafe`, the file holds more than
            tensors.
    """
    from napari_seg.bundles.causes import cause_of
    from napari_seg.bundles.weights.checkpoint import UnsafeCheckpoint, read_checkpoint

    root = weights.path.parents[1]
    try:
        state = state_dictionary(read_checkpoint(weights.path), weights.key)
    except UnsafeCheckpoint as error:
        text = f"{weights.path.name} of {described(root)} can't be loaded: {error}"
        raise BundleError("bundle.weights_unsafe", text) from error
    except Exception as error:  # unpickling a foreign file can raise anything
        raise _misfit(weights.path, cause_of(error, root)) from error
    try:
        own = network.state_dict()
        if not weights.is_strict:
            state = {key: value for key, value in state.items() if key in own}
        _check_dense(state)
        network.load_state_dict({key: value.to(own[key].dtype) for key, value in state.items()}, assign=True)
    except Exception as error:  # so can a foreign network
        raise _misfit(weights.path, _differences(network, state) or cause_of(error, root)) from error


def _check_dense(state: dict[str, Any]) -> None:
    """Check that a network computes with some weights as they are: torch also loads those without numbers.

    Raises:
        ValueError: they are sparse, complex or without data.
    """
    import torch

    for key, value in state.items():
        if isinstance(value, torch.Tensor) and (
            value.layout is not torch.strided or value.is_meta or value.is_complex() or value.is_quantized
        ):
            raise ValueError(f"its weight {key!r} is sparse, complex or without data")


def state_dictionary(checkpoint: Any, key: str = "") -> dict[str, Any]:
    """Return the state dictionary in a checkpoint, without the prefix of a wrapper.

    Args:
        checkpoint: what the file holds.
        key: key of the state dictionary, if the config names one.

    Raises:
        ValueError: it holds none.
    """
    state = checkpoint
    if isinstance(state, Mapping):
        inner = [name for name in (key, *_KEYS) if name and isinstance(state.get(name), Mapping)]
        state = state[inner[0]] if inner else state
    if not isinstance(state, Mapping):
        raise ValueError(f"it holds a {type(state).__name__}, not a state dictionary")
    for prefix in _PREFIXES:
        if state and all(str(name).startswith(prefix) for name in state):
            state = {str(name).removeprefix(prefix): value for name, value in state.items()}
    return dict(state)


def _checkpoint_loader(resolver: Resolver) -> tuple[str, str, bool] | None:
    """Return path, key and strictness of the config's CheckpointLoader that loads a network."""
    for id, value in components(resolver):
        if str(value["_target_"]).rpartition(".")[2] != "CheckpointLoader":
            continue
        try:
            path = resolver.plain(f"{id}::load_path")
            strict = resolver.plain(f"{id}::strict") if "strict" in value else True
        except ResolveError:
            continue
        loaded = value.get("load_dict")
        keys = [str(key) for key in loaded] if isinstance(loaded, dict) else []
        if isinstance(path, str) and not path.startswith("$"):
            return path, keys[0] if keys else "", str(strict).lower() != "false"
    return None


def _load_state_dict(resolver: Resolver) -> tuple[str, str, bool] | None:
    """Return path, key and strictness of an expression such as `$@network.load_state_dict(torch.load(@path))`."""
    waiting: list[Any] = [resolver.entries]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict | list):
            waiting += value.values() if isinstance(value, dict) else value
        elif isinstance(value, str) and value.startswith("$") and "load_state_dict" in value and "torch.load" in value:
            try:
                return _loaded_path(resolver, value)
            except (ExpressionError, ResolveError, LookupError):
                continue
    return None


def _loaded_path(resolver: Resolver, text: str) -> tuple[str, str, bool] | None:
    expression = parse(text)
    calls = [node for node in ast.walk(expression.body) if isinstance(node, ast.Call)]
    load = next(node for node in calls if dotted_name(node.func) == "torch.load" and node.args)
    keys = [
        node.slice.value
        for node in ast.walk(expression.body)
        if isinstance(node, ast.Subscript) and node.value is load and isinstance(node.slice, ast.Constant)
    ]
    written = ast.unparse(load.args[0])
    for mark, id in sorted(expression.references.items(), reverse=True):
        written = re.sub(rf"\b{mark}\b", f"@{id}", written)
    path = resolver.evaluate_plain(f"${written}")
    return (path, str(keys[0]) if keys else "", True) if isinstance(path, str) and not path.startswith("$") else None


def _missing(root: Path, name: str) -> BundleError:
    text = f"{described(root)} has no {one_line(name, _MAX_TEXT)}; {how_to_get(root, name)}"
    return BundleError("bundle.weights", text)


def _misfit(path: Path, cause: str) -> BundleError:
    return BundleError(
        "bundle.weights",
        f"{path.name} of {described(path.parents[1])} does not fit its network_def: {cause}; expected the state "
        "dictionary of that network, saved by torch.save",
    )


def _differences(network: torch.nn.Module, state: Any) -> str:
    """Return which weights differ between a network and a file; "" if none do by name or shape."""
    if not isinstance(state, dict):
        return ""
    expected, found = network.state_dict(), state
    shapes = {
        key: [tuple(getattr(one[key], "shape", ())) for one in (expected, found)] for key in expected if key in found
    }
    groups = (
        ("missing in the file", [key for key in expected if key not in found]),
        ("unknown to the network", [key for key in found if key not in expected]),
        ("of another shape", [f"{key} {old} for {new}" for key, (new, old) in shapes.items() if new != old]),
    )
    parts = [
        f"{len(keys)} {what} ({', '.join(map(str, keys[:3]))}{', …' * (len(keys) > 3)})"
        for what, keys in groups
        if keys
    ]
    return one_line("weights " + ", ".join(parts), 400) if parts else ""
