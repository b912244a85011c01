"""What a data set is like: sizes, spacings, label values, intensities; what a plan is made from."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from segnets.data import Dataset

AT_MOST = 100
"""Cases that are read; of more, this many evenly over the list."""
VOXELS_A_CASE = 10_000
"""Foreground voxels of one case whose intensities are counted."""

_MODALITIES = {"CT": r"\b(CT|CTA|CBCT)\b", "MR": r"\b(MR|MRI|T1|T2|FLAIR|ADC|DWI|PD)(w|-weighted|ce|c|gd)?\b"}


@dataclass(frozen=True)
class Fingerprint:
    """A data set in numbers; axes as in the patient's RAS, or (width, height) of pictures.

    Attributes:
        cases: in the data set.
        measured: of them, read for what follows.
        pictures: PNG, JPEG, ... rather than volumes.
        channels: names of the image's channels.
        modality: "CT" or "MR" where the channels' names or the values say so, "picture", or "unknown".
        values: label values of all cases, without 0 and those that stand for no class.
        shapes: (measured, dims) voxels.
        spacings_mm: (measured, dims); of pictures, 1 by definition: their pixels are the unit.
        foreground: {"low", "high", "mean", "std"} of the intensities of the labelled voxels, low and high being the
            0.5 and the 99.5 percentile; of the first channel. Of all voxels where no case that was read has a label.
    """

    cases: int
    measured: int
    pictures: bool
    channels: tuple[str, ...]
    modality: str
    values: tuple[int, ...]
    shapes: NDArray[np.float64]
    spacings_mm: NDArray[np.float64]
    foreground: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """For plan.json: medians and extremes in place of every case's."""
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


def fingerprint(dataset: Dataset, cache_dir: Path) -> Fingerprint:
    """Measures a data set that `segnets.data.check` has passed; call it where the bundle's modules can be imported.

    Args:
        dataset: the one that was checked.
        cache_dir: where the check has left what it found in each file.
    """
    from segnets.data.faults import read_all

    facts = read_all(dataset.cases, cache_dir)
    values = {int(value) for case in dataset.cases for value in facts[case["label"]]["values"]}
    picked = np.unique(np.linspace(0, len(dataset.cases) - 1, AT_MOST).round().astype(int))
    read = _reader(dataset.pictures)
    shapes, spacings, intensities, anywhere, lowest = [], [], [], [], []
    channels: Counter[int] = Counter()
    for number in picked:
        image, label = read(dataset.cases[number])
        channels[image.shape[0]] += 1
        shapes.append(image.shape[1:])
        spacings.append([1.0, 1.0] if dataset.pictures else [float(mm) for mm in image.pixdim])
        array = np.asarray(image[0], dtype=np.float32)
        found = np.rint(np.asarray(label[0])).astype(np.int64)
        found[np.isin(found, dataset.ignored)] = 0
        inside = array[found > 0] if array.shape == found.shape else array.ravel()
        intensities.append(inside[:: max(1, inside.size // VOXELS_A_CASE)])
        anywhere.append(array.ravel()[:: max(1, array.size // VOXELS_A_CASE)])
        lowest.append(np.percentile(array, 0.5))
    inside = np.concatenate(intensities if any(of_case.size for of_case in intensities) else anywhere)
    usual = channels.most_common(1)[0][0]  # of pictures; they are made grey or RGB, all alike
    names = dataset.channels if len(dataset.channels) == usual else tuple(f"channel {n}" for n in range(usual))
    return Fingerprint(
        cases=len(dataset.cases),
        measured=len(picked),
        pictures=dataset.pictures,
        channels=names,
        modality="picture" if dataset.pictures else _modality(names, float(np.median(lowest))),
        values=tuple(sorted(values - {0, *dataset.ignored})),
        shapes=np.array(shapes, dtype=np.float64),
        spacings_mm=np.array(spacings, dtype=np.float64),
        foreground={
            "low": round(float(np.percentile(inside, 0.5)), 4),
            "high": round(float(np.percentile(inside, 99.5)), 4),
            "mean": round(float(inside.mean()), 4),
            "std": round(float(inside.std()), 4),
        },
    )


def _modality(channels: tuple[str, ...], low: float) -> str:
    for modality, pattern in _MODALITIES.items():
        if any(re.search(pattern, name.replace("_", " "), re.IGNORECASE) for name in channels):
            return modality
    return "CT" if low < -500 else "unknown"  # air is -1000 HU, and nothing else goes so far below zero


def _reader(pictures: bool) -> Callable[[dict[str, Any]], tuple[Any, Any]]:
    """A case -> its image and label map, channels first; volumes turned to RAS as the networks see them."""
    from monai.transforms import LoadImage, Orientation
    from segnets.data import label_picture, picture

    if pictures:
        load = LoadImage(reader="PILReader", converter=picture, ensure_channel_first=True)
        load_label = LoadImage(reader="PILReader", converter=label_picture, ensure_channel_first=True)
        return lambda case: (load(case["image"]), load_label(case["label"]))
    load = LoadImage(ensure_channel_first=True)
    turn = Orientation("RAS", labels=None)
    return lambda case: (turn(load(case["image"])), turn(load(case["label"])))
