"""Objects of the classes and functions in `allowed.py`, fitted to this version of MONAI and bounded in size."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any

from napari_seg.bundles.config.allowed import REMOVED_ARGUMENTS, RENAMED_ARGUMENTS, is_reading, target_name
from napari_seg.bundles.config.evaluate import Function, Listed, check_broadcast
from napari_seg.bundles.config.expression import ExpressionError
from napari_seg.bundles.config.read import check_size

_MAX_PARAMETERS = 2**31
"""Size limit of a network that is built without consent; 8 GB in float32."""

_MAX_MODULES = 20_000
"""Limit for the modules of a network that is built without consent."""

_MAX_NUMBER = 2**16
"""Limit for the whole numbers in the arguments of such a network."""

_MAX_ARRAYS = 256
"""Limit for the arrays that one function of an expression joins."""


def fitted_config(value: Any, notices: list[str]) -> Any:
    """Return plain data for MONAI's parser: without what its classes no longer take, and without reading of files.

    Args:
        value: entries of a `Resolver`.
        notices: what was left out of networks is added here.
    """
    if isinstance(value, list):
        return [fitted_config(one, notices) for one in value]
    if not isinstance(value, dict):
        return value
    result = {key: fitted_config(one, notices) for key, one in value.items()}
    target = result.get("_target_")
    if isinstance(target, str):
        notices += fitted_arguments(target_name(target), result)
        if is_reading(target) and not target.endswith(("SaveImaged", "SaveImageD", "SaveImageDict")):
            result = {"_target_": target, "_disabled_": True}  # building one may need a package that reads files
    return result


def fitted_arguments(name: str, arguments: dict[str, Any]) -> list[str]:
    """Change arguments of earlier versions of MONAI to those of this one; return what is left out of a network.

    Args:
        name: full name of a class, from `target_name`.
        arguments: changed in place.
    """
    for old, new in RENAMED_ARGUMENTS.get(name, {}).items():
        if old in arguments:
            arguments[new] = arguments.pop(old)
    removed = sorted(REMOVED_ARGUMENTS.get(name, frozenset()) & set(arguments))
    for key in removed:
        del arguments[key]
    room, _, short = name.rpartition(".")
    return [
        f"{short} has no argument {key} in this version of MONAI; it is left out" for key in removed if "nets" in room
    ]


def located(name: str) -> Any:
    """Return the object of a full name, such as "monai.networks.nets.UNet"."""
    from importlib import import_module

    room = next(
        room
        for room in ("monai.networks.nets", "monai.transforms", "monai.inferers", "monai.utils", "torch", "numpy")
        if name.startswith(f"{room}.")
    )
    found: Any = import_module(room)
    for part in name.removeprefix(f"{room}.").split("."):
        found = getattr(found, part)
    if room == "monai.utils" and not isinstance(found, Enum | str):
        raise ExpressionError(f"{name} is no constant")
    return found


def check_numbers(value: Any) -> None:
    """Check that no number in a network's arguments is so large that building it would not end."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict | list | tuple):
            waiting += one.values() if isinstance(one, dict) else one
        elif isinstance(one, int) and abs(one) > _MAX_NUMBER:
            raise ValueError(f"a network with the number {one:.3g}; expected at most {_MAX_NUMBER}")


def calculated(function: Any, *args: Any, **kwargs: Any) -> Any:
    """Return the value of a function of torch or NumPy whose result is about as large as its arguments."""
    if any(isinstance(value, Function | Listed) for value in (*args, *kwargs.values())) or "out" in kwargs:
        raise ExpressionError("a function as an argument")
    for value in (*args, *kwargs.values()):
        several = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(one, str) for one in several):
            raise ExpressionError("a text as an argument")
        if len(several) > _MAX_ARRAYS and any(hasattr(one, "shape") for one in several):
            raise ExpressionError(f"more than {_MAX_ARRAYS} arrays")
    check_size([list(args), kwargs])
    check_broadcast(*args, *kwargs.values())
    return function(*args, **kwargs)


@contextmanager
def limited_size() -> Iterator[None]:
    """Stop the building of a network that is larger than the limits, in this thread."""
    from torch.nn.modules.module import (
        register_module_module_registration_hook,
        register_module_parameter_registration_hook,
    )

    thread, counts = threading.get_ident(), {"modules": 0, "parameters": 0}

    def count_module(owner: Any, name: str, module: Any) -> None:
        if threading.get_ident() == thread:
            counts["modules"] += 1
            if counts["modules"] > _MAX_MODULES:
                raise ValueError(f"a network of more than {_MAX_MODULES} modules")

    def count_parameter(owner: Any, name: str, parameter: Any) -> None:
        if threading.get_ident() == thread and parameter is not None:
            counts["parameters"] += parameter.numel()
            if counts["parameters"] > _MAX_PARAMETERS:
                raise ValueError(f"a network of more than {_MAX_PARAMETERS} parameters")

    hooks = [
        register_module_module_registration_hook(count_module),
        register_module_parameter_registration_hook(count_parameter),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
