"""Previews: images for the visual check of a segmentation, alone or compared with its reference.

A preview shows a sagittal, a coronal and an axial plane, resampled along the patient's axes, in radiological convention
(the patient's right is on the left of the image). A 2D image is shown whole, as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from napari_seg.errors import InputError, counted
from napari_seg.evaluation.metrics import on_grid
from napari_seg.formats.image2d import COLOURS
from napari_seg.geometry import Grid, resample
from napari_seg.volume import Segment, Segmentation, Volume

PANEL_PIXELS = 300
MAX_FIELD_MM = 110.0
"""Largest field of view of a panel; a smaller scan is shown whole."""

MAX_ROWS = 12
"""Structures that have a row of their own in a preview."""

_ROWS_OF_ALL, _NAME_COLUMNS = 4, 3
_MAX_SEARCHED = 1 << 22
"""Voxels of a structure's box in which its pieces are searched; of a larger one, only every second voxel or so."""

_MARGIN, _CAPTION, _LINE = 8, 26, 18
_WIDTH = 3 * PANEL_PIXELS + 2 * _MARGIN
_BACKGROUND, _TEXT, _ALARM = (17, 17, 19), (235, 235, 235), (255, 120, 100)

# plane -> normal axis, (axis to the right, sign), (axis downwards, sign), letters at the left, right, top, bottom
_PLANES = {
    "sagittal": (0, (1, -1), (2, -1), "APSI"),
    "coronal": (1, (0, -1), (2, -1), "RLSI"),
    "axial": (2, (0, -1), (1, -1), "RLAP"),
}


def draw_overlay(volume: Volume, segmentation: Segmentation, path: Path, title: str = "") -> None:
    """Write a PNG with three planes through each structure in the label map, or with the whole of a 2D image.

    More than `MAX_ROWS` structures are shown together, in planes through the whole of them, above their names.

    Args:
        volume: scan (C, I, J, K); the first channel is shown, or the colours of a 2D image.
        segmentation: segmentation on the same grid.
        path: path of the PNG.
        title: text at the top; must not identify a patient.
    """
    counts = segmentation.voxel_counts()
    found = [s for s in segmentation.segments if counts[s.label] > 0]
    notices = [str(notice) for notice in segmentation.notices] + (
        [] if found else ["no structure was found in this scan"]
    )
    is_2d = volume.source.format == "image2d"
    captions = [_caption(segment, counts[segment.label], segmentation, is_2d) for segment in found]
    is_together = is_2d or len(found) > MAX_ROWS
    if is_2d:
        rows = [[_image_2d(volume, segmentation)]]
    else:
        window = _window(volume.array[0])
        is_all = len(found) > MAX_ROWS
        views = _views_of_all(segmentation) if is_all else _views_of_each(volume, segmentation, found)
        rows = [
            [
                _panel(volume, segmentation, center_mm, field_mm, plane, window)
                for center_mm, plane in zip(centers_mm, _PLANES, strict=True)
            ]
            for centers_mm, field_mm in views
        ]
    columns = _NAME_COLUMNS if len(found) > MAX_ROWS else 1
    lines = [line for notice in notices for line in _wrapped(notice, _WIDTH, _font(13))]
    names = -(-len(found) // columns) * _LINE if is_together else 0
    above = 0 if is_together else _CAPTION
    top = 2 * _MARGIN + 24
    height = top + sum(row[0].height + _MARGIN + above for row in rows) + names + len(lines) * _LINE + _MARGIN
    sheet = Image.new("RGB", (_WIDTH + 2 * _MARGIN, height), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _MARGIN), title, fill=_TEXT, font=_font(18))
    y = top
    for number, row in enumerate(rows):
        if above:
            draw.rectangle((_MARGIN, y + 5, _MARGIN + 14, y + 19), fill=found[number].color)
            draw.text((_MARGIN + 22, y + 3), captions[number], fill=_TEXT, font=_font(15))
        for column, panel in enumerate(row):
            sheet.paste(panel, (_MARGIN + column * (PANEL_PIXELS + _MARGIN), y + above))
        y += row[0].height + _MARGIN + above
    if names:
        in_column = names // _LINE
        for n, (segment, caption) in enumerate(zip(found, captions, strict=True)):
            left, at = _MARGIN + n // in_column * (PANEL_PIXELS + _MARGIN), y + n % in_column * _LINE
            draw.rectangle((left, at + 2, left + 11, at + 13), fill=segment.color)
            draw.text((left + 18, at), caption, fill=_TEXT, font=_font(12))
        y += names
    for line in lines:
        draw.text((_MARGIN, y), line, fill=_ALARM, font=_font(13))
        y += _LINE
    sheet.save(path, format="PNG", compress_level=1)  # a third of the time of 6, the default, and a quarter larger


