"""Read label maps from files of any format, and put them on the grid of a scan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from napari_seg.errors import InputError, Notice
from napari_seg.formats.dicom.headers import file_label
from napari_seg.formats.dicom.reference import check_frame_of_reference, segment_names
from napari_seg.formats.endings import ITK_ENDINGS, SEG_NRRD_ENDINGS, has_ending, nifti_ending
from napari_seg.formats.image2d import is_image2d, read_label_image2d
from napari_seg.formats.in_worker import MIN_SECONDS, read_in_worker
from napari_seg.formats.mask_folder import check_masks, mask_files, read_masks, structure_of_mask
from napari_seg.formats.read import read
from napari_seg.formats.record import recorded_segments
from napari_seg.geometry import Grid, index_affine, is_same_lattice, resample
from napari_seg.volume import (
    MAX_LABEL,
    Segment,
    Segmentation,
    Volume,
    as_labels,
    distinct_color,
    labels_in,
    select_segments,
)

ROUNDED_MM = 0.15
"""Maximum distance in mm between a DICOM segmentation with rounded positions and the voxels of its scan."""


def read_label_map(
    path: Path,
    grid: Grid | None = None,
    only: Sequence[str] = (),
    *,
    images: Sequence[Path] = (),
    ignore_frame: bool = False,
    on_own_grid: bool = False,
    header_names: bool = True,
) -> Segmentation:
    """Read a label map with the names of its segments from a segmentation of any format, in the worker process.

    NIfTI, NRRD, MetaImage and 2D images hold labels; names come from the record next to the file or, without a record,
    from the file. DICOM
    segmentations and contours (RT structure sets) number their segments; they are put on the grid of a scan only if
    they belong to that scan, see `dicom.reference`. A folder may hold a mask for each structure, see `mask_folder`.

    Args:
        path: the file, or a folder of masks.
        grid: grid of the scan; contours need it, and a DICOM segmentation that leaves out empty slices is put on it.
        only: names of the segments to read; all if empty.
        images: files of the scan that `grid` is of.
        ignore_frame: put DICOM objects on `grid` although they are of another frame of reference, with a notice.
        on_own_grid: leave a DICOM segmentation on the grid that its frames span, and enlarge the grid where contours
            reach beyond it.
        header_names: use the names in the header of a NIfTI file without a record; they may be out of date where a
            data set declares the meaning of its values.

    Raises:
        InputError: the file can't be read; `labels.type`, its values are not whole numbers from 0 up; `labels.overlap`,
            its segments share voxels; `labels.needs_grid`, contours without a scan; `labels.unknown`, a segment of
            `only` is missing; `geometry.other_frame_of_reference`, it belongs to another scan than `images`.
    """
    if not (path.is_file() or path.is_dir()):
        raise InputError("file.unreadable", f"{path.name} is not a file, or is a broken link; check the path")
    if masks := [*mask_files(path).values()]:
        read_all = partial(read_masks, only=tuple(only))
        return read_in_worker(read_all, masks, seconds=MIN_SECONDS * len(masks), name=path.name)
    check_masks(path)
    options: dict[str, Any] = {"grid": grid, "only": tuple(only), "ignore_frame": ignore_frame}
    options |= {"on_own_grid": on_own_grid, "header_names": header_names}
    read_files = partial(_read_files, images=[image.absolute() for image in images], **options)
    return read_in_worker(read_files, [path], name=file_label(path))


def _read_files(
    files: Sequence[Path],
    grid: Grid | None,
    only: Sequence[str],
    images: Sequence[Path],
    ignore_frame: bool,
    on_own_grid: bool,
    header_names: bool = True,
) -> Segmentation:
    (path,) = files
    if is_image2d(path):
        return _selected(_labels(read_label_image2d(path), path), only, path)
    if has_ending(path, ITK_ENDINGS):
        from napari_seg.formats.nrrd import read_seg_nrrd

        return _selected(read_seg_nrrd(path, only), only, path)
    modality = None if nifti_ending(path) else dicom_modality(path)
    if modality not in ("RTSTRUCT", "SEG"):
        from napari_seg.formats.nifti import read_nifti

        scan = read_nifti(path, one_slice=True) if nifti_ending(path) else read(path)
        return _selected(_labels(scan, path, header_names), only, path)
    notices = () if grid is None else check_frame_of_reference(path, images, only, ignore_frame=ignore_frame)
    if modality == "SEG":
        from napari_seg.formats.dicom.seg import read_dicom_seg

        found = read_dicom_seg(path, only, grid)
        found = found if grid is None else _snapped_to_scan(found, grid, path)
        found = found if grid is None or on_own_grid else on_grid(found, grid, path)
    else:
        from napari_seg.formats.dicom.rtstruct import read_rtstruct

        if grid is None:
            text = f"{file_label(path)} holds contours, which fill voxels only on the grid of a scan; name the scan too"
            raise InputError("labels.needs_grid", text)
        found = read_rtstruct(path, grid, only, extend=on_own_grid)
    return replace(found, notices=(*notices, *found.notices))


def read_label_maps(
    path: Path, grid: Grid | None = None, *, images: Sequence[Path] = (), header_names: bool = True
) -> list[Segmentation]:
    """Read a segmentation as one label map, or as several where its segments share voxels.

    Args:
        path: see `read_label_map`.
        grid: see `read_label_map`.
        images: see `read_label_map`.
        header_names: see `read_label_map`.

    Raises:
        InputError: as `read_label_map`; `labels.overlap` only if two segments with the same name share voxels.
    """
    try:
        return [read_label_map(path, grid, images=images, header_names=header_names)]
    except InputError as error:
        if error.code != "labels.overlap":
            raise
    names = [*mask_files(path)] or stated_names(path)
    if not names:
        raise InputError(
            "labels.overlap", f"{file_label(path)} holds segments without names that share voxels; name them first"
        )
    maps: list[Segmentation] = []
    for alone in (read_label_map(path, grid, (name,), images=images) for name in names):
        free = next((n for n, one in enumerate(maps) if not np.any(alone.array.astype(bool) & (one.array > 0))), None)
        if free is None:
            maps.append(alone)
            continue
        array = np.maximum(maps[free].array, alone.array)
        maps[free] = replace(maps[free], array=array, segments=(*maps[free].segments, *alone.segments))
    return maps


def stated_names(path: Path) -> list[str]:
    """Return the names that a file, or the record next to it, gives the structures of a label map, each once.

    Raises:
        InputError: the file can't be read.
    """
    return read_in_worker(_names, [path], name=file_label(path))


def _names(files: Sequence[Path]) -> list[str]:
    (path,) = files
    if is_image2d(path) or nifti_ending(path) or recorded_segments(path):
        from napari_seg.formats.nifti import header_segments

        in_header = header_segments(path)[0] if nifti_ending(path) else ()
        return list(dict.fromkeys(one.name for one in recorded_segments(path) or in_header))
    if has_ending(path, ITK_ENDINGS):
        from napari_seg.formats.nrrd import seg_nrrd_names

        return seg_nrrd_names(path)
    return segment_names(path)


def on_grid(segmentation: Segmentation, grid: Grid, path: Path) -> Segmentation:
    """Return a label map on a grid that differs only by axis order, flips and whole-voxel shifts.

    Raises:
        InputError: `geometry.other_grid`, the grids differ otherwise, or voxels of segments lie outside of the grid.
    """
    if segmentation.grid.matches(grid):
        return segmentation
    if is_same_lattice(segmentation.grid, grid):
        array = resample(segmentation.array, segmentation.grid, grid, order=0, outside=0)
        if np.count_nonzero(array) == np.count_nonzero(segmentation.array):
            return Segmentation(array, grid, segmentation.segments, notices=segmentation.notices)
    raise InputError(
        "geometry.other_grid",
        f"{file_label(path)} does not lie on the voxels of the scan; expected the segmentation of this very scan",
    )


def _snapped_to_scan(segmentation: Segmentation, grid: Grid, path: Path) -> Segmentation:
    """Return a label map on the voxels of its scan, with a notice, if they differ only by rounded positions."""
    if is_same_lattice(segmentation.grid, grid):
        return segmentation
    steps = np.rint(index_affine(grid, segmentation.grid))
    turn = np.abs(steps[:3, :3])
    if not ((turn.sum(axis=0) == 1).all() and (turn.sum(axis=1) == 1).all()):
        return segmentation
    snapped = Grid(segmentation.grid.shape, grid.affine @ steps)
    gap_mm = float(np.linalg.norm(snapped.corners_mm - segmentation.grid.corners_mm, axis=1).max())
    if gap_mm > min(ROUNDED_MM, 0.25 * min(grid.spacing_mm)):
        return segmentation
    text = f"{file_label(path)} lies up to {gap_mm:.2g} mm off the voxels of the scan, which rounded positions explain"
    notice = Notice("geometry.rounded", f"{text}; it was moved to these voxels")
    return replace(segmentation, grid=snapped, notices=(*segmentation.notices, notice))


def is_cropped(path: Path) -> bool:
    """Return whether the format of a file may leave out empty planes: .seg.nrrd, DICOM SEG and RTSTRUCT."""
    return has_ending(path, SEG_NRRD_ENDINGS) or (
        not nifti_ending(path) and dicom_modality(path) in ("SEG", "RTSTRUCT")
    )


def cropped_axes(segmentation: Segmentation, path: Path) -> tuple[int, ...]:
    """Return the index axes along which planes beyond the edges of a label map may be missing; none for a full one.

    A DICOM segmentation leaves out empty slices, and .seg.nrrd may be cropped along all axes to what is not empty. If
    a plane at an edge is empty, the label map was not cropped.

    Args:
        segmentation: label map as `read_label_map` reads it without a grid.
        path: its file.
    """
    if not is_cropped(path):
        return ()
    axes = (0, 1, 2) if has_ending(path, SEG_NRRD_ENDINGS) else (2,)
    faces = (np.moveaxis(segmentation.array, axis, 0)[end] for axis in axes for end in (0, -1))
    return axes if all(face.any() for face in faces) else ()


def on_common_grid(
    first: tuple[Segmentation, Path], second: tuple[Segmentation, Path]
) -> tuple[Segmentation, Segmentation]:
    """Return two label maps on one grid if they have one lattice and a file may be cropped; else unchanged.

    Args:
        first: label map and its file; its grid is used unless the file may be cropped.
        second: the other label map and its file.

    Raises:
        InputError: `geometry.other_grid`, a cropped label map reaches beyond one that is not.
    """
    (one, one_path), (other, other_path) = first, second
    if one.grid.matches(other.grid) or not is_same_lattice(one.grid, other.grid):
        return one, other
    if not is_cropped(one_path):
        return one, on_grid(other, one.grid, other_path) if is_cropped(other_path) else other
    if not is_cropped(other_path):
        return on_grid(one, other.grid, one_path), other
    both = union_box(one.grid, other.grid)
    return on_grid(one, both, one_path), on_grid(other, both, other_path)


def union_box(one: Grid, other: Grid) -> Grid:
    """Return the smallest grid, in the voxels of the first, that holds two grids of one lattice."""
    ends = np.rint(one.to_index(np.concatenate([one.corners_mm, other.corners_mm]))).astype(int)
    return one.box(ends.min(axis=0).tolist(), (ends.max(axis=0) + 1).tolist())


def _selected(segmentation: Segmentation, only: Sequence[str], path: Path) -> Segmentation:
    """Return a label map with only the segments with some names; unchanged if no names are given."""
    segments = select_segments(segmentation.segments, only, file_label(path))
    if not only:
        return segmentation
    labels = [segment.label for segment in segments]
    array = np.where(np.isin(segmentation.array, labels), segmentation.array, np.zeros_like(segmentation.array))
    return replace(segmentation, array=array, segments=segments)


def _labels(volume: Volume, path: Path, header_names: bool = True) -> Segmentation:
    if len(volume.array) != 1:
        raise InputError("labels.type", f"{path.name} holds {len(volume.array)} channels; expected one label per voxel")
    array = as_labels(volume.array[0], path.name)
    segments, notices = recorded_segments(path), volume.notices
    if not segments and header_names and volume.source.format == "nifti":
        from napari_seg.formats.nifti import header_segments

        segments, more = header_segments(volume.source.files[0])
        notices = (*notices, *more)
    return Segmentation(array, volume.grid, segments, notices=notices)


def with_all_segments_named(segmentation: Segmentation) -> Segmentation:
    """Return a label map whose table has a segment for each label; those without a name become "label 3"."""
    known = {segment.label for segment in segmentation.segments}
    others = [n for n in labels_in(segmentation.array) if n and n not in known]
    segments = (*segmentation.segments, *(Segment(n, f"label {n}", distinct_color(n)) for n in others))
    ordered = tuple(sorted(segments, key=lambda segment: segment.label))
    return Segmentation(segmentation.array, segmentation.grid, ordered, notices=segmentation.notices)


def with_name_of_mask(segmentation: Segmentation, path: Path) -> Segmentation:
    """Return a label map with its one structure named after its file, if that lies in a folder of masks.

    A label map with names or several labels is returned unchanged.

    Args:
        segmentation: the label map.
        path: its file.
    """
    labels = [label for label in labels_in(segmentation.array) if label]
    if segmentation.segments or len(labels) != 1 or not (name := structure_of_mask(path)):
        return segmentation
    return replace(segmentation, segments=(Segment(labels[0], name, distinct_color(labels[0])),))


def check_no_intensities(segmentation: Segmentation, path: Path) -> None:
    """Refuse integer intensities of a scan, which a file without names of structures may hold.

    Neighbouring voxels of a structure have one label, those of a scan seldom have one value. Of real label maps over
    99 % of the pairs of neighbours are equal, of real scans up to 30 %. Background, and the most frequent value beside
    it, do not count.

    Args:
        segmentation: labels with the segments that the file names.
        path: the file, for the message.

    Raises:
        InputError: `labels.intensities`.
    """
    named = {segment.label for segment in segmentation.segments}
    labels = [label for label in labels_in(segmentation.array) if label and label not in named]
    if len(labels) <= _FEW_LABELS:
        return
    array = segmentation.array[:: max(1, segmentation.grid.shape[0] // _MAX_PLANES)]
    counts = np.bincount(array.ravel())
    counts[0] = 0
    is_counted = (array != 0) & (array != counts.argmax())
    pairs = equal = 0
    for axis in (1, 2):
        length = array.shape[axis]
        one, other = (array.take(range(start, start + length - 1), axis) for start in (0, 1))
        both = np.logical_and(*(is_counted.take(range(start, start + length - 1), axis) for start in (0, 1)))
        pairs += int(both.sum())
        equal += int((both & (one == other)).sum())
    if pairs >= _MIN_PAIRS and equal < _MIN_EQUAL * pairs:
        text = (
            f"{file_label(path)} holds {len(labels)} values without names, and {equal / pairs:.0%} of the neighbouring"
        )
        way = "give the label map of this scan; if it is one, name its structures in a record or a .seg.nrrd"
        raise InputError("labels.intensities", f"{text} voxels are equal, as in a scan; expected labels; {way}")


_FEW_LABELS = 20
"""Labels without names that no scan has as its only values."""

_MAX_PLANES, _MIN_PAIRS, _MIN_EQUAL = 64, 1000, 0.5
"""Planes and pairs of voxels that are looked at, and the fraction of equal pairs that a label map has."""


def label_map_doubts(volume: Volume) -> tuple[Notice, ...]:
    """Return a notice on a scan whose values are those of a label map.

    They are whole numbers from 0 up, and where two neighbours are no background they are equal. Of the label maps that
    were measured over 99 % of these pairs are, of scans under 10 %. A thresholded or synthetic image is not told from a
    label map, so this is a doubt and no reason to pass a scan over. A sample of some planes is looked at.

    Args:
        volume: the scan; one of several channels, which may be masks, or a 2D image gets no notice.
    """
    if len(volume.array) != 1 or volume.source.format == "image2d":
        return ()
    array = volume.array[0]
    few = array[tuple(slice(None, None, max(1, length // _SAMPLE_LENGTH)) for length in array.shape)]
    if few.min() != 0 or few.max() > MAX_LABEL or not np.array_equal(few, np.floor(few)):
        return ()
    array = array[..., :: max(1, array.shape[2] // _SAMPLE_PLANES)]  # contiguous as NIfTI stores it
    pairs = equal = 0
    for one, other in ((array[1:], array[:-1]), (array[:, 1:], array[:, :-1])):
        both = (one != 0) & (other != 0)
        pairs += int(both.sum())
        equal += int((both & (one == other)).sum())
    if pairs < _MIN_SAMPLE_PAIRS or equal < _MIN_SURELY_EQUAL * pairs:
        return ()
    found = f"the values reach from 0 to {array.max():.0f}, and {equal / pairs:.0%} of neighbours above 0 are equal"
    way = "if it is one, leave it out (--exclude PATTERN)"
    text = f"{found}, as in a label map; expected the intensities of a scan; {way}"
    return (Notice("fitness.label_map", text),)


_SAMPLE_LENGTH, _SAMPLE_PLANES = 32, 16
"""Voxels along each side of a first look, and planes that are looked at then."""

_MIN_SAMPLE_PAIRS, _MIN_SURELY_EQUAL = 100, 0.9
"""Pairs of neighbours above 0, and the fraction of equal ones, from which a scan is taken for a label map."""


def dicom_modality(path: Path) -> str | None:
    """Return the modality of a DICOM file; None for any other file, or a folder."""
    from napari_seg.formats.dicom.headers import read_header

    if not path.is_file():
        return None
    try:
        return str(read_header(path).tags.get("Modality") or "")
    except InputError:
        return None
