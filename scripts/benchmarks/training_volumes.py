"""Data sets of volumes of many kinds, for `scripts/training_kinds.py`."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.nnunet_cases import ORGANS, varied_ct
from benchmarks.training_dicom import write_dicom_rtstruct, write_dicom_seg
from benchmarks.training_sets import (
    CASES,
    PARTS,
    DataSet,
    Kind,
    Scan,
    Scans,
    count_voxels,
    crops,
    of_crops,
    with_data,
    write_itk,
    write_json,
    write_nifti,
)
from numpy.typing import NDArray
from scipy import ndimage

_LABELS = {"0": "background", "1": PARTS[0], "2": PARTS[1]}


def write_decathlon(scans: Scans, root: Path, **others: Any) -> DataSet:
    """Write crops in the Decathlon's layout."""
    return _decathlon(root, crops(scans), **others)


def _decathlon(root: Path, cases: list[Scan], entries: dict[str, Any] | None = None, **others: Any) -> DataSet:
    """Write cases in the Decathlon's layout.

    Args:
        root: folder of the data set.
        cases: its cases; the last one is held out.
        entries: name of a case -> further entries of its line in dataset.json.
        others: entries of `DataSet`.
    """
    training, files = [], []
    for scan, folder in with_data(root, cases):
        files = [write_nifti(scan.image, scan.affine, folder / "imagesTr" / f"{scan.name}.nii.gz")]
        if folder.name == "data":
            write_nifti(scan.labels, scan.affine, folder / "labelsTr" / f"{scan.name}.nii.gz")
            paths = {"image": f"./imagesTr/{scan.name}.nii.gz", "label": f"./labelsTr/{scan.name}.nii.gz"}
            training.append(paths | (entries or {}).get(scan.name, {}))
    names = {"0": "background"} | {str(n): name for n, name in enumerate(others.get("names", PARTS), 1)}
    modality = {"0": others.pop("modality", "MRI")}
    write_json({"modality": modality, "labels": names, "training": training}, root / "data" / "dataset.json")
    return of_crops(root, cases, files, **others)


def write_partly(scans: Scans, root: Path) -> DataSet:
    """Write crops of which every other one lacks the labels of one class, as dataset.json says."""
    cases = crops(scans)
    shown = [n % 2 + 1 for n in range(len(cases) - 1)]
    partly = [
        replace(c, labels=np.where(c.labels == v, v, 0).astype(np.uint8)) for c, v in zip(cases, shown, strict=False)
    ]
    entries = {scan.name: {"labelled": [PARTS[value - 1]]} for scan, value in zip(cases, shown, strict=False)}
    return _decathlon(root, [*partly, cases[-1]], entries)


def write_sparse(scans: Scans, root: Path) -> DataSet:
    """Write crops of which one coronal slice in five was annotated, another one in each case."""
    cases = crops(scans)
    sparse = []
    for number, scan in enumerate(cases[:-1]):
        labels = np.zeros_like(scan.labels)
        labels[:, number % 5 :: 5] = scan.labels[:, number % 5 :: 5]
        sparse.append(replace(scan, labels=labels))
    return _decathlon(root, [*sparse, cases[-1]], options=("--set", "annotated_slices=coronal"))


def write_tiny(scans: Scans, root: Path) -> DataSet:
    """Write crops with one bright synthetic spot of about 30 voxels each at a random place."""
    cases = []
    for number, scan in enumerate(crops(scans)):
        random = np.random.default_rng(number)
        middle = [random.uniform(5, size - 6) for size in scan.image.shape]
        axes = np.meshgrid(*(np.arange(size) for size in scan.image.shape), indexing="ij")
        spot = sum((axis - at) ** 2 for axis, at in zip(axes, middle, strict=True)) < 2.0**2
        bright = np.percentile(scan.image, 99.5) * 1.3
        cases.append(replace(scan, image=np.where(spot, bright, scan.image), labels=spot.astype(np.uint8)))
    return _decathlon(root, cases, names=("spot",))


def write_anisotropic(scans: Scans, root: Path) -> DataSet:
    """Write variations of one CT with slices of 5 mm."""
    cases = _ct_cases(scans, np.array([1.2, 1.2, 5.0]), (160, 140, 17))
    return _decathlon(root, cases, names=tuple(ORGANS), modality="CT")


def write_per_structure(scans: Scans, root: Path) -> DataSet:
    """Write variations of one CT, each with a mask for each structure, as TotalSegmentator writes them."""
    cases = _ct_cases(scans, np.full(3, 3.0), (110, 92, 28))
    files = []
    for number, (scan, folder) in enumerate(with_data(root, cases)):
        files = [write_nifti(scan.image, scan.affine, folder / f"s{number:04d}" / "ct.nii.gz")]
        for value, name in enumerate(ORGANS, 1) if folder.name == "data" else ():
            mask = (scan.labels == value).astype(np.uint8)
            write_nifti(mask, scan.affine, folder / f"s{number:04d}" / "segmentations" / f"{name}.nii.gz")
    return of_crops(root, cases, files, names=tuple(ORGANS))