_View = tuple[list[NDArray[np.float64]], float]
"""Centres of the three panels of a row in mm, RAS+, and the field of view of each in mm."""


def _views_of_each(volume: Volume, segmentation: Segmentation, segments: Sequence[Segment]) -> list[_View]:
    """Return one row for each structure, through its middle."""
    field_mm = min(MAX_FIELD_MM, max(volume.grid.size_mm))
    return [([middle_mm] * len(_PLANES), field_mm) for middle_mm in _middles_mm(segmentation, segments)]


def _middles_mm(segmentation: Segmentation, segments: Sequence[Segment]) -> Iterator[NDArray[np.float64]]:
    """Yield for each structure its centroid, or a voxel in the middle of its largest piece if it is not there."""
    from scipy.ndimage import find_objects, label

    array, grid, boxes = segmentation.array, segmentation.grid, None
    centroids = segmentation.centroids_mm()
    for segment in segments:
        centroid_mm = centroids[segment.label]
        if array[tuple(np.rint(grid.to_index(centroid_mm)).astype(int))] == segment.label:
            yield centroid_mm
            continue
        boxes = boxes or find_objects(array)
        box = boxes[segment.label - 1]
        step = max(1, round((np.prod([side.stop - side.start for side in box]) / _MAX_SEARCHED) ** (1 / 3)))
        mask = array[box][::step, ::step, ::step] == segment.label
        if not mask.any():
            step, mask = 1, array[box] == segment.label
        pieces, _ = label(mask)
        sizes = np.bincount(pieces.ravel())
        voxels = np.argwhere(pieces == 1 + np.argmax(sizes[1:]))
        index = voxels[np.square(voxels - voxels.mean(axis=0)).sum(axis=1).argmin()]
        yield grid.to_world(index * step + [side.start for side in box])


def _views_of_all(segmentation: Segmentation) -> list[_View]:
    """Return rows that show all structures, in planes at equal distances through them."""
    lines = [segmentation.array.any(axis=others) for others in ((1, 2), (0, 2), (0, 1))]
    first, last = np.transpose([np.flatnonzero(line)[[0, -1]] for line in lines])
    corners = segmentation.grid.box(first.tolist(), (last + 1).tolist()).corners_mm
    low, high = corners.min(axis=0), corners.max(axis=0)
    axes = np.arange(3)
    normals = [normal_axis for normal_axis, *_ in _PLANES.values()]
    views = []
    for fraction in np.arange(1, _ROWS_OF_ALL + 1) / (_ROWS_OF_ALL + 1):
        point = low + fraction * (high - low)
        centers = [np.where(axes == axis, point, (low + high) / 2) for axis in normals]
        views.append((centers, 1.1 * float(max(high - low))))
    return views


def draw_comparison(volume: Volume | None, prediction: Segmentation, reference: Segmentation) -> Image.Image:
    """Draw three planes through a voxel in which a result and its reference differ, see `_most_different_mm`.

    The result is outlined in its colours, the reference in white; voxels whose labels differ are tinted red.

    Args:
        volume: scan on any grid; None gives a black background.
        prediction: the result, whose segments give the colours.
        reference: the reference, on the same voxels.
    """
    point_mm = _most_different_mm(prediction, reference)
    field_mm = min(MAX_FIELD_MM, max(prediction.grid.size_mm))
    panel_center_mm = prediction.grid.center_mm if field_mm < MAX_FIELD_MM else point_mm  # a small scan is shown whole
    window = (0.0, 1.0) if volume is None else _window(volume.array[0])
    sheet = Image.new("RGB", (_WIDTH, PANEL_PIXELS), _BACKGROUND)
    for column, (plane, (normal_axis, *_)) in enumerate(_PLANES.items()):
        center = np.where(np.arange(3) == normal_axis, point_mm, panel_center_mm)
        panel = _panel(volume, prediction, center, field_mm, plane, window, reference)
        sheet.paste(panel, (column * (PANEL_PIXELS + _MARGIN), 0))
    return sheet


