"""Propose other configurations that are worth a comparison, each with its reason."""

from __future__ import annotations

from math import prod

import numpy as np

from napari_seg.training.fingerprint import Fingerprint
from napari_seg.training.plan import ANISOTROPIC, TrainingPlan

FEW_SLICES = 10
"""Slices below which a 3D network sees little more than a 2D one."""
SEEN_FRACTION = 0.25
"""Fraction of the typical image in a patch below which nnU-Net trains at a lower resolution too."""


def advise(plan: TrainingPlan, found: Fingerprint) -> list[str]:
    """Return the proposals for a plan."""
    if found.is_2d:
        return []
    spacing = np.array(plan.settings["spacing_mm"])
    shape = np.median(found.shapes * found.spacings_mm / spacing, axis=0)
    coarse = int(np.argmax(spacing))
    proposals = []
    if plan.dims == 3 and shape[coarse] < FEW_SLICES:
        proposals.append(f"the images have only about {shape[coarse]:.0f} slices: compare with --dims 2")
    elif plan.dims == 3 and spacing[coarse] > ANISOTROPIC * spacing.min():
        lengths = f"{spacing[coarse]:g} mm against {spacing.min():g} mm"
        proposals.append(f"slices are much thicker than their pixels ({lengths}): compare with --dims 2")
    elif plan.dims == 2 and spacing[coarse] < 2 * spacing.min() and shape.min() > 2 * FEW_SLICES:
        proposals.append(
            "voxels are almost cubes: compare with 3D (--dims 3), or with three views (--network MultiView)"
        )
    seen = prod(plan.settings["patch_size"]) / float(np.prod(shape[plan.axes]))
    if plan.dims == 3 and seen < SEEN_FRACTION:
        coarser = [round(float(length), 2) for length in lower_resolution(spacing, SEEN_FRACTION / seen)]
        proposals.append(
            f"a patch shows {seen:.0%} of a typical image: for large structures, compare with a coarser grid, "
            f"--set spacing_mm={str(coarser).replace(' ', '')}, in another folder"
        )
    return proposals


def lower_resolution(spacing: np.ndarray, factor: float) -> np.ndarray:
    """Return a coarser spacing with so many times fewer voxels: the finest axes first, until all are similar."""
    coarser = spacing.astype(float).copy()
    while np.prod(coarser) < factor * np.prod(spacing):
        fine = coarser.max() / coarser > 2
        coarser[fine if fine.any() else slice(None)] *= 1.01
    return coarser
