"""Files to volumes and back: finds the scans below a path and reads them, each format in its own module.

A format is picked by what a file is, not by what it is called. The one exception: a file that calls itself
.nii, .nii.gz or .dcm is always a scan, so that a broken one is a failed case with a reason rather than a case
that quietly went missing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypedDict

from napari_seg.errors import InputError, printable
from napari_seg.formats.walk import LeftOut, files_below, kind_of
from napari_seg.volume import Volume

NIFTI_ENDINGS = (".nii.gz", ".nii")
PAIR_ENDINGS = (".hdr", ".hdr.gz", ".img", ".img.gz")
ITK_ENDINGS = (".nrrd", ".nhdr", ".mha", ".mhd")
SEGMENTATION_ENDINGS = (".seg.nrrd", ".seg.nhdr")
ARCHIVE_ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
PICTURE_ENDINGS = (".png", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg")


class Reading(TypedDict, total=False):
    """How a scan is read; see `Scan.read`."""

    volume: int | None
    resample_tilt: bool
    memory_bytes: int | None


@dataclass(frozen=True)
class Scan:
    """One scan on disk, found but not read.

    Attributes:
        name: what a person recognises it by, fit for a file name; never a patient's name or identifier that the
            headers hold. Two scans of one folder may share a name.
        format: "nifti" (with pairs of .hdr and .img), "itk" (NRRD and MetaImage), "picture", "dicom"; or "archive", one
            that can't be unpacked.
        files: what it is made of; one file, the header of a pair first, or those of a series.
    """

    name: str
    format: Literal["nifti", "itk", "picture", "dicom", "archive"]
    files: tuple[Path, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", printable(self.name))

    @property
    def source(self) -> str:
        """What a person would name: the file, or the folder of the series; in an archive, if they came from one."""
        from napari_seg.formats.archive import shown

        return printable(str(shown(self.files[0].parent if self.format == "dicom" else self.files[0])))

    def read(
        self,
        volume: int | None = None,
        *,
        resample_tilt: bool = False,
        channels: int | None = None,
        memory_bytes: int | None = None,
    ) -> Volume:
        """Read the scan's intensities on their grid, in a process of its own: what crashes or hangs costs this scan.

        Args:
            volume: which one, counted from 0, of a scan that holds several; None: there must be one.
            resample_tilt: shift the slices of a tilted gantry onto a straight grid; otherwise they are refused.
            channels: that are wanted of a picture: 1, in grey, or 3, in colours; None: as many as it has.
            memory_bytes: what this process and the reading may hold together; None: a safe share of the free memory.

        Raises:
            InputError: it can't be read, or is not a regular volume.
            EnvironmentFault: `environment.memory`, its header claims more than fits.
        """
        from napari_seg.formats.decoders import Read, read_apart

        read: Read[Volume]
        if self.format == "nifti":
            from napari_seg.formats.nifti import read_nifti_files

            read = partial(read_nifti_files, volume=volume)
        elif self.format == "itk":
            from napari_seg.formats.itk import read_itk

            read = read_itk
        elif self.format == "picture":
            from napari_seg.formats.image2d import read_one_picture

            read = partial(read_one_picture, channels=channels)
        elif self.format == "dicom":
            from napari_seg.formats.dicom.read import series_reader

            read = series_reader(self.files, volume, resample_tilt=resample_tilt, name=self.name)
        else:
            from napari_seg.formats.archive import unpacked

            unpacked(self.files[0])  # raises again what is wrong with it
            text = f"{self.files[0].name} lies in an archive itself; unpack it first"
            raise InputError("archive.nested", text)
        return read_apart(read, self.files, memory_bytes=memory_bytes, name=self.name if self.format == "dicom" else "")


@dataclass(frozen=True)
class Skipped:
    """What lies among scans and is none.

    Attributes:
        files: what it is made of.
        code: why, stable: `skip.not_an_image`, `skip.not_intensities`, `skip.localizer`, `skip.no_geometry`, ...
        message: for a person.
    """

    files: tuple[Path, ...]
    code: str
    message: str


@dataclass(frozen=True)
class Found:
    """All that lies below a path, each file once.

    Attributes:
        scans: in the order of their first files.
        skipped: in the order of their first files.
    """

    scans: tuple[Scan, ...]
    skipped: tuple[Skipped, ...]


def find_scans(path: str | os.PathLike[str]) -> list[Scan]:
    """Every scan below a path, in the order of their first files; empty if there is none; see `find`."""
    return list(find(path).scans)


def find(path: str | os.PathLike[str], passing_over: Callable[[Path], bool] = lambda file: False) -> Found:
    """Every scan below a path, and what else lies there.

    A folder is walked with all its subfolders, links to folders too; archives (zip, tar) count as folders. The DICOM
    files below it are sorted into series, each a scan of its own; a single DICOM file is a scan of that file alone.
    Pictures are scans where nothing else is: among scans they are screenshots. Reports, plans, localizers and whatever
    else is no scan are skipped, as are hidden files, pipes and links that lead nowhere. What calls itself a scan is
    one, however broken.

    Args:
        path: a file or a folder.
        passing_over: says of which files in a folder nothing is to be known.

    Raises:
        InputError: `input.missing`, the path does not exist; `input.not_a_file`, it is a pipe or a device;
            `file.unreadable`, it is a folder that can't be opened.
    """
    from napari_seg.formats.temporary import remove_leftovers

    remove_leftovers()
    path = Path(path)
    if not os.path.exists(path):
        raise InputError("input.missing", f"{path} does not exist; check the path")
    if kind_of(path) == "special":
        raise InputError("input.not_a_file", f"{path} is a pipe, a socket or a device; expected a file or a folder")
    found, left_out = files_below(path, _is_scan) if path.is_dir() else ([path], [])
    files: list[Path] = []
    for file in found:
        if file == path or not passing_over(file):
            parts, parts_left_out = _parts_of(file)
            files += parts
            left_out += parts_left_out
    scans: list[Scan] = []
    skipped: list[Skipped] = []
    skipped += [Skipped(*one) for one in left_out]
    order = {file: n for n, file in enumerate(sorted([*files, *(one.files[0] for one in skipped)], key=_shown_order))}
    others: list[Path] = []
    pictures: list[Scan] = []
    pairs: dict[Path, list[Path]] = {}
    for file in files:
        if ending := nifti_ending(file):
            scans.append(Scan(file.name[: -len(ending)], "nifti", (file,)))
        elif ending := pair_ending(file):
            pairs.setdefault(file.with_name(file.name[: -len(ending)]), []).append(file)
        elif has_ending(file, SEGMENTATION_ENDINGS):
            skipped.append(Skipped((file,), "skip.not_intensities", f"{file.name} is a segmentation"))
        elif ending := _ending(file, ITK_ENDINGS):
            scans.append(Scan(file.name[: -len(ending)], "itk", (file,)))
        elif ending := _ending(file, ARCHIVE_ENDINGS):
            scans.append(Scan(file.name[: -len(ending)], "archive", (file,)))
        elif ending := _ending(file, PICTURE_ENDINGS):
            pictures.append(Scan(file.name[: -len(ending)], "picture", (file,)))
        else:
            others.append(file)
    pixels: dict[Path, Path] = {}
    if pairs:  # a MetaImage may call its pixels .img too
        from napari_seg.formats.itk import pixel_files

        headers = [scan.files[0] for scan in scans if scan.format == "itk"]
        pixels = {file: header for header in headers for file in pixel_files(header)}
    for stem, parts in pairs.items():
        if len(parts) == 1 and (header := pixels.get(parts[0].resolve())):
            text = f"{parts[0].name} holds the pixels of {header.name}"
            skipped.append(Skipped((parts[0],), "skip.not_an_image", text))
            continue
        header_first = sorted(parts, key=lambda part: "img" in pair_ending(part).lower())
        scans.append(Scan(stem.name, "nifti", tuple(header_first)))
    if others:
        from napari_seg.formats.dicom.series import find_series
        from napari_seg.formats.nifti import is_nifti

        series, no_series = find_series(others)
        scans += [Scan(one.name, "dicom", one.files) for one in series]
        for file, code, message in no_series:
            if code == "skip.not_an_image" and is_nifti(file):
                scans.append(Scan(file.name, "nifti", (file,)))
            else:
                skipped.append(Skipped((file,), code, message))
    if not scans:
        scans = pictures
    else:
        text = "is a picture among scans; name it alone to segment it"
        skipped += [Skipped(one.files, "skip.picture", f"{one.files[0].name} {text}") for one in pictures]
    scans.sort(key=lambda scan: order[scan.files[0]])
    skipped.sort(key=lambda one: order[one.files[0]])
    return Found(tuple(scans), tuple(skipped))


def find_series_of(file: Path) -> Found:
    """Return the series of which a DICOM file is a slice, with the files of it that lie in the same folder.

    Args:
        file: a DICOM file; one that is no image gives what was skipped, as `find` does.
    """
    from napari_seg.formats.dicom.series import find_series

    nearby = (one for one in sorted(file.parent.iterdir()) if one.name[0] != "." and may_be_dicom(one))
    series, left_out = find_series([one for one in nearby if one.is_file()])
    return Found(
        tuple(Scan(one.name, "dicom", one.files) for one in series if file in one.files),
        tuple(Skipped((one,), code, message) for one, code, message in left_out if one == file),
    )


def _is_scan(path: Path) -> bool:
    """Whether a file is a scan by its name, so that one which can't be opened is missed."""
    return has_ending(path, (*NIFTI_ENDINGS, *ITK_ENDINGS, ".dcm"))


