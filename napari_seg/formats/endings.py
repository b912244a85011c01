"""File name endings of the formats."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

NIFTI_ENDINGS = (".nii.gz", ".nii")
PAIR_ENDINGS = (".hdr", ".hdr.gz", ".img", ".img.gz")
ITK_ENDINGS = (".nrrd", ".nhdr", ".mha", ".mhd")
SEG_NRRD_ENDINGS = (".seg.nrrd", ".seg.nhdr")
ARCHIVE_ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
IMAGE2D_ENDINGS = (".png", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg", ".gif")
SURFACE_ENDINGS = (".stl", ".obj")

_NOT_DICOM = (*NIFTI_ENDINGS, *PAIR_ENDINGS, *ITK_ENDINGS, *ARCHIVE_ENDINGS, *IMAGE2D_ENDINGS)


def ending_of(path: Path, endings: Sequence[str]) -> str:
    """Return the first of some endings that a file name has, as it is spelled there; "" if it has none of them."""
    name = path.name
    lower = name.lower()
    if not lower.endswith(tuple(endings)):  # most files of a large folder
        return ""
    return name[-next(len(ending) for ending in endings if lower.endswith(ending)) :]


def has_ending(path: Path, endings: Sequence[str]) -> bool:
    """Return whether a file name has one of some endings, in upper or lower case."""
    return bool(ending_of(path, endings))


def nifti_ending(path: Path) -> str:
    """Return the NIfTI ending of a file name, as it is spelled there; "" for any other file."""
    return ending_of(path, NIFTI_ENDINGS)


def pair_ending(path: Path) -> str:
    """Return the ending of a file name that is one of a pair (.hdr and .img); "" for any other file."""
    return ending_of(path, PAIR_ENDINGS)


def may_be_dicom(path: Path) -> bool:
    """Return whether a file name has no ending of another format: DICOM files may have any other name, or none."""
    return not has_ending(path, _NOT_DICOM)
