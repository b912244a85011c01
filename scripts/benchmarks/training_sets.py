"""Small data sets of many kinds, made from real scans, for `scripts/training_kinds.py`: what all of them share."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

CASES = 9
"""Cases of each data set; one more is held out."""


@dataclass(frozen=True)
class Scans:
    """Where the real scans lie.

    Attributes:
        hippocampus: Medical Segmentation Decathlon, Task04.
        ct_body: test scans of TotalSegmentator.
        axon_sem: images of axons with three grey levels as labels.
    """

    hippocampus: Path
    ct_body: Path
    axon_sem: Path


@dataclass(frozen=True)
class Scan:
    """One scan and its reference.

    Attributes:
        name: name of the case.
        image: (I, J, K).
        labels: (I, J, K), unsigned.
        affine: (4, 4), voxel index to mm, RAS+.
    """

    name: str
    image: NDArray
    labels: NDArray[np.uint8]
    affine: NDArray[np.float64]


@dataclass(frozen=True)
class DataSet:
    """A data set that was written, and a case that it does not hold.

    Attributes:
        path: argument of `napari-seg train`.
        voxels: name of a class -> number of its voxels in all cases, as the source has them.
        scan: source files of the held-out case, one for each channel, or the folder of its series.
        labels: its reference (I, J, K).
        names: names of the classes of its reference, in the order of their values from 1 up.
        affine: voxel index to mm of its files; None for 2D images, which have no place in a patient.
        volume: number of the frame or volume to segment; None if the file holds one.
        channels: number of volumes of the one file that are the channels; 0: the file holds one channel.
        options: further words of `napari-seg train`.
    """

    path: Path
    voxels: Mapping[str, int] = field(default_factory=dict)
    scan: tuple[Path, ...] = ()
    labels: NDArray | None = None
    names: tuple[str, ...] = ()
    affine: NDArray | None = None
    volume: int | None = None
    channels: int = 0
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Kind:
    """A kind of data set.

    Attributes:
        about: what is made, in a few words.
        write: writes the data set as `data` below a folder, and the held-out case as `held_out` beside it.
        refusal: code with which training must refuse it; "" if it must be trained.
    """

    about: str
    write: Callable[[Scans, Path], DataSet]
    refusal: str = ""


PARTS = ("Anterior", "Posterior")
"""Classes of the crops."""


def crops(scans: Scans, count: int = CASES + 1) -> list[Scan]:
    """Return T1 crops of the hippocampus, the last of which is to be held out."""
    paths = sorted((scans.hippocampus / "imagesTr").glob("hippocampus_*.nii.gz"))[:count]
    found = []
    for path in paths:
        image, labels = nibabel.load(path), nibabel.load(scans.hippocampus / "labelsTr" / path.name)
        name, array = path.name.removesuffix(".nii.gz"), np.asarray(image.dataobj).astype(np.float32)
        found.append(Scan(name, array, np.asarray(labels.dataobj).astype(np.uint8), image.affine))
    return found


def write_nifti(array: NDArray, affine: NDArray, path: Path) -> Path:
    """Write a NIfTI file and return its path."""
    image = nibabel.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm", "sec")
    nibabel.save(image, parent_of(path))
    return path


def write_itk(array: NDArray, affine: NDArray, path: Path) -> Path:
    """Write a file of ITK (NRRD, MetaImage) and return its path."""
    import SimpleITK

    from napari_seg.formats.itk import to_itk
    from napari_seg.geometry import Grid

    shape = (array.shape[0], array.shape[1], array.shape[2])
    SimpleITK.WriteImage(to_itk(array, Grid(shape, affine)), str(parent_of(path)))
    return path


def write_json(content: Any, path: Path) -> Path:
    """Write a JSON file and return its path."""
    parent_of(path).write_text(json.dumps(content, indent=1))
    return path


def parent_of(path: Path) -> Path:
    """Create the folder of a file and return the file's path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def count_voxels(labels: Sequence[NDArray], names: Sequence[str]) -> dict[str, int]:
    """Return the number of voxels of each class, whose values are counted from 1."""
    return {name: sum(int((one == value).sum()) for one in labels) for value, name in enumerate(names, 1)}


def held_out(root: Path) -> Path:
    """Return the folder of the held-out case."""
    return root / "held_out"


def with_data(root: Path, cases: Sequence[Scan]) -> Iterator[tuple[Scan, Path]]:
    """Yield each scan with the folder where it belongs: the last one is held out."""
    for number, scan in enumerate(cases):
        yield scan, root / "data" if number < len(cases) - 1 else held_out(root)


def of_crops(root: Path, cases: Sequence[Scan], files: Sequence[Path], **others: Any) -> DataSet:
    """Return the description of a data set of crops.

    Args:
        root: folder of the data set.
        cases: its cases; the last one is held out.
        files: source files of the held-out case.
        others: entries of `DataSet` that differ from the usual ones.
    """
    last = cases[-1]
    usual: dict[str, Any] = {
        "path": root / "data",
        "voxels": count_voxels([scan.labels for scan in cases[:-1]], others.get("names", PARTS)),
        "scan": tuple(files),
        "labels": last.labels,
        "names": PARTS,
        "affine": last.affine,
    }
    return DataSet(**usual | others)
