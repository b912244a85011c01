"""Find the cases below files and folders: each scan once, each with a unique name and source."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from napari_seg.cohort.case import Case
from napari_seg.cohort.naming import is_result, named_cases
from napari_seg.errors import InputError
from napari_seg.formats.archive import shown
from napari_seg.formats.channel_sets import grouped
from napari_seg.formats.channels import ChannelSet
from napari_seg.formats.data_sets import without_label_maps
from napari_seg.formats.find import find
from napari_seg.formats.scan import Scan


def find_cases(
    inputs: Sequence[Path], channel_names: Sequence[str] = ()
) -> tuple[list[Case], list[tuple[Path, InputError]]]:
    """Return every scan below the inputs once, and the inputs that could not be searched.

    For a model with several channels, images that belong together are one case; see `formats.channel_sets`.

    Results of earlier runs are skipped. The name of a case consists of the folders between the input and the file, and
    the name of the file, so that it does not depend on other files. Exceptions:

    - Folders such as `images` or `imagesTr` are left out, so that results match the label maps of a data set.
    - A file that repeats the name of one of its folders (`sub-01/anat/sub-01_T1w`) is named without folders.
    - A DICOM series is named from its header; folders are added only if several series have the same name.
    - A file named after a modality alone (`T1`) is preceded by the name of its folder, even if it is itself the input.
    - A case of several images without a name of their own is named after their folder.

    Args:
        inputs: files and folders.
        channel_names: names of the model's channels.
    """
    scans: dict[tuple[Path, ...], Scan] = {}
    faults: list[tuple[Path, InputError]] = []
    searched: list[Path] = []
    for path in inputs:
        try:
            found = without_label_maps(find(path, ignore=is_result), path)
        except InputError as fault:
            faults.append((path, fault))
            continue
        searched.append(Path(os.path.abspath(path)))
        for scan in found.scans:
            # a link is a second name of a scan; `Path.resolve` fails on a link to itself
            scans.setdefault(tuple(shown(Path(os.path.realpath(file))) for file in scan.files), scan)
    return named_cases(grouped(list(scans.values()), channel_names), searched), faults


def case_of(scan: Scan | ChannelSet) -> Case:
    """Return the case of one scan, or of images that a user chose as channels; it has the name of the first file."""
    (case,) = named_cases([scan], [Path(os.path.abspath(shown(scan.files[0])))])
    return case
