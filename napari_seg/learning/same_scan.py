"""Tell whether a scan is one that a training set has already: as it is, changed, or in another orientation."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import permutations, product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from napari_seg.cohort.scan_files import scan_sha256
from napari_seg.errors import InputError, NapariSegError
from napari_seg.formats.endings import NIFTI_ENDINGS, ending_of
from napari_seg.learning.scans import scan_of
from napari_seg.learning.training_set import AcceptedCase, TrainingSet
from napari_seg.training.gather.referenced import ENDING, recall, value_digest, voxel_digest
from napari_seg.volume import Volume

_PATIENT = re.compile(r"(sub-[^_]+|(?:subj(?:ect)?|pat(?:ient)?)[-_]?\d+)", re.IGNORECASE)
"""Patient in the name of a file, as `segnets.data.patients` finds it."""

_DIRECTIONS = ("left to right", "front to back", "head to foot")


@dataclass(frozen=True)
class ScanIdentity:
    """Facts that a scan is known by.

    Attributes:
        scan: the scan.
        voxels: digest of its voxels, see `voxel_digest`.
        values: digest of their values in any order, see `value_digest`.
        who: digest of its patient in a training set, see `AcceptedCase.who`; "" if the patient is unknown.
        series: digest of its DICOM series in a training set, see `AcceptedCase.series`; "" if there is none.
        input_sha256: digest of its files, see `AcceptedCase.input_sha256`; "" if it has none.
    """

    scan: Volume
    voxels: str
    values: str
    who: str = ""
    series: str = ""
    input_sha256: str = ""

    @classmethod
    def of(cls, scan: Volume) -> ScanIdentity:
        """Return the identity of a scan.

        Raises:
            InputError: `file.unreadable`, its files can't be read any more.
        """
        files = scan.source.files
        try:  # a run has those of a series in the order of their paths
            input_sha256 = scan_sha256(sorted(files) if scan.source.format == "dicom" else files) if files else ""
        except OSError as error:  # the patient and the series would be unknown
            reason = error.strerror or type(error).__name__
            text = f"the files of this scan can't be read now ({reason}); expected them where they were when it was "
            text += "opened, because they tell the patient; connect their drive, or open the scan where it is now"
            raise InputError("file.unreadable", text) from None  # its path may hold a name
        return cls(scan, voxel_digest(scan), value_digest(scan), input_sha256=input_sha256)

    def in_set(self, content: TrainingSet, patient: str = "") -> ScanIdentity:
        """Return the identity with the digests of patient and series in a training set.

        Args:
            content: the training set.
            patient: identifier of the patient; "": as the files of the scan state it.

        Raises:
            InputError: `file.unreadable` and the like, a file of its series can't be read any more.
        """
        files, series = self.scan.source.files, ""
        if self.scan.source.format == "dicom" and files:
            from napari_seg.formats.dicom.series import patient_of, series_of, study_of

            patient = patient or patient_of(files[0]) or study_of(files[0])
            series = series_of(files[0])
        elif files and (found := _PATIENT.match(files[0].name.removesuffix(ending_of(files[0], NIFTI_ENDINGS)))):
            patient = patient or found[0]
        return replace(self, who=content.digest_of(patient), series=content.digest_of(series))

    @cached_property
    def files(self) -> frozenset[Path]:
        """Its files, links resolved."""
        return frozenset(file.resolve() for file in self.scan.source.files)

    def is_of(self, case: AcceptedCase) -> bool:
        """Return whether a case is of this scan, in any orientation, or with other voxels in the same DICOM files."""
        return case.scan == self.voxels or self.values == case.values or self.shares_series(case)

    def shares_files(self, case: AcceptedCase) -> bool:
        """Return whether a case is of a scan with the same files, such as another volume of one file."""
        return self.input_sha256 != "" and self.input_sha256 == case.input_sha256

    def shares_series(self, case: AcceptedCase) -> bool:
        """Return whether the scan has files of the DICOM series of a case, as this machine knows them.

        Another series, or one of another patient, that was exported to the same place has not.
        """
        stated = ((self.who, case.who), (self.series, case.series))
        if any(own and known and own != known for own, known in stated):
            return False
        known = recall(case.scan) if self.scan.source.format == "dicom" and case.image.endswith(ENDING) else None
        return known is not None and not self.files.isdisjoint(file.resolve() for file in known.files)


def case_of_scan(content: TrainingSet, folder: Path, identity: ScanIdentity) -> AcceptedCase | None:
    """Return the case of a scan; None if it was not accepted yet.

    It is known by its voxels, because it was read from the set, or because its DICOM series is that of a case that
    holds other voxels now.

    Args:
        content: the training set.
        folder: its folder.
        identity: the scan, see `ScanIdentity.in_set`.
    """
    of_voxels = (case for case in content.cases if case.scan == identity.voxels)
    own = (case for case in content.cases if _is_image_of(case, folder, identity))
    changed = (case for case in content.cases if identity.shares_series(case) and _holds_others(folder, case))
    return next(of_voxels, None) or next(own, None) or next(changed, None)


def has_changed(known: AcceptedCase, folder: Path, identity: ScanIdentity) -> bool:
    """Return whether a scan holds other voxels than when its case was accepted; see `case_of_scan`."""
    return known.scan != identity.voxels and not _is_image_of(known, folder, identity)


def refuse_mirrored(content: TrainingSet, folder: Path, identity: ScanIdentity) -> None:
    """Refuse a scan that the set has in another orientation: one of both lies wrongly in space.

    Args:
        content: the training set.
        folder: its folder.
        identity: a scan that has no case.

    Raises:
        InputError: `accept.mirrored`.
    """
    for case in content.cases:
        if case.values != identity.values:
            continue
        try:
            turn = _turn_between(_in_patient_axes(scan_of(folder, case)), _in_patient_axes(identity.scan))
        except NapariSegError:  # it can't be compared
            turn = "in another orientation"
        if turn:
            text = f"this scan has the voxels of {case.name}, {turn}; expected each scan once, and one of both is wrong"
            way = f"correct the orientation of this scan; or, if {case.name} is wrong, remove it (napari-seg accept"
            raise InputError("accept.mirrored", f"{text}; {way} --discard {case.name}) and accept this scan again")


def _is_image_of(case: AcceptedCase, folder: Path, identity: ScanIdentity) -> bool:
    """Return whether a scan was read from the image that the set has of a case."""
    return (folder / case.image).resolve() in identity.files


def _holds_others(folder: Path, case: AcceptedCase) -> bool:
    """Return whether a case can't be read any more; if it can, the scan is another volume of its series."""
    try:
        scan_of(folder, case)
    except InputError:
        return True
    return False


def _in_patient_axes(scan: Volume) -> NDArray:
    """Return the voxels of a scan, (C, I, J, K) in the order right, anterior, superior."""
    axes, flips = scan.grid.patient_axes()
    turned = scan.array.transpose(0, *(axis + 1 for axis in axes))
    return turned[:, *(slice(None, None, -1 if flip else 1) for flip in flips)]


def _turn_between(one: NDArray, other: NDArray) -> str:
    """Return in words how one array (C, I, J, K) is turned to become another one; "" if it is another scan."""
    for axes in permutations(range(3)):
        turned = one.transpose(0, *(axis + 1 for axis in axes))
        if turned.shape != other.shape:
            continue
        for flips in product((1, -1), repeat=3):
            if np.array_equal(turned[:, *(slice(None, None, flip) for flip in flips)], other):
                names = [name for name, flip in zip(_DIRECTIONS, flips, strict=True) if flip < 0]
                exchanged = ["with exchanged axes"] if axes != (0, 1, 2) else []
                return " and ".join([*exchanged, *([f"mirrored {' and '.join(names)}"] if names else [])])
    return ""
