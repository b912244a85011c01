"""Data sets of many kinds in nnU-Net's layout, made from real scans, for `scripts/nnunet_parity.py`.

The folder of data holds `hippocampus` (Medical Segmentation Decathlon, Task04), `axon_sem` (images of axons) and
`ct_body` (the test scans of TotalSegmentator).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

TESTED = 4
"""Scans of each data set that are kept for the comparison."""


@dataclass(frozen=True)
class Case:
    """A data set with the models that are trained on it.

    Attributes:
        number: of the data set.
        about: what is special about it, for the table.
        write: writes the scans, given the folder of data and the data set's folder.
        dataset: entries of dataset.json.
        patch: voxels of a window; for slices, two numbers.
        batch: windows at a time while training.
        features: channels of the first stage.
        stages: stages of the network.
        trainings: pairs of a configuration and a fold, trained in this order.
        runs: configurations that are compared, as `FOLDER:...` takes them.
        planner: nnU-Net's planner.
        trainer: name of the trainer, which decides whether mirror images are averaged.
        iterations: steps of training.
        settings: entries of each 3D configuration in the plans.
    """

    number: int
    about: str
    write: Callable[[Path, Path], None]
    dataset: dict[str, Any]
    patch: tuple[int, ...]
    trainings: tuple[tuple[str, str], ...] = (("3d_fullres", "0"),)
    runs: tuple[str, ...] = ("3d_fullres",)
    planner: str = "ExperimentPlanner"
    trainer: str = "nnUNetTrainer"
    batch: int = 2
    features: int = 8
    stages: int = 3
    iterations: int = 150
    settings: dict[str, Any] = field(default_factory=dict)

    def folder(self, name: str) -> str:
        """Return the name of the data set."""
        return f"Dataset{self.number}_{name.title().replace('_', '')}"


def _crops(data: Path, count: int = 24) -> list[tuple[nib.Nifti1Image, nib.Nifti1Image]]:
    root = data / "hippocampus"
    names = sorted(path.name for path in (root / "imagesTr").glob("hippocampus_*.nii.gz"))[:count]
    return [(nib.load(root / "imagesTr" / name), nib.load(root / "labelsTr" / name)) for name in names]


def _save(
    out: Path, number: int, channels: list[NDArray], labels: NDArray, affine: NDArray, test: bool | None = None
) -> None:
    """Write a case: the last ones as tests without labels."""
    is_test = number < TESTED if test is None else test
    images = out / ("imagesTs" if is_test else "imagesTr")
    folder = out / ("labelsTs" if is_test else "labelsTr")
    images.mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    for channel, array in enumerate(channels):
        image = nib.Nifti1Image(array.astype(np.float32), affine)
        nib.save(image, images / f"case_{number:03d}_{channel:04d}.nii.gz")
    nib.save(nib.Nifti1Image(labels.astype(np.uint8), affine), folder / f"case_{number:03d}.nii.gz")


def _affine(number: int, spacing: NDArray, is_test: bool) -> NDArray:
    """Return an affine: training scans stand straight, test scans are flipped, swapped or oblique in turn."""
    affine = np.diag([*spacing, 1.0])
    if is_test and number % 4 == 1:
        affine[0, 0], affine[0, 3] = -affine[0, 0], 40.0
    if is_test and number % 4 >= 2:
        angle = np.deg2rad(12 if number % 4 == 2 else 25)
        turn = np.eye(4)
        axes = (0, 1) if number % 4 == 2 else (1, 2)
        turn[np.ix_(axes, axes)] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        affine = turn @ affine
        affine[:3, 3] = [-31.5, 12.25, 7.0]
    return affine


TESTED_SPACINGS = ((1.0, 1.0, 1.0), (0.8, 1.1, 1.3), (1.0, 1.0, 1.0), (1.25, 0.9, 0.7))
"""Voxel sizes (mm) of the crops that are tested."""


def write_hippocampus(data: Path, out: Path) -> None:
    """Write T1 crops with two labels; half of the tested ones have other voxel sizes."""
    for number, (image, labels) in enumerate(_crops(data)):
        array, found = image.get_fdata(), np.asarray(labels.dataobj)
        spacing = np.array(image.header.get_zooms()[:3], float)
        if number < TESTED:
            zooms, spacing = spacing / TESTED_SPACINGS[number], np.array(TESTED_SPACINGS[number])
            array, found = ndimage.zoom(array, zooms, order=1), ndimage.zoom(found, zooms, order=0)
        _save(out, number, [array], found, _affine(number, spacing, number < TESTED))


def write_two_channels(data: Path, out: Path) -> None:
    """Write T1 crops and their edges as a second channel."""
    for number, (image, labels) in enumerate(_crops(data)):
        array = image.get_fdata()
        edges = ndimage.gaussian_gradient_magnitude(array, 1.0)
        affine = _affine(number, np.array(image.header.get_zooms()[:3], float), number < TESTED)
        _save(out, number, [array, edges], np.asarray(labels.dataobj), affine)


def write_ignore(data: Path, out: Path) -> None:
    """Write T1 crops of which every second slice is not annotated."""
    for number, (image, labels) in enumerate(_crops(data)):
        array = np.asarray(labels.dataobj).copy()
        if number >= TESTED:
            array[:, :, ::2] = 3
        affine = _affine(number, np.array(image.header.get_zooms()[:3], float), number < TESTED)
        _save(out, number, [image.get_fdata()], array, affine)


ORGANS = {"liver": 5, "stomach": 6, "spleen": 1, "kidney_right": 2, "kidney_left": 3, "aorta": 52}
"""Structures of TotalSegmentator's labels that the CT data sets keep."""


