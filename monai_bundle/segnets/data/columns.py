"""Choose the columns of a table that state the patients, parts and folds of its cases."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

_PATIENT = re.compile(r"(patient|subject|participant)( ?(id|name|number))?")
_CASE = re.compile(r"case( ?(id|name|number))?")
_SPLIT = re.compile(r"split|partition")
_PART = re.compile(rf"{_SPLIT.pattern}|set|subset|part|phase")
"""Titles of columns of parts; those that are no `_SPLIT` may mean something else, such as a phase of contrast agent."""
_FOLD = re.compile(r"folds?( ?(id|number))?")

PARTS = {
    "training": "train training tr",
    "validation": "validation valid val",
    "test": "test testing ts holdout hold-out",
}
"""Part of a data set -> words for it in lists."""
_PART_OF = {word: part for part, words in PARTS.items() for word in words.split()}


class StatedColumns(NamedTuple):
    """Numbers of the columns that state something about the cases; None without such a column.

    Attributes:
        patient: column of the patients.
        part: column of the parts.
        fold: column of the folds.
        unclear: what several columns state differently; a new training is refused.
        unused: columns that may state something and are not used.
    """

    patient: int | None
    part: int | None
    fold: int | None
    unclear: tuple[str, ...]
    unused: tuple[str, ...]


def part_of(word: str) -> str:
    """Return the part of a data set that a word in a list means; "" for any other word."""
    return _PART_OF.get(word.strip().lower(), "")


def stated_columns(titles: Sequence[str], rows: Sequence[Sequence[str]], free: Iterable[int]) -> StatedColumns:
    """Return the columns of a table that state patients, parts and folds.

    A column of cases states patients if there is no other one and a case has several rows. A column of parts is one
    with words for parts; a split in other words is returned, too, so that it is reported.

    Args:
        titles: titles of all columns, in lower case.
        rows: the rows, which may be shorter.
        free: numbers of the columns that hold no paths.
    """
    cells = {n: [row[n].strip() if n < len(row) else "" for row in rows] for n in free}
    unclear = []
    patients = [n for n in cells if _PATIENT.fullmatch(titles[n]) and any(cells[n])]
    if len({_groups(cells[n]) for n in patients}) > 1:
        listed = " and ".join(titles[n] for n in patients)
        unclear.append(f"the columns {listed} group the cases differently; expected one column of patients")
    patients = patients or [n for n in cells if _CASE.fullmatch(titles[n]) and _repeats(cells[n])]
    titled = [n for n in cells if _PART.fullmatch(titles[n])]
    known = [n for n in titled if any(map(part_of, cells[n]))]
    splits = [n for n in titled if _SPLIT.fullmatch(titles[n])]
    known = [n for n in known if n in splits] or known
    if len({tuple(map(part_of, cells[n])) for n in known}) > 1:
        listed = " and ".join(titles[n] for n in known)
        unclear.append(f"the columns {listed} state different parts; expected one column split")
    parts = known or [n for n in splits if any(cells[n])]
    unused = [
        f"column {titles[n]} is not used as a split: its words are not those of the parts, train, validation and test"
        for n in titled
        if n not in parts and any(cells[n])
    ]
    folds = [n for n in cells if _FOLD.fullmatch(titles[n])]
    first = [next(iter(found), None) for found in (patients, parts, folds)]
    return StatedColumns(*first, tuple(unclear), tuple(unused))


def _groups(cells: Sequence[str]) -> tuple[int, ...]:
    """Return for each row the first row with the same word; an empty cell stands alone."""
    first: dict[str, int] = {}
    return tuple(first.setdefault(cell, n) if cell else n for n, cell in enumerate(cells))


def _repeats(cells: Sequence[str]) -> bool:
    stated = [cell for cell in cells if cell]
    return len(set(stated)) < len(stated)
