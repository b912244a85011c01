"""Convert label values in files to classes 0..K, and 2D images to grey or RGB."""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import nibabel
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import convert_to_dst_type
from PIL import ExifTags, Image, ImageOps

from segnets.annotation import IGNORED, number_of_set, offset_of_set
from segnets.data.declarations import MAX_VALUE
from segnets.data.layouts import Dataset
from segnets.errors import TrainingError

logger = logging.getLogger(__name__)

Classes = Mapping[str, str]
"""Number -> name of each class, as in metadata.json's `channel_def`; "0" is background."""

Labels = Mapping[str | int, Any]
"""Class, by name or number -> its values in the label maps: a value, a range such as "120-135", or a list of both."""

ORIENTATIONS = {"sagittal": "LR", "coronal": "PA", "axial": "IS"}
"""Orientation of slices -> the directions across them."""

IGNORE = "ignore"
"""Key in `Labels` of the values that are ignored."""

_MODES_OVER_8_BITS = ("I", "F")
"""Prefixes of PIL's modes for grey images with more than 8 bits."""

_RANGE = re.compile(r"\s*(-?\d+)\s*-\s*(-?\d+)\s*")


class MapLabelsd(MapTransform):
    """Replace the values of label maps by the numbers of `segnets.annotation`: classes, background or ignored.

    Values are rounded first. Values without a class become background (0).

    Args:
        keys: keys of the label maps.
        labels: number -> values, as `ClassValues.values`; None if the values are 0..K already.
        unknown: treatment of values without a class: "background", or "error" to raise `TrainingError`
            "labels.unknown".
        allow_missing_keys: do not raise an error if a key is missing.
        backgrounds: name of a case -> number of its background, if not 0, as `ClassValues.backgrounds`.
        annotated_slices: as in `ClassValues`.
        offsets: name of a case -> number added to its parts, as `ClassValues.offsets`.
        soft: the files hold fractions (C, *spatial) of structures; their numbers, from 1, are the values. Those
            of a class are added.
    """

    def __init__(
        self,
        keys: KeysCollection,
        labels: Labels | None = None,
        unknown: Literal["background", "error"] = "background",
        allow_missing_keys: bool = False,
        backgrounds: Mapping[str, int] | None = None,
        annotated_slices: str | None = None,
        offsets: Mapping[str, int] | None = None,
        soft: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.soft = soft
        self.ranges = None if labels is None else {int(k): ranges(v) for k, v in labels.items()}
        self.unknown = unknown
        self.backgrounds = dict(backgrounds or {})
        self.annotated_slices = annotated_slices
        self.offsets = dict(offsets or {})

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        mapped = dict(data)
        if self.ranges is None:
            return mapped
        name = mapped.get("name", "")
        background, offset = self.backgrounds.get(name, 0), self.offsets.get(name, 0)
        for key in self.key_iterator(mapped):
            if self.soft:
                mapped[key] = self._fractions(mapped[key])
                continue
            values = torch.round(mapped[key])
            result, is_known = torch.full_like(values, background), values == 0
            for number, bounds in self.ranges.items():
                for low, high in bounds:
                    inside = (values >= low) & (values <= high)
                    result[inside] = number + offset if number > 0 else number or background
                    is_known |= inside
            if self.unknown == "error" and not is_known.all():
                unknown = torch.unique(values[~is_known]).tolist()[:6]
                raise TrainingError(
                    "labels.unknown",
                    f"{key} of {mapped.get('name', 'a case')} has values {unknown}, which belong to no class",
                )
            if self.annotated_slices is not None:
                result[_empty_slices(result, self.annotated_slices).expand_as(result)] = IGNORED
            mapped[key] = result
        return mapped

    def _fractions(self, values: torch.Tensor) -> torch.Tensor:
        """Return the fractions of each class (K, *spatial)."""
        classes = [bounds for number, bounds in sorted((self.ranges or {}).items()) if number > 0]
        found = torch.zeros((len(classes), *values.shape[1:]))
        for fractions, bounds in zip(found, classes, strict=True):
            for low, high in bounds:
                fractions += values.as_subclass(torch.Tensor)[low - 1 : high].sum(0)
        return convert_to_dst_type(found.clamp_(0, 1), values, dtype=found.dtype)[0]


def label_values(
    dataset: Dataset, classes: Classes, labels: Labels | None = None, *, overlapping: bool = False
) -> dict[int, list[int | str]]:
    """Return class number -> its values in the data set's label maps; -1 stands for ignored voxels, if there are any.

    Each class is looked up in `labels` first, then among the names in the data set. There the same name matches,
    regardless of case; otherwise a name matches if all its words occur in the name of this class and of no other class
    ("Anterior" matches "anterior hippocampus"), which is logged. If no name matches any class, or the data set has no
    names, class k has the value k.

    Args:
        dataset: as `find_dataset` returns.
        classes: number -> name, as in metadata.json's `channel_def`.
        labels: the user's assignment, e.g. {"myelin": "120-135", "axon": 255}; {"background": [7, 8]} accepts 7 and 8
            as background, and {"ignore": 255} ignores 255. A value that the data set ignores is a class if it is
            assigned to one.
        overlapping: accept classes that share values (regions).

    Raises:
        TrainingError: "labels.no_class" (`labels` names an unknown class), "labels.unmatched" (only some classes have
            a name in the data set, or the values can't be 1..K), "labels.overlap" (two classes share a value),
            "labels.regions" (two names in the data set share a value), "labels.bad_value".
    """
    class_names = {int(number): name for number, name in classes.items()}
    given = {key: [v] if isinstance(v, str | int | float) else list(v) for key, v in (labels or {}).items()}
    ignored: list[int | str] = given.pop(IGNORE, [])
    found: dict[int, list[int | str]] = {}
    for key, values in given.items():
        found[_class_number(key, class_names)] = values
    assigned = [bounds for values in found.values() for bounds in ranges(values)]
    ignored += [v for v in dataset.ignored if not any(low <= v <= high for low, high in assigned)]
    missing = {number: name for number, name in class_names.items() if number and number not in found}
    named = match_names(missing, class_names, dataset.labels)
    largest = max((v for values in dataset.labels.values() for v in values), default=0)
    if not named and not any(found) and largest <= max(class_names):
        named = {number: [number] for number in missing}
        if dataset.labels:
            pairs = (
                f"{name} = {', '.join(n for n, v in dataset.labels.items() if k in v)}" for k, name in missing.items()
            )
            logger.warning(f"no label name matches a class, so labels are matched by value: {'; '.join(pairs)}")
    if unmatched := [name for number, name in missing.items() if number not in named]:
        has = _joined(f"{name} = {_joined(map(str, values))}" for name, values in dataset.labels.items())
        raise TrainingError(
            "labels.unmatched",
            f"no label of the data set matches {_joined(unmatched)} alone: it has {has or 'no names'}; expected "
            f"{_joined(name for number, name in class_names.items() if number)}; assign values to classes with "
            f"--labels, such as {unmatched[0]}=1",
        )
    found = dict(sorted({**found, **named, **({IGNORED: ignored} if ignored else {})}.items()))
    class_names[IGNORED] = IGNORE
    claims = [(low, high, number) for number, values in found.items() for low, high in ranges(values)]
    for (low, high, number), (start, end, other) in itertools.combinations(claims, 2):
        may_overlap = overlapping and number > 0 and other > 0
        if number != other and low <= end and start <= high and not may_overlap:
            if {number, other} <= named.keys():
                raise TrainingError(
                    "labels.regions",
                    f"the data set names regions that overlap ({class_names[number]} and {class_names[other]} both "
                    f"have {max(low, start)}), and this bundle's classes exclude each other; assign each value to one "
                    f"class with --labels, such as {class_names[other]}={max(low, start)}, or train a bundle "
                    "with regions.yaml",
                )
            raise TrainingError(
                "labels.overlap",
                f"value {max(low, start)} belongs to {class_names[number]} and to {class_names[other]}; expected one "
                "class per value; change --labels, or use regions.yaml for classes that overlap",
            )
    return found


def ranges(values: Any) -> list[tuple[int, int]]:
    """Return the bounds (low, high), both included, of a class's values: a number, "low-high", or a list of both.

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
        if low > high or low % 1 or high % 1 or max(-low, high) > MAX_VALUE:
            text = f'{value!r} is no label value; expected 3, "120-135" or [1, 3], up to {MAX_VALUE}'
            raise TrainingError("labels.bad_value", text)
        bounds.append((int(low), int(high)))
    return bounds


def convert_image(image: Image.Image, channels: int | None = None) -> Image.Image:
    """Convert a 2D image to grey ("L") or RGB, without alpha and palette; a converter for MONAI's `PILReader`.

    The image is rotated by its EXIF orientation, as viewers show it. Grey of more than 8 bits is kept.

    Args:
        image: as PIL opens it.
        channels: 1 converts colours to grey (ITU-R 601 luma), 3 repeats grey; None keeps both.

    Raises:
        TrainingError: "image.channels", for another number; "image.mode", for RGB from grey of more than 8 bits,
            which PIL can't store.
    """
    if channels not in (None, 1, 3):
        raise TrainingError("image.channels", f"channels is {channels}; expected 1 (grey) or 3 (RGB)")
    if fault := mode_fault(image.mode, channels):
        raise TrainingError("image.mode", fault)
    image = _upright(image)
    if image.mode.startswith(_MODES_OVER_8_BITS):
        return image
    if channels is None:
        channels = 1 if image.mode in ("1", "L", "LA", "La") else 3
    return image.convert("L" if channels == 1 else "RGB")


def _upright(image: Image.Image) -> Image.Image:
    """Return an image rotated by its EXIF orientation."""
    image.filename = ""  # else PIL maps an uncompressed TIFF into memory, in rows of the rotated width
    image.load()  # PIL rotates a TIFF when it is loaded
    is_rotated = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    return ImageOps.exif_transpose(image) if is_rotated else image


def mode_fault(mode: str, channels: int | None) -> str | None:
    """Return why `convert_image` can't convert an image of a mode of PIL's to a number of channels, or None."""
    if channels == 3 and mode.startswith(_MODES_OVER_8_BITS):
        return (
            f"grey of more than 8 bits (mode {mode}), which can't be converted to RGB; save it with 8 bits, leave it "
            "out, or train on grey images (one channel)"
        )
    return None


def convert_label_map(image: Image.Image) -> Image.Image:
    """Convert a 2D label map to one number per pixel; a converter for MONAI's `PILReader`.

    The labels are the grey values or the indices of a palette, as in PASCAL VOC; the palette's colours and alpha are
    dropped. White of one bit is 1. The label map is rotated by its own EXIF orientation, as `convert_image` does; one
    that was drawn on the stored pixels of a rotated image has no orientation and does not fit. A GIF whose palette is
    grey has grey values: every writer numbers the colours of a GIF in an order of its own.

    Raises:
        TrainingError: "label.colour": the label map has colours.
    """
    is_gif = image.format == "GIF"
    image = _upright(image)
    if is_gif and image.mode == "P" and not np.ptp(np.reshape(image.getpalette() or [], (-1, 3)), axis=1).any():
        return image.convert("L")
    if image.mode in ("RGB", "RGBA"):
        red, green, blue = (np.asarray(image.getchannel(n)) for n in range(3))
        if not (np.array_equal(red, green) and np.array_equal(green, blue)):
            raise TrainingError("label.colour", "the label map has colours; expected grey values or a palette (mode P)")
    return image.getchannel(0) if len(image.getbands()) > 1 else image


class ClassValues:
    """Meaning of the values in a data set's label maps, matched with a bundle's classes on first use.

    Args:
        dataset: as `find_dataset` returns.
        classes: as in `label_values`; with `regions` the network's channels from 0 and their names.
        labels: as in `label_values`.
        regions: the classes are regions, which may overlap.
        annotated_slices: "sagittal", "coronal" or "axial": slices of volumes of this orientation without any class are
            ignored, because only some were annotated; None: they are background.

    Raises:
        TrainingError: "labels.slices", `annotated_slices` is none of these, or the images are 2D images; "labels.soft",
            the labels are fractions, and the classes are no regions, or voxels or classes are not annotated.
    """

    def __init__(
        self,
        dataset: Dataset,
        classes: Classes,
        labels: Labels | None = None,
        regions: bool = False,
        annotated_slices: str | None = None,
    ) -> None:
        if annotated_slices is not None and (annotated_slices not in ORIENTATIONS or dataset.is_2d):
            raise TrainingError(
                "labels.slices",
                f"annotated_slices is {annotated_slices!r}; expected {', '.join(ORIENTATIONS)} for volumes, or null",
            )
        left_out = annotated_slices is not None or dataset.ignored or dataset.labelled or IGNORE in (labels or {})
        if dataset.soft and (left_out or not regions):
            found = "voxels or classes that are not annotated" if left_out else "classes that exclude each other"
            raise TrainingError(
                "labels.soft",
                f"found {found}, and labels that are fractions; expected regions, which are annotated everywhere "
                "(napari-seg: --option soft; MONAI: regions.yaml, then soft.yaml)",
            )
        self.annotated_slices = annotated_slices
        self.dataset = dataset
        self.classes = {"0": "background"} | {str(int(n) + 1): classes[n] for n in classes} if regions else classes
        self.labels = labels
        self.regions = regions

    @cached_property
    def of_classes(self) -> dict[int, list[int | str]]:
        """Class, or region from 1 -> values, from `label_values`, whose errors it raises."""
        return label_values(self.dataset, self.classes, self.labels, overlapping=self.regions)

    @cached_property
    def values(self) -> dict[int, list[int | str]]:
        """Number in the prepared label maps, see `segnets.annotation` -> values in the files."""
        if not self.regions or self.dataset.soft:
            return self.of_classes
        others: dict[int, list[int | str]] = {n: values for n, values in self.of_classes.items() if n <= 0}
        return others | {part: values for part, (_, values) in enumerate(self._parts, start=1)}

    @property
    def parts(self) -> list[list[int]] | None:
        """Regions of each part, as `segnets.annotation.Parts`; None if the classes are no regions."""
        if self.dataset.soft:
            return [[number] for number in self.of_classes]
        return [list(regions) for regions, _ in self._parts] if self.regions else None

    @cached_property
    def _parts(self) -> list[tuple[tuple[int, ...], list[int | str]]]:
        """Regions and values of each part: the values that lie in the same regions, in the order of the values."""
        bounds = {number: ranges(values) for number, values in self.of_classes.items() if number > 0}
        edges = sorted({edge for pairs in bounds.values() for low, high in pairs for edge in (low, high + 1)})
        found: dict[tuple[int, ...], list[int | str]] = {}
        for low, end in itertools.pairwise(edges):
            inside = tuple(n for n, pairs in bounds.items() if any(start <= low <= last for start, last in pairs))
            if inside:
                found.setdefault(inside, []).append(low if end == low + 1 else f"{low}-{end - 1}")
        return list(found.items())

    @cached_property
    def _absent(self) -> dict[str, tuple[int, ...]]:
        """Name of a case -> its classes, or regions, that are not annotated completely, for cases that have some."""
        absent = {}
        for case, labelled in self.dataset.labelled.items():
            bounds = {number: ranges(values) for number, values in self.of_classes.items() if number > 0}
            absent[case] = tuple(
                number
                for number, pairs in bounds.items()
                if not all(value in labelled for low, high in pairs for value in range(low, high + 1))
            )
        return {case: classes for case, classes in absent.items() if classes}

    @property
    def absent(self) -> list[list[int]]:
        """Sets of classes, or regions, as `segnets.annotation.AbsentSets`."""
        return [list(classes) for classes in sorted(set(self._absent.values()))]

    @property
    def backgrounds(self) -> dict[str, int]:
        """Name of a case -> number of its background, if it is not 0, see `MapLabelsd`."""
        return {case: number_of_set(self.absent.index(list(classes))) for case, classes in self._absent.items()}

    @property
    def offsets(self) -> dict[str, int]:
        """Name of a case -> number added to its parts, if it is not 0; empty if the classes are no regions."""
        sets = {case: self.absent.index(list(regions)) for case, regions in self._absent.items()}
        return {case: offset_of_set(index, self.parts) for case, index in sets.items()} if self.parts else {}

    @property
    def outside(self) -> int:
        """Number of voxels outside of an image: background if all voxels and classes are annotated, else ignored."""
        some_ignored = IGNORED in self.values or self.annotated_slices is not None
        return IGNORED if some_ignored or self._absent else 0


def _empty_slices(label: torch.Tensor, orientation: str) -> torch.Tensor:
    """Return a mask of the slices of a volume (1, I, J, K) that contain no class, broadcastable to the volume."""
    affine = label.affine if isinstance(label, MetaTensor) else np.eye(4)
    codes = nibabel.aff2axcodes(np.asarray(affine))
    axis = next(n for n, code in enumerate(codes, start=1) if code in ORIENTATIONS[orientation])
    return ~(label > 0).amax([n for n in range(label.ndim) if n != axis], keepdim=True)


def _class_number(key: str | int, classes: Mapping[int, str]) -> int:
    fits = [number for number, name in classes.items() if str(key).lower() in (name.lower(), str(number))]
    if len(fits) != 1:
        raise TrainingError(
            "labels.no_class", f"labels names {key!r}; expected a class of the bundle: {_joined(classes.values())}"
        )
    return fits[0]


def match_names(
    missing: Mapping[int, str], classes: Mapping[int, str], names: Mapping[str, Sequence[int]]
) -> dict[int, list[int | str]]:
    """Return number -> values of the missing classes that match a name in the data set, as in `label_values`."""
    found = {number: name for number in missing for name in names if name.lower() == missing[number].lower()}
    left = [name for name in names if name.lower() not in {c.lower() for c in classes.values()} and words_in(name)]
    fits = {number: [name for name in left if words_in(name) <= words_in(its)] for number, its in classes.items()}
    for number in missing.keys() - found.keys():
        if len(fits[number]) == 1 and sum(fits[number][0] in others for others in fits.values()) == 1:
            found[number] = fits[number][0]
            logger.warning(f"{found[number]} in the data set is taken for {missing[number]}, the most similar class")
    return {number: list(names[name]) for number, name in found.items()}


def words_in(name: str) -> set[str]:
    """Return the words of a name in lower case and one spelling, with negations joined: {"nonenhancing", "tumor"}."""
    joined = re.sub(r"(?<![^\W_])(non|not|no|un)[\W_]+", r"\1", name.lower()).replace("tumour", "tumor")
    return set(re.findall(r"[^\W_]+", joined))


def _joined(names: Iterable[str]) -> str:
    return ", ".join(names)
