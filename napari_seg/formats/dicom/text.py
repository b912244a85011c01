"""Convert names to the form that DICOM can store: short, and without its special characters."""

from __future__ import annotations

import logging
import re
from dataclasses import replace

from napari_seg.volume import LabelOrigin, Segmentation, Term

logger = logging.getLogger(__name__)

UNICODE = "ISO_IR 192"
"""DICOM's name of UTF-8, for segments and patients of any name."""

LONG, SHORT = 64, 16
"""Maximum lengths of values with VR LO and SH, in characters (PS3.5 6.2)."""


def dicom_text(text: str, limit: int = LONG) -> str:
    """Return a text of limited length without control characters and backslashes, which separate values."""
    text = text.encode("utf-8", "replace").decode()  # file names that are not UTF-8
    plain = re.sub(r"\s+", " ", re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text.replace("\\", "/")))
    return plain.strip()[:limit].strip()


def with_dicom_names(segmentation: Segmentation, made_by: LabelOrigin, file: str) -> tuple[Segmentation, LabelOrigin]:
    """Return a segmentation and its origin with names that DICOM can store.

    Changed names are logged as warnings.

    Args:
        segmentation: label map with its segments.
        made_by: origin of the label map.
        file: name of the new file, for messages.
    """
    names: list[str] = []
    segments = []
    for n, segment in enumerate(segmentation.segments):
        name = dicom_text(segment.name) or f"segment {segment.label}"
        if name in names and segment.name not in (
            one.name for one in segmentation.segments[:n]
        ):  # equal after shortening
            mark = f" ({segment.label})"
            name = name[: LONG - len(mark)] + mark
        names.append(name)
        category, kind, modifier = (_term(term) for term in (segment.category, segment.kind, segment.modifier))
        segments.append(replace(segment, name=name, category=category, kind=kind, modifier=modifier))
    algorithm = made_by.algorithm
    known = None if algorithm is None else (dicom_text(algorithm[0]) or "unknown", dicom_text(algorithm[1]))
    before = [*(algorithm or ()), *(segment.name for segment in segmentation.segments)]
    for old, new in zip(before, [*(known or ()), *names], strict=True):
        if old != new:
            logger.warning(
                "output.name_changed: %r is %r in %s: DICOM names have up to %d characters and no backslash or control "
                "character",
                old,
                new,
                file,
                LONG,
            )
    return replace(segmentation, segments=tuple(segments)), replace(made_by, algorithm=known)


def series_description(what: str, made_by: LabelOrigin) -> str:
    """Return the description of a series of labels, such as "Segmentation by napari-seg"."""
    return what if made_by.algorithm is None else dicom_text(f"{what} by {made_by.algorithm[0]}")


def _term(term: Term | None) -> Term | None:
    """Return a term that DICOM can store; None without a code or a coding scheme."""
    if term is None:
        return None
    scheme = dicom_text(term.scheme, SHORT)
    answer = Term(dicom_text(term.value), scheme, dicom_text(term.meaning) or dicom_text(term.value))
    return answer if answer.value and answer.scheme else None
