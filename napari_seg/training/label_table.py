"""Count the label values of a data set, and report what is odd about them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any, NamedTuple

from napari_seg.errors import TrainingError, counted, listed

if TYPE_CHECKING:
    from segnets.data import Dataset
    from segnets.data.file_facts import Facts

FEW_VOXELS = 0.001
"""Fraction of the labelled voxels below which a class is reported as tiny."""

BACKGROUND = "background"


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


def label_table(
    dataset: Dataset,
    facts: Mapping[str, Facts],
    classes: Mapping[str, Sequence[Any]],
    listed: Mapping[str, Sequence[int]] | None = None,
) -> list[Row]:
    """Return a row for each value in the label maps except 0, in ascending order; call it within `with_segnets`.

    Remarks about a class of several values stand in the row of its lowest value.

    Args:
        dataset: data set that `segnets.data.check` has accepted.
        facts: facts of its files, from `segnets.data.file_facts.read_all`.
        classes: name -> its values or ranges of values.
        listed: name of a case -> values of the structures that its segmentation lists, also of those without voxels;
            None, or a case without an entry: it lists none.
    """
    from segnets.data.labels import ranges

    cases: dict[int, set[str]] = {}
    voxels: Counter[int] = Counter()
    for case in dataset.cases:
        for text, count in facts[case["label"]]["values"].items():
            if (value := int(text)) != 0:
                cases.setdefault(value, set()).add(case["name"])
                voxels[value] += count
    bounds = {name: ranges(list(values)) for name, values in classes.items() if name != BACKGROUND}
    values_of = {
        name: [value for value in sorted(cases) if any(low <= value <= high for low, high in pairs)]
        for name, pairs in bounds.items()
    }
    total = sum(voxels.values()) or 1  # of fractions, all may be below one half
    remarks: dict[int, list[str]] = {}
    for found in values_of.values():
        if found:
            present = set().union(*(cases[value] for value in found))
            own = remarks.setdefault(found[0], [])
            own += _remarks(dataset, found, present, sum(voxels[value] for value in found) / total, listed or {})
    rows = []
    for value in sorted(cases):
        name = " + ".join(name for name, found in values_of.items() if value in found)
        own = remarks.get(value, [])
        if name and (near := _same_grey(value, cases)) is not None:
            own.insert(0, f"in no case together with {near}: perhaps one class, --labels NAME={near},{value}")
        name = name or ("ignored" if value in dataset.ignored else BACKGROUND)
        rows.append(Row(value, name, len(cases[value]), voxels[value], tuple(dict.fromkeys(own))))
    for name, found in values_of.items():
        if not found:
            rows.append(Row(bounds[name][0][0], name, 0, 0, ("in no case",)))
    return rows


def check_values(dataset: Dataset, facts: Mapping[str, Any], classes: Mapping[str, Sequence[Any]]) -> None:
    """Raise if a chosen class has no voxel in any case.

    Args:
        dataset: the data set.
        facts: as for `label_table`.
        classes: class -> values or ranges of values, as `--labels` gives them.

    Raises:
        TrainingError: `labels.nowhere`, no case contains a value of the class.
    """
    from segnets.data.labels import ranges

    present = sorted({int(value) for case in dataset.cases for value in facts[case["label"]].get("values", ())} - {0})
    for name, values in classes.items():
        if name != BACKGROUND and not any(low <= one <= high for one in present for low, high in ranges(list(values))):
            raise TrainingError(
                "labels.nowhere",
                f"--labels gives {name} the value {listed([str(value) for value in values])}, which no case contains; "
                f"the label maps contain {listed([str(value) for value in present], 10) or 'nothing but 0'}",
            )


def background_note(
    rows: Sequence[Row], named: Mapping[str, Sequence[int]], classes: Mapping[str, Sequence[Any]]
) -> str:
    """Return a note on classes of a data set that are background without being named so; "" if there are none.

    Args:
        rows: rows of `label_table`.
        named: name in the data set -> values.
        classes: as for `label_table`.
    """
    from segnets.data.labels import ranges

    meant = ranges(list(classes.get(BACKGROUND, ())))
    found = []
    for row in rows:
        names = [name for name, values in named.items() if row.value in values]
        if row.name == BACKGROUND and names and not any(low <= row.value <= high for low, high in meant):
            found.append(f"{row.value} {' + '.join(names)} ({counted(row.cases, 'case')}, {row.voxels} voxels)")
    return f"--labels names no class for {listed(found)}: background" if found else ""


def _same_grey(value: int, cases: Mapping[int, set[str]]) -> int | None:
    """Return the next lower value, if it may be the same grey level, drawn or saved by another program."""
    near = max((other for other in cases if other < value), default=0)
    may_be_grey = near >= _MIN_GREY and value - near <= _NEAR_GREY
    return near if may_be_grey and not cases[near] & cases[value] else None


def _remarks(
    dataset: Dataset,
    values: Sequence[int],
    present: Set[str],
    fraction: float,
    listed: Mapping[str, Sequence[int]],
) -> Iterator[str]:
    """Yield what is odd about a class.

    Args:
        dataset: the data set.
        values: its values in the label maps.
        present: names of the cases with voxels of it.
        fraction: its voxels as a fraction of all labelled voxels.
        listed: as in `label_table`.
    """
    lacking = [case["name"] for case in dataset.cases if case["name"] not in present]
    declared = [name for name in lacking if not set(values) & set(dataset.labelled.get(name, values))]
    unclear = [
        name
        for name in lacking
        if name not in dataset.labelled
        and not set(values) & set(listed.get(name, ()))  # listed and empty: it is absent
    ]
    if len(present) == 1 < len(dataset.cases):
        yield "in one case only, which is either in training, in validation or in the test part"
    elif unclear:
        unlisted = sum(name in listed for name in unclear)
        where = f" ({unlisted} of them list other structures)" if unlisted else ""
        yield f"not in {len(unclear)} cases{where}: absent there, or not annotated (then they are partly labelled)"
    if declared:
        yield f"not annotated in {len(declared)} cases, as the data set declares"
    if fraction < FEW_VOXELS:
        yield f"under {FEW_VOXELS:.1%} of the labelled voxels"