def _ct_cases(scans: Scans, spacing: NDArray, shape: tuple[int, int, int]) -> list[Scan]:
    found = []
    for number in range(CASES + 1):
        image, labels = varied_ct(scans.ct_body.parent, number, spacing, shape)
        found.append(Scan(f"ct_{number:02d}", image.astype(np.int16), labels, np.diag([*spacing, 1.0])))
    return found


def write_nnunet(
    scans: Scans, root: Path, channels: tuple[str, ...] = ("T1", "edges"), ending: str = ".nii.gz", **others: Any
) -> DataSet:
    """Write crops and their edges in nnU-Net's layout."""
    return _nnunet(root, crops(scans), channels, ending, **others)


def _nnunet(
    root: Path,
    cases: list[Scan],
    channels: tuple[str, ...],
    ending: str = ".nii.gz",
    labels: dict[str, Any] | None = None,
    entries: dict[str, Any] | None = None,
    **others: Any,
) -> DataSet:
    write = write_nifti if ending == ".nii.gz" else write_itk
    files = []
    for scan, folder in with_data(root, cases):
        arrays = [scan.image, ndimage.gaussian_gradient_magnitude(scan.image, 1.0)][: len(channels)]
        images = folder / "imagesTr"
        files = [write(array, scan.affine, images / f"{scan.name}_{n:04d}{ending}") for n, array in enumerate(arrays)]
        if folder.name == "data":
            write(scan.labels, scan.affine, folder / "labelsTr" / f"{scan.name}{ending}")
    description = {
        "channel_names": {str(n): name for n, name in enumerate(channels)},
        "labels": labels or {"background": 0, PARTS[0]: 1, PARTS[1]: 2},
        "numTraining": len(cases) - 1,
        "file_ending": ending,
        **(entries or {}),
    }
    write_json(description, root / "data" / "dataset.json")
    return of_crops(root, cases, files, **others)


def write_ignore(scans: Scans, root: Path) -> DataSet:
    """Write crops of which a third was not annotated: nnU-Net's label `ignore`."""
    cases = crops(scans)
    ignored = []
    for number, scan in enumerate(cases[:-1]):
        labels, third = scan.labels.copy(), scan.labels.shape[1] // 3
        labels[:, (number % 3) * third :][:, :third] = 3
        ignored.append(replace(scan, labels=labels))
    names = {"background": 0, PARTS[0]: 1, PARTS[1]: 2, "ignore": 3}
    voxels = count_voxels([scan.labels for scan in ignored], (*PARTS, "ignored"))
    return _nnunet(root, [*ignored, cases[-1]], ("T1",), labels=names, voxels=voxels)


def write_regions(scans: Scans, root: Path) -> DataSet:
    """Write crops whose classes overlap: nnU-Net's regions."""
    cases = crops(scans)
    names = ("whole", "rear")
    parts = ("whole", "whole + rear")
    labels = {"background": 0, "whole": [1, 2], "rear": [2]}
    voxels = count_voxels([scan.labels for scan in cases[:-1]], parts)
    return _nnunet(
        root, cases, ("T1",), labels=labels, entries={"regions_class_order": [1, 2]}, names=names, voxels=voxels
    )


def write_bids(scans: Scans, root: Path) -> DataSet:
    """Write crops in the layout of BIDS, label maps as `_dseg` with a table of their names in a derivative."""
    cases, files = crops(scans), []
    for number, (scan, folder) in enumerate(with_data(root, cases)):
        sub = f"sub-{number:02d}"
        files = [write_nifti(scan.image, scan.affine, folder / sub / "anat" / f"{sub}_T1w.nii.gz")]
        if folder.name == "data":
            name = f"{sub}_space-orig_dseg.nii.gz"
            write_nifti(scan.labels, scan.affine, folder / "derivatives" / "manual" / sub / "anat" / name)
    write_json({"Name": "crops", "BIDSVersion": "1.9.0"}, root / "data" / "dataset_description.json")
    table = "index\tname\n0\tBackground\n" + "".join(f"{n}\t{name}\n" for n, name in enumerate(PARTS, 1))
    (root / "data" / "derivatives" / "manual" / "dseg.tsv").write_text(table)
    return of_crops(root, cases, files)


