"""Comparison of a labels layer with a reference: scores, and a layer of the voxels that differ. Without Qt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from napari.layers import Layer

from napari_seg.errors import listed
from napari_seg.plugin.job import COMPARISON_WORKER
from napari_seg.plugin.labels_state import Snapshot
from napari_seg.plugin.layers import labels_layer, layer_of
from napari_seg.plugin.messages import Message, gui_text_of
from napari_seg.volume import Segment, Segmentation, distinct_from

if TYPE_CHECKING:
    from napari_seg.evaluation.metrics import Scores

_COLORS = ((255, 150, 0), (0, 170, 255), (230, 60, 230))
"""Colours of the kinds of disagreement, unless they resemble colours of the structures."""


@dataclass(frozen=True)
class ReferenceComparison:
    """Result of a comparison.

    Attributes:
        snapshot: labels that were compared.
        scores: label -> scores against the reference.
        differences: new labels layer of the voxels that differ, by kind of disagreement.
        messages: summary, and doubts about the reference.
    """

    snapshot: Snapshot
    scores: dict[int, Scores]
    differences: Layer
    messages: tuple[Message, ...]


def compare(
    snapshot: Snapshot, reference: Snapshot | Path, is_stopping: Callable[[], bool] = lambda: False
) -> ReferenceComparison:
    """Compare labels with a reference; slow, call outside the main thread.

    Args:
        snapshot: labels to compare.
        reference: other labels on the same scan, or a file.
        is_stopping: polled during the comparison; returns True to stop it.

    Raises:
        NapariSegError: the reference cannot be read or lies on another grid.
    """
    from napari_seg.evaluation.metrics import DISAGREEMENTS
    from napari_seg.evaluation.pairs import compare_with

    segmentation, expected = snapshot.segmentation(), _loaded(reference)
    images = snapshot.info.scan.absolute().files
    scores, others, differing_at, notices = COMPARISON_WORKER.run(
        compare_with, segmentation, expected, images, is_stopping=is_stopping
    )
    colors = distinct_from([segment.color for segment in segmentation.segments], _COLORS)
    kinds = zip(DISAGREEMENTS.items(), colors, strict=True)
    segments = tuple(Segment(label, meaning, color) for (label, meaning), color in kinds)
    differing = Segmentation(differing_at, segmentation.grid, segments)
    placement = snapshot.info.placement.for_new_layer()
    name = f"{snapshot.name} against {reference.name}"
    differences = layer_of(labels_layer(differing, placement, name, notices=snapshot.info.notices))
    known = [one.dice for one in (*scores.values(), *others.values()) if not isnan(one.dice)]
    mean = f"mean Dice {np.mean(known):.3f}" if known else "no structure in either of them"
    text = f"Compared with {reference.name}: {mean}; {sum(differing.volumes_ml().values()):.2f} ml differ."
    if without_row := [f"{name} {one.dice:.3f}" for name, one in others.items() if not isnan(one.dice)]:
        text = f"{text} Dice of structures that are no single label here: {listed(without_row, 6)}."
    messages = (*(Message("warning", gui_text_of(notice)) for notice in notices), Message("info", text))
    return ReferenceComparison(snapshot, scores, differences, messages)


def _loaded(reference: Snapshot | Path) -> Segmentation | Path:
    return reference.segmentation() if isinstance(reference, Snapshot) else reference.absolute()
