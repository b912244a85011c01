"""Refinement of a structure by prompts: with the built-in method, which knows the result of a model, or a network."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from napari_seg.editing.change import Box, Change
from napari_seg.editing.evidence import probability_now
from napari_seg.editing.interactive_network import InteractiveNetwork, refine_with
from napari_seg.editing.prompts import Prompts, from_lasso
from napari_seg.editing.refine import refine, region_around, warm_up
from napari_seg.plugin.edit.operations import Situation, needed_image
from napari_seg.plugin.layer_info import LayerInfo
from napari_seg.plugin.packed_labels import PackedLabels
from napari_seg.plugin.placement import LayerPlacement

BOX_ALONE = (
    "a box alone only limits where a structure with voxels may change. Click in the box on what is missing or too "
    "much, or add a new structure with “+” to find it in the box."
)
"""What to do where a box changes nothing."""


class ModelResult:
    """What a model found, and its confidence, on the voxels of a layer.

    The arrays are unpacked at the first use, which is slow for a large scan, and then kept.

    Args:
        placement: placement of the layer.
        labels: packed label map that the model made.
        confidence: packed confidence in each voxel's label.
    """

    def __init__(self, placement: LayerPlacement, labels: PackedLabels, confidence: PackedLabels) -> None:
        self.confidence = confidence
        self._placement, self._labels = placement, labels

    @classmethod
    def of(cls, info: LayerInfo, known: ModelResult | None = None) -> ModelResult | None:
        """Return the result in the info of a layer: the known one if it is the same; None if there is no confidence."""
        if info.model_labels is None or info.model_confidence is None:
            return None
        if known is not None and known.confidence is info.model_confidence:
            return known
        return cls(info.placement, info.model_labels, info.model_confidence)

    def probability(self, labels: NDArray[np.unsignedinteger], label: int, box: Box) -> NDArray[np.uint8] | None:
        """Return the probability (I, J, K) of a structure in a box, 0 elsewhere; None if nothing is known of it there.

        Args:
            labels: (I, J, K) labels of the layer as they are.
            label: label of the structure.
            box: part of the layer.
        """
        made, confidence = self._shown
        known = probability_now(labels[box], made[box], label, confidence[box])
        if known is None:
            return None
        probability = np.zeros(labels.shape, np.uint8)
        probability[box] = known
        return probability

    @cached_property
    def _shown(self) -> tuple[NDArray[np.unsignedinteger], NDArray[np.uint8]]:
        made, confidence = (self._placement.show(one.unpack(), order=0) for one in (self._labels, self.confidence))
        return made, confidence


def refined(
    situation: Situation, prompts: Prompts, network: InteractiveNetwork | None, result: ModelResult | None
) -> Change:
    """Return the change after which a structure agrees with prompts.

    Args:
        situation: what is edited, as it was before the first of the prompts.
        prompts: all prompts of the correction.
        network: finds the structure instead of the built-in method, if there is one.
        result: what a model found, if it is known.
    """
    labels, label, image = situation.labels, situation.label, needed_image(situation)
    if network is not None:
        return refine_with(network, labels, label, image, prompts, overwrite=situation.overwrite)
    prompts.check(labels.shape)
    probability = None
    if result is not None:
        probability = result.probability(labels, label, region_around(prompts, situation.grid))
    return refine(
        labels,
        situation.grid,
        label,
        image,
        prompts,
        probability=probability,
        overwrite=situation.overwrite,
        progress=situation.progress,
    )


def load() -> None:
    """Load and compile what the first prompt needs; slow, call outside the main thread."""
    from_lasso([(0, 0), (0, 3), (3, 3)], 0, 0, (1, 4, 4))
    warm_up()
