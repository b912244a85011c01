"""Find the label maps below a folder."""

from __future__ import annotations

from pathlib import Path

from napari_seg.cohort.naming import is_certainty_map, is_result
from napari_seg.formats.endings import NIFTI_ENDINGS, SEG_NRRD_ENDINGS, has_ending, nifti_ending
from napari_seg.formats.walk import files_below


def label_maps_below(folder: Path, output: Path | None = None, *, with_others: bool = False) -> list[Path]:
    """Return the label maps below a folder: the results of this program, or else all files of a format for labels.

    Args:
        folder: folder to search.
        output: folder whose files are left out, if it lies below; None: there is no such folder.
        with_others: return all files of a format for labels, those next to results too.
    """
    files, _ = files_below(folder, lambda path: has_ending(path, NIFTI_ENDINGS))
    outside = output.resolve() if output is not None and output.resolve() != folder.resolve() else None
    candidates = [
        file
        for file in files
        if has_ending(file, (*NIFTI_ENDINGS, *SEG_NRRD_ENDINGS)) and outside not in file.resolve().parents
    ]
    results = [file for file in candidates if nifti_ending(file) and is_result(file)] if not with_others else []
    return [file for file in results or candidates if not is_certainty_map(file)]
