"""Data sets in other formats than training reads, and what `gather` makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK

from napari_seg.errors import TrainingError
from napari_seg.formats.itk import to_itk
from napari_seg.formats.nifti import write_map
from napari_seg.formats.nrrd import write_seg_nrrd
from napari_seg.geometry import Grid
from napari_seg.training.gather.gather import Gathered, gather
from napari_seg.training.segnets_modules import with_segnets
from napari_seg.volume import Segment, Segmentation, Volume

GRID = Grid((7, 6, 5), np.array([[-2.0, 0, 0, 3], [0, 1, 0, 4], [0, 0, 1.5, -5], [0, 0, 0, 1]]))
SEGMENTS = (Segment(1, "Liver", (255, 0, 0)), Segment(2, "Tumour", (0, 255, 0)))


def image(seed: int = 0) -> Volume:
    array = np.random.default_rng(seed).integers(-900, 900, (1, *GRID.shape)).astype(np.int16)
    return Volume(array, GRID)


def labels(value: int = 1, segments: tuple[Segment, ...] = SEGMENTS) -> Segmentation:
    array = np.zeros(GRID.shape, np.uint8)
    array[1:4, 2:5, 1:4] = value
    array[2, 3, 2] = 2
    return Segmentation(array, GRID, segments)


def write(root: Path, *names: str) -> Path:
    """Write a volume or a label map for each name, by the folder and name of the file."""
    for seed, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        is_label = any(word in name.lower() for word in ("seg", "mask", "label", "gt", "liver", "spleen"))
        content: Any = labels() if is_label else image(seed)
        array = content.array if is_label else content.array[0]
        if name.endswith(".seg.nrrd"):
            write_seg_nrrd(content, path)
        elif name.endswith((".nii.gz", ".nii")):
            write_map(array, GRID, path)
        else:
            SimpleITK.WriteImage(to_itk(array, GRID), str(path))
    return root


def gathered(root: Path, **reading: Any) -> tuple[Gathered | None, dict[str, Any]]:
    """Return what was converted, and the dataset.json."""
    into = root.parent / f"{root.name}-out" / "data"
    with with_segnets():
        found = gather(root, into, reading)
    return found, json.loads((into / "dataset.json").read_text()) if found else {}


def names(description: dict[str, Any]) -> list[str]:
    return [Path(one["image"]).name.removesuffix(".nii.gz") for one in description["training"]]


def load(found: Gathered | None, entry: dict[str, str]) -> tuple[Any, Any]:
    assert found is not None
    image, label = (nibabel.load(found.folder / entry[key]) for key in ("image", "label"))
    assert np.allclose(image.affine, label.affine)
    return image, np.asarray(label.dataobj)


def refused(root: Path, code: str, **reading: Any) -> str:
    with pytest.raises(TrainingError) as caught:
        gathered(root, **reading)
    assert caught.value.code == code
    return caught.value.message


def block(n: int, value: int = 1) -> np.ndarray:
    """Return a mask whose place and size say which of several it is."""
    array = np.zeros(GRID.shape, np.uint8)
    array[n, : n + 2, :3] = value
    return array
