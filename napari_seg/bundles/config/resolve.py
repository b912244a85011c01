"""`Resolver`: the entries of a bundle's config, as plain data or as objects, without MONAI's parser and without `eval`.

References (`@id`, `a::b`, `a#b`), macros (`%id`, `%file::id`), components (`_target_`, `_disabled_`, `_requires_`,
`_mode_`) and `$` expressions mean what they mean in MONAI. Only what is asked for is built, and only from the classes
and functions in `allowed.py`; a config that needs anything else is reported by `problems` and refused by `build`.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from functools import partial
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from napari_seg.bundles.config.allowed import is_listed, is_reading, target_name
from napari_seg.bundles.config.evaluate import Budget, Listed, builtin, evaluate
from napari_seg.bundles.config.expression import ExpressionError, parse, problems
from napari_seg.bundles.config.objects import calculated, check_numbers, fitted_arguments, limited_size, located
from napari_seg.bundles.config.read import MAX_ENTRIES, check_size, copied, merged_config, read_config
from napari_seg.errors import one_line

if TYPE_CHECKING:
    import torch


_log = logging.getLogger(__name__)

_REFERENCE = re.compile(r"@\w*(?:(?:::|#)\w*)*")
_RELATIVE = re.compile(r"([@%])((?:#|::)+)")
_MACRO_FILE = re.compile(r"(.*?\.(?:json|yaml|yml))(?:(?:::|#)(.*))?", re.IGNORECASE)
_NO_ARGUMENTS = frozenset(["_target_", "_disabled_", "_requires_", "_desc_", "_mode_"])

_UNREAD = frozenset(["__pycache__", ".git"])
"""Folders whose content may change without a question, so no config is read from them."""

_MODULES = {"np": "numpy", "numpy": "numpy", "torch": "torch", "monai": "monai", "os": "os"}
"""Names of modules that a config may use without importing them, or that it imports."""

_MAX_TEXT = 120


class Rooted(Protocol):
    """Anything with a bundle's root."""

    @property
    def root(self) -> Path:
        """The folder that holds `configs/` and `models/`."""


class ResolveError(ValueError):
    """An entry of a config can't be used; the message begins with its key."""


