"""Choice of the structures that a model looks for, without Qt; it is remembered for each model."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from psygnal import Signal

from napari_seg.bundles.places import store_root
from napari_seg.formats.atomic import atomic_write
from napari_seg.volume import Segment

if TYPE_CHECKING:
    from napari_seg.bundles.spec import Bundle

logger = logging.getLogger(__name__)


class StructureChoice:
    """Which structures of a model are looked for.

    Args:
        segments: all structures of the model.
        names: those that are chosen; empty: all.

    Attributes:
        changed: emitted after every change.
        segments: all structures of the model.
        chosen: names of the chosen ones.
        words: what the user searches for; the structures with all words in their names are shown.
    """

    changed = Signal()

    def __init__(self, segments: Sequence[Segment], names: Sequence[str] = ()) -> None:
        self.segments = tuple(segments)
        self.chosen = set(names) or {segment.name for segment in segments}
        self.words = ""

    @property
    def shown(self) -> list[Segment]:
        """Structures that fit the search."""
        words = self.words.lower().replace("_", " ").split()
        return [one for one in self.segments if all(word in one.name.lower().replace("_", " ") for word in words)]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the chosen structures, in the order of their labels; empty: all."""
        names = tuple(segment.name for segment in self.segments if segment.name in self.chosen)
        return () if len(names) == len(self.segments) else names

    @property
    def summary(self) -> str:
        """The choice, as text for the user."""
        count = sum(segment.name in self.chosen for segment in self.segments)
        if self.words and len(self.shown) < len(self.segments):
            return f"{count} of {len(self.segments)} chosen; {len(self.shown)} shown"
        return f"{count} of {len(self.segments)} chosen"

    @property
    def obstacle(self) -> str:
        """Why the choice can't be used, as text for the user; "" if it can."""
        return "" if self.chosen else "Choose at least one structure."

    def search(self, words: str) -> None:
        """Show only structures with these words in their names."""
        self.words = words
        self.changed.emit()

    def choose(self, name: str, is_chosen: bool) -> None:
        """Choose a structure, or leave it out."""
        (self.chosen.add if is_chosen else self.chosen.discard)(name)
        self.changed.emit()

    def choose_shown(self, are_chosen: bool) -> None:
        """Choose all structures that are shown, or leave all of them out."""
        for segment in self.shown:
            (self.chosen.add if are_chosen else self.chosen.discard)(segment.name)
        self.changed.emit()


def choice_text(segments: Sequence[Segment], names: Sequence[str]) -> str:
    """Return a choice in a few words: "All 117" or "2 of 117".

    Args:
        segments: all structures of the model.
        names: the chosen ones; empty: all.
    """
    return f"{len(names)} of {len(segments)}" if names else f"All {len(segments)}"


def remembered_names(bundle: Bundle) -> tuple[str, ...]:
    """Return the structures that the user chose for a model last; empty: all."""
    names = _remembered().get(bundle.reference, [])
    known = [segment.name for segment in bundle.segments]
    found = tuple(name for name in known if name in names)
    return () if len(found) == len(known) else found


def remember_names(bundle: Bundle, names: Sequence[str]) -> None:
    """Remember a choice for a model; without an effect where the store can't be written."""
    remembered = _remembered()
    remembered.pop(bundle.reference, None)
    if names:
        remembered[bundle.reference] = list(names)
    try:
        store_root().mkdir(parents=True, exist_ok=True)
        atomic_write(_file(), json.dumps(remembered, indent=2))
    except OSError as error:
        logger.debug("the choice of structures is not remembered (%s)", error.strerror)


def _file() -> Path:
    return store_root() / "structures.json"


def _remembered() -> dict[str, list[str]]:
    try:
        noted = json.loads(_file().read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(noted, dict):
        return {}
    return {name: [str(one) for one in names] for name, names in noted.items() if isinstance(names, list)}
