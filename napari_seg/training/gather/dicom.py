"""Pair DICOM series with the segmentations (SEG) and contours (RTSTRUCT) that refer to them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from napari_seg.errors import InputError
from napari_seg.formats.channel_names import channels_in
from napari_seg.formats.dicom.reference import References, instances_of, references_of
from napari_seg.formats.dicom.series import words_of_series
from napari_seg.formats.find import Found
from napari_seg.formats.label_maps import dicom_modality
from napari_seg.formats.scan import Scan
from napari_seg.training.gather.pair import Pair

Unpaired = list[tuple[Scan | Path, str]]


def dicom_pairs(found: Found, channels: Sequence[str] | None = None) -> tuple[list[Pair], Unpaired]:
    """Return the series with a segmentation or contours, and the objects that refer to no series.

    An object belongs to the series that it refers to by UID; to one that it refers to by the UIDs of its images if it
    names no series; otherwise to the only series of its patient in its frame of reference. Pairs are named by numbers,
    `patient001_scan1`, in the order of the paths, because names of folders may be names of patients.

    Args:
        found: content of a folder.
        channels: words in the descriptions of the series that form the channels of a case, such as T1w and FLAIR: of
            those of the patient and frame of reference of the series that the object belongs to. None: that one alone.
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
    cases: dict[tuple[tuple[str, Scan], ...], tuple[int, list[Path]]] = {}
    for number in sorted(labels):
        scan, _ = scans[number]
        images: tuple[tuple[str, Scan], ...] = (("", scan),)
        if channels:
            found_images, code = _channels(number, scans, channels)
            if code:
                unpaired.append((scan, code))
                continue
            images = found_images
        cases.setdefault(images, (number, []))[1].extend(labels[number])
    pairs = []
    patients: dict[str, int] = {}
    counts: dict[str, int] = {}
    for images, (number, files) in cases.items():
        scan, references = scans[number]
        patient = references.patient or references.study or f"series {number}"
        place = patients.setdefault(patient, len(patients) + 1)
        counts[patient] = counts.get(patient, 0) + 1
        name = f"patient{place:03d}_scan{counts[patient]}"
        drawn_on = next((n for n, (_, image) in enumerate(images) if image == scan), 0)
        pairs.append(Pair(name, images, tuple(files), patient=patient, drawn_on=drawn_on))
    return pairs, unpaired


def _channels(
    number: int, scans: Sequence[tuple[Scan, References]], channels: Sequence[str]
) -> tuple[tuple[tuple[str, Scan], ...], str]:
    """Return the channels of the case of a series, with an empty code, or no channels and the code of the reason.

    Args:
        number: number of the series that was segmented.
        scans: all series.
        channels: names of the channels.
    """
    own = scans[number][1]
    candidates: dict[str, list[Scan]] = {name: [] for name in channels}
    for scan, references in scans:
        if references.patient == own.patient and references.frames.keys() & own.frames.keys():
            words = words_of_series(scan.files[0])
            meant = (channels_in(text, channels, has_contrast=words.has_contrast) for text in words.texts)
            fits = next(filter(None, meant), [])
            if len(fits) == 1:
                candidates[fits[0]].append(scan)
    if not all(candidates.values()):
        return (), "channels.missing"
    images = tuple((name, found[0]) for name, found in candidates.items())
    if max(map(len, candidates.values())) > 1:
        return (), "channels.ambiguous"
    return images, ""


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
