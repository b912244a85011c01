"""Made-up data sets to train on: two touching balls of different brightness in noise."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import yaml
from PIL import Image


def write_decathlon(root: Path, cases: int = 10, channels: int = 1, smallest: Sequence[int] = (22, 30, 22)) -> Path:
    """A folder in the Decathlon's layout with crops of different sizes.

    Args:
        root: made if it is missing.
        cases: their number.
        channels: of each image; with more than one the files are 4D.
        smallest: (I, J, K), which the crops exceed by less than 10 voxels.
    """
    rng = np.random.default_rng(5)
    training = []
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for n in range(cases):
        labels = _balls(rng.integers(smallest, np.add(smallest, 9)))
        image = np.stack([_image(labels, rng) for _ in range(channels)], axis=-1).squeeze()
        name = f"case_{n:02d}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), root / "imagesTr" / name)
        nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), root / "labelsTr" / name)
        training.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
    (root / "dataset.json").write_text(json.dumps({"training": training, "labels": {"0": "none"}}))
    return root


def write_nnunet(root: Path, channels: Sequence[str], cases: int = 6) -> Path:
    """A folder in nnU-Net's layout with one file for each channel.

    Args:
        root: made if it is missing.
        channels: their names.
        cases: their number.
    """
    rng = np.random.default_rng(5)
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for n in range(cases):
        labels = _balls(rng.integers((22, 30, 22), (31, 39, 31)))
        for channel in range(len(channels)):
            image = nibabel.Nifti1Image(_image(labels, rng) * (channel + 1), np.eye(4))
            nibabel.save(image, root / "imagesTr" / f"case_{n:02d}_{channel:04d}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), root / "labelsTr" / f"case_{n:02d}.nii.gz")
    description = {
        "channel_names": dict(enumerate(channels)),
        "labels": {"background": 0, "front": 1, "back": 2},
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(description))
    return root


def write_pictures(root: Path, cases: int = 2) -> Path:
    """A folder with images/ (RGB) and labels/ (0, 127 and 255) of PNG pictures."""
    rng = np.random.default_rng(5)
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for n in range(cases):
        labels = _balls(rng.integers((40, 30), (50, 40)))
        rgb = np.stack([_image(labels, rng) / 4 for _ in range(3)], axis=-1).clip(0, 255).astype(np.uint8)
        Image.fromarray(rgb).save(root / "images" / f"p{n}.png")
        Image.fromarray(np.array([0, 127, 255], np.uint8)[labels]).save(root / "labels" / f"p{n}.png")
    return root


def write_voc(root: Path, cases: int = 4) -> Path:
    """A folder in PASCAL VOC's layout: squares of 1 and 5, grey 100, with a void border, 255, of grey 250, on 0."""
    for folder in ("JPEGImages", "SegmentationClass"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    labels = np.zeros((32, 40), np.uint8)
    labels[4:20, 4:20] = 255
    labels[6:18, 6:18] = 1
    labels[6:10, 6:10] = 5
    image = np.where(labels == 255, 250, np.where(labels > 0, 100, 0)).astype(np.uint8)
    for n in range(cases):
        Image.fromarray(image).save(root / "JPEGImages" / f"p{n}.png")
        Image.fromarray(labels).save(root / "SegmentationClass" / f"p{n}.png")
    return root


def _balls(shape: Sequence[int]) -> np.ndarray:
    """Labels: 1 in a ball towards the end of the second axis, 2 in a smaller one towards its beginning."""
    first, second, *rest = (index - size / 2 for index, size in zip(np.indices(shape), shape, strict=True))
    across = first**2 + sum(axis**2 for axis in rest)
    front, back = across + (second - 6) ** 2 < 40, across + (second + 6) ** 2 < 30
    return np.where(front, 1, np.where(back, 2, 0)).astype(np.uint8)


def _image(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return (np.array([100, 300, 500])[labels] + rng.normal(0, 20, labels.shape)).astype(np.float32)


def configs(bundle: Path) -> dict[str, dict]:
    """By name what the configs of a bundle say."""
    names = ("train", "evaluate", "inference")
    return {name: yaml.safe_load((bundle / "configs" / f"{name}.yaml").read_text()) for name in names}