def draw_comparison_2d(image: Volume | None, prediction: Segmentation, reference: Segmentation) -> Image.Image:
    """Draw the same comparison for a 2D image, shown whole.

    Args:
        image: segmented image, grey or RGB, on the same pixels; None gives a black background.
        prediction: the result, whose segments give the colours.
        reference: the reference, on the same pixels.

    Raises:
        InputError: `geometry.mismatch`, the image has a different size.
    """
    grid = prediction.grid
    if image is not None and image.grid.shape != grid.shape:
        sizes = (f"{width} x {height}" for width, height, _ in (image.grid.shape, grid.shape))
        raise InputError(
            "geometry.mismatch",
            f"the image and the label map have {' and '.join(sizes)} pixels; expected equal sizes",
        )
    return _image_2d(image, prediction, reference)


def _image_2d(image: Volume | None, segmentation: Segmentation, reference: Segmentation | None = None) -> Image.Image:
    """Return a 2D image with its labels, and those of a reference if given, as wide or high as a sheet."""
    scale = _WIDTH / max(segmentation.grid.shape)
    columns, rows = ((np.arange(max(1, int(size * scale))) / scale).astype(int) for size in segmentation.grid.shape[:2])
    pixel_index = np.ix_(rows, columns)
    shades = np.zeros((len(rows), len(columns), 1), np.float32)
    if image is not None:
        channels = image.array if len(image.array) == COLOURS else image.array[:1]
        is_rgb = len(channels) == COLOURS and channels.dtype == np.uint8
        window = (0.0, 255.0) if is_rgb else _window(channels)
        shades = _shades(np.stack([one[:, :, 0].T[pixel_index] for one in channels], axis=-1), window)
    labels, reference_labels = (
        None if one is None else one.array[:, :, 0].T[pixel_index] for one in (segmentation, reference)
    )
    assert labels is not None
    return _painted(shades, labels, segmentation.segments, reference_labels)


def _shades(intensities: NDArray, window: tuple[float, float]) -> NDArray[np.float32]:
    """Return grey values 0 to 255 of intensities, in their shape."""
    low, high = window
    shades: NDArray[np.float32] = 255 * np.clip((intensities.astype(np.float32) - low) / max(high - low, 1e-6), 0, 1)
    return shades


def _painted(
    shades: NDArray[np.float32],
    labels: NDArray[np.unsignedinteger],
    segments: Sequence[Segment],
    reference_labels: NDArray[np.unsignedinteger] | None,
) -> Image.Image:
    """Return an image of shades (H, W, C), grey or RGB, with labels (H, W), and reference labels if given, on it."""
    pixels = np.empty((*labels.shape, 3), np.uint8)
    pixels[:] = shades
    flat, flat_shades, flat_labels = pixels.reshape(-1, 3), shades.reshape(labels.size, -1), labels.ravel()
    if reference_labels is not None:
        differs = np.flatnonzero(labels != reference_labels)
        flat[differs] = 0.6 * flat_shades[differs] + 0.4 * np.array(_ALARM, np.float32)
        flat[np.flatnonzero((reference_labels > 0) & _edges(reference_labels))] = 255
    is_shown = np.zeros(int(labels.max()) + 1, np.bool_)
    colors = np.zeros((len(is_shown), 3), np.float32)
    for segment in segments:
        if segment.label < len(is_shown):
            is_shown[segment.label], colors[segment.label] = True, segment.color
    inside = is_shown[labels]
    if reference_labels is None:
        place = np.flatnonzero(inside)
        flat[place] = 0.75 * flat_shades[place] + 0.25 * colors[flat_labels[place]]
    border = np.flatnonzero(inside & _edges(labels))
    flat[border] = colors[flat_labels[border]]
    return Image.fromarray(pixels)


