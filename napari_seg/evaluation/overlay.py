"""A picture beside every result that lets a person judge it at a glance.

One row a structure: a sagittal, a coronal and an axial plane through its centroid, cut along the patient's
own axes whatever the scan's are, in radiological convention (the patient's right is on the picture's left).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from napari_seg.geometry import Grid, resample
from napari_seg.volume import Segment, Segmentation, Volume

PANEL_PIXELS = 300
MAX_FIELD_MM = 110.0
"""Field of view of a panel; a smaller scan is shown whole."""

_MARGIN, _CAPTION = 8, 26
_BACKGROUND, _TEXT, _ALARM = (17, 17, 19), (235, 235, 235), (255, 120, 100)

# plane -> world axis across it, world axis to the right of the picture and down it, each with its direction,
# and the letters at the picture's left, right, top and bottom
_PLANES = {
    "sagittal": (0, (1, -1), (2, -1), "APSI"),
    "coronal": (1, (0, -1), (2, -1), "RLSI"),
    "axial": (2, (0, -1), (1, -1), "RLAP"),
}


def draw_overlay(volume: Volume, segmentation: Segmentation, path: Path, title: str = "") -> None:
    """Writes a PNG with three planes through each structure that was found.

    Args:
        volume: the scan; its first channel is shown.
        segmentation: on the same grid.
        path: the PNG to write.
        title: shown on top; must not identify a patient.
    """
    volumes = segmentation.volumes_ml()
    found = [s for s in segmentation.segments if volumes[s.label] > 0]
    field_mm = min(MAX_FIELD_MM, max(volume.grid.size_mm))
    window = _window(volume.array[0])
    notices = [str(notice) for notice in segmentation.notices] + ([] if found else ["nothing was found in this scan"])

    width = 3 * PANEL_PIXELS + 4 * _MARGIN
    top = 2 * _MARGIN + 24
    lines = [line for notice in notices for line in _wrapped(notice, width - 2 * _MARGIN, _font(13))]
    height = top + len(found) * (PANEL_PIXELS + _CAPTION + _MARGIN) + len(lines) * 18 + _MARGIN
    sheet = Image.new("RGB", (width, height), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _MARGIN), title, fill=_TEXT, font=_font(18))
    y = top
    for segment in found:
        center = _centroid_mm(segmentation, segment)
        draw.rectangle((_MARGIN, y + 5, _MARGIN + 14, y + 19), fill=segment.color)
        draw.text((_MARGIN + 22, y + 3), _caption(segment, volumes, segmentation), fill=_TEXT, font=_font(15))
        y += _CAPTION
        for column, plane in enumerate(_PLANES):
            panel = _panel(volume, segmentation, center, field_mm, plane, window)
            sheet.paste(panel, (_MARGIN + column * (PANEL_PIXELS + _MARGIN), y))
        y += PANEL_PIXELS + _MARGIN
    for line in lines:
        draw.text((_MARGIN, y), line, fill=_ALARM, font=_font(13))
        y += 18
    sheet.save(path, format="PNG")


def _caption(segment: Segment, volumes: dict[int, float], segmentation: Segmentation) -> str:
    confidence = segmentation.confidence.get(segment.label)
    sure = "" if confidence is None else f"   confidence {confidence:.2f}"
    return f"{segment.name}   {volumes[segment.label]:.2f} ml{sure}"


def _panel(
    volume: Volume,
    segmentation: Segmentation,
    center_mm: NDArray[np.float64],
    field_mm: float,
    plane: str,
    window: tuple[float, float],
) -> Image.Image:
    across, (right, right_sign), (down, down_sign), letters = _PLANES[plane]
    spacing = field_mm / PANEL_PIXELS
    directions = np.zeros((3, 3))
    directions[right, 0], directions[down, 1], directions[across, 2] = right_sign, down_sign, 1
    sheet = Grid.around(center_mm, (field_mm, field_mm, spacing), (spacing,) * 3, directions)
    grey = resample(volume.array[0], volume.grid, sheet, outside=window[0])[:, :, 0].T
    labels = resample(segmentation.array, segmentation.grid, sheet, order=0, outside=0)[:, :, 0].T
    low, high = window
    shade = np.clip((grey.astype(np.float32) - low) / max(high - low, 1e-6), 0, 1)
    pixels = np.repeat((255 * shade)[..., None], 3, axis=2)
    edge = _edges(labels)
    for segment in segmentation.segments:
        inside = labels == segment.label
        color = np.array(segment.color, dtype=np.float32)
        pixels[inside] = 0.75 * pixels[inside] + 0.25 * color
        pixels[inside & edge] = color
    panel = Image.fromarray(pixels.astype(np.uint8))
    draw = ImageDraw.Draw(panel)
    middle, end = PANEL_PIXELS // 2, PANEL_PIXELS - 5
    for letter, place, anchor in zip(
        letters, ((5, middle), (end, middle), (middle, 4), (middle, end)), ("lm", "rm", "mt", "mb"), strict=True
    ):
        draw.text(place, letter, fill=_TEXT, font=_font(14), anchor=anchor, stroke_width=2, stroke_fill=_BACKGROUND)
    return panel


def _edges(labels: NDArray[np.unsignedinteger]) -> NDArray[np.bool_]:
    """Pixels with a neighbour of another label."""
    padded = np.pad(labels, 1, mode="edge")
    middle = padded[1:-1, 1:-1]
    return (
        (padded[:-2, 1:-1] != middle)
        | (padded[2:, 1:-1] != middle)
        | (padded[1:-1, :-2] != middle)
        | (padded[1:-1, 2:] != middle)
    )


def _centroid_mm(segmentation: Segmentation, segment: Segment) -> NDArray[np.float64]:
    indices = np.argwhere(segmentation.array == segment.label)
    return segmentation.grid.to_world(indices.mean(axis=0))


def _window(array: NDArray) -> tuple[float, float]:
    sample = array.ravel()[:: max(1, array.size // 200_000)]
    low, high = np.percentile(sample, (1, 99.9))
    return float(low), float(high)


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
