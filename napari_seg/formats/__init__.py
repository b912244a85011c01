"""Files to volumes and back: finds the scans below a path and reads them, each format in its own module.

A format is picked by what a file is, not by what it is called. The one exception: a file that calls itself
.nii, .nii.gz or .dcm is always a scan, so that a broken one is a failed case with a reason rather than a case
that quietly went missing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from napari_seg.errors import InputError
from napari_seg.volume import Volume

NIFTI_ENDINGS = (".nii.gz", ".nii")


@dataclass(frozen=True)
class Scan:
    """One scan on disk, found but not read.

    Attributes:
        name: what a person recognises it by, fit for a file name; never a patient's name or identifier that the
            headers hold. Two scans of one folder may share a name.
        format: "nifti" or "dicom".
        files: what it is made of; one file for NIfTI.
    """

    name: str
    format: Literal["nifti", "dicom"]
    files: tuple[Path, ...]

    def read(self) -> Volume:
        """The scan's intensities on their grid.

        Raises:
            InputError: it can't be read, or is not a regular volume.
        """
        if self.format == "nifti":
            from napari_seg.formats.nifti import read_nifti

            return read_nifti(self.files[0])
        from napari_seg.formats.dicom import read_series

        return read_series(self.files)


def find_scans(path: str | os.PathLike[str]) -> list[Scan]:
    """Every scan below a path, in the order of their first files; empty if there is none.

    A folder is walked with all its subfolders, hidden ones left out. The DICOM files below it are sorted into
    series, each a scan of its own; a single DICOM file is a scan of that file alone. Reports, plans,
    localizers and whatever else is no scan are passed over.

    Raises:
        InputError: `input.missing`, the path does not exist; `file.unreadable`, a folder may not be opened.
    """
    path = Path(path)
    if not path.exists():
        raise InputError("input.missing", f"{path} does not exist; check the path")
    files = sorted(_files_below(path)) if path.is_dir() else [path]
    order = {file: n for n, file in enumerate(files)}
    scans = []
    others = []
    for file in files:
        ending = nifti_ending(file)
        if ending:
            scans.append(Scan(file.name[: -len(ending)], "nifti", (file,)))
        else:
            others.append(file)
    if others:
        from napari_seg.formats.dicom import find_series

        scans += [Scan(series.name, "dicom", series.files) for series in find_series(others)]
    return sorted(scans, key=lambda scan: order[scan.files[0]])


def read(path: str | os.PathLike[str]) -> Volume:
    """The one scan that lies below a path.

    Raises:
        InputError: `input.none` or `input.several_scans`; or what `Scan.read` raises.
    """
    scans = find_scans(path)
    if not scans:
        raise InputError("input.none", f"found no NIfTI file and no DICOM series in {path}; expected one scan")
    if len(scans) > 1:
        names = ", ".join(scan.name for scan in scans[:10]) + (", ..." if len(scans) > 10 else "")
        raise InputError("input.several_scans", f"found {len(scans)} scans in {path} ({names}); name the one to read")
    return scans[0].read()


def nifti_ending(path: Path) -> str:
    """The part of a file name, as it is spelled there, that calls it NIfTI; "" where none does."""
    ending = next((e for e in NIFTI_ENDINGS if path.name.lower().endswith(e)), "")
    return path.name[len(path.name) - len(ending) :] if ending else ""


def _files_below(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise InputError("file.unreadable", f"the folder {error.filename} can't be opened: {error.strerror}")

    for parent, folders, names in os.walk(folder, onerror=refuse):
        # Hidden: .DS_Store, ._T1.nii.gz that macOS leaves beside T1.nii.gz, the copies that lie in .git/annex.
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            file = Path(parent, name)
            # A pipe would block whoever opens it; a link that leads nowhere counts only if it says it is a scan.
            if not name.startswith(".") and (file.is_file() or nifti_ending(file)):
                yield file
