"""Give the classes of several data sets one table of values, and say which of them each data set annotates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_seg.errors import TrainingError
from napari_seg.training.choices import IGNORE
from napari_seg.training.gather.labels import MAX_VALUE
from napari_seg.training.segnets_modules import with_segnets

if TYPE_CHECKING:
    from segnets.data import Dataset


def stated_classes(path: Path) -> tuple[str, ...]:
    """Return the names of the classes of a data set; empty if it states none, or must be converted first."""
    with with_segnets():
        from segnets.data import find_dataset
        from segnets.errors import TrainingError as SegnetsError

        try:
            return tuple(name for name in find_dataset(path).labels if name not in ("background", IGNORE))
        except SegnetsError:
            return ()


@dataclass(frozen=True)
class Source:
    """One of several data sets, with the values that its classes have in all of them.

    Attributes:
        number: its number, from 1.
        dataset: its cases.
        names: value in its label maps -> lower-case names of the classes that the value belongs to.
        ignored: values of voxels that are not annotated.
        values: value in its label maps -> value in the combined data set.
    """

    number: int
    dataset: Dataset
    names: dict[int, frozenset[str]]
    ignored: frozenset[int]
    values: dict[int, int]

    @property
    def known(self) -> set[str]:
        """Lower-case names of its classes."""
        return {name for names in self.names.values() for name in names}

    @property
    def is_renumbered(self) -> bool:
        return any(value != new for value, new in self.values.items())


def number_classes(
    datasets: Sequence[Dataset], labels: Mapping[str, Sequence[Any]]
) -> tuple[list[Source], dict[frozenset[str], int], int | None]:
    """Give one value to each class, or to each combination of classes that overlap.

    A class keeps the value of the first data set that has it, if that is free.

    Returns:
        The data sets, names -> value, and the value of ignored voxels, None if no data set has any.

    Raises:
        TrainingError: `labels.unnamed`, `labels.unknown`, `dataset.combined`.
    """
    from segnets.data.labels import ranges

    more = {value for low, high in ranges(list(labels.get(IGNORE, ()))) for value in range(low, high + 1)}
    given = {name: list(words) for name, words in labels.items() if name != IGNORE}
    of_all: list[Mapping[str, Sequence[int]]] = [dataset.labels for dataset in datasets]
    known = {name.casefold() for named in of_all for name in named}
    if given and not known:
        each = {name: [v for low, high in ranges(words) for v in range(low, high + 1)] for name, words in given.items()}
        of_all = [each] * len(datasets)
    elif unknown := [
        f"{name}={word}" for name, words in given.items() for word in words if str(word).casefold() not in known
    ]:
        names = ", ".join(dict.fromkeys(name for named in of_all for name in named))
        raise TrainingError(
            "labels.unknown", f"found --labels {unknown[0]} for several data sets; expected names of classes: {names}"
        )
    if unnamed := [str(number) for number, named in enumerate(of_all, 1) if not named]:
        raise TrainingError(
            "labels.unnamed",
            f"data set {', '.join(unnamed)} does not name its label values, so they can't be matched with those of the "
            'others; name them in a file labels.json in its folder, such as {"1": "liver"}',
        )
    table: dict[frozenset[str], int] = {}
    sources = []
    for number, (dataset, named) in enumerate(zip(datasets, of_all, strict=True), 1):
        ignored = frozenset(dataset.ignored) | more
        words = [(name.casefold(), value) for name, values in named.items() for value in values]
        classes = {
            value: frozenset(name for name, v in words if v == value) for _, value in words if value not in ignored
        }
        classes = {value: of_value - {"background"} for value, of_value in sorted(classes.items())}
        classes = {value: of_value for value, of_value in classes.items() if value and of_value}
        for value, of_value in classes.items():
            taken = set(table.values())
            if of_value not in table:
                table[of_value] = next(v for v in (value, *range(1, MAX_VALUE)) if v not in taken)
        background = {value for name, value in words if name == "background"} | {0}
        values = dict.fromkeys(background, 0) | {value: table[of_value] for value, of_value in classes.items()}
        sources.append(Source(number, dataset, classes, ignored, values))
    overlap = any(len(of_value) > 1 for of_value in table)
    if overlap and len({frozenset(source.known) for source in sources}) > 1:
        listed = "; ".join(f"data set {source.number} {', '.join(sorted(source.known))}" for source in sources)
        raise TrainingError(
            "dataset.combined",
            f"classes overlap, and the data sets know different ones: {listed}; expected the same ones in all",
        )
    if not any(source.ignored for source in sources):
        return sources, table, None
    usual, highest = 255, max(table.values())
    ignore = usual if usual not in table.values() else highest + 1
    for source in sources:
        source.values.update(dict.fromkeys(source.ignored, ignore))
    return sources, table, ignore


def annotated_values(
    source: Source, table: Mapping[frozenset[str], int], labels: Mapping[str, Sequence[Any]]
) -> set[int]:
    """Return the values that are annotated in a data set: those of the classes that it knows.

    A class of the training that is made of several names counts if all of them are annotated (`is_complete`).
    """
    known = source.known
    for name, parts in labels.items():
        if is_complete(name, parts, source.known):
            known |= {str(part).casefold() for part in parts}
    return {value for of_value, value in table.items() if of_value <= known}


def is_complete(name: str, parts: Sequence[Any], known: set[str]) -> bool:
    """Return whether a data set with the classes `known` annotates all of a class that is made of several names.

    It has all the names; or the class has a name of its own that all the others contain, as kidney of kidney, left
    kidney and right kidney, and the data set has this one or all the others.
    """
    from segnets.data.labels import words_in

    words, own = {str(part).casefold() for part in parts}, name.casefold()
    others = words - {own}
    is_whole = own in words and bool(others) and all(words_in(own) <= words_in(other) for other in others)
    return words <= known or (is_whole and (own in known or others <= known))
