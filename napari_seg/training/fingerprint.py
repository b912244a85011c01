"""Fingerprint of a data set: sizes, spacings, label values and intensities, from which a training is planned."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from segnets.data import Dataset
    from segnets.data.file_facts import Facts

MAX_CASES = 100
"""Maximum number of cases to read; of a longer list, cases at even intervals are read."""
VOXELS_PER_CASE = 10_000
"""Number of voxels of a case whose intensities are sampled, up to twice as many."""
MORE_VOXELS_PER_CASE = 200_000
"""The same for the plan of nnU-Net, whose extreme percentiles depend on it."""

_MODALITIES = {"CT": r"\b(CT|CTA|CBCT)\b", "MR": r"\b(MR|MRI|T1|T2|FLAIR|ADC|DWI|PD)(w|-weighted|ce|c|gd)?\b"}


@dataclass(frozen=True)
class Fingerprint:
    """Measures of a data set; axes in RAS+ order, or (width, height) for 2D images.

    Attributes:
        cases: number of cases.
        measured: number of cases that were read for the following measures.
        is_2d: True for 2D images (PNG, JPEG, ...), False for volumes.
        channels: names of the image's channels.
        modality: "CT" or "MR" if channel names or intensities tell it, "image2d" for 2D images, or "unknown".
        values: label values of all cases, without 0 and ignore labels.
        shapes: (measured, dims) sizes in voxels.
        spacings_mm: (measured, dims) spacings; 1 for 2D images, whose unit is the pixel.
        foreground: {"low", "high", "mean", "std"} of the first channel's intensities in labelled voxels (in all voxels
            if no case that was read has a label); low and high are the 0.5 and 99.5 percentiles.
        nonzero_shapes: (measured, dims) sizes without the borders in which all channels are 0; None: not measured.
        nonzero_fraction: median of the fractions of the images within these borders.
        trained_on: number of cases that train; None: the split is not known.
        is_sparse: True if many voxels may not be annotated.
    """

    cases: int
    measured: int
    is_2d: bool
    channels: tuple[str, ...]
    modality: str
    values: tuple[int, ...]
    shapes: NDArray[np.float64]
    spacings_mm: NDArray[np.float64]
    foreground: dict[str, float]
    nonzero_shapes: NDArray[np.float64] | None = None
    nonzero_fraction: float = 1.0
    trained_on: int | None = None
    is_sparse: bool = False

    @property
    def training_cases(self) -> float:
        """Number of cases that train; 80 % of all if the split is not known."""
        return self.trained_on or 0.8 * self.cases

    def as_dict(self) -> dict[str, Any]:
        """Return medians and extremes, for plan.json."""
        return {
            "cases": self.cases,
            "measured": self.measured,
            "channels": list(self.channels),
            "modality": self.modality,
            "label values": list(self.values),
            "median shape": np.median(self.shapes, axis=0).tolist(),
            "largest shape": self.shapes.max(axis=0).tolist(),
            "median spacing_mm": np.median(self.spacings_mm, axis=0).round(4).tolist(),
            "coarsest spacing_mm": self.spacings_mm.max(axis=0).round(4).tolist(),
            "foreground intensities": self.foreground,
        }


def fingerprint(dataset: Dataset, facts: Mapping[str, Facts], every_case: bool = False) -> Fingerprint:
    """Measure a data set that `segnets.data.check` has accepted; call it within `with_segnets`.

    Args:
        dataset: the data set.
        facts: facts of its files, from `segnets.data.file_facts.read_all`.
        every_case: read every case and sample more of its voxels, as nnU-Net does.
    """
    voxels = MORE_VOXELS_PER_CASE if every_case else VOXELS_PER_CASE
    values = {int(value) for case in dataset.cases for value in facts[case["label"]]["values"]}
    picked = np.unique(
        np.linspace(0, len(dataset.cases) - 1, len(dataset.cases) if every_case else MAX_CASES).round().astype(int)
    )
    read = _reader(dataset.is_2d)
    shapes, nonzero, spacings, intensities, all_voxels, lowest = [], [], [], [], [], []
    channels: Counter[int] = Counter()
    for number in picked:
        image, label = read(dataset.cases[number])
        channels[image.shape[0]] += 1
        shapes.append(image.shape[1:])
        spacings.append([1.0, 1.0] if dataset.is_2d else [float(mm) for mm in image.pixdim])
        nonzero.append(_nonzero_shape(np.asarray(image)))
        array = np.asarray(image[0], dtype=np.float32)
        found = np.rint(np.asarray(label).max(axis=0)).astype(np.int64)  # of fractions, the largest one
        found[np.isin(found, dataset.ignored)] = 0
        inside = array[found > 0] if array.shape == found.shape else array.ravel()
        intensities.append(inside[:: max(1, inside.size // voxels)])
        all_voxels.append(array.ravel()[:: max(1, array.size // voxels)])
        lowest.append(np.percentile(array, 0.5))
    inside = np.concatenate(intensities if any(of_case.size for of_case in intensities) else all_voxels)
    channel_count = channels.most_common(1)[0][0]  # 2D images are all converted to grey or to RGB
    names = (
        dataset.channels
        if len(dataset.channels) == channel_count
        else tuple(f"channel {n}" for n in range(channel_count))
    )
    return Fingerprint(
        cases=len(dataset.cases),
        measured=len(picked),
        is_2d=dataset.is_2d,
        channels=names,
        modality="image2d" if dataset.is_2d else _modality(names, float(np.median(lowest))),
        values=tuple(sorted(values - {0, *dataset.ignored})),
        shapes=np.array(shapes, dtype=np.float64),
        spacings_mm=np.array(spacings, dtype=np.float64),
        foreground={
            "low": round(float(np.percentile(inside, 0.5)), 4),
            "high": round(float(np.percentile(inside, 99.5)), 4),
            "mean": round(float(inside.mean()), 4),
            "std": round(float(inside.std()), 4),
        },
        nonzero_shapes=np.array(nonzero, dtype=np.float64),
        nonzero_fraction=float(np.median(np.prod(np.divide(nonzero, shapes), axis=1))),
    )


def _nonzero_shape(image: NDArray) -> list[int]:
    """Return the size of the smallest box of an image (C, *spatial) outside which all channels are 0."""
    inside = (image != 0).any(axis=0)
    if not inside.any():
        return list(inside.shape)
    extents = []
    for axis in range(inside.ndim):
        found = np.flatnonzero(inside.any(axis=tuple(other for other in range(inside.ndim) if other != axis)))
        extents.append(int(found[-1] - found[0] + 1))
    return extents


def _modality(channels: tuple[str, ...], low: float) -> str:
    air = "CT" if low < -500 else "unknown"  # air is -1000 HU; no other modality has such low values
    return named_modality(channels) or air


def named_modality(channels: Sequence[str]) -> str | None:
    """Return "CT" or "MR" if the name of a channel states it."""
    for modality, pattern in _MODALITIES.items():
        if any(re.search(pattern, name.replace("_", " "), re.IGNORECASE) for name in channels):
            return modality
    return None


def _reader(is_2d: bool) -> Callable[[dict[str, Any]], tuple[Any, Any]]:
    """Return a function that reads image and label map of a case, channels first; volumes are reoriented to RAS+."""
    from monai.transforms import LoadImage, Orientation
    from segnets.data import convert_image, convert_label_map

    if is_2d:
        load = LoadImage(reader="PILReader", converter=convert_image, ensure_channel_first=True)
        load_label = LoadImage(reader="PILReader", converter=convert_label_map, ensure_channel_first=True)
        return lambda case: (load(case["image"]), load_label(case["label"]))
    load = LoadImage(ensure_channel_first=True)
    reorient = Orientation("RAS", labels=None)
    return lambda case: (reorient(load(case["image"])), reorient(load(case["label"])))
