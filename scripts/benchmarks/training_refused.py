"""Data sets that can't be trained on as they are, for `scripts/training_kinds.py`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from benchmarks.training_images2d import write_axon_levels
from benchmarks.training_sets import DataSet, Kind, Scans, crops, parent_of, write_itk, write_nifti
from benchmarks.training_volumes import write_decathlon, write_nnunet, write_nrrd_folders
from PIL import Image
from scipy import ndimage


def write_damaged(scans: Scans, root: Path) -> DataSet:
    """Write crops of which one image is cut off and one label map has fractions."""
    made = write_decathlon(scans, root)
    images = sorted((root / "data" / "imagesTr").iterdir())
    images[1].write_bytes(images[1].read_bytes()[:-900])
    scan = crops(scans)[2]
    write_nifti(scan.labels + np.float32(0.5), scan.affine, root / "data" / "labelsTr" / images[2].name)
    return made


def write_damaged_nrrd(scans: Scans, root: Path) -> DataSet:
    """Write crops as NRRD, of which one image is cut off."""
    made = write_nrrd_folders(scans, root)
    image = sorted((root / "data" / "images").iterdir())[1]
    image.write_bytes(image.read_bytes()[:-900])
    return made


def write_other_grid(scans: Scans, root: Path) -> DataSet:
    """Write crops of which one label map lies 7 mm from its image, and one has fewer slices."""
    made = write_decathlon(scans, root)
    for number, scan in enumerate(crops(scans)[:2]):
        affine, labels = scan.affine.copy(), scan.labels
        if number:
            labels = labels[..., :-3]
        else:
            affine[0, 3] += 7.0
        write_nifti(labels, affine, root / "data" / "labelsTr" / f"{scan.name}.nii.gz")
    return made


def write_nothing(scans: Scans, root: Path) -> DataSet:
    """Write scans without labels and a letter."""
    for scan in crops(scans)[:3]:
        write_itk(scan.image, scan.affine, root / "data" / f"{scan.name}.nrrd")
    parent_of(root / "data" / "letter.pdf").write_bytes(b"%PDF-1.4")
    return DataSet(root / "data")


def write_other_channels(scans: Scans, root: Path) -> DataSet:
    """Write crops of which two lack the second channel."""
    made = write_nnunet(scans, root)
    for path in sorted((root / "data" / "imagesTr").glob("*_0001.nii.gz"))[:2]:
        path.unlink()
    return made


def write_four_dimensional(scans: Scans, root: Path) -> DataSet:
    """Write crops of which one has three volumes, and the others one."""
    made = write_decathlon(scans, root)
    scan = crops(scans)[0]
    write_nifti(np.stack([scan.image] * 3, axis=-1), scan.affine, root / "data" / "imagesTr" / f"{scan.name}.nii.gz")
    return made


def write_one_case(scans: Scans, root: Path) -> DataSet:
    """Write one crop."""
    scan = crops(scans)[0]
    write_nifti(scan.image, scan.affine, root / "data" / "images" / f"{scan.name}.nii.gz")
    write_nifti(scan.labels, scan.affine, root / "data" / "labels" / f"{scan.name}.nii.gz")
    return DataSet(root / "data")


def write_empty(scans: Scans, root: Path) -> DataSet:
    """Write crops whose label maps are empty."""
    for scan in crops(scans)[:4]:
        write_nifti(scan.image, scan.affine, root / "data" / "images" / f"{scan.name}.nii.gz")
        write_nifti(0 * scan.labels, scan.affine, root / "data" / "labels" / f"{scan.name}.nii.gz")
    return DataSet(root / "data")


def write_smoothed_labels(scans: Scans, root: Path) -> DataSet:
    """Write parts of images of axons, whose labels have all grey levels after they were smoothed."""
    made = write_axon_levels(scans, root)
    for path in (root / "data" / "labels").iterdir():
        levels = ndimage.gaussian_filter(np.asarray(Image.open(path)), 2)
        Image.fromarray(levels).save(path)
    return DataSet(made.path)


REFUSED: dict[str, Kind] = {
    "damaged": Kind("T1 crops, one cut off, one with fractions as labels", write_damaged, "data.faults"),
    "damaged_nrrd": Kind("T1 crops as NRRD, one cut off", write_damaged_nrrd, "data.faults"),
    "other_grid": Kind("T1 crops, two label maps on other grids", write_other_grid, "data.faults"),
    "nothing": Kind("scans without labels, and a letter", write_nothing, "dataset.unknown"),
    "other_channels": Kind("T1 crops, two without their second channel", write_other_channels, "data.faults"),
    "other_volumes": Kind("T1 crops, one with three volumes", write_four_dimensional, "data.faults"),
    "one_case": Kind("one T1 crop", write_one_case, "split.too_few"),
    "no_labels": Kind("T1 crops with empty label maps", write_empty, "data.faults"),
    "smoothed_labels": Kind("images of axons, labels of all grey levels", write_smoothed_labels, "labels.unnamed"),
}
