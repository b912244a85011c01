"""Match names of structures: those that two label maps give, and those that a user gives with those of a file."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from difflib import get_close_matches

from napari_seg.errors import InputError

_MAX_LISTED = 5


def match_names(names: Collection[str], others: Collection[str]) -> dict[str, str]:
    """Return name -> the same name among others, for the names that have one.

    Equal names match first, then those that differ in case only, then those of the same words: "kidney_left" and "Left
    kidney", "non-enhancing tumour" and "non enhancing tumor". A spelling that two names of one side share matches none.

    Args:
        names: names of one label map.
        others: names of the other.
    """
    return _match(names, others, _SPELLINGS)


def _match(
    names: Collection[str], others: Collection[str], spellings: Iterable[Callable[[str], Hashable]]
) -> dict[str, str]:
    """Return name -> the other name that is the first to have the same spelling, see `match_names`."""
    found: dict[str, str] = {}
    for spelling in spellings:
        left, right = (
            _unique(spelling, [name for name in side if name not in matched])
            for side, matched in ((names, found.keys()), (others, found.values()))
        )
        found |= {name: right[key] for key, name in left.items() if key in right}
    return found


def match_each(requested: Iterable[str], names: Collection[str], *, in_any_order: bool = False) -> dict[str, str]:
    """Return requested name -> the same name of a file, see `match_names`, for the names that the file has.

    Args:
        requested: names that a user gives.
        names: names of structures in the file.
        in_any_order: also match names with the same words in another order, if only one has them.
    """
    known = list(dict.fromkeys(names))
    spellings = (*_SPELLINGS, _sorted_words) if in_any_order else _SPELLINGS
    return {name: same for one in requested for name, same in _match([one], known, spellings).items()}


def similar_names(names: Collection[str], others: Collection[str]) -> dict[str, str]:
    """Return name -> the only other name with more or fewer words, for names that have one to themselves.

    "anterior hippocampus" is similar to "Anterior"; "left kidney" and "right kidney" share "kidney", so that none is.
    Similar names need not mean the same.
    """
    words = {name: {*_words(name)} for name in (*names, *others)}
    pairs = [(a, b) for a in names for b in others if words[a] <= words[b] or words[a] >= words[b]]
    counts = Counter(name for pair in pairs for name in pair)
    return {name: other for name, other in pairs if counts[name] == counts[other] == 1}


def find_names(
    requested: Sequence[str], names: Collection[str], owner: str, *, in_any_order: bool = False
) -> list[str]:
    """Return the names of a file that are requested, in any case and with any separators between words.

    Args:
        requested: names that a user gives.
        names: names of structures in the file.
        owner: name of the file in messages.
        in_any_order: see `match_each`.

    Raises:
        InputError: `labels.unknown`, the file has no structure of one of these names.
    """
    found = match_each(requested, names, in_any_order=in_any_order)
    if missing := sorted(set(requested) - found.keys()):
        text = f"{owner} has no structure {', '.join(missing)}"
        raise InputError("labels.unknown", f"{text}; it has {_offered(missing, list(dict.fromkeys(names)))}")
    return list(dict.fromkeys(found.values()))


def _offered(missing: Sequence[str], names: Sequence[str]) -> str:
    """Return a few names, the nearest to the missing ones first, and the number of all names if there are more."""
    if len(names) <= _MAX_LISTED:
        return ", ".join(names) or "no names"
    spelled = {_lower(name): name for name in names}
    near = [get_close_matches(_lower(name), spelled, _MAX_LISTED) for name in missing]
    nearest = [spelled[name] for each in near for name in each]
    listed = list(dict.fromkeys(nearest))[:_MAX_LISTED] or names[:_MAX_LISTED]
    return f"{len(names)} names, such as {', '.join(listed)}"


def _words(name: str) -> tuple[str, ...]:
    """Return the words of a name in lower case and one spelling, left and right first.

    Blanks, underscores and hyphens between letters separate words. The order of the others stays, and so do signs,
    which may carry the meaning: "PTV-Bladder" is not "Bladder-PTV", nor "Ki67+" "Ki67-".
    """
    spelled = _lower(name).replace("tumour", "tumor")
    words = filter(None, re.split(r"[\s_]+|(?<=[^\W\d_])-(?=[^\W\d_])", spelled))
    return tuple(sorted(words, key=lambda word: word not in ("left", "right"))) or (name,)


def _sorted_words(name: str) -> tuple[str, ...]:
    return tuple(sorted(_words(name)))


def _lower(name: str) -> str:
    return unicodedata.normalize("NFC", name).lower()


def _unique(spelling: Callable[[str], Hashable], names: Collection[str]) -> dict[Hashable, str]:
    """Return spelling -> name, without the spellings that two names share."""
    counts = Counter(map(spelling, names))
    return {spelling(name): name for name in names if counts[spelling(name)] == 1}


_SPELLINGS: tuple[Callable[[str], Hashable], ...] = (str, _lower, _words)
