"""Make a case of every frame of time series, pages of 2D images and volumes of 4D files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from napari_seg.errors import InputError
from napari_seg.formats.endings import has_ending, nifti_ending
from napari_seg.formats.image2d import count_pages, is_image2d
from napari_seg.formats.scan import Scan
from napari_seg.training.gather.pair import Pair

_FILM = re.compile(r"4d|cine|film|movie|time|dynamic|frame|bold|perfusion", re.IGNORECASE)
"""Words in names of files with a volume for each moment."""

Fault = tuple[str, str, str]
"""Code, name of the case, and text."""


def in_frames(pairs: Sequence[Pair]) -> tuple[list[Pair], list[Fault]]:
    """Return pairs with those of several frames replaced by one pair per frame, of one patient together.

    Args:
        pairs: pairs of whole files.

    Returns:
        The pairs, and the faults of pairs whose label map has another number of frames than the image, or may hold a
        mask of a structure in each volume.
    """
    found: list[Pair] = []
    faults: list[Fault] = []
    for pair in pairs:
        if pair.is_stack:
            found.append(pair)
            continue
        counts = [count_frames(label) for label in pair.labels]
        of_image = [count_frames(scan.files[0]) for _, scan in pair.images]
        if max(counts) == 1 and not (is_image2d(pair.labels[0]) and max(of_image) > 1):
            found.append(pair)
        elif len(counts) == len(of_image) == 1 and counts == of_image and not _is_film(pair):
            text = f"the label map has {counts[0]} volumes of 0 and 1: masks of structures, or one of each moment"
            faults.append(
                (
                    "labels.volumes",
                    pair.name,
                    f"{text}; save the masks as one label map, or state the time in the header",
                )
            )
        elif len(counts) == len(of_image) == 1 and counts == of_image:
            width = max(2, len(str(counts[0])))
            found += [replace(pair, name=f"{pair.name}_frame{n + 1:0{width}d}", frame=n) for n in range(counts[0])]
        else:
            frames, of_labels = (" and ".join(map(str, numbers)) for numbers in (of_image, counts))
            if len(counts) == len(of_image) == 1:
                text = f"the label map has {of_labels} frames, the image {frames}; expected as many; export one again, "
                text += "or give --option soft if the volumes are fractions of structures"
            else:
                have = (
                    f"it has {len(of_image)} images with {frames} frames, and {len(counts)} label maps with {of_labels}"
                )
                text = f"{have}; expected one of both in a time series; combine them, or leave the others out"
            faults.append(("partner.frames", pair.name, text))
    return found, faults


def _is_film(pair: Pair) -> bool:
    """Return whether several volumes of a label map are moments: so say header, names or values above 1."""
    label, image = pair.labels[0], pair.images[0][1].files[0]
    if not nifti_ending(label):
        return True
    from napari_seg.formats.nifti import has_times

    if any(has_times(file) or _FILM.search(file.name) for file in (image, label)):
        return True
    try:
        scan = Scan(label.name, "nifti", (label,))
        return any(scan.read(n, one_slice=True).array.max() > 1 for n in range(count_frames(label)))
    except InputError:  # reading it as a case reports the error
        return True


def count_frames(file: Path) -> int:
    """Return the number of volumes of a NIfTI file or of pages of a 2D image; 1 for any other or a damaged file."""
    if nifti_ending(file):
        from napari_seg.formats.nifti import count_volumes

        return count_volumes(file)
    try:
        return count_pages(file) if is_image2d(file) else 1
    except InputError:
        return 1


def as_stacks(pairs: Sequence[Pair]) -> list[Pair]:
    """Return pairs in which the pages of multi-page TIFF files are slices of a volume."""
    return [replace(pair, is_stack=_is_stack(pair)) for pair in pairs]


def _is_stack(pair: Pair) -> bool:
    files = [*(scan.files[0] for _, scan in pair.images), *pair.labels]
    return len(files) == 2 and all(has_ending(file, (".tif", ".tiff")) and count_frames(file) > 1 for file in files)