def write_bids_lesion(scans: Scans, root: Path) -> DataSet:
    """Write crops in the layout of BIDS, with one mask `_label-lesion_mask` each."""
    cases, files = [replace(scan, labels=(scan.labels > 0).astype(np.uint8)) for scan in crops(scans)], []
    for number, (scan, folder) in enumerate(with_data(root, cases)):
        sub = f"sub-{number:02d}"
        files = [write_nifti(scan.image, scan.affine, folder / sub / "anat" / f"{sub}_T1w.nii.gz")]
        if folder.name == "data":
            name = f"{sub}_label-lesion_mask.nii.gz"
            write_nifti(scan.labels, scan.affine, folder / "derivatives" / "masks" / sub / "anat" / name)
    return of_crops(root, cases, files, names=("lesion",))


def write_nrrd_folders(scans: Scans, root: Path) -> DataSet:
    """Write crops as NRRD in `images` and `labels`, named by labels.json."""
    cases, files = crops(scans), []
    for scan, folder in with_data(root, cases):
        files = [write_itk(scan.image, scan.affine, folder / "images" / f"{scan.name}.nrrd")]
        if folder.name == "data":
            write_itk(scan.labels, scan.affine, folder / "labels" / f"{scan.name}.nrrd")
    write_json({name: value for value, name in enumerate(PARTS, 1)}, root / "data" / "labels.json")
    return of_crops(root, cases, files)


def write_channels_in_folders(scans: Scans, root: Path) -> DataSet:
    """Write a folder for each case with a file for each channel and one label map, as BraTS has them; no names."""
    cases, files = crops(scans), []
    for scan, folder in with_data(root, cases):
        arrays = {"t1": scan.image, "t2": scan.image.max() - scan.image}
        files = [write_nifti(a, scan.affine, folder / scan.name / f"{scan.name}_{w}.nii.gz") for w, a in arrays.items()]
        if folder.name == "data":
            write_nifti(scan.labels, scan.affine, folder / scan.name / f"{scan.name}_seg.nii.gz")
    return of_crops(root, cases, files, names=("label 1", "label 2"), voxels=_unnamed(cases))


def _unnamed(cases: list[Scan]) -> dict[str, int]:
    return count_voxels([scan.labels for scan in cases[:-1]], ("label 1", "label 2"))


def write_4d(scans: Scans, root: Path) -> DataSet:
    """Write crops with two channels in one 4D file each."""
    cases, files, training = crops(scans), [], []
    for scan, folder in with_data(root, cases):
        array = np.stack([scan.image, scan.image.max() - scan.image], axis=-1)
        files = [write_nifti(array, scan.affine, folder / "imagesTr" / f"{scan.name}.nii.gz")]
        if folder.name == "data":
            write_nifti(scan.labels, scan.affine, folder / "labelsTr" / f"{scan.name}.nii.gz")
            training.append({"image": f"./imagesTr/{scan.name}.nii.gz", "label": f"./labelsTr/{scan.name}.nii.gz"})
    description = {"modality": {"0": "T1", "1": "T2"}, "labels": _LABELS, "training": training}
    write_json(description, root / "data" / "dataset.json")
    return of_crops(root, cases, files, channels=2)


def write_list(scans: Scans, root: Path) -> DataSet:
    """Write crops anywhere, two for each patient, and a table of their paths; no names."""
    cases, files = crops(scans), []
    rows = ["patient;image;label"]
    for number, (scan, folder) in enumerate(with_data(root, cases)):
        files = [write_nifti(scan.image, scan.affine, folder / f"visit {number}" / "t1.nii.gz")]
        if folder.name == "data":
            write_itk(scan.labels, scan.affine, folder / f"visit {number}" / "drawn.nrrd")
            rows.append(f"Mr {number // 2};visit {number}/t1.nii.gz;visit {number}/drawn.nrrd")
    (root / "data" / "cases.csv").write_text("\n".join(rows))
    path = root / "data" / "cases.csv"
    return of_crops(root, cases, files, path=path, names=("label 1", "label 2"), voxels=_unnamed(cases))


def write_zip(scans: Scans, root: Path) -> DataSet:
    """Write crops with the segmentations of 3D Slicer (.seg.nrrd) beside them into a zip file."""
    from napari_seg.formats.nrrd import write_seg_nrrd
    from napari_seg.geometry import Grid
    from napari_seg.volume import Segment, Segmentation

    cases, files = crops(scans), []
    segments = tuple(Segment(n, name, (40 * n, 90, 200)) for n, name in enumerate(PARTS, 1))
    for scan, folder in with_data(root, cases):
        files = [write_itk(scan.image, scan.affine, folder / scan.name / "mr.nrrd")]
        if folder.name == "data":
            shape = (scan.labels.shape[0], scan.labels.shape[1], scan.labels.shape[2])
            segmentation = Segmentation(scan.labels, Grid(shape, scan.affine), segments)
            write_seg_nrrd(segmentation, folder / scan.name / "Segmentation.seg.nrrd")
    path = root / "data.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted((root / "data").rglob("*.nrrd")):
            archive.write(file, file.relative_to(root / "data"))
            file.unlink()
    return of_crops(root, cases, files, path=path)


