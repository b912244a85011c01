"""Data sets for `scripts/training_pairs.py`: a training part in nnU-Net's layout, and a test part beside it.

DATA/imagesTr DATA/labelsTr DATA/dataset.json     as nnU-Net reads them
DATA/cases.csv                                    the same files for `napari-seg train`, with their split
DATA/splits_final.json                            the same split for nnU-Net
DATA/imagesTs DATA/labelsTs                       the test part, which neither program sees
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from benchmarks.nnunet_cases import ORGANS, varied_ct
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

TRAINING, VALIDATION, TEST = "train", "validation", "test"


@dataclass(frozen=True)
class PairedCase:
    """One case.

    Attributes:
        name: name of the case.
        part: train, validation or test.
        channels: volumes (I, J, K) or 2D images (rows, columns, colours).
        labels: (I, J, K) or (rows, columns).
        affine: voxel index to mm; None for 2D images.
    """

    name: str
    part: str
    channels: Sequence[NDArray]
    labels: NDArray
    affine: NDArray | None


@dataclass(frozen=True)
class PairedSet:
    """A data set.

    Attributes:
        number: in nnU-Net's layout.
        about: what it holds, for the table.
        cases: yields its cases, given the folder of the real scans.
        channels: names of the channels.
        classes: names of the classes, from value 1 on.
        configuration: nnU-Net's.
        options: further words of `napari-seg train`.
    """

    number: int
    about: str
    cases: Callable[[Path], Iterator[PairedCase]]
    channels: tuple[str, ...]
    classes: tuple[str, ...]
    configuration: str = "3d_fullres"
    options: tuple[str, ...] = field(default=())

    def folder(self, name: str) -> str:
        """Return the name of the data set in nnU-Net's layout."""
        return f"Dataset{self.number}_{name.title().replace('_', '')}"


def write_pair(name: str, data: Path, out: Path) -> None:
    """Write a data set; one that is there is kept."""
    made = SETS[name]
    if (out / "cases.csv").exists():
        return
    is_2d = made.configuration == "2d"
    ending = ".png" if is_2d else ".nii.gz"
    rows, split = [], {TRAINING: [], VALIDATION: []}
    for case in made.cases(data):
        side = "Ts" if case.part == TEST else "Tr"
        images = [f"images{side}/{case.name}_{n:04d}{ending}" for n in range(len(case.channels))]
        label = f"labels{side}/{case.name}{ending}"
        for path, array in [*zip(images, case.channels, strict=True), (label, case.labels)]:
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            if is_2d:
                Image.fromarray(array.astype(np.uint8)).save(out / path)
            else:
                kind = np.uint8 if path == label else np.float32
                nibabel.save(nibabel.Nifti1Image(array.astype(kind), case.affine), out / path)
        if case.part != TEST:
            split[case.part].append(case.name)
            rows.append([*images, label, case.part])
    names = ("R", "G", "B") if is_2d else made.channels
    labels = {"background": 0} | {one: value for value, one in enumerate(made.classes, 1)}
    described: dict[str, Any] = {
        "channel_names": {str(n): one for n, one in enumerate(names)},
        "labels": labels,
        "numTraining": len(rows),
        "file_ending": ending,
    }
    if is_2d:
        described["overwrite_image_reader_writer"] = "NaturalImage2DIO"
    (out / "dataset.json").write_text(json.dumps(described, indent=1))
    folds = [{"train": split[TRAINING], "val": split[VALIDATION]}]
    (out / "splits_final.json").write_text(json.dumps(folds, indent=1))
    with (out / "cases.csv").open("w", newline="") as file:
        titles = made.channels if len(made.channels) > 1 else ("image",)
        csv.writer(file).writerows([[*titles, "label", "split"], *rows])


def hippocampus(data: Path) -> Iterator[PairedCase]:
    """Yield the crops: of each ten 7 for training, 1 for validation, 2 for the test."""
    root = data / "hippocampus"
    for number, path in enumerate(sorted((root / "imagesTr").glob("hippocampus_*.nii.gz"))):
        image, labels = nibabel.load(path), nibabel.load(root / "labelsTr" / path.name)
        part = {3: VALIDATION, 1: TEST, 6: TEST}.get(number % 10, TRAINING)
        name = path.name.removesuffix(".nii.gz")
        yield PairedCase(name, part, [image.get_fdata()], np.asarray(labels.dataobj), image.affine)


