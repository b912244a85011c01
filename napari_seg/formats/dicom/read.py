"""Read a DICOM series as a volume."""

from __future__ import annotations

import filecmp
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import repeat
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from napari_seg.errors import InputError, Notice
from napari_seg.formats.dicom.frames import RESCALING, Frame, frames_of
from napari_seg.formats.dicom.geometry import arrange, source_of
from napari_seg.formats.dicom.headers import Header, read_header
from napari_seg.formats.dicom.pixels import check_whole, read_pixels, stated_bytes
from napari_seg.formats.dicom.private_words import public_name
from napari_seg.formats.dicom.series import series_name
from napari_seg.volume import SolvedStack, Source, Volume

FEW_SLICES = 4


def series_reader(
    files: Sequence[Path],
    volume: int | None = None,
    *,
    resample_tilt: bool = False,
    one_slice: bool = False,
    name: str = "",
) -> Callable[[Sequence[Path]], Volume]:
    """Return a function that reads a series, in any process, with the headers that this process knows already.

    Args:
        files: files of the series.
        volume: see `read_series`.
        resample_tilt: see `read_series`.
        one_slice: see `read_series`.
        name: see `read_series`.

    Raises:
        InputError: `file.*`, a header can't be read.
    """
    headers = read_headers(files, name)
    return partial(
        read_series, volume=volume, resample_tilt=resample_tilt, one_slice=one_slice, name=name, headers=headers
    )


def read_series(
    files: Sequence[Path],
    volume: int | None = None,
    *,
    resample_tilt: bool = False,
    one_slice: bool = False,
    name: str = "",
    headers: Sequence[Header] = (),
) -> Volume:
    """Read the volume that the files of one series hold, in any order.

    The array is (1, I, J, K) over columns, rows and slices, rescaled by the slope and intercept of each slice. It
    keeps its integer type if the slopes are 1 and the values fit (CT fits int16); otherwise it becomes float32.

    Args:
        files: files of the series.
        volume: number of the volume, counted from 0, in a series that holds several at the same positions (see
            `volumes`) or of several kinds; None if there must be one.
        resample_tilt: shift the slices of a tilted gantry onto a straight grid, in float32 (see `tilt`).
        one_slice: accept a single slice, with the thickness that it states.
        name: name of the scan; "" to take it from the first header.
        headers: headers of the files, in the same order; empty to read them.

    Raises:
        InputError: `file.*`, a file is damaged; `series.*`, its images do not belong in one volume or are not grey;
            `geometry.*`, they do not lie on a regular grid.
    """
    if headers:
        headers = [replace(header, path=Path(file)) for header, file in zip(headers, files, strict=True)]
    else:
        headers = read_headers(files, name)
    first = headers[0].tags
    name = name or series_name(first)
    for header in headers:
        _check_scalar(header, name)
        check_whole(header)
    every, unread = frames_among(headers)
    frames, stack = arrange(every, name, volume, tilted=resample_tilt, one_slice=one_slice)
    _check_rescaling(frames, name)
    slices = read_pixels(frames, name)
    notices = _notices(headers, len(frames), name)
    if len(types := sorted({"/".join(frame.image_type) for frame in frames})) > 1:
        text = (
            f"slices of {name} are marked as {' and as '.join(types)}; they form one stack and were read as one volume"
        )
        notices = (*notices, Notice("series.mixed_image_type", text))
    if unread:
        folder = public_name(unread[0].path.parent.name, unread[0].tags) or "a folder"
        text = (
            f"{len(unread)} copies of slices of {name}, such as one in {folder}, are compressed in a way that can't be"
        )
        notices = (*notices, Notice("series.transfer_syntax", f"{text} read here; the other copies were read"))
    if any(str(header.tags.get("BurnedInAnnotation")).strip().upper() == "YES" for header in headers):
        text = f"{name} states that text is burned into its images, which may name the patient"
        notices = (
            *notices,
            Notice("series.burned_in_text", f"{text}; look at previews and reports before you share them"),
        )
    if first.get("Modality") == "CT" and "RescaleIntercept" in frames[0].assumed and slices.min() >= 0:
        text = f"{name} is CT and states no RescaleIntercept, and no value is below 0: air should have -1000 HU"
        notices = (*notices, Notice("series.no_intercept", f"{text}; the stored values were kept"))
    if stack.is_tilted:
        from napari_seg.formats.dicom.tilt import straightened

        slices = straightened(slices, stack)
        text = f"the gantry of {name} was tilted; its slices were shifted onto a straight grid"
        notices = (*notices, Notice("geometry.tilt_resampled", text))
    return Volume(
        slices.transpose(2, 1, 0)[None],
        stack.grid,
        name=name,
        modality=str(first.get("Modality") or ""),
        source=source_of(frames, stack),
        notices=notices,
    )


def solve_source(source: Source) -> tuple[tuple[Path, ...], SolvedStack]:
    """Return the files and the solved stack of a DICOM source; reads the headers if only its files are known.

    Args:
        source: DICOM files, of which the frames of the volume may be known; otherwise all frames count.

    Raises:
        InputError: `file.*`, `series.*` or `geometry.*`: they do not fill a grid.
    """
    if source.stack is not None and source.stack.solved is not None:
        return source.files, source.stack.solved
    headers = read_headers(source.files)
    known = source.stack.frames if source.stack is not None else ()
    frames, stack = arrange(frames_among(headers, known)[0], series_name(headers[0].tags), tilted=True, one_slice=True)
    return source_of(frames, stack).files, stack


