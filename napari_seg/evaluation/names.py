"""Match the names that two label maps give to the same structure."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Hashable


def match_names(names: Collection[str], others: Collection[str]) -> dict[str, str]:
    """Return name -> the same name among others, for the names that have one.

    Equal names match first, then those that differ in case only, then those of the same words: "kidney_left" and "Left
    kidney", "non-enhancing tumour" and "non enhancing tumor". A spelling that two names of one side share matches none.

    Args:
        names: names of one label map.
        others: names of the other.
    """
    spellings: tuple[Callable[[str], Hashable], ...] = (str, _lower, _words)
    found: dict[str, str] = {}
    for spelling in spellings:
        left, right = (
            _unique(spelling, [name for name in side if name not in matched])
            for side, matched in ((names, found.keys()), (others, found.values()))
        )
        found |= {name: right[key] for key, name in left.items() if key in right}
    return found


def _words(name: str) -> tuple[str, ...]:
    """Return the words of a name in lower case and one spelling, left and right first.

    Blanks, underscores and hyphens between letters separate words. The order of the others stays, and so do signs,
    which may carry the meaning: "PTV-Bladder" is not "Bladder-PTV", nor "Ki67+" "Ki67-".
    """
    spelled = _lower(name).replace("tumour", "tumor")
    words = filter(None, re.split(r"[\s_]+|(?<=[^\W\d_])-(?=[^\W\d_])", spelled))
    return tuple(sorted(words, key=lambda word: word not in ("left", "right"))) or (name,)


def _lower(name: str) -> str:
    return unicodedata.normalize("NFC", name).lower()


def _unique(spelling: Callable[[str], Hashable], names: Collection[str]) -> dict[Hashable, str]:
    """Return spelling -> name, without the spellings that two names share."""
    counts = Counter(map(spelling, names))
    return {spelling(name): name for name in names if counts[spelling(name)] == 1}