def varied_ct(data: Path, number: int, spacing: NDArray, shape: tuple[int, int, int]) -> tuple[NDArray, NDArray]:
    """Return a CT and its labels on a grid of another spacing, shifted, stretched and with noise of its own."""
    image, found = (nib.load(data / "ct_body" / name) for name in ("example_ct_sm.nii.gz", "example_seg.nii.gz"))
    random = np.random.default_rng(number)
    stretch = random.uniform(0.92, 1.08, 3)
    zooms = np.array(image.header.get_zooms()[:3], float)
    matrix = np.diag(spacing / zooms * stretch)
    middle = (np.array(image.shape) - 1) / 2 + random.uniform(-3, 3, 3) * (number > 0)
    offset = middle - matrix @ ((np.array(shape) - 1) / 2)
    array = ndimage.affine_transform(image.get_fdata(), matrix, offset, shape, order=1, mode="nearest")
    labels = ndimage.affine_transform(np.asarray(found.dataobj), matrix, offset, shape, order=0, mode="nearest")
    kept = np.zeros(shape, np.uint8)
    for label, value in enumerate(ORGANS.values(), start=1):
        kept[labels == value] = label
    return np.round(array + random.normal(0, 10, shape)), kept


def write_ct(data: Path, out: Path) -> None:
    """Write a CT of 3 mm in variations."""
    for number in range(12):
        array, labels = varied_ct(data, number, np.full(3, 3.0), (110, 92, 28))
        _save(out, number, [array], labels, _affine(number, np.full(3, 3.0), number < TESTED))


def write_anisotropic(data: Path, out: Path) -> None:
    """Write a CT of 0.8 mm with slices of 5 mm in variations, cut to the middle."""
    for number in range(12):
        spacing = np.array([0.8, 0.8, 5.0])
        array, labels = varied_ct(data, number, spacing, (240, 220, 17))
        _save(out, number, [array], labels, _affine(number, spacing, number < TESTED))


