"""Pair DICOM series with the segmentations (SEG) and contours (RTSTRUCT) that refer to them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from napari_seg.errors import InputError
from napari_seg.formats.dicom.reference import References, instances_of, references_of
from napari_seg.formats.find import Found
from napari_seg.formats.label_maps import dicom_modality
from napari_seg.formats.scan import Scan
from napari_seg.training.gather.pair import Pair

Unpaired = list[tuple[Scan | Path, str]]


def dicom_pairs(found: Found) -> tuple[list[Pair], Unpaired]:
    """Return the series with a segmentation or contours, and the objects that refer to no series.

    An object belongs to the series that it refers to by UID; to one that it refers to by the UIDs of its images if it
    names no series; otherwise to the only series of its patient in its frame of reference. Pairs are named by numbers,
    `patient001_scan1`, in the order of the paths, because names of folders may be names of patients.

    Args:
        found: content of a folder.
    """
    objects = [file for one in found.skipped if one.code == "skip.not_intensities" for file in one.files]
    objects = [file for file in objects if dicom_modality(file) in ("SEG", "RTSTRUCT")]
    if not objects:
        return [], []
    scans: list[tuple[Scan, References]] = []
    for scan in found.scans:
        if scan.format == "dicom":
            try:
                scans.append((scan, references_of(scan.files[0])))
            except InputError:  # reading the scan would raise it again; without labels it is no case
                continue
    labels: dict[int, list[Path]] = {}
    unpaired: Unpaired = []
    for file in objects:
        try:
            own = references_of(file)
        except InputError as error:
            unpaired.append((file, error.code))
            continue
        fitting = _fitting(own, scans)
        if len(fitting) == 1:
            labels.setdefault(fitting[0], []).append(file)
        else:
            unpaired.append((file, "dataset.ambiguous" if fitting else "partner.no_image"))
    pairs = []
    patients: dict[str, int] = {}
    counts: dict[str, int] = {}
    for number in sorted(labels):
        scan, references = scans[number]
        patient = references.patient or references.study or f"series {number}"
        place = patients.setdefault(patient, len(patients) + 1)
        counts[patient] = counts.get(patient, 0) + 1
        name = f"patient{place:03d}_scan{counts[patient]}"
        pairs.append(Pair(name, (("", scan),), tuple(labels[number]), patient=patient))
    return pairs, unpaired


def _fitting(own: References, scans: Sequence[tuple[Scan, References]]) -> list[int]:
    """Return the numbers of the series that an object may have been made from."""
    fitting = [n for n, (_, references) in enumerate(scans) if own.series & (references.series - {""})]
    if len(fitting) == 1:
        return fitting
    if own.instances and (fitting or not own.series):
        among = fitting or range(len(scans))
        by_images = [n for n in among if own.instances & instances_of(scans[n][0].files)]
        if by_images:
            return by_images
    if fitting or own.series:
        return fitting
    return [
        n
        for n, (_, references) in enumerate(scans)
        if own.frames.keys() & references.frames.keys() and own.patient == references.patient
    ]