def two_channels(data: Path) -> Iterator[PairedCase]:
    """Yield the first 100 crops: one channel blurred by 1.2 mm, the other their edges with noise."""
    for number, case in zip(range(100), hippocampus(data), strict=False):
        image = case.channels[0]
        edges = ndimage.gaussian_gradient_magnitude(image, 0.7)
        noise = np.random.default_rng(number).normal(0, 0.3 * edges.std(), edges.shape)
        yield PairedCase(
            case.name, case.part, [ndimage.gaussian_filter(image, 1.2), edges + noise], case.labels, case.affine
        )


def tiny(data: Path) -> Iterator[PairedCase]:
    """Yield the first 100 crops with a synthetic dark spot of 20 to 40 voxels and three bright ones, of other class."""
    for number, case in zip(range(100), hippocampus(data), strict=False):
        random = np.random.default_rng(number)
        image, labels = case.channels[0].copy(), np.zeros(case.labels.shape, np.uint8)
        axes = np.meshgrid(*(np.arange(size) for size in image.shape), indexing="ij")
        low, high = np.percentile(image, (10, 99))
        for spot in range(4):
            middle = [random.uniform(4, size - 5) for size in image.shape]
            radius = random.uniform(1.6, 2.1)
            inside = sum((axis - at) ** 2 for axis, at in zip(axes, middle, strict=True)) < radius**2
            image[inside] += (0.6 if spot else -0.6) * (high - low)
            labels[inside] = 0 if spot else 1
        yield PairedCase(
            case.name, case.part, [image + random.normal(0, 0.03 * (high - low), image.shape)], labels, case.affine
        )


def anisotropic(data: Path) -> Iterator[PairedCase]:
    """Yield variations of one CT with voxels of 0.8 x 0.8 x 5 mm."""
    spacing = np.array([0.8, 0.8, 5.0])
    for number in range(30):
        part = TEST if number % 5 == 1 else VALIDATION if number % 10 == 3 else TRAINING
        image, labels = varied_ct(data, number, spacing, (240, 220, 17))
        yield PairedCase(f"ct_{number:02d}", part, [image], labels, np.diag([*spacing, 1.0]))


def axons(data: Path) -> Iterator[PairedCase]:
    """Yield the images of axons in colours: two rats for the test, one for validation."""
    parts = {"sub-rat2": TEST, "sub-rat7": TEST, "sub-rat6": VALIDATION}
    for path in sorted((data / "axon_sem" / "images").iterdir()):
        image = np.asarray(Image.open(path).convert("RGB"))
        grey = np.asarray(Image.open(data / "axon_sem" / "labels" / path.name).convert("L")).astype(int)
        part = parts.get(path.name.split("_")[0], TRAINING)
        yield PairedCase(path.stem, part, [image], np.digitize(grey, [64, 191]).astype(np.uint8), None)


_PARTS = ("Anterior", "Posterior")
SETS: dict[str, PairedSet] = {
    "hippocampus": PairedSet(951, "T1 crops, two parts of the hippocampus", hippocampus, ("MRI",), _PARTS),
    "axons": PairedSet(
        952, "electron micrographs in colours, 2D", axons, ("RGB",), ("myelin", "axon"), configuration="2d"
    ),
    "anisotropic": PairedSet(
        953, "one CT in variations, 0.8 x 0.8 x 5 mm, 6 organs", anisotropic, ("CT",), tuple(ORGANS)
    ),
    "two_channels": PairedSet(
        954, "T1 crops, blurred, and their noisy edges as a second channel", two_channels, ("T1", "edges"), _PARTS
    ),
    "tiny": PairedSet(955, "T1 crops with a synthetic spot of 20 to 40 voxels", tiny, ("MRI",), ("spot",)),
}
"""Data sets by name."""