def write_axons(data: Path, out: Path) -> None:
    """Write quarters of images of axons in colours."""
    number = 0
    pictures = sorted((data / "axon_sem" / "images").iterdir())
    labels = sorted((data / "axon_sem" / "labels").iterdir())
    for path, label in zip(pictures, labels, strict=True):
        picture = np.asarray(Image.open(path).convert("RGB"))
        levels = np.asarray(Image.open(label).convert("L")).astype(int)
        classes = np.digitize(levels, [64, 191]).astype(np.uint8)
        for i in (0, 1):
            for j in (0, 1):
                part = (slice(i * 300, i * 300 + 300), slice(j * 280, j * 280 + 280))
                if picture[part].shape[:2] != (300, 280):
                    continue
                is_test = number % 8 == 0
                images, folder = (out / f"{kind}{'Ts' if is_test else 'Tr'}" for kind in ("images", "labels"))
                images.mkdir(parents=True, exist_ok=True)
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture[part]).save(images / f"case_{number:03d}_0000.png")
                Image.fromarray(classes[part]).save(folder / f"case_{number:03d}.png")
                number += 1


def _dataset(channels: list[str], labels: dict[str, Any], ending: str = ".nii.gz", **others: Any) -> dict[str, Any]:
    names = {str(number): name for number, name in enumerate(channels)}
    return {"channel_names": names, "labels": {"background": 0, **labels}, "file_ending": ending, **others}


_PARTS = {"anterior": 1, "posterior": 2}
_SMALL = (32, 48, 32)
CASES: dict[str, Case] = {
    "hippocampus": Case(
        901,
        "T1 crops; 3D, folds 1 and 3, slices, cascade, ensemble",
        write_hippocampus,
        _dataset(["MRI"], _PARTS),
        _SMALL,
        (
            ("3d_fullres", "0"),
            ("3d_fullres", "1"),
            ("3d_fullres", "2"),
            ("2d", "0"),
            ("3d_lowres", "all"),
            ("3d_cascade_fullres", "all"),
        ),
        ("3d_fullres@0", "3d_fullres", "2d", "3d_lowres", "3d_cascade_fullres", "2d+3d_fullres@0"),
    ),
    "axons": Case(
        902,
        "images in colours, 2D",
        write_axons,
        _dataset(["R", "G", "B"], {"myelin": 1, "axon": 2}, ".png", overwrite_image_reader_writer="NaturalImage2DIO"),
        (128, 128),
        (("2d", "0"),),
        ("2d",),
    ),
    "two_channels": Case(903, "two channels", write_two_channels, _dataset(["T1", "edges"], _PARTS), _SMALL),
    "regions": Case(
        904,
        "regions with overlapping labels",
        write_hippocampus,
        _dataset(["MRI"], {"whole": [1, 2], "posterior": [2]}, regions_class_order=[1, 2]),
        _SMALL,
    ),
    "ignore": Case(905, "ignore label", write_ignore, _dataset(["MRI"], {**_PARTS, "ignore": 3}), _SMALL),
    "residual": Case(
        906,
        "residual encoder plans",
        write_hippocampus,
        _dataset(["MRI"], _PARTS),
        _SMALL,
        planner="nnUNetPlannerResEncM",
    ),
    "unmirrored": Case(
        909,
        "a training without mirroring; a reader that brings scans to RAS",
        write_hippocampus,
        _dataset(["MRI"], _PARTS, overwrite_image_reader_writer="NibabelIOWithReorient"),
        _SMALL,
        trainer="nnUNetTrainerNoMirroring",
    ),
    "anisotropic": Case(
        907,
        "CT of 0.8 x 0.8 x 5 mm, separate z",
        write_anisotropic,
        _dataset(["CT"], {name: n for n, name in enumerate(ORGANS, start=1)}),
        (12, 96, 96),
        settings={"spacing": [5.0, 1.4, 1.4]},
    ),
    "ct": Case(
        908,
        "CT of 3 mm",
        write_ct,
        _dataset(["CT"], {name: n for n, name in enumerate(ORGANS, start=1)}),
        (24, 64, 64),
    ),
}
"""Data sets by name."""


def write_dataset(name: str, data: Path, raw: Path) -> Path:
    """Write a data set in nnU-Net's layout below `raw`, and return its folder; one that is there is kept."""
    case = CASES[name]
    out = raw / case.folder(name)
    if not (out / "dataset.json").is_file():
        case.write(data, out)
        count = len(list((out / "labelsTr").iterdir()))
        (out / "dataset.json").write_text(json.dumps({**case.dataset, "numTraining": count}, indent=4))
    return out
