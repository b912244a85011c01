"""Decide which labels of a result and which values of its reference make up each structure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from shlex import quote

import numpy as np
from numpy.typing import NDArray

from napari_seg.errors import InputError, Notice, listed
from napari_seg.evaluation.labels import BACKGROUND, Classes, Meaning, do_overlap, mask_ignored
from napari_seg.evaluation.metrics import on_grid
from napari_seg.structure_names import match_names, similar_names
from napari_seg.volume import Segment, Segmentation, distinct_color, labels_in

VOID = 255
"""Void label: the value that PASCAL VOC and similar data sets write along uncertain object borders."""

UNNAMED_VOID = f"label {VOID}"
"""Name of the void label in a label map without names."""

_NAME, _NUMBER = "a common name", "a common number"
_NONE: frozenset[int] = frozenset()
_MAX_LABELS = 8
"""Number of structures of a result up to which a message gives the value of each."""


@dataclass(frozen=True)
class Structure:
    """Structure of a result and its reference.

    Attributes:
        segment: number, name and colour; the number is the structure's own label in the result, or else a free one.
        labels: labels of the result that make it up; none if only the reference has it.
        values: values of the reference that make it up; none if only the result has it.
    """

    segment: Segment
    labels: frozenset[int]
    values: frozenset[int]


@dataclass(frozen=True, eq=False)
class Matched:
    """Result and reference on one grid, in which the same number stands for the same structure.

    Attributes:
        prediction: the result; its segments are all structures, by ascending number.
        reference: the reference; its notices include those about the names of both.
        structures: name -> numbers that make it up: its own, and those of voxels that it shares with other structures.
        labels: name -> labels that make it up in the result as it was.
        has_regions: whether structures may share voxels, so that each is a label map of its own.
        evidence: what shows that both label the same structures: a common name or number, and each common name.
        doubts: evidence -> error if no case of a comparison has this evidence.
    """

    prediction: Segmentation
    reference: Segmentation
    structures: dict[str, tuple[int, ...]]
    labels: dict[str, frozenset[int]]
    has_regions: bool = False
    evidence: Collection[str] = ()
    doubts: Mapping[str, InputError] = field(default_factory=dict)

    def masks(self, segment: Segment) -> tuple[Segmentation, Segmentation]:
        """Return one structure in the result and in the reference, where its label is 1."""
        result, reference = (
            Segmentation(
                np.isin(side.array, self.structures[segment.name]).astype(np.uint8),
                side.grid,
                (replace(segment, label=1),),
            )
            for side in (self.prediction, self.reference)
        )
        return result, reference


@dataclass(frozen=True)
class _Table:
    """Names of both sides: `ours` -> labels of the result, `theirs` -> values of the reference.

    Attributes:
        same: name of the reference -> name of the result, for structures that both have.
        background: labels of the result and values of the reference that are background.
        is_by_name: the names decided, not numbers.
    """

    ours: Classes
    theirs: Classes
    same: Mapping[str, str]
    background: tuple[frozenset[int], frozenset[int]] = (_NONE, _NONE)
    evidence: Collection[str] = ()
    doubts: Mapping[str, InputError] = field(default_factory=dict)
    notices: tuple[Notice, ...] = ()
    is_by_name: bool = False


def match(
    prediction: Segmentation, reference: Segmentation, meaning: Meaning | None = None, name: str = "the reference"
) -> Matched:
    """Return a result and its reference, in which the same number stands for the same structure.

    The reference's values have the names that the user gave, else those in its file, else those that its data set
    declares. Structures are matched by name, see `match_names`, and get the reference's spelling. If a side has no
    names, they are matched by number, except that a result without names numbers classes that the user gave from 1.
    If classes share values (regions), a label of the result belongs to the region of its name and to all regions that
    contain this one's values; if no label has the name of a region, all labels mean the same as in the reference.

    Args:
        prediction: the result, with its own labels.
        reference: the reference, with its own values; its axes may be permuted or flipped.
        meaning: meaning of these values; None: that of the names in its file.
        name: name of the reference in messages.

    Raises:
        InputError: `labels.unknown`, a value of the reference is in no class; `labels.overlap`, a value is in a class
            and in background; `labels.names`, two structures have the same name; `geometry.mismatch`.
    """
    meaning = meaning or Meaning()
    if meaning.ignored:
        prediction, reference = mask_ignored(meaning.ignored, prediction, reference, name)
    reference = replace(reference, array=on_grid(reference, prediction.grid), grid=prediction.grid)
    found, expected = (frozenset(labels_in(side.array)) - {0} for side in (prediction, reference))
    theirs = {} if meaning.is_complete else _named(reference)
    table = _table(_named(prediction), theirs, meaning, found, expected, name)
    colors = {segment.name: segment.color for segment in (*reference.segments, *prediction.segments)}
    structures = _structures(table, found, expected, colors)
    if (labelled := meaning.labelled) is not None:  # a structure that only the result has is not known to be annotated
        structures = [
            one for one in structures if one.segment.name == UNNAMED_VOID or (one.values and one.values <= labelled)
        ]
    notices = (*reference.notices, *table.notices, *_differing(table, structures, found, expected, name))
    matched = matched_by(structures, prediction, replace(reference, notices=notices))
    has_regions = matched.has_regions or meaning.has_regions
    return replace(matched, has_regions=has_regions, evidence=table.evidence, doubts=table.doubts)


def matched_by(structures: Sequence[Structure], prediction: Segmentation, reference: Segmentation) -> Matched:
    """Return a result and its reference on the same grid with the numbers of some structures."""
    of_label, of_value, numbers = _numbers(structures)
    segments = tuple(one.segment for one in structures)
    return Matched(
        replace(prediction, array=_renumbered(prediction.array, of_label), segments=segments),
        replace(reference, array=_renumbered(reference.array, of_value), segments=segments),
        numbers,
        {one.segment.name: one.labels for one in structures},
        any(len(of) > 1 for of in numbers.values()),
    )


def _table(
    ours: Classes, theirs: Classes, meaning: Meaning, found: frozenset[int], expected: frozenset[int], name: str
) -> _Table:
    """Return the names of both sides.

    Args:
        ours: name -> label, of the result.
        theirs: name -> value, in the file of the reference; empty if it has none, or they are not used.
        meaning: meaning of the values.
        found: labels that the result contains.
        expected: values that the reference contains.
        name: name of the reference in messages.
    """
    has_regions = meaning.has_regions
    is_list = meaning.is_given and not has_regions  # of the model's classes
    background = _NONE
    doubts: dict[str, InputError] = {}
    if not theirs:
        theirs = {one: above for one, values in meaning.classes.items() if (above := values - {0})}
        background = theirs.pop(BACKGROUND, _NONE)
    known = background.union(*theirs.values())
    if meaning.is_complete:
        doubts = _check_values(theirs, background, expected, "region" if has_regions else "class")
    same = match_names(theirs, ours)
    are_values = has_regions and not same and known >= _NONE.union(*ours.values())
    if ours and (theirs or meaning.is_complete) and not are_values:
        evidence = (*same, _NAME) if same else ()
        if is_list:
            doubts |= {one: _no_name(one, ours) for one in theirs}
        else:
            doubts[_NAME] = _no_name_common(ours, theirs, name)
        return _Table(ours, theirs, same, (_NONE, background), evidence, doubts, is_by_name=True)
    if is_list:
        ours = {one: frozenset([number]) for number, one in enumerate(theirs, 1)}
        return _Table(ours, theirs, {one: one for one in theirs}, (_NONE, background), doubts=doubts)
    notices = (_no_region(ours, theirs),) if are_values and ours else ()
    if theirs and found and not has_regions:
        doubts[_NUMBER] = _no_number_common(found, theirs, name)
    evidence = (_NUMBER,) if found & (expected | known) else ()
    both = theirs or ours
    return _Table(both, both, {one: one for one in both}, (background, background), evidence, doubts, notices)


def _structures(
    table: _Table, found: frozenset[int], expected: frozenset[int], colors: Mapping[str, tuple[int, int, int]]
) -> list[Structure]:
    """Return all structures, by ascending number; labels and values without a name are compared by number.

    Raises:
        InputError: `labels.names`, two structures have the same name.
    """
    ours, theirs, same = table.ours, table.theirs, table.same
    sets = []  # name, own labels, labels, values
    for one, values in theirs.items():
        own = ours[same[one]] if one in same else _NONE
        parts = (ours[its] for other, its in same.items() if theirs[other] <= values)
        sets.append((one, own, own.union(*parts), values))
    sets += [(one, labels, labels, _NONE) for one, labels in ours.items() if one not in same.values()]
    named = [kept.union(*of.values()) for kept, of in zip(table.background, (ours, theirs), strict=True)]
    for number in sorted((found - named[0]) | (expected - named[1])):
        labels, values = (frozenset([number]) - of for of in named)
        sets.append((f"label {number}", labels, labels, values))
    _check_unique([one for one, *_ in sets])
    taken = found | expected  # a value without a name has its own number
    free = (number for number in count(max({0, *named[0]}) + 1) if number not in taken)
    has_own = not do_overlap(ours)
    structures = []
    for one, own, labels, values in sets:
        number = min(own) if own and has_own else next(free)
        color = colors.get(same.get(one, one)) or colors.get(one) or distinct_color(number)
        structures.append(Structure(Segment(number, one, color), labels, values))
    return sorted(structures, key=lambda one: one.segment.label)


def _numbers(structures: Sequence[Structure]) -> tuple[dict[int, int], dict[int, int], dict[str, tuple[int, ...]]]:
    """Return label -> number, value -> number, and structure -> numbers that make it up.

    Labels that several structures share have a number of their own, as do values: that of these structures.
    """
    number_of = {frozenset([one.segment.label]): one.segment.label for one in structures}
    free = count(max(number_of.values(), default=0) + 1)
    tables: list[dict[int, int]] = []
    for sets in ([one.labels for one in structures], [one.values for one in structures]):
        owners: dict[int, set[int]] = defaultdict(set)
        for one, labels in zip(structures, sets, strict=True):
            for label in labels:
                owners[label].add(one.segment.label)
        for of in map(frozenset, owners.values()):
            if of not in number_of:
                number_of[of] = next(free)
        tables.append({label: number_of[frozenset(of)] for label, of in owners.items()})
    made_up_of: dict[int, list[int]] = defaultdict(list)
    for of, number in number_of.items():
        for own in of:
            made_up_of[own].append(number)
    return tables[0], tables[1], {one.segment.name: tuple(made_up_of[one.segment.label]) for one in structures}


def _renumbered(array: NDArray[np.unsignedinteger], numbers: Mapping[int, int]) -> NDArray[np.unsignedinteger]:
    """Return the numbers of an array of labels, in the smallest type; 0 for labels without a number."""
    table = np.zeros(int(array.max(initial=0)) + 1, np.int64)
    for label, number in numbers.items():
        if label < len(table):
            table[label] = number
    if np.array_equal(table, np.arange(len(table))):
        return array
    renumbered: NDArray[np.unsignedinteger] = table.astype(np.min_scalar_type(int(table.max())))[array]
    return renumbered


def _named(segmentation: Segmentation) -> Classes:
    """Return name -> label of the segments that have a name of their own, unlike "label 3".

    Raises:
        InputError: `labels.names`, two segments have the same name.
    """
    own = [segment for segment in segmentation.segments if segment.name != f"label {segment.label}"]
    _check_unique([segment.name for segment in own])
    return {segment.name: frozenset([segment.label]) for segment in own}


def _check_unique(names: Sequence[str]) -> None:
    if repeated := sorted(name for name, number in Counter(names).items() if number > 1):
        raise InputError("labels.names", f"found {', '.join(repeated)} twice; expected unique names")


def _check_values(
    theirs: Classes, background: frozenset[int], expected: frozenset[int], word: str
) -> dict[str, InputError]:
    """Return the error for the void label, which is no error if it is ignored.

    Raises:
        InputError: `labels.unknown`, a value of the reference is in no class; `labels.overlap`, a value is in a class
            and in background.
    """
    for one, values in theirs.items():
        if shared := sorted(values & background):
            text = f"the value {shared[0]} belongs to {one} and another class; expected one class for each value"
            raise InputError("labels.overlap", text)
    unknown = expected - background.union(*theirs.values())
    if not unknown:
        return {}
    first = listed([*map(str, sorted(unknown))], 6)
    if unknown == {VOID}:  # in masks of 0 and 255 it is the structure
        example = f"{quote(next(iter(theirs)))}={VOID}" if expected == unknown and theirs else f"ignore={VOID}"
    else:
        example = f"background={_text(frozenset(sorted(unknown - {VOID})[:6]))}"
    error = InputError(
        "labels.unknown",
        f"the reference contains {first}, which no {word} has; assign these values, for example {example}",
    )
    if unknown != {VOID}:
        raise error
    return {UNNAMED_VOID: error}


def _no_name(one: str, ours: Classes) -> InputError:
    return InputError("labels.names", f"the result has no {one!r}; it has {', '.join(ours)}")


def _no_name_common(ours: Classes, theirs: Classes, name: str) -> InputError:
    similar = similar_names(ours, theirs)
    values = {one: _text(theirs[similar[one]]) if one in similar else "VALUE" for one in ours}
    return InputError(
        "labels.none_common",
        f"the result has {_listed(ours)}, and {name} has {_listed(theirs)}, so that no structure has the same name in "
        "both; rename them, or give the value in the reference of each structure of the result with "
        f"{_labels_option(values, _MAX_LABELS if similar.keys() == ours.keys() else 3)}",
    )


def _no_number_common(found: frozenset[int], theirs: Classes, name: str) -> InputError:
    return InputError(
        "labels.none_common",
        f"the result has the labels {listed([*map(str, sorted(found))])} without names, and {name} has "
        f"{_listed(theirs)}, so that no label is in both; if the result numbers the classes from 1, list them in its "
        f"order with {_labels_option({one: _text(values) for one, values in theirs.items()})}",
    )


def _no_region(ours: Classes, theirs: Classes) -> Notice:
    text = f"no structure of the result ({listed([*ours])}) has the name of a region ({listed([*theirs])})"
    return Notice("labels.names_differ", f"{text}; its labels are taken as values of the reference")


def _differing(
    table: _Table, structures: Sequence[Structure], found: frozenset[int], expected: frozenset[int], name: str
) -> Iterator[Notice]:
    """Yield a notice on structures without a partner: one may have been renamed, or the model does not know it."""
    only_ours = [one.segment.name for one in structures if not one.values and one.labels & found]
    only_theirs = [
        own
        for one in structures
        if one.values & expected
        and (own := one.segment.name) not in table.same
        and (own in table.theirs or not one.labels)
    ]
    places = (("the segmentation", only_ours), (name, only_theirs))
    if table.is_by_name and (only_ours or only_theirs):
        where = "; ".join(f"only in {place}: {listed(names)}" for place, names in places if names)
        text = f"structures are matched by name; {where}; these count as errors; give a structure the same name in both"
        yield Notice("labels.names_differ", text)


def _listed(classes: Classes) -> str:
    """Return the first three names with their labels, and the number of the others."""
    return listed([f"{_text(labels)} {name}" for name, labels in classes.items()])


def _labels_option(values: Mapping[str, str], most: int = 3) -> str:
    """Return the option of the command line that gives the first names their values."""
    return " ".join(["--labels", *(quote(f"{name}={value}") for name, value in [*values.items()][:most])])


def _text(values: frozenset[int]) -> str:
    """Return values as `--labels` takes them."""
    low, high = min(values), max(values)
    return f"{low}-{high}" if high - low + 1 == len(values) > 2 else ",".join(map(str, sorted(values)))
