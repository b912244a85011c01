"""Scans that were found on disk, and how to read one.

A format is recognised by the content of a file, not by its name. The one exception: a file named .nii, .nii.gz or .dcm
is always a scan, so that a damaged one is reported as a failed case instead of being skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, TypedDict

from napari_seg.errors import InputError, printable
from napari_seg.formats.archive import shown, unpacked
from napari_seg.formats.in_worker import read_in_worker
from napari_seg.volume import Volume


class ReadOptions(TypedDict, total=False):
    """Options of `Scan.read` that do not depend on the model."""

    volume: int | None
    resample_tilt: bool
    one_slice: bool
    memory_bytes: int | None


ScanFormat = Literal["nifti", "itk", "image2d", "dicom", "archive"]
"""Format of a scan that was found; see `Scan.format`."""


@dataclass(frozen=True)
class Scan:
    """A scan on disk that was found and not yet read.

    Attributes:
        name: name for people and for files of results; never a patient's name or identifier from the headers. Two scans
            of one folder may have the same name.
        format: "nifti" (pairs of .hdr and .img, too), "itk" (NRRD and MetaImage), "image2d" (PNG, TIFF, ...), "dicom",
            or "archive" for an archive that can't be unpacked.
        files: files of the scan: one file, a pair with its header first, or the files of a series.
    """

    name: str
    format: ScanFormat
    files: tuple[Path, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", printable(self.name))

    @property
    def source(self) -> str:
        """Path for messages: the file, or the folder of a series; for an unpacked file, its path in the archive."""
        return printable(str(shown(self.files[0].parent if self.format == "dicom" else self.files[0])))

    def read(
        self,
        volume: int | None = None,
        *,
        resample_tilt: bool = False,
        channels: int | None = None,
        one_slice: bool = False,
        memory_bytes: int | None = None,
    ) -> Volume:
        """Read the intensities and their grid, in a worker process: a crash or a hang affects this scan only.

        Args:
            volume: number of the volume, counted from 0, for a scan that holds several, or of the page of a 2D image;
                None if it must hold one.
            resample_tilt: shift the slices of a tilted gantry onto a straight grid instead of refusing them.
            channels: channels that are required. A 2D image is read in grey (1) or RGB (3), None for as many as it has;
                the volumes of a 4D NIfTI file are its channels if there are so many.
            one_slice: accept a volume of one slice, as a network of 2D images takes it.
            memory_bytes: limit for this process and the reader together; None for a safe fraction of the free memory.

        Raises:
            InputError: the scan can't be read, or is not a regular volume.
            EnvironmentFault: `environment.memory`, the size in its header does not fit in memory.
        """
        read: Callable[[Sequence[Path]], Volume]
        if self.format == "nifti":
            from napari_seg.formats.nifti import read_nifti_files

            read = partial(read_nifti_files, volume=volume, channels=channels or 1, one_slice=one_slice)
        elif self.format == "itk":
            from napari_seg.formats.itk import read_itk

            read = partial(read_itk, one_slice=one_slice)
        elif self.format == "image2d":
            from napari_seg.formats.image2d import read_image2d_files

            read = partial(read_image2d_files, channels=channels, page=volume)
        elif self.format == "dicom":
            from napari_seg.formats.dicom.read import series_reader

            read = series_reader(self.files, volume, resample_tilt=resample_tilt, one_slice=one_slice, name=self.name)
        else:
            unpacked(self.files[0])  # raises the reason again
            text = f"{self.files[0].name} lies inside another archive; unpack the outer archive first"
            raise InputError("archive.nested", text)
        name = self.name if self.format == "dicom" else ""
        found = read_in_worker(read, self.files, memory_bytes=memory_bytes, name=name)
        return replace(found, source=replace(found.source, volume=volume))