def _caption(segment: Segment, count: int, segmentation: Segmentation, is_2d: bool) -> str:
    size = counted(count, "pixel") if is_2d else f"{count * segmentation.grid.voxel_ml:.2f} ml"
    confidence = segmentation.confidence.get(segment.label)
    confidence_text = "" if confidence is None else f"   confidence {confidence:.2f}"
    return f"{segment.name}   {size}{confidence_text}"


def _panel(
    volume: Volume | None,
    segmentation: Segmentation,
    center_mm: NDArray[np.float64],
    field_mm: float,
    plane: str,
    window: tuple[float, float],
    reference: Segmentation | None = None,
) -> Image.Image:
    normal_axis, (right, right_sign), (down, down_sign), letters = _PLANES[plane]
    spacing = field_mm / PANEL_PIXELS
    directions = np.zeros((3, 3))
    directions[right, 0], directions[down, 1], directions[normal_axis, 2] = right_sign, down_sign, 1
    panel_grid = Grid.around(center_mm, (field_mm, field_mm, spacing), (spacing,) * 3, directions)
    labels = _labels_on(panel_grid, segmentation)
    shades = np.zeros((*labels.shape, 1), np.float32)
    if volume is not None:
        intensities = resample(volume.array[0], volume.grid, panel_grid, outside=window[0])[:, :, 0].T
        shades = _shades(intensities[..., None], window)
    panel = _painted(
        shades, labels, segmentation.segments, None if reference is None else _labels_on(panel_grid, reference)
    )
    draw = ImageDraw.Draw(panel)
    half, end = PANEL_PIXELS // 2, PANEL_PIXELS - 5
    for letter, place, anchor in zip(
        letters, ((5, half), (end, half), (half, 4), (half, end)), ("lm", "rm", "mt", "mb"), strict=True
    ):
        draw.text(place, letter, fill=_TEXT, font=_font(14), anchor=anchor, stroke_width=2, stroke_fill=_BACKGROUND)
    return panel


def _labels_on(panel_grid: Grid, segmentation: Segmentation) -> NDArray[np.unsignedinteger]:
    labels: NDArray[np.unsignedinteger]
    labels = resample(segmentation.array, segmentation.grid, panel_grid, order=0, outside=0)[:, :, 0].T
    return labels


def _edges(labels: NDArray[np.unsignedinteger]) -> NDArray[np.bool_]:
    """Return the pixels that have a neighbour with another label."""
    padded = np.pad(labels, 1, mode="edge")
    middle = padded[1:-1, 1:-1]
    return (
        (padded[:-2, 1:-1] != middle)
        | (padded[2:, 1:-1] != middle)
        | (padded[1:-1, :-2] != middle)
        | (padded[1:-1, 2:] != middle)
    )


def _most_different_mm(prediction: Segmentation, reference: Segmentation) -> NDArray[np.float64]:
    """Return a voxel that differs, in the k slice and in its row with most of them.

    If no voxels differ, it is such a voxel of the reference's foreground; the first one if there is none.
    """
    reference_labels = on_grid(reference, prediction.grid)
    differs = prediction.array != reference_labels
    if not differs.any():
        differs = reference_labels > 0
    k = int(np.argmax(np.count_nonzero(differs, axis=(0, 1))))
    i = int(np.argmax(np.count_nonzero(differs[:, :, k], axis=1)))
    row = np.flatnonzero(differs[i, :, k])
    return prediction.grid.to_world([i, int(row[len(row) // 2]) if len(row) else 0, k])


def _window(array: NDArray) -> tuple[float, float]:
    """Return the values drawn black and white: the 1st and 99.9th percentile of an array (..., I, J, K).

    They are the extremes if the two are equal, as in a scan that is nearly empty.
    """
    step = max(1, round((array.size / 200_000) ** (1 / 3)))  # along each axis, so that no slice dominates
    sample = array[..., ::step, ::step, ::step]
    low, high = np.percentile(sample[np.isfinite(sample)], (1, 99.9)) if np.isfinite(sample).any() else (0.0, 1.0)
    if low == high:
        low, high = np.nanmin(array), np.nanmax(array)
    return float(low), float(high)


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def _wrapped(text: str, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
