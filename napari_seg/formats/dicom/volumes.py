"""Slices at the same positions to volumes: which attributes tell times, echoes, b-values and the like apart.

Instance numbers alone are no such attribute: scanners and archives number images in any order. An attribute tells
volumes apart if its values differ at one position and are the same at every position. Where one attribute is not enough
(echoes at several times), several are combined. Where no attribute differs, instance numbers count only if they run
regularly: from one volume to the next by the same number at every position.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite
from typing import Any

from napari_seg.errors import InputError

MAX_VALUES_SHOWN = 6
"""Values of an attribute that a message lists."""

Value = tuple[tuple[int, Any], ...]
"""What an attribute holds, in a form that sorts: numbers before words; empty where it is missing."""


@dataclass(frozen=True)
class Mark:
    """An attribute that may tell volumes apart.

    Attributes:
        name: DICOM's keyword.
        unit: for messages; "" if it has none.
        groups: in an enhanced object the functional group that holds it, and sequences in that; empty: none does.
        tag: of an attribute that pydicom does not know by a keyword.
        is_weak: whether scanners are known to count it in their own ways, so that it may contradict the others.
        has_order: whether volumes may be sorted by it; directions come before no other.
    """

    name: str
    unit: str = ""
    groups: tuple[str, ...] = ()
    tag: int | None = None
    is_weak: bool = False
    has_order: bool = True


_FRAME = ("FrameContentSequence",)

MARKS = (
    Mark("TemporalPositionIndex", groups=_FRAME),
    Mark("TemporalPositionIdentifier"),
    Mark("TemporalPositionTimeOffset", "s", ("TemporalPositionSequence",)),
    Mark("FrameReferenceTime", "ms"),
    Mark("EffectiveEchoTime", "ms", ("MREchoSequence",)),
    Mark("EchoTime", "ms"),
    Mark("EchoNumbers", is_weak=True),
    Mark("DiffusionBValue", "s/mm2", ("MRDiffusionSequence",)),
    Mark("b-value", "s/mm2", tag=0x0019100C),  # Siemens
    Mark("b-value (GE)", "s/mm2", tag=0x00431039),
    Mark("b-value (Philips)", "s/mm2", tag=0x20011003),
    Mark(
        "DiffusionGradientOrientation",
        groups=("MRDiffusionSequence", "DiffusionGradientDirectionSequence"),
        has_order=False,
    ),
    Mark("gradient direction", tag=0x0019100E, has_order=False),  # Siemens
    Mark("gradient direction number", tag=0x20051413),  # Philips
    Mark("gradient direction x (GE)", tag=0x001910BB, has_order=False),
    Mark("gradient direction y (GE)", tag=0x001910BC, has_order=False),
    Mark("gradient direction z (GE)", tag=0x001910BD, has_order=False),
    Mark("ComplexImageComponent", groups=("MRImageFrameTypeSequence",)),
    Mark("InversionTime", "ms"),
    Mark("InversionTimes", "ms", ("MRModifierSequence",)),
    Mark("FlipAngle", "degrees", ("MRTimingAndRelatedParametersSequence",)),
    Mark("RepetitionTime", "ms", ("MRTimingAndRelatedParametersSequence",)),
    Mark("NominalCardiacTriggerDelayTime", "ms", ("CardiacSynchronizationSequence",)),
    Mark("NominalPercentageOfCardiacPhase", "%", ("CardiacSynchronizationSequence",)),
    Mark("NominalPercentageOfRespiratoryPhase", "%", ("RespiratorySynchronizationSequence",)),
    Mark("ASLContext", "", ("MRArterialSpinLabelingSequence",)),
    Mark("VelocityEncodingDirection", "", ("MRVelocityEncodingSequence",)),
    Mark("TriggerTime", "ms"),
    Mark("KVP", "kV", ("CTXRayDetailsSequence",)),
    Mark("ConvolutionKernel", groups=("CTReconstructionSequence",)),
    Mark("StackID", groups=_FRAME),
    Mark("SequenceName", is_weak=True, has_order=False),  # of Siemens, with the number of the direction
    Mark("FrameAcquisitionNumber", groups=_FRAME, is_weak=True),
    Mark("AcquisitionNumber", is_weak=True),
    Mark("FrameReferenceDateTime", groups=_FRAME, is_weak=True),
    Mark("FrameAcquisitionDateTime", groups=_FRAME, is_weak=True),
    Mark("AcquisitionDateTime", is_weak=True),
    Mark("AcquisitionDate", is_weak=True),
    Mark("AcquisitionTime", is_weak=True),
    Mark("SeriesTime", is_weak=True),
    Mark("ContentDate", is_weak=True),
    Mark("ContentTime", is_weak=True),
)
"""In the order in which they count: what comes first varies slowest from volume to volume."""

DIMENSION = "dimension index "
"""What the name of a mark begins with that is a value of DimensionIndexValues; such marks count before all others."""

_MARKS = {mark.name: mark for mark in MARKS}


def value_of(stored: Any) -> Value:
    """The value of an attribute in a form that sorts, whatever a file holds there."""
    if stored is None or stored == "":
        return ()
    if isinstance(stored, (str, bytes)) or not hasattr(stored, "__iter__"):
        stored = [stored]
    return tuple(_sortable(part) for part in stored)


def _sortable(part: Any) -> tuple[int, Any]:
    if isinstance(part, bytes):  # an attribute of unknown type
        part = part.rstrip(b"\0 ").decode("latin-1")
    try:
        number = float(part)
    except (TypeError, ValueError):
        return 1, str(part)
    if not isfinite(number):
        return 1, str(number)
    is_exact = isinstance(part, str) or abs(number) >= 1e5  # a time of day is a text of many digits
    return 0, number if is_exact else float(f"{number:.6g}")  # what is rounded differently is the same


def tell_apart(
    marks: Sequence[Sequence[Mapping[str, Value]]], numbers: Sequence[Sequence[tuple[int, int]]], name: str
) -> tuple[list[list[int]], str]:
    """Sort the slices at each position into the same volumes.

    Args:
        marks: for each position, of each slice there, its attributes; as many slices at every position.
        numbers: of the same slices, instance number and place in the file.
        name: of the series.

    Returns:
        For each position its slices in the order of the volumes, and what tells them apart, for a message.

    Raises:
        InputError: `series.4d`, nothing tells them apart, or attributes contradict each other.
    """
    count = len(marks[0])
    telling = [mark for mark in _names(marks) if _is_same_everywhere(marks, [mark]) and _distinct(marks, [mark]) > 1]
    chosen: list[str] = []
    for mark in telling:
        more = [*chosen, mark]
        if _distinct(marks, more) > _distinct(marks, chosen) and _is_same_everywhere(marks, more):
            chosen = more
    orders = [
        sorted(range(count), key=[(_key(one, chosen), n) for one, n in zip(*place, strict=True)].__getitem__)
        for place in zip(marks, numbers, strict=True)
    ]
    # Volumes that differ in nothing but their directions come in the order of their numbers.
    ordinal = [mark for mark in chosen if _has_order(mark)]
    ranks = [
        (
            _key(marks[0][orders[0][v]], ordinal),
            min(own[order[v]] for own, order in zip(numbers, orders, strict=True)),
            v,
        )
        for v in range(count)
    ]
    orders = [[order[v] for *_, v in sorted(ranks)] for order in orders]
    for mark in telling:
        is_strong = mark in _MARKS and not _MARKS[mark].is_weak
        if (is_strong and _distinct(marks, [mark]) == count) and not _follows(marks, orders, mark):
            raise InputError(
                "series.4d",
                f"{name} holds {count} volumes, and {mark} and {_shown(chosen[0])} disagree about which slices belong "
                "together; expected one order; separate the volumes before opening them",
            )
    if _distinct(marks, chosen) < count:
        _check_numbers(marks, numbers, orders, chosen, name)
        return orders, " and ".join([*(_words(marks, mark) for mark in chosen), "the order of instance numbers"])
    plain = [mark for mark in telling if not mark.startswith(DIMENSION)]
    if len(chosen) == 1 and chosen[0].startswith(DIMENSION):  # rather by a value than by its place in a list
        chosen = [mark for mark in plain if _distinct(marks, [mark]) == count][:1] or chosen
    return orders, " and ".join(_words(marks, mark) for mark in chosen)


def _names(marks: Sequence[Sequence[Mapping[str, Value]]]) -> list[str]:
    found = {name for several in marks for one in several for name in one}
    return [*sorted(name for name in found if name not in _MARKS), *(name for name in _MARKS if name in found)]


def _key(one: Mapping[str, Value], names: Sequence[str]) -> tuple[Value, ...]:
    return tuple(one.get(name, ()) for name in names)


def _distinct(marks: Sequence[Sequence[Mapping[str, Value]]], names: Sequence[str]) -> int:
    return len({_key(one, names) for one in marks[0]})


def _is_same_everywhere(marks: Sequence[Sequence[Mapping[str, Value]]], names: Sequence[str]) -> bool:
    first = sorted(_key(one, names) for one in marks[0])
    return all(sorted(_key(one, names) for one in several) == first for several in marks[1:])


def _follows(marks: Sequence[Sequence[Mapping[str, Value]]], orders: Sequence[Sequence[int]], mark: str) -> bool:
    """Whether an attribute is constant in each volume."""
    by_volume = [[several[n].get(mark) for n in order] for several, order in zip(marks, orders, strict=True)]
    return all(values == by_volume[0] for values in by_volume)


def _check_numbers(
    marks: Sequence[Sequence[Mapping[str, Value]]],
    numbers: Sequence[Sequence[tuple[int, int]]],
    orders: Sequence[Sequence[int]],
    chosen: Sequence[str],
    name: str,
) -> None:
    """Refuse instance numbers unless from one volume to the next they grow alike at every position, as times do.

    If no attribute tells any two volumes apart, each volume must also come whole before the next: numbers that run
    through the volumes at one position after the other would look the same in any order.
    """
    count = len(orders[0])
    keys = [_key(marks[0][n], chosen) for n in orders[0]]
    ordered = [[numbers[p][n] for n in order] for p, order in enumerate(orders)]
    regular = True
    for t, u in pairwise(range(count)):
        if keys[t] == keys[u]:  # attributes do not tell these two apart
            steps = {of_place[u][0] - of_place[t][0] for of_place in ordered}
            if steps == {0}:  # frames of one file
                steps = {of_place[u][1] - of_place[t][1] for of_place in ordered}
            regular &= len(steps) == 1 and steps != {0}
    if not chosen:
        volumes = [[of_place[t] for of_place in ordered] for t in range(count)]
        regular &= all(max(one) < min(other) for one, other in pairwise(volumes))
    for mark in _names(marks):
        values = [[several[n].get(mark, ()) for n in order] for several, order in zip(marks, orders, strict=True)]
        ranks = [sorted(range(count), key=own.__getitem__) for own in values if len(set(own)) == count]
        regular &= all(rank == ranks[0] for rank in ranks)
        equal = {tuple(map(own.index, own)) for own in values}  # which volumes it does not tell apart at a position
        regular &= len(equal) == 1 or (mark in _MARKS and _MARKS[mark].is_weak)
    if not regular:
        raise InputError(
            "series.4d",
            f"{name} holds {count} volumes whose slices no attribute tells apart (looked for times, echoes, b-values "
            "and the like, the same at every position), and their instance numbers are equal or run irregularly; "
            "separate the volumes before opening them",
        )


def _has_order(mark: str) -> bool:
    return mark not in _MARKS or _MARKS[mark].has_order


def _shown(mark: str) -> str:
    return "DimensionIndexValues" if mark.startswith(DIMENSION) else mark


def _words(marks: Sequence[Sequence[Mapping[str, Value]]], mark: str) -> str:
    """Such as "EchoTime 2.46, 4.92 ms"."""
    values = sorted({one.get(mark, ()) for one in marks[0]})
    if not _has_order(mark) or any(len(value) > 1 for value in values):
        return f"{mark}, {len(values)} different ones"
    # ten digits are few for a date with a time
    texts = [
        "/".join(f"{part:.{10 if abs(part) < 1e10 else 17}g}" if kind == 0 else part[:16] for kind, part in value)
        or "none"
        for value in values
    ]
    more = ", ..." if len(texts) > MAX_VALUES_SHOWN else ""
    unit = _MARKS[mark].unit if mark in _MARKS else ""
    return f"{mark} {', '.join(texts[:MAX_VALUES_SHOWN])}{more} {unit}".rstrip()
