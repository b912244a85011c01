"""Statistics of structures, against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from napari_seg.evaluation.structure_statistics import structure_statistics
from napari_seg.geometry import Grid
from napari_seg.volume import Segment, Segmentation, Volume

GRID = Grid((12, 10, 9), np.diag([-1.0, 2.0, 3.0, 1.0]))
SEGMENTS = tuple(Segment(n, name, (n, 0, 0)) for n, name in enumerate(("liver", "spleen", "brain"), 1))


def scan_and_labels() -> tuple[Volume, Segmentation]:
    labels = np.zeros(GRID.shape, np.uint8)
    labels[4:6, 4:6, 4:6] = 1
    values = np.full(GRID.shape, 7.9)
    values[4, 4:6, 4:6] = -2.7
    return Volume(values[None], GRID), Segmentation(labels, GRID, SEGMENTS)


def test_volumes_are_in_mm3_and_intensities_are_truncated() -> None:
    found = structure_statistics(*scan_and_labels())
    assert found["liver"] == {"volume": 48.0, "intensity": 2.5}  # mean of -2 and 7
    assert found["spleen"] == found["brain"] == {"volume": 0.0, "intensity": 0.0}
    assert list(found) == ["liver", "spleen", "brain"]


@pytest.mark.parametrize("place", [(2, 5, 4), (9, 5, 4), (5, 2, 4), (5, 7, 4), (5, 5, 2), (5, 5, 6)])
def test_structures_near_the_border_are_zero_unless_they_are_included(place: tuple[int, int, int]) -> None:
    volume, segmentation = scan_and_labels()
    segmentation.array[place] = 2
    assert structure_statistics(volume, segmentation)["spleen"]["volume"] == 0
    assert structure_statistics(volume, segmentation)["liver"]["volume"] > 0
    whole = structure_statistics(volume, segmentation, include_incomplete=True)["spleen"]
    assert whole == {"volume": 6.0, "intensity": 7.0}


@pytest.mark.parametrize("place", [(3, 5, 4), (8, 5, 4), (5, 3, 4), (5, 6, 4), (5, 5, 3), (5, 5, 5)])
def test_structures_beyond_three_planes_are_complete(place: tuple[int, int, int]) -> None:
    volume, segmentation = scan_and_labels()
    segmentation.array[place] = 3
    assert structure_statistics(volume, segmentation)["brain"]["volume"] == 6