def _shown_order(path: Path) -> Path:
    from napari_seg.formats.archive import shown

    return shown(path.absolute())


def _parts_of(file: Path) -> tuple[list[Path], list[LeftOut]]:
    """The files of an archive; of any other, and of an archive that can't be unpacked, the file itself."""
    if not has_ending(file, ARCHIVE_ENDINGS):
        return [file], []
    from napari_seg.formats.archive import left_out, unpacked

    try:
        files, others = files_below(unpacked(file), _is_scan)
        return files, [*left_out(file), *others]
    except InputError:  # it is a scan then, so that reading it says why
        return [file], []


def read(path: str | os.PathLike[str]) -> Volume:
    """The one scan that lies below a path.

    Raises:
        InputError: `input.none` or `input.several_scans`; or what `Scan.read` raises.
    """
    scans = find_scans(path)
    if not scans:
        raise InputError("input.none", f"found no scan in {path}; expected NIfTI, NRRD, MetaImage, DICOM or pictures")
    if len(scans) > 1:
        names = ", ".join(scan.name for scan in scans[:10]) + (", ..." if len(scans) > 10 else "")
        raise InputError("input.several_scans", f"found {len(scans)} scans in {path} ({names}); name the one to read")
    return scans[0].read()


def nifti_ending(path: Path) -> str:
    """The part of a file name, as it is spelled there, that calls it NIfTI; "" where none does."""
    return _ending(path, NIFTI_ENDINGS)


def pair_ending(path: Path) -> str:
    """The part of a file name that calls it one of a pair, header and voxels apart; "" where none does."""
    return _ending(path, PAIR_ENDINGS)


def may_be_dicom(path: Path) -> bool:
    """Return whether a file name has no ending of another format: DICOM files may have any other name, or none."""
    return not has_ending(path, (*NIFTI_ENDINGS, *PAIR_ENDINGS, *ITK_ENDINGS, *ARCHIVE_ENDINGS, *PICTURE_ENDINGS))


def has_ending(path: Path, endings: Sequence[str]) -> bool:
    """Whether a file name ends in one of some endings, in capitals or not."""
    return bool(_ending(path, endings))


def _ending(path: Path, endings: Sequence[str]) -> str:
    ending = next((e for e in endings if path.name.lower().endswith(e)), "")
    return path.name[len(path.name) - len(ending) :] if ending else ""