def read_headers(files: Sequence[Path], name: str = "") -> list[Header]:
    """Read the headers of the files of one series.

    Args:
        files: files of the series.
        name: name of the series, for messages about files that can't be read; "": names of the files.

    Raises:
        InputError: as of `read_header`.
    """
    own = name if len(files) == 1 else name and f"a file of {name}"
    return [read_header(Path(path), own) for path in files]


def frames_among(headers: Sequence[Header], frames: Sequence[Sequence[int]] = ()) -> tuple[list[Frame], list[Header]]:
    """Return the frames of files, copies of one instance once, and the files whose copies can't be decoded.

    Args:
        headers: headers of the files.
        frames: for each file, the frames that count; empty for all.

    Raises:
        InputError: `series.two_versions`, frames with the same identifiers have other pixels.
    """
    found: dict[tuple, Frame] = {}
    unread: list[Header] = []
    for header, own in zip(headers, frames or repeat(None), strict=False):
        copies = []
        for frame in frames_of(header):
            if own is None or frame.index in own:
                first = found.setdefault(frame.identity, frame)
                if first is not frame:
                    copies.append((first, frame))
        if copies and (left_out := _check_copies(copies)) is not None:
            unread.append(left_out)
            if left_out is not header:
                found.update((frame.identity, frame) for _, frame in copies)
    return list(found.values()), unread


def _check_copies(copies: Sequence[tuple[Frame, Frame]]) -> Header | None:
    """Refuse frames of a file that have the identifiers, but not the pixels, of frames before.

    Returns:
        The file that can't be decoded, so that its pixels can't be compared; None if there is none.
    """
    one, other = (frame.header for frame in copies[0])
    if filecmp.cmp(one.path, other.path, shallow=False):
        return None
    first, second = (_pixels_if_decoded(frames) for frames in zip(*copies, strict=True))
    if first is None or second is None:
        return other if second is None else one
    if not np.array_equal(first, second):
        folders = [public_name(header.path.parent.name, header.tags) or "a folder" for header in (one, other)]
        text = (
            f"{one.label} in {folders[0]} and {other.label} in {folders[1]} have the same identifiers and other pixels"
        )
        text = f"{text}, so these are two versions of one series; give the folder or the files of one of them"
        raise InputError("series.two_versions", text)
    return None


def _pixels_if_decoded(frames: Sequence[Frame]) -> NDArray | None:
    """Return the pixels of frames; None if there is no decoder for their transfer syntax."""
    try:
        return read_pixels(frames, frames[0].label)
    except InputError as error:
        if error.code != "series.transfer_syntax":
            raise
        return None


def _check_scalar(header: Header, name: str) -> None:
    """Refuse colours and lookup tables."""
    label, tags = header.label, header.tags
    photometric = str(tags.get("PhotometricInterpretation") or "")
    if tags.get("SamplesPerPixel", 1) != 1 or not photometric.startswith("MONOCHROME"):
        raise InputError(
            "series.colour", f"{label} in {name} is in colour ({photometric or 'unknown'}); expected grey values"
        )
    if tags.get("ModalityLUTSequence"):
        raise InputError("series.lookup_table", f"{label} in {name} maps its values by a table; expected a slope")


def _check_rescaling(frames: Sequence[Frame], name: str) -> None:
    """Refuse slices without a slope or an intercept among slices that have one."""
    for keyword, neutral in RESCALING.items():
        values = [frame.slope if keyword == "RescaleSlope" else frame.intercept for frame in frames]
        without = [frame for frame in frames if keyword in frame.assumed]
        other = next((value for value in values if value != neutral), neutral)
        if without and other != neutral:
            text = f"{len(without)} of {len(frames)} slices of {name} state no {keyword}, such as {without[0].label}"
            text = f"{text}, and others {other:g}, so that their values do not compare; export it again"
            raise InputError("series.mixed_rescale", text)


def _notices(headers: Sequence[Header], count: int, name: str) -> tuple[Notice, ...]:
    """Return doubts about the images of a series."""
    notices, every = [], [header.tags for header in headers]
    if 1 < count < FEW_SLICES:  # a single one is read on request
        notices.append(Notice("geometry.few_slices", f"{name} has {count} slices; a whole scan has more"))
    if any(tags.get("PhotometricInterpretation") == "MONOCHROME1" for tags in every):
        notices.append(
            Notice("series.monochrome1", f"{name} is stored for display in negative; values are kept as they are")
        )
    if any(tags.get("LossyImageCompression") == "01" for tags in every):
        notices.append(Notice("series.lossy", f"{name} went through lossy compression; fine detail may be gone"))
    longer = [header for header in headers if (header.pixel_bytes or 0) > (stated_bytes(header) or np.inf) + 1]
    if longer:
        text = f"{longer[0].label} holds {longer[0].pixel_bytes} bytes of pixels, more than the "
        text = f"{text}{stated_bytes(longer[0])} that its header claims; the excess was left out"
        notices.append(Notice("file.longer", f"{text} ({len(longer)} of {len(headers)} files)"))
    return tuple(notices)
