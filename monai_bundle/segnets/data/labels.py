"""Label values and pictures as files hold them -> classes 0..K and grey or RGB images."""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from PIL import ExifTags, Image, ImageOps

from segnets.data.layouts import Dataset
from segnets.errors import TrainingError

logger = logging.getLogger(__name__)

Classes = Mapping[str, str]
"""Number -> name of each class, as in metadata.json's `channel_def`; "0" is background."""

Labels = Mapping[str | int, Any]
"""Class, by name or number -> what stands for it in the files: a value, a range as "120-135", or a list of both."""

_DEEP = ("I", "F")
"""What PIL's modes of grey with more than 8 bits begin with."""

_RANGE = re.compile(r"\s*(-?\d+)\s*-\s*(-?\d+)\s*")


class MapLabelsd(MapTransform):
    """Label maps in which class k is the number k, whatever the files say.

    Values are rounded first; those that no class claims become background (0).

    Args:
        keys: of the label maps.
        labels: class number -> values, as `label_values` returns; None if the values are 0..K already.
        unknown: "background", or "error" for a `TrainingError` "labels.unknown" at values that no class claims.
    """

    def __init__(
        self,
        keys: KeysCollection,
        labels: Labels | None = None,
        unknown: Literal["background", "error"] = "background",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.ranges = None if labels is None else {int(k): ranges(v) for k, v in labels.items()}
        self.unknown = unknown

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        mapped = dict(data)
        if self.ranges is None:
            return mapped
        for key in self.key_iterator(mapped):
            values = torch.round(mapped[key])
            result, claimed = torch.zeros_like(values), values == 0
            for number, bounds in self.ranges.items():
                for low, high in bounds:
                    inside = (values >= low) & (values <= high)
                    result[inside] = number
                    claimed |= inside
            if self.unknown == "error" and not claimed.all():
                strangers = torch.unique(values[~claimed]).tolist()[:6]
                raise TrainingError(
                    "labels.unknown",
                    f"{key} of {mapped.get('name', 'a case')} has values {strangers}, which no class claims",
                )
            mapped[key] = result
        return mapped


def label_values(dataset: Dataset, classes: Classes, labels: Labels | None = None) -> dict[int, list[int | str]]:
    """Class number -> the values that stand for it in the data set's files.

    What `labels` says comes first. The other classes are found among the data set's own names: the same name in any
    case, or else the only one whose words are all in the class's name, and in no other class's ("Anterior" is "anterior
    hippocampus"), which is logged. If no name is alike, or the data set has none, class k is the value k.

    Args:
        dataset: as `find_dataset` returns.
        classes: as in metadata.json's `channel_def`.
        labels: what the user says, e.g. {"myelin": "120-135", "axon": 255}; {"background": [7, 8]} says that 7 and 8
            are meant to be background.

    Raises:
        TrainingError: "labels.no_class" (`labels` names a class that is none), "labels.unmatched" (some classes have
            a name in the data set and some do not, or the values can't be 1..K), "labels.overlap" (one value, two
            classes), "labels.regions" (the same, of the data set's own names), "labels.bad_value".
    """
    wanted = {int(number): name for number, name in classes.items()}
    found: dict[int, list[int | str]] = {}
    for key, value in (labels or {}).items():
        found[_class_number(key, wanted)] = [value] if isinstance(value, str | int | float) else list(value)
    missing = {number: name for number, name in wanted.items() if number and number not in found}
    named = _matched(missing, wanted, dataset.labels)
    largest = max((v for values in dataset.labels.values() for v in values), default=0)
    if not named and not any(found) and largest <= max(wanted):
        named = {number: [number] for number in missing}
        if dataset.labels:
            pairs = (
                f"{name} = {', '.join(n for n, v in dataset.labels.items() if k in v)}" for k, name in missing.items()
            )
            logger.warning(f"no label's name is like a class's, so their values decide: {'; '.join(pairs)}")
    if unmatched := [name for number, name in missing.items() if number not in named]:
        has = _listed(f"{name} = {_listed(map(str, values))}" for name, values in dataset.labels.items())
        raise TrainingError(
            "labels.unmatched",
            f"nothing in the data set stands for {_listed(unmatched)} alone: it has {has or 'no names'}; expected are "
            f"{_listed(name for number, name in wanted.items() if number)}; say by labels which values mean what, "
            f'e.g. labels: {{"{unmatched[0]}": 1}}',
        )
    found = dict(sorted({**found, **named}.items()))
    claims = [(low, high, number) for number, values in found.items() for low, high in ranges(values)]
    for (low, high, number), (start, end, other) in itertools.combinations(claims, 2):
        if number != other and low <= end and start <= high:
            if {number, other} <= named.keys():
                raise TrainingError(
                    "labels.regions",
                    f"the data set names regions that overlap ({wanted[number]} and {wanted[other]} both hold "
                    f"{max(low, start)}), which are not supported yet; say by labels what each value alone means, e.g. "
                    f'labels: {{"{wanted[other]}": {max(low, start)}}}',
                )
            raise TrainingError(
                "labels.overlap",
                f"{max(low, start)} stands for {wanted[number]} and for {wanted[other]}; give one class a value",
            )
    return found


def ranges(values: Any) -> list[tuple[int, int]]:
    """(low, high), both included, of each of a class's values: a number, "low-high", or a list of both.

    Raises:
        TrainingError: "labels.bad_value".
    """
    bounds = []
    for value in [values] if isinstance(values, str | int | float) else values:
        between = _RANGE.fullmatch(str(value))
        try:
            low, high = (float(v) for v in (between.groups() if between else (value, value)))
        except (TypeError, ValueError):
            low = high = 0.5
        if low > high or low % 1 or high % 1:
            raise TrainingError("labels.bad_value", f'{value!r} is no label value; expected as 3, "120-135" or [1, 3]')
        bounds.append((int(low), int(high)))
    return bounds


def picture(image: Image.Image, channels: int | None = None) -> Image.Image:
    """The picture as grey ("L") or RGB, without alpha and palette; a converter for MONAI's `PILReader`.

    It is turned upright, as its EXIF orientation says and every viewer shows it. Grey of more than 8 bits stays as it
    is.

    Args:
        image: as PIL opens it.
        channels: 1 makes colours grey (ITU-R 601 luma), 3 repeats grey; None leaves either.

    Raises:
        TrainingError: "image.channels", for another number; "image.mode", for grey of more than 8 bits where RGB is
            asked for, which PIL can't hold.
    """
    if channels not in (None, 1, 3):
        raise TrainingError("image.channels", f"a picture has 1 channel (grey) or 3 (RGB); {channels} were asked for")
    if fault := mode_fault(image.mode, channels):
        raise TrainingError("image.mode", fault)
    image = _upright(image)
    if image.mode.startswith(_DEEP):
        return image
    if channels is None:
        channels = 1 if image.mode in ("1", "L", "LA", "La") else 3
    return image.convert("L" if channels == 1 else "RGB")


def _upright(image: Image.Image) -> Image.Image:
    """Return a picture as its EXIF orientation says it is to be seen."""
    image.filename = ""  # PIL would map an uncompressed TIFF into memory, in rows of its turned size
    image.load()  # PIL turns a TIFF as soon as it is loaded
    is_turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    return ImageOps.exif_transpose(image) if is_turned else image


def mode_fault(mode: str, channels: int | None) -> str | None:
    """Why `picture` can't give so many channels to a picture of this mode of PIL's, or None."""
    if channels == 3 and mode.startswith(_DEEP):
        return (
            f"grey of more than 8 bits (mode {mode}), which can't be made RGB; save it with 8 bits, leave it out, or "
            "train on grey pictures (one channel)"
        )
    return None


def label_picture(image: Image.Image) -> Image.Image:
    """One number a pixel: grey values, or the indices of a palette; a converter for MONAI's `PILReader`.

    Alpha is dropped. Palette indices are the labels (as in PASCAL VOC), and their colours are nothing but paint. White
    of one bit is 1. The picture is turned upright, as images are; a mask that was drawn on the pixels as they are
    stored has no orientation, and fits a turned image no more.

    Raises:
        TrainingError: "label.colour": the picture holds colours.
    """
    image = _upright(image)
    if image.mode in ("RGB", "RGBA"):
        red, green, blue = (np.asarray(image.getchannel(n)) for n in range(3))
        if not (np.array_equal(red, green) and np.array_equal(green, blue)):
            raise TrainingError("label.colour", "a label map in colours; expected grey values or a palette (mode P)")
    return image.getchannel(0) if len(image.getbands()) > 1 else image


def _class_number(key: str | int, classes: Mapping[int, str]) -> int:
    fits = [number for number, name in classes.items() if str(key).lower() in (name.lower(), str(number))]
    if len(fits) != 1:
        raise TrainingError(
            "labels.no_class", f"labels names {key!r}; the bundle's classes are {_listed(classes.values())}"
        )
    return fits[0]


def _matched(
    missing: Mapping[int, str], classes: Mapping[int, str], names: Mapping[str, Sequence[int]]
) -> dict[int, list[int | str]]:
    found = {number: name for number in missing for name in names if name.lower() == missing[number].lower()}
    left = [name for name in names if name.lower() not in {c.lower() for c in classes.values()} and _words(name)]
    fits = {number: [name for name in left if _words(name) <= _words(its)] for number, its in classes.items()}
    for number in missing.keys() - found.keys():
        if len(fits[number]) == 1 and sum(fits[number][0] in others for others in fits.values()) == 1:
            found[number] = fits[number][0]
            logger.warning(f"{found[number]} in the data set is taken for {missing[number]}, the class most alike")
    return {number: list(names[name]) for number, name in found.items()}


def _words(name: str) -> set[str]:
    """In lower case and one spelling; a negation is part of its word: {"nonenhancing", "tumor"}."""
    joined = re.sub(r"(?<![^\W_])(non|not|no|un)[\W_]+", r"\1", name.lower()).replace("tumour", "tumor")
    return set(re.findall(r"[^\W_]+", joined))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
