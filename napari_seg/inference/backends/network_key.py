"""Keys of networks that follow from their modules and weights alone, so that a cached one is found without a trace.

A network whose modules all come from packages with versions does what their classes, plain attributes and weights say.
For any other network, such as a bundle's own code, only a trace shows what it computes.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from napari_seg.version import __version__

PACKAGES = ("torch", "monai", "dynamic_network_architectures", "napari_seg")
"""Packages whose versions stand for their code."""

_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_TENSORS = ("_parameters", "_buffers", "_modules")


def network_digest(network: torch.nn.Module) -> str | None:
    """Return a hash of a network's modules, their attributes and weights; None if they do not describe it.

    Args:
        network: in evaluation mode, on the CPU.
    """
    structure = structure_digest(network)
    if structure is None:
        return None
    digest = hashlib.sha256(structure.encode())
    for _, tensor in _named_tensors(network):
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def structure_digest(network: torch.nn.Module) -> str | None:
    """Return a hash of a network's modules, their attributes and the shapes of its weights, but not their values.

    None if the modules do not describe what the network computes.
    """
    digest = hashlib.sha256()
    numbers: dict[int, int] = {}
    try:
        for name, module in network.named_modules(remove_duplicate=False):
            is_new = id(module) not in numbers
            number = numbers.setdefault(id(module), len(numbers))
            digest.update(f"{name} {number} {_described(module) if is_new else ''}\n".encode())
    except TypeError:
        return None
    for name, tensor in _named_tensors(network):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
    return digest.hexdigest()


def _named_tensors(network: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from network.named_parameters()
    yield from network.named_buffers()


def _described(module: torch.nn.Module) -> str:
    """Return the class of a module, the version of its package, and its attributes.

    Raises:
        TypeError: the class is of no known package, or an attribute is no plain value.
    """
    values = vars(module)
    if any(values[hooks] for hooks in _HOOKS):
        raise TypeError("hooks")
    attributes = {key: _plain(value) for key, value in values.items() if key not in _TENSORS and "_hooks" not in key}
    return f"{_class_name(type(module))} {sorted(attributes.items())}"


def _plain(value: Any) -> str:
    """Return a text for a plain value, a class, or a collection of them.

    Raises:
        TypeError: it is something else.
    """
    if isinstance(value, type):
        return _class_name(value)
    if isinstance(value, bool | int | float | complex | str | bytes | np.number | torch.dtype | torch.device | None):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_plain, value))}]"
    if isinstance(value, set | frozenset):
        return f"{{{', '.join(sorted(map(_plain, value)))}}}"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_plain(key)}: {_plain(one)}' for key, one in value.items())}}}"
    raise TypeError(type(value).__name__)


def _class_name(kind: type) -> str:
    """Return the full name of a class and the version of its package.

    Raises:
        TypeError: the package is not on the list.
    """
    package = kind.__module__.partition(".")[0]
    if package == "builtins":
        return kind.__qualname__
    if package not in PACKAGES:
        raise TypeError(kind.__module__)
    return f"{kind.__module__}.{kind.__qualname__} {_version(package)}"


@lru_cache(maxsize=len(PACKAGES))
def _version(package: str) -> str:
    return __version__ if package == "napari_seg" else importlib.metadata.version(package)
