"""Plain data of layers that sessions and automatic copies keep, such as prompts.

A tool writes its data with `keep` after every change, and reads it with `kept` when it shows a layer, which may have
been restored from a session. The data is plain (numbers, texts, lists, dictionaries), so that it can be saved as JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary


@dataclass
class _Kept:
    data: dict[str, Any] = field(default_factory=dict)
    changes: int = 0
    saved: int = 0


_KEPT: WeakKeyDictionary[Any, _Kept] = WeakKeyDictionary()


def kept(owner: Any) -> dict[str, Any]:
    """Return a copy of all data that is kept for a layer, by name."""
    return deepcopy(_KEPT[owner].data) if owner in _KEPT else {}


def keep(owner: Any, name: str, data: Any) -> None:
    """Replace data of a layer.

    Args:
        owner: layer.
        name: name of the data, such as "prompts".
        data: plain data; an empty value removes the data.
    """
    one = _KEPT.setdefault(owner, _Kept())
    if one.data.get(name) == data or (not data and name not in one.data):
        return
    one.data.pop(name, None)
    if data:
        one.data[name] = deepcopy(data)
    one.changes += 1


def restore(owner: Any, data: Mapping[str, Any]) -> None:
    """Set all data of a layer that was read from a file."""
    _KEPT[owner] = _Kept(deepcopy(dict(data)))


def changes_of(owner: Any) -> int:
    """Return the number of changes of the data of a layer."""
    return _KEPT[owner].changes if owner in _KEPT else 0


def has_unsaved(owner: Any) -> bool:
    """Return whether data of a layer was changed since it was saved or restored, and is not empty."""
    one = _KEPT.get(owner)
    return one is not None and bool(one.data) and one.changes > one.saved


def mark_saved(owner: Any, changes: int) -> None:
    """Note that the data was saved.

    Args:
        owner: layer.
        changes: value of `changes_of` when the saved data was taken.
    """
    if owner in _KEPT:
        _KEPT[owner].saved = max(_KEPT[owner].saved, changes)