class Resolver:
    """The entries of a config.

    Args:
        config: plain data from `read_config`; stays unchanged.
        bundle: the bundle, or its root; files outside it are never read.
        device: the device in use, which replaces every GPU that the config names; None: the CPU.

    Attributes:
        entries: the entries after merging, macros and relative ids.
        notices: what was left out of networks that were built: arguments that MONAI no longer has.
        files: files that its macros read.

    Raises:
        ResolveError: an entry changes one that does not exist, or a macro can't be followed.
    """

    def __init__(
        self, config: dict[str, Any], bundle: Path | Rooted, device: torch.device | None = None, metadata: Any = None
    ) -> None:
        self.root = (bundle if isinstance(bundle, Path) else bundle.root).resolve()
        self.device = device
        self.notices: list[str] = []
        self.files: set[Path] = set()
        self._copied = 0
        self._budget = Budget()
        self._found: dict[str, list[str]] = {}
        try:
            self.entries = merged_config(config)
            self.entries["_meta_"] = copied(metadata or {})
            self._with_macros(self.entries, "")
            check_size(self.entries)
        except RecursionError:
            raise ResolveError("it nests too deep") from None
        except (ValueError, OSError) as error:
            raise ResolveError(str(error)) from error
        self.entries["bundle_root"] = str(self.root)
        self.entries["device"] = "cpu" if device is None else str(device)
        self.aliases = _MODULES | dict(_imports(self.entries))
        self._built: dict[str, Any] = {}
        self._plain: dict[str, Any] = {}
        self._waiting: list[str] = []

    def __contains__(self, id: str) -> bool:
        try:
            self.entry(id)
        except ResolveError:
            return False
        return True

    def entry(self, id: str) -> Any:
        """Return an entry as it is written, such as "network_def" or "inferer::roi_size".

        Raises:
            ResolveError: there is none.
        """
        value: Any = self.entries
        for part in normal_id(id).split("::") if id else ():
            try:
                if isinstance(value, dict):
                    value = value[part] if part in value else value[int(part)]
                elif isinstance(value, list):
                    value = value[int(part)]
                else:
                    raise LookupError
            except (LookupError, ValueError):
                raise ResolveError(f"@{one_line(id, _MAX_TEXT)} is not defined") from None
        return value

    def plain(self, id: str) -> Any:
        """Return an entry as plain data: no object is built, and neither torch nor MONAI is imported.

        References are followed and expressions are evaluated. An expression whose value is no plain data, or that may
        not be evaluated, stays as its text. Disabled components are left out. Do not change what this returns.

        Raises:
            ResolveError: a reference leads nowhere or back to itself, or the data is too large.
        """
        value = self._plain_of(id)
        try:
            check_size(value)
        except ValueError as error:
            raise ResolveError(f"{shown_id(id)}: {error}") from error
        return value

    def evaluate_plain(self, text: str) -> Any:
        """Return the value of an expression as plain data; its text if it has none."""
        return self._plain_value(text, "")

    def build(self, id: str) -> Any:
        """Return an entry with its objects; an entry that was built before is the same object.

        Raises:
            ResolveError: it needs something that is not allowed, or a class refused its arguments; `__cause__` is that
                class's error.
        """
        return self._resolved(id, self._built, self._built_value)

    def problems(self, *ids: str) -> list[str]:
        """Return what entries need that is not allowed without consent, such as "network_def._target_ a.B ...".

        Nothing is built, and neither torch nor MONAI is imported.

        Raises:
            ResolveError: a reference leads nowhere.
        """
        found: list[str] = []
        waiting, seen = list(ids), set()
        while waiting:
            id = normal_id(waiting.pop(0))
            if id in seen:
                continue
            seen.add(id)
            value = self.entry(id)
            try:
                if isinstance(value, dict) and "_target_" in value:
                    if self._is_left_out(value, id):
                        continue
                    found += self._component_problems(value, id)
            except ResolveError as error:
                found.append(f"{shown_id(id)}: {error}")
                continue
            if isinstance(value, str):
                found += [f"{shown_id(id)}: {text}" for text in self._text_problems(value, waiting)]
            elif isinstance(value, dict | list):
                keys = value if isinstance(value, dict) else range(len(value))
                waiting += [f"{id}::{key}" for key in keys if key not in ("_target_", "_desc_", "_disabled_", "_mode_")]
        return list(dict.fromkeys(found))

    def is_disabled(self, value: dict[str, Any], id: str) -> bool:
        """Return whether a component's `_disabled_` is set.

        Args:
            value: the component as it is written.
            id: its id.

        Raises:
            ResolveError: it can't be evaluated as plain data.
        """
        if "_disabled_" not in value:
            return False
        found = self._plain_of(f"{id}::_disabled_")
        if isinstance(found, str):
            if found.startswith("$"):
                raise ResolveError(f"{shown_id(id)}: _disabled_ {one_line(found, _MAX_TEXT)} can't be evaluated")
            return found.lower().strip() == "true"
        return bool(found)

    # names that expressions use

    def is_listed(self, name: str) -> bool:
        """Return whether an expression may use a name as the config writes it, such as "np.float32"."""
        if "." not in name and name not in self.aliases:
            return builtin(name) is not None
        return is_listed(self._full_name(name))

    def value(self, name: str) -> Any:
        """Return the object of a listed name."""
        if "." not in name and name not in self.aliases:
            return builtin(name)
        return self._listed(self._full_name(name))

    def reference(self, id: str) -> Any:
        """Return the objects of another entry."""
        return self.build(id)

    # the rest is private

    def _resolved(self, id: str, cache: dict[str, Any], resolve: Any) -> Any:
        id = normal_id(id)
        if id in cache:
            return cache[id]
        if id in self._waiting:
            raise ResolveError(f"@{shown_id(id)} refers to itself")
        self._waiting.append(id)
        try:
            cache[id] = resolve(self.entry(id), id)
        except RecursionError:
            raise ResolveError(f"{shown_id(id)}: it nests too deep") from None
        except ResolveError:
            raise
        except Exception as error:  # a class can raise anything for its arguments
            raise ResolveError(f"{shown_id(id)}: {type(error).__name__}: {error}") from error
        finally:
            self._waiting.pop()
        return cache[id]

    def _built_value(self, value: Any, id: str) -> Any:
        if isinstance(value, str):
            if id == "device" and self.device is not None:
                return self.device
            if _REFERENCE.fullmatch(value):
                return self.build(value[1:])
            if not value.startswith("$") or import_of(value):
                return value
            return evaluate(value, self)
        if isinstance(value, dict) and "_target_" in value:
            return None if self._is_left_out(value, id) else self._component(value, id)
        return self._inner(value, id, self.build)

    def _plain_of(self, id: str) -> Any:
        return self._resolved(id, self._plain, self._plain_value)

    def _component(self, value: dict[str, Any], id: str) -> Any:
        target, mode = value["_target_"], value.get("_mode_", "default")
        if mode not in ("default", "callable"):
            raise ResolveError(f"{shown_id(id)}: _mode_ {one_line(mode, _MAX_TEXT)} is not allowed")
        if isinstance(target, str) and target.startswith(("$", "@")):
            function = self._built_value(target, f"{id}::_target_")
            if not isinstance(function, Listed):
                raise ResolveError(f"{shown_id(id)}: _target_ {one_line(target, _MAX_TEXT)} is not allowed")
        elif isinstance(target, str) and target_name(target):
            function = self._listed(target_name(target))
        else:
            raise ResolveError(f"{shown_id(id)}: _target_ {one_line(target, _MAX_TEXT)} is not allowed")
        if "_requires_" in value:
            self.build(f"{id}::_requires_")
        arguments = self._inner({key: one for key, one in value.items() if key not in _NO_ARGUMENTS}, id, self.build)
        if any(not isinstance(key, str) or key.startswith("_") for key in arguments):
            raise ResolveError(f"{shown_id(id)}: an argument that is no name")
        if mode == "callable":
            return Listed(function.name, partial(function, **arguments))
        return function(**arguments)

    def _plain_value(self, value: Any, id: str) -> Any:
        if isinstance(value, str):
            if _REFERENCE.fullmatch(value):
                return self._plain_of(value[1:])
            if not value.startswith("$") or import_of(value):
                return value
            try:
                result = evaluate(value, _PlainNames(self), self._budget)
                check_size(result)
            except Exception:  # what can't be evaluated without building objects stays as it is written
                return value
            return result if _is_plain(result) else value
        if isinstance(value, dict) and "_target_" in value and self.is_disabled(value, id):
            return None
        return self._inner(value, id, self._plain_of)

    def _inner(self, value: Any, id: str, resolve: Any) -> Any:
        """Return a list or a dictionary with its values resolved, without components that are left out."""
        is_dictionary = isinstance(value, dict)
        if not is_dictionary and not isinstance(value, list):
            return value
        result: list[tuple[Any, Any]] = []
        for key, one in value.items() if is_dictionary else enumerate(value):
            inner = f"{id}::{key}" if id else str(key)
            resolved = resolve(inner) if isinstance(one, str | dict | list) else one
            is_component = isinstance(one, dict) and "_target_" in one
            left_out = self._is_left_out if resolve == self.build else self.is_disabled
            if not (is_component and resolved is None and left_out(one, inner)):
                result.append((key, resolved))
        return dict(result) if is_dictionary else [one for _, one in result]

    def _is_left_out(self, value: dict[str, Any], id: str) -> bool:
        return is_reading(value["_target_"]) or self.is_disabled(value, id)

    def _component_problems(self, value: dict[str, Any], id: str) -> list[str]:
        target, mode = value["_target_"], value.get("_mode_", "default")
        text = one_line(target, _MAX_TEXT)
        found = []
        if isinstance(target, str) and target.startswith(("$", "@")):
            found += [f"{shown_id(id)}._target_: {one}" for one in self._text_problems(target, [])]
            if not found and not (target.startswith("$") and self.is_listed(target[1:].strip())):
                found.append(f"{shown_id(id)}._target_ {text} is no class on the list")
        elif not (isinstance(target, str) and target_name(target)):
            is_own = is_own_module(self.root, str(target))
            reason = "is the bundle's own code" if is_own else "is not on the list of what runs without consent"
            found.append(f"{shown_id(id)}._target_ {text} {reason}")
        if mode not in ("default", "callable"):
            found.append(f"{shown_id(id)}._mode_ {one_line(mode, _MAX_TEXT)} is not allowed")
        return found

    def _text_problems(self, value: str, waiting: list[str]) -> list[str]:
        if _REFERENCE.fullmatch(value):
            waiting.append(value[1:])
            return []
        if not value.startswith("$") or import_of(value):
            return []
        try:
            expression = parse(value)
        except ExpressionError as error:
            return [f"{one_line(value, _MAX_TEXT)} ({error})"]
        waiting += expression.references.values()
        if value not in self._found:  # aliases in YAML can repeat one text any number of times
            self._found[value] = problems(expression, self.is_listed)
        return [f"{one_line(value, _MAX_TEXT)} uses {one}" for one in self._found[value]]

    def _full_name(self, name: str) -> str:
        root, _, rest = name.partition(".")
        return ".".join(filter(None, (self.aliases.get(root, root), rest)))

    def _listed(self, name: str) -> Any:
        """Return the object of a full name on the list."""
        if name.startswith("os.path."):
            last = name.rpartition(".")[2]
            inside: dict[str, Any] = {"exists": Path.exists, "isfile": Path.is_file}
            if last in inside:
                return Listed(name, partial(self._looked_up, inside[last]))
            return Listed(name, getattr(os.path, last))
        special: dict[str, Any] = {
            "torch.load": self._load,
            "torch.device": self._device,
            "torch.cuda.is_available": self._has_gpu,
        }
        if name in special:
            return Listed(name, special[name])
        if full := target_name(name):
            return Listed(full, partial(self._make, full))
        found = located(name)
        return Listed(name, partial(calculated, found)) if callable(found) and not isinstance(found, type) else found

    def _make(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Return a new object of a class on the list."""
        found = located(name)
        names = list(signature(found).parameters)
        if len(args) > len(names) or set(names[: len(args)]) & set(kwargs):
            raise ResolveError(f"{name.rpartition('.')[2]} takes other arguments")
        kwargs |= dict(zip(names, args, strict=False))
        self.notices += fitted_arguments(name, kwargs)
        for key in ("device", "sw_device"):
            if isinstance(kwargs.get(key), str):
                kwargs[key] = self._device(kwargs[key])
        if kwargs.get("pretrained"):
            kwargs["pretrained"] = False  # they would be downloaded, only to be replaced by those of the bundle
        check_size(kwargs)
        if name.startswith("monai.networks."):
            check_numbers(kwargs)
        with limited_size():
            return found(**kwargs)

    def _load(self, path: Any, map_location: Any = None, weights_only: bool = True, mmap: Any = None) -> Any:
        from napari_seg.bundles.weights.checkpoint import read_checkpoint

        return read_checkpoint(file_inside(self.root, path), self.device or "cpu")

    def _device(self, device: Any = "cpu", index: int = 0) -> Any:
        import torch

        used = self.device or torch.device("cpu")
        found = device if isinstance(device, torch.device) else torch.device(str(device))
        if found.type == "cpu":
            return found
        if found.type != used.type:
            _log.info("bundle %s: device %s is replaced by the device in use, %s", self.root.name, found, used)
        return used

    def _has_gpu(self) -> bool:
        return self.device is not None and self.device.type != "cpu"

    def _looked_up(self, question: Any, path: Any) -> bool:
        found = _inside(self.root, str(path))
        return found is not None and bool(question(found))

    def _with_macros(self, value: Any, id: str) -> Any:
        """Return a value with relative ids made absolute and macros replaced by what they stand for.

        As in MONAI, entries change one after the other, and a macro takes what another entry is at that moment.
        """
        if isinstance(value, dict | list):
            for key, one in list(value.items() if isinstance(value, dict) else enumerate(value)):
                value[key] = self._with_macros(one, f"{id}::{key}" if id else str(key))
            return value
        if not isinstance(value, str) or not value:
            return value
        if value[0] in "@%$":
            value = _RELATIVE.sub(lambda match: match.group(1) + _above(id, match.group(2)), value)
        if not value.startswith("%"):
            return value
        found = self._macro(value[1:])
        self._copied += check_size(found)
        if self._copied > MAX_ENTRIES:
            raise ResolveError(f"its macros stand for more than {MAX_ENTRIES} values")
        return self._with_macros(copied(found), id)  # MONAI's parser would look in the current folder for what is left

    def _macro(self, text: str) -> Any:
        match = _MACRO_FILE.fullmatch(text)
        id = normal_id((match.group(2) or "") if match else text)
        path = None
        if match:
            places = [_inside(self.root, os.path.join(folder, match.group(1))) for folder in (".", "configs")]
            path = next((path for path in places if path and path.is_file()), None)
            if path and _UNREAD & {part.lower() for part in path.relative_to(self.root).parts}:
                path = None
            if path is None:
                raise ResolveError(f"%{one_line(text, _MAX_TEXT)} names no file in the bundle")
            self.files.add(path)
        value: Any = self.entries if path is None else read_config(path)
        for part in id.split("::") if id else ():
            try:
                value = value[int(part)] if isinstance(value, list) else value[part]
            except (LookupError, TypeError, ValueError):
                raise ResolveError(f"%{one_line(text, _MAX_TEXT)} is not defined") from None
        return value


class _PlainNames:
    """Names for `Resolver.plain`: builtin functions and paths, and references to other plain entries."""

    def __init__(self, resolver: Resolver) -> None:
        self.resolver = resolver

    def is_listed(self, name: str) -> bool:
        return self.resolver.is_listed(name)

    def value(self, name: str) -> Any:
        room, _, constant = self.resolver._full_name(name).rpartition(".")
        if room in ("monai.utils.CommonKeys", "monai.utils.enums.CommonKeys"):
            return constant.lower()
        if room and room != "os.path":
            raise ExpressionError(f"{name} is no plain data")
        return self.resolver.value(name)

    def reference(self, id: str) -> Any:
        return self.resolver._plain_of(id)


def _inside(root: Path, path: str) -> Path | None:
    """Return a path with its links resolved; None if it leads out of the root.

    Its text is looked at first: on Windows, resolving `\\\\host\\share` connects to the host.
    """
    found = Path(os.path.normpath(root / path))
    found = found.resolve() if found.is_relative_to(root) else root.parent
    return found if found.is_relative_to(root) else None


def file_inside(root: Path, path: Any) -> Path:
    """Return a file that a config names, relative to the bundle's root.

    Raises:
        ValueError: the path leads out of the bundle, or there is no such file.
    """
    found = Path(os.path.normpath(root / str(path)))
    if not found.is_relative_to(root):
        raise ValueError(f"the path {one_line(path, _MAX_TEXT)} leads out of the bundle")
    if not found.is_file():
        raise ValueError(f"there is no file {one_line(found.relative_to(root), _MAX_TEXT)}")
    return found


def normal_id(id: str) -> str:
    """Return an id with "::" between its parts."""
    return id.replace("#", "::")


def shown_id(id: str) -> str:
    """Return an id as messages show it, such as "network_def.channels"."""
    return one_line(id.replace("::", "."), _MAX_TEXT)


def import_of(text: str) -> tuple[str, str] | None:
    """Return the name and the module of an import statement such as "$import numpy as np"; None for other text."""
    match = re.fullmatch(r"\$\s*(?:from\s+([\w.]+)\s+)?import\s+([\w.]+)(?:\s+as\s+(\w+))?\s*(?:,.*)?", text, re.DOTALL)
    if match is None:
        return None
    module, name, alias = match.groups()
    return alias or name, f"{module}.{name}" if module else name


def is_own_module(root: Path, target: str) -> bool:
    """Return whether a target such as "scripts.net.Net" lies in the bundle."""
    name = target.partition(".")[0]
    return name.isidentifier() and any(
        (folder / name).is_dir() or (folder / f"{name}.py").is_file() for folder in (root, root / "scripts")
    )


def _imports(value: Any) -> Iterator[tuple[str, str]]:
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict | list):
            waiting += one.values() if isinstance(one, dict) else one
        elif isinstance(one, str) and (found := import_of(one)):
            yield found


def _above(id: str, separators: str) -> str:
    """Return the start of an absolute id for a relative one: "#" is the same level, "##" the one above."""
    levels = len(separators.replace("::", "#"))
    parts = id.split("::")
    if levels > len(parts):
        raise ResolveError(f"{shown_id(id)}: a relative id outside the config")
    kept = parts[: len(parts) - levels]
    return "::".join(kept) + "::" * bool(kept)


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    return isinstance(value, str | int | float | None)