def write_slices(scans: Scans, root: Path) -> DataSet:
    """Write the middle slices of crops as NIfTI files of one slice; no names."""
    cases, files = [_middle(scan) for scan in crops(scans)], []
    for scan, folder in with_data(root, cases):
        files = [write_nifti(scan.image, scan.affine, folder / "images" / f"{scan.name}.nii.gz")]
        if folder.name == "data":
            write_nifti(scan.labels, scan.affine, folder / "labels" / f"{scan.name}.nii.gz")
    return of_crops(root, cases, files, names=("label 1", "label 2"), voxels=_unnamed(cases))


def _middle(scan: Scan) -> Scan:
    """Return the axial slice of a scan with most labels."""
    best = int((scan.labels > 0).sum((0, 1)).argmax())
    affine = scan.affine.copy()
    affine[:3, 3] += best * affine[:3, 2]
    return Scan(scan.name, scan.image[..., best : best + 1], scan.labels[..., best : best + 1], affine)


FRAMES = 5


def write_cine(scans: Scans, root: Path) -> DataSet:
    """Write films of one slice (I, J, 1, T), every frame annotated; neighbouring slices stand for moments."""
    cases, files = crops(scans), []
    labels, affine, of_data = cases[0].labels, np.eye(4), []
    for scan, folder in with_data(root, cases):
        best = int((scan.labels > 0).sum((0, 1)).argmax())
        first = min(max(0, best - FRAMES // 2), scan.image.shape[2] - FRAMES)
        image, labels = (array[:, :, None, first : first + FRAMES] for array in (scan.image, scan.labels))
        affine = scan.affine
        files = [write_nifti(image, affine, folder / "images" / f"{scan.name}.nii.gz")]
        if folder.name == "data":
            write_nifti(labels, affine, folder / "labels" / f"{scan.name}.nii.gz")
            of_data.append(labels)
    names = ("label 1", "label 2")
    voxels = count_voxels(of_data, names)
    frame = FRAMES // 2
    return of_crops(
        root, cases, files, labels=labels[..., frame], affine=affine, names=names, voxels=voxels, volume=frame
    )


VOLUMES: dict[str, Kind] = {
    "decathlon": Kind("T1 crops, Medical Segmentation Decathlon", write_decathlon),
    "nnunet_two_channels": Kind("T1 crops and their edges, nnU-Net raw", write_nnunet),
    "metaimage": Kind(
        "T1 crops and their edges, nnU-Net raw as MetaImage (.mha)",
        lambda scans, root: write_nnunet(scans, root, ending=".mha"),
    ),
    "nnunet_ignore": Kind("T1 crops, a third of each not annotated (`ignore`)", write_ignore),
    "nnunet_regions": Kind("T1 crops, classes that overlap (`regions_class_order`)", write_regions),
    "partly_labelled": Kind("T1 crops, one of two classes annotated in each (`labelled`)", write_partly),
    "sparse_slices": Kind("T1 crops, one coronal slice in five annotated", write_sparse),
    "bids_dseg": Kind("T1 crops, BIDS with `_dseg` in a derivative", write_bids),
    "bids_lesion": Kind("T1 crops, BIDS with `_label-lesion_mask`", write_bids_lesion),
    "nrrd_folders": Kind("T1 crops, NRRD in `images` and `labels`", write_nrrd_folders),
    "channel_files": Kind("T1 crops and inverted ones, a folder for each case (BraTS)", write_channels_in_folders),
    "dicom_seg": Kind("T1 crops, DICOM series with SEG", write_dicom_seg),
    "dicom_rtstruct": Kind("T1 crops, DICOM series with RTSTRUCT", write_dicom_rtstruct),
    "per_structure": Kind("CT of 3 mm, a mask for each structure (TotalSegmentator)", write_per_structure),
    "4d": Kind("T1 crops and inverted ones, 4D NIfTI", write_4d),
    "csv_list": Kind("T1 crops, a table of paths, two scans a patient", write_list),
    "zip": Kind("T1 crops with .seg.nrrd beside them, zipped", write_zip),
    "slices_2d": Kind("slices of T1 crops, 2D NIfTI", write_slices),
    "cine": Kind("films of one slice, 2D + time, 4D NIfTI", write_cine),
    "anisotropic": Kind("CT of 1.2 x 1.2 x 5 mm", write_anisotropic),
    "tiny": Kind("T1 crops with a synthetic spot of 30 voxels", write_tiny),
}
