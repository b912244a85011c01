"""Find the scans below a path, and list what lies there besides scans."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from napari_seg.errors import InputError
from napari_seg.formats.archive import left_out_of, shown, unpacked
from napari_seg.formats.endings import (
    ARCHIVE_ENDINGS,
    IMAGE2D_ENDINGS,
    ITK_ENDINGS,
    NIFTI_ENDINGS,
    PAIR_ENDINGS,
    SEG_NRRD_ENDINGS,
    ending_of,
    has_ending,
    may_be_dicom,
    nifti_ending,
    pair_ending,
)
from napari_seg.formats.scan import Scan
from napari_seg.formats.temporary import remove_leftovers
from napari_seg.formats.walk import LeftOut, file_type, files_below

_KNOWN_ENDINGS = (*NIFTI_ENDINGS, *PAIR_ENDINGS, *SEG_NRRD_ENDINGS, *ITK_ENDINGS, *ARCHIVE_ENDINGS, *IMAGE2D_ENDINGS)


@dataclass(frozen=True)
class Skipped:
    """Files among scans that are no scan.

    Attributes:
        files: the files.
        code: stable code of the reason: `skip.not_an_image`, `skip.not_intensities`, `skip.localizer`, ...
        message: reason in words.
    """

    files: tuple[Path, ...]
    code: str
    message: str


@dataclass(frozen=True)
class Found:
    """All files below a path, each once.

    Attributes:
        scans: scans in the order of their first files.
        skipped: everything else, in the order of the first files.
    """

    scans: tuple[Scan, ...]
    skipped: tuple[Skipped, ...]


def find_scans(path: str | os.PathLike[str]) -> list[Scan]:
    """Return every scan below a path, in the order of their first files; see `find`."""
    return list(find(path).scans)


def find(path: str | os.PathLike[str], ignore: Callable[[Path], bool] = lambda file: False) -> Found:
    """Return every scan below a path, and everything that is skipped.

    A folder is searched with all its subfolders, including links to folders; archives (zip, tar) count as folders.
    DICOM files in it are sorted into series, and each series is a scan; if the path is a DICOM file, the scan is that
    file alone. 2D images are scans only if nothing else is: among scans they are screenshots. Reports, plans,
    localizers and all other files that are no scan are skipped, as are hidden files, pipes and links without a target.
    A file with the name of a scan is one, even if it is damaged.

    Args:
        path: a file or a folder.
        ignore: returns true for a file in a folder that is neither a scan nor listed as skipped.

    Raises:
        InputError: `input.missing`, the path does not exist; `input.not_a_file`, it is a pipe or a device;
            `file.unreadable`, it is a folder that can't be opened.
    """
    remove_leftovers()
    path = Path(path)
    if not os.path.exists(path):
        raise InputError("input.missing", f"{path} does not exist; check the path")
    if file_type(path) == "special":
        raise InputError("input.not_a_file", f"{path} is a pipe, a socket or a device; expected a file or a folder")
    found, left_out = files_below(path, _is_named_as_scan) if path.is_dir() else ([path], [])
    files: list[Path] = []
    for file in found:
        if file == path or not ignore(file):
            parts, parts_left_out = _files_of(file)
            files += parts
            left_out += parts_left_out
    scans, skipped = _scans_among(files)
    skipped += [Skipped(*one) for one in left_out]
    order = {file: n for n, file in enumerate(sorted([*files, *(one.files[0] for one in skipped)], key=_order))}
    scans.sort(key=lambda scan: order[scan.files[0]])
    skipped.sort(key=lambda one: order[one.files[0]])
    return Found(tuple(scans), tuple(skipped))


def find_series_of(file: Path) -> Found:
    """Return the series that a DICOM file belongs to, with the files of this series in the same folder.

    Args:
        file: DICOM file; one that is no image is returned as skipped.
    """
    from napari_seg.formats.dicom.series import find_series

    nearby = (one for one in sorted(file.parent.iterdir()) if one.name[0] != "." and may_be_dicom(one))
    series, left_out = find_series([one for one in nearby if one.is_file()])
    return Found(
        tuple(Scan(one.name, "dicom", one.files) for one in series if file in one.files),
        tuple(Skipped((one,), code, message) for one, code, message in left_out if one == file),
    )


def _is_named_as_scan(path: Path) -> bool:
    """Return whether a file is a scan by its name alone, so that one that can't be opened is reported."""
    return has_ending(path, (*NIFTI_ENDINGS, *ITK_ENDINGS, ".dcm"))


def _order(path: Path) -> list[str]:
    """Return what files are sorted by: the path for messages; comparing its parts is quicker than comparing paths."""
    return os.path.normcase(shown(path.absolute())).split(os.sep)


