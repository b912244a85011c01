"""Sort slices at the same positions into volumes, by the attributes that distinguish times, echoes, b-values etc.

An attribute distinguishes volumes if its values differ at one position, and every position has the same set of values.
If one attribute is not enough (echoes at several times), several are combined. Instance numbers are not sufficient:
scanners and archives number images in any order. If no attribute differs, instance numbers count only if they are
regular: from one volume to the next they grow by the same number at every position.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite
from typing import Any

from napari_seg.errors import InputError

MAX_VALUES_SHOWN = 6
"""Maximum number of values of an attribute that a message lists."""

Value = tuple[tuple[int, Any], ...]
"""Values of an attribute in a form that sorts, numbers before words; empty if it is missing."""


ByPosition = Sequence[Sequence[Mapping[str, Value]]]
"""Attributes by keyword, of each slice at each position."""


@dataclass(frozen=True)
class VolumeAttribute:
    """An attribute that may distinguish volumes.

    Attributes:
        name: DICOM's keyword; a description for a private attribute.
        unit: unit for messages; "" if it has none.
        groups: functional group of an enhanced object that holds it, and sequences in that group; empty if none does.
        tag: tag of a private attribute, for which pydicom has no keyword.
        is_weak: whether scanners count it in their own ways, so that it may contradict the others.
        has_order: whether volumes may be sorted by it; gradient directions have no order.
    """

    name: str
    unit: str = ""
    groups: tuple[str, ...] = ()
    tag: int | None = None
    is_weak: bool = False
    has_order: bool = True


_FRAME = ("FrameContentSequence",)

VOLUME_ATTRIBUTES = (
    VolumeAttribute("TemporalPositionIndex", groups=_FRAME),
    VolumeAttribute("TemporalPositionIdentifier"),
    VolumeAttribute("TemporalPositionTimeOffset", "s", ("TemporalPositionSequence",)),
    VolumeAttribute("FrameReferenceTime", "ms"),
    VolumeAttribute("EffectiveEchoTime", "ms", ("MREchoSequence",)),
    VolumeAttribute("EchoTime", "ms"),
    VolumeAttribute("EchoNumbers", is_weak=True),
    VolumeAttribute("DiffusionBValue", "s/mm2", ("MRDiffusionSequence",)),
    VolumeAttribute("b-value", "s/mm2", tag=0x0019100C),  # Siemens
    VolumeAttribute("b-value (GE)", "s/mm2", tag=0x00431039),
    VolumeAttribute("b-value (Philips)", "s/mm2", tag=0x20011003),
    VolumeAttribute(
        "DiffusionGradientOrientation",
        groups=("MRDiffusionSequence", "DiffusionGradientDirectionSequence"),
        has_order=False,
    ),
    VolumeAttribute("gradient direction", tag=0x0019100E, has_order=False),  # Siemens
    VolumeAttribute("gradient direction number", tag=0x20051413),  # Philips
    VolumeAttribute("gradient direction x (GE)", tag=0x001910BB, has_order=False),
    VolumeAttribute("gradient direction y (GE)", tag=0x001910BC, has_order=False),
    VolumeAttribute("gradient direction z (GE)", tag=0x001910BD, has_order=False),
    VolumeAttribute("ComplexImageComponent", groups=("MRImageFrameTypeSequence",)),
    VolumeAttribute("InversionTime", "ms"),
    VolumeAttribute("InversionTimes", "ms", ("MRModifierSequence",)),
    VolumeAttribute("FlipAngle", "degrees", ("MRTimingAndRelatedParametersSequence",)),
    VolumeAttribute("RepetitionTime", "ms", ("MRTimingAndRelatedParametersSequence",)),
    VolumeAttribute("NominalCardiacTriggerDelayTime", "ms", ("CardiacSynchronizationSequence",)),
    VolumeAttribute("NominalPercentageOfCardiacPhase", "%", ("CardiacSynchronizationSequence",)),
    VolumeAttribute("NominalPercentageOfRespiratoryPhase", "%", ("RespiratorySynchronizationSequence",)),
    VolumeAttribute("ASLContext", "", ("MRArterialSpinLabelingSequence",)),
    VolumeAttribute("VelocityEncodingDirection", "", ("MRVelocityEncodingSequence",)),
    VolumeAttribute("TriggerTime", "ms"),
    VolumeAttribute("KVP", "kV", ("CTXRayDetailsSequence",)),
    VolumeAttribute("ConvolutionKernel", groups=("CTReconstructionSequence",)),
    VolumeAttribute("StackID", groups=_FRAME),
    VolumeAttribute("SequenceName", is_weak=True, has_order=False),  # of Siemens, with the number of the direction
    VolumeAttribute("FrameAcquisitionNumber", groups=_FRAME, is_weak=True),
    VolumeAttribute("AcquisitionNumber", is_weak=True),
    VolumeAttribute("FrameReferenceDateTime", groups=_FRAME, is_weak=True),
    VolumeAttribute("FrameAcquisitionDateTime", groups=_FRAME, is_weak=True),
    VolumeAttribute("AcquisitionDateTime", is_weak=True),
    VolumeAttribute("AcquisitionDate", is_weak=True),
    VolumeAttribute("AcquisitionTime", is_weak=True),
    VolumeAttribute("SeriesTime", is_weak=True),
    VolumeAttribute("ContentDate", is_weak=True),
    VolumeAttribute("ContentTime", is_weak=True),
)
"""Attributes by priority: the first one varies slowest from volume to volume."""

DIMENSION = "dimension index "
"""Prefix of the names under which DimensionIndexValues are kept; they have priority over all other attributes."""

_BY_NAME = {attribute.name: attribute for attribute in VOLUME_ATTRIBUTES}


def value_of(stored: Any) -> Value:
    """Return the value of an attribute in a form that sorts, whatever a file holds there."""
    if stored is None or stored == "":
        return ()
    if isinstance(stored, (str, bytes)) or not hasattr(stored, "__iter__"):
        stored = [stored]
    return tuple(_sortable(part) for part in stored)


def _sortable(part: Any) -> tuple[int, Any]:
    """Return one value in a form that sorts: a number, or else a text."""
    if isinstance(part, bytes):  # an attribute of unknown type
        part = part.rstrip(b"\0 ").decode("latin-1")
    try:
        number = float(part)
    except (TypeError, ValueError):
        return 1, str(part)
    if not isfinite(number):
        return 1, str(number)
    is_exact = isinstance(part, str) or abs(number) >= 1e5  # a time of day is a text of many digits
    return 0, number if is_exact else float(f"{number:.6g}")  # differently rounded values count as equal


def sort_into_volumes(
    attributes: ByPosition, numbers: Sequence[Sequence[tuple[int, int]]], name: str
) -> tuple[list[list[int]], str]:
    """Sort the slices at each position into the same volumes.

    Args:
        attributes: for each position, the attributes of each slice there; every position has the same number of slices.
        numbers: for each position, instance number and frame number of each slice there.
        name: name of the series, for messages.

    Returns:
        For each position, its slices in the order of the volumes; and a description of the differences, for messages.

    Raises:
        InputError: `series.4d`, no attribute distinguishes the volumes, or attributes contradict each other.
    """
    count = len(attributes[0])
    distinguishing = [
        keyword
        for keyword in _keywords(attributes)
        if _is_same_everywhere(attributes, [keyword]) and _count_distinct(attributes, [keyword]) > 1
    ]
    chosen: list[str] = []
    for keyword in distinguishing:
        more = [*chosen, keyword]
        if _count_distinct(attributes, more) > _count_distinct(attributes, chosen) and _is_same_everywhere(
            attributes, more
        ):
            chosen = more
    orders = [
        sorted(range(count), key=[(_key(one, chosen), n) for one, n in zip(*position, strict=True)].__getitem__)
        for position in zip(attributes, numbers, strict=True)
    ]
    # Volumes that differ only in their directions are sorted by instance number.
    ordinal = [keyword for keyword in chosen if _has_order(keyword)]
    ranks = [
        (
            _key(attributes[0][orders[0][v]], ordinal),
            min(own[order[v]] for own, order in zip(numbers, orders, strict=True)),
            v,
        )
        for v in range(count)
    ]
    orders = [[order[v] for *_, v in sorted(ranks)] for order in orders]
    for keyword in distinguishing:
        is_strong = keyword in _BY_NAME and not _BY_NAME[keyword].is_weak
        if (is_strong and _count_distinct(attributes, [keyword]) == count) and not _is_constant(
            attributes, orders, keyword
        ):
            raise InputError(
                "series.4d",
                f"{name} holds {count} volumes, and {keyword} and {_public_keyword(chosen[0])} disagree about which "
                "slices belong together; expected one order; separate the volumes before opening them",
            )
    if _count_distinct(attributes, chosen) < count:
        _check_numbers(attributes, numbers, orders, chosen, name)
        return orders, " and ".join(
            [*(_describe(attributes, keyword) for keyword in chosen), "the order of instance numbers"]
        )
    plain = [keyword for keyword in distinguishing if not keyword.startswith(DIMENSION)]
    if len(chosen) == 1 and chosen[0].startswith(DIMENSION):  # a value says more than its index
        chosen = [keyword for keyword in plain if _count_distinct(attributes, [keyword]) == count][:1] or chosen
    return orders, " and ".join(_describe(attributes, keyword) for keyword in chosen)


def _keywords(attributes: ByPosition) -> list[str]:
    """Return the keywords of all attributes by priority."""
    found = {name for several in attributes for one in several for name in one}
    return [*sorted(name for name in found if name not in _BY_NAME), *(name for name in _BY_NAME if name in found)]


def _key(one: Mapping[str, Value], keywords: Sequence[str]) -> tuple[Value, ...]:
    """Return the values of some attributes of a slice."""
    return tuple(one.get(name, ()) for name in keywords)


def _count_distinct(attributes: ByPosition, keywords: Sequence[str]) -> int:
    """Return the number of different combinations of values at the first position."""
    return len({_key(one, keywords) for one in attributes[0]})


def _is_same_everywhere(attributes: ByPosition, keywords: Sequence[str]) -> bool:
    """Return whether every position has the same set of values."""
    first = sorted(_key(one, keywords) for one in attributes[0])
    return all(sorted(_key(one, keywords) for one in several) == first for several in attributes[1:])


def _is_constant(attributes: ByPosition, orders: Sequence[Sequence[int]], keyword: str) -> bool:
    """Return whether an attribute is constant in each volume."""
    by_volume = [[several[n].get(keyword) for n in order] for several, order in zip(attributes, orders, strict=True)]
    return all(values == by_volume[0] for values in by_volume)


def _check_numbers(
    attributes: ByPosition,
    numbers: Sequence[Sequence[tuple[int, int]]],
    orders: Sequence[Sequence[int]],
    chosen: Sequence[str],
    name: str,
) -> None:
    """Refuse instance numbers unless they grow by the same step at every position from one volume to the next.

    If no attribute distinguishes any two volumes, all numbers of one volume must also precede those of the next:
    numbers that run through the volumes position by position would look the same in any order.
    """
    count = len(orders[0])
    keys = [_key(attributes[0][n], chosen) for n in orders[0]]
    ordered = [[numbers[p][n] for n in order] for p, order in enumerate(orders)]
    is_regular = True
    for t, u in pairwise(range(count)):
        if keys[t] == keys[u]:  # no attribute distinguishes these two
            steps = {of_position[u][0] - of_position[t][0] for of_position in ordered}
            if steps == {0}:  # frames of one file
                steps = {of_position[u][1] - of_position[t][1] for of_position in ordered}
            is_regular &= len(steps) == 1 and steps != {0}
    if not chosen:
        volumes = [[of_position[t] for of_position in ordered] for t in range(count)]
        is_regular &= all(max(one) < min(other) for one, other in pairwise(volumes))
    for keyword in _keywords(attributes):
        values = [
            [several[n].get(keyword, ()) for n in order] for several, order in zip(attributes, orders, strict=True)
        ]
        ranks = [sorted(range(count), key=own.__getitem__) for own in values if len(set(own)) == count]
        is_regular &= all(rank == ranks[0] for rank in ranks)
        equal = {tuple(map(own.index, own)) for own in values}  # volumes with equal values at a position
        is_regular &= len(equal) == 1 or (keyword in _BY_NAME and _BY_NAME[keyword].is_weak)
    if not is_regular:
        raise InputError(
            "series.4d",
            f"{name} holds {count} volumes whose slices no attribute distinguishes (looked for times, echoes, b-values "
            "and the like, the same at every position), and their instance numbers are equal or run irregularly; "
            "separate the volumes before opening them",
        )


def _has_order(keyword: str) -> bool:
    return keyword not in _BY_NAME or _BY_NAME[keyword].has_order


def _public_keyword(keyword: str) -> str:
    return "DimensionIndexValues" if keyword.startswith(DIMENSION) else keyword


def _describe(attributes: ByPosition, keyword: str) -> str:
    """Return an attribute with its values, such as "EchoTime 2.46, 4.92 ms"."""
    values = sorted({one.get(keyword, ()) for one in attributes[0]})
    if not _has_order(keyword) or any(len(value) > 1 for value in values):
        return f"{keyword}, {len(values)} different ones"
    # ten digits are too few for a date with a time
    texts = [
        "/".join(f"{part:.{10 if abs(part) < 1e10 else 17}g}" if kind == 0 else part[:16] for kind, part in value)
        or "none"
        for value in values
    ]
    more = ", ..." if len(texts) > MAX_VALUES_SHOWN else ""
    unit = _BY_NAME[keyword].unit if keyword in _BY_NAME else ""
    return f"{keyword} {', '.join(texts[:MAX_VALUES_SHOWN])}{more} {unit}".rstrip()
