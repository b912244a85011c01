"""Count the label values of a data set, and report what is odd about them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from segnets.data import Dataset
    from segnets.data.file_facts import Facts

FEW_VOXELS = 0.001
"""Fraction of the labelled voxels below which a class is reported as tiny."""


_MIN_GREY, _NEAR_GREY = 16, 3
"""Smallest value that may be a grey level and no number of a class, and difference of equal grey levels."""


class Row(NamedTuple):
    """One label value of a data set.

    Attributes:
        value: value in the label maps.
        name: class that it belongs to, regions that overlap with " + " between them; "background", or "ignored".
        cases: number of cases with this value.
        voxels: number of voxels with it in all cases.
        remarks: what is odd about it; empty if nothing is.
    """

    value: int
    name: str
    cases: int
    voxels: int
    remarks: tuple[str, ...] = ()


def label_table(dataset: Dataset, facts: Mapping[str, Facts], classes: Mapping[str, Sequence[Any]]) -> list[Row]:
    """Return a row for each value in the label maps except 0, in ascending order; call it within `with_segnets`.

    Args:
        dataset: data set that `segnets.data.check` has accepted.
        facts: facts of its files, from `segnets.data.file_facts.read_all`.
        classes: name -> its values or ranges of values.
    """
    from segnets.data.labels import ranges

    cases: dict[int, set[str]] = {}
    voxels: Counter[int] = Counter()
    for case in dataset.cases:
        for text, count in facts[case["label"]]["values"].items():
            if (value := int(text)) != 0:
                cases.setdefault(value, set()).add(case["label"])
                voxels[value] += count
    bounds = [(name, low, high) for name, values in classes.items() for low, high in ranges(list(values))]
    total = sum(voxels.values())
    rows = []
    for value in sorted(cases):
        named = " + ".join(name for name, low, high in bounds if low <= value <= high) or "background"
        name = "ignored" if named == "background" and value in dataset.ignored else named
        is_class = name not in ("background", "ignored")
        annotated = sum(value in dataset.labelled.get(case["name"], (value,)) for case in dataset.cases)
        remarks = _remarks(len(cases[value]), annotated, voxels[value] / total) if is_class else ()
        if is_class and (near := _same_grey(value, cases)) is not None:
            text = f"in no case together with {near}: perhaps one class, --labels NAME={near},{value}"
            remarks = (text, *remarks)
        rows.append(Row(value, name, len(cases[value]), voxels[value], remarks))
    for name, low, high in bounds:
        if name != "background" and not any(low <= value <= high for value in cases):
            rows.append(Row(low, name, 0, 0, ("in no case",)))
    return rows


def _same_grey(value: int, cases: Mapping[int, set[str]]) -> int | None:
    """Return the next lower value, if it may be the same grey level, drawn or saved by another program."""
    near = max((other for other in cases if other < value), default=0)
    may_be_grey = near >= _MIN_GREY and value - near <= _NEAR_GREY
    return near if may_be_grey and not cases[near] & cases[value] else None


def _remarks(cases: int, of_cases: int, fraction: float) -> tuple[str, ...]:
    remarks = []
    if cases == 1 < of_cases:
        remarks.append("in one case only, which is either trained on or validated")
    elif cases < of_cases:
        missing = of_cases - cases
        remarks.append(f"not in {missing} cases: absent there, or not annotated (then they are partly labelled)")
    if fraction < FEW_VOXELS:
        remarks.append(f"under {FEW_VOXELS:.1%} of the labelled voxels")
    return tuple(remarks)