def _files_of(file: Path) -> tuple[list[Path], list[LeftOut]]:
    """Return the unpacked files of an archive; any other file, or a damaged archive, as it is."""
    if not has_ending(file, ARCHIVE_ENDINGS):
        return [file], []
    try:
        files, others = files_below(unpacked(file), _is_named_as_scan)
        return files, [*left_out_of(file), *others]
    except InputError:  # the archive becomes a scan that raises this error again when it is read
        return [file], []


def _scans_among(files: Sequence[Path]) -> tuple[list[Scan], list[Skipped]]:
    """Return the scans and the skipped ones among files, by their names and, for other names, by their content."""
    scans: list[Scan] = []
    skipped: list[Skipped] = []
    images: list[Scan] = []
    pairs: dict[Path, list[Path]] = {}
    others: list[Path] = []
    for file in files:
        if not has_ending(file, _KNOWN_ENDINGS):
            others.append(file)
        elif ending := nifti_ending(file):
            scans.append(Scan(file.name[: -len(ending)], "nifti", (file,)))
        elif ending := pair_ending(file):
            pairs.setdefault(file.with_name(file.name[: -len(ending)]), []).append(file)
        elif has_ending(file, SEG_NRRD_ENDINGS):
            skipped.append(Skipped((file,), "skip.not_intensities", f"{file.name} is a segmentation"))
        elif ending := ending_of(file, ITK_ENDINGS):
            scans.append(Scan(file.name[: -len(ending)], "itk", (file,)))
        elif ending := ending_of(file, ARCHIVE_ENDINGS):
            scans.append(Scan(file.name[: -len(ending)], "archive", (file,)))
        elif ending := ending_of(file, IMAGE2D_ENDINGS):
            images.append(Scan(file.name[: -len(ending)], "image2d", (file,)))
        else:
            others.append(file)
    for found, left_out in (_pairs(pairs, scans), _by_content(others)):
        scans += found
        skipped += left_out
    if not scans:
        return images, skipped
    text = "is a 2D image among scans; give its own path to segment it"
    skipped += [Skipped(one.files, "skip.picture", f"{one.files[0].name} {text}") for one in images]
    return scans, skipped


def _pairs(pairs: dict[Path, list[Path]], scans: Sequence[Scan]) -> tuple[list[Scan], list[Skipped]]:
    """Return the pairs of .hdr and .img as scans; an .img without .hdr may hold the pixels of a MetaImage.

    Args:
        pairs: path without ending -> the one or two files.
        scans: the other scans.
    """
    if not pairs:
        return [], []
    from napari_seg.formats.itk import pixel_files

    headers = [scan.files[0] for scan in scans if scan.format == "itk"]
    header_of = {file.resolve(): header for header in headers for file in pixel_files(header)}
    found: list[Scan] = []
    skipped: list[Skipped] = []
    for stem, parts in pairs.items():
        if len(parts) == 1 and (header := header_of.get(parts[0].resolve())):
            text = f"{parts[0].name} holds the pixels of {header.name}"
            skipped.append(Skipped((parts[0],), "skip.not_an_image", text))
        else:
            header_first = sorted(parts, key=lambda part: "img" in pair_ending(part).lower())
            found.append(Scan(stem.name, "nifti", tuple(header_first)))
    return found, skipped


def _by_content(files: Sequence[Path]) -> tuple[list[Scan], list[Skipped]]:
    """Return the DICOM series, and the NIfTI files by their content, among files with other names."""
    if not files:
        return [], []
    from napari_seg.formats.dicom.series import find_series
    from napari_seg.formats.nifti import is_nifti

    unknown = {file for file in files if _is_of_unknown_format(file)}
    series, no_series = find_series(files, unknown)
    scans = [Scan(one.name, "dicom", one.files) for one in series]
    skipped: list[Skipped] = []
    for file, code, message in no_series:
        if code == "skip.not_an_image" and file not in unknown and is_nifti(file):
            scans.append(Scan(file.name, "nifti", (file,)))
        else:
            skipped.append(Skipped((file,), code, message))
    return scans, skipped


def _is_of_unknown_format(file: Path) -> bool:
    """Return whether a file is certainly neither DICOM nor NIfTI, by its name and its first bytes, read once."""
    try:
        with open(file, "rb", buffering=512) as stream:  # without a buffer, a read may return fewer bytes
            head = stream.read(352)
    except OSError:
        return False
    is_compressed, has_preamble = head[:2] == b"\x1f\x8b", head[128:132] == b"DICM"
    may_be_nifti = head[344:348] in (b"n+1\0", b"ni1\0") or head[4:8] in (b"n+2\0", b"ni2\0")
    # DICOM without a preamble begins with an element of group 2 or 8
    may_lack_preamble = head[:1] in (b"\2", b"\x08", b"\0")
    return not (is_compressed or has_preamble or may_be_nifti or may_lack_preamble or has_ending(file, (".dcm",)))
