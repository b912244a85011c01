"""Volume and Segmentation are valid once built, and count right."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from napari_seg.errors import InputError
from napari_seg.evaluation.measure import measure
from napari_seg.geometry import Grid
from napari_seg.volume import (
    Segment,
    Segmentation,
    Volume,
    as_labels,
    distinct_color,
    distinct_from,
    labels_in,
    rounded_ml,
    smallest_label_type,
)

GRID = Grid((4, 3, 2), np.diag([1.0, 2.0, 5.0, 1.0]))


def test_a_name_of_a_segment_controls_no_terminal() -> None:
    for name, shown in (("left\x1b[2J kidney", "left [2J kidney"), ("\x07", "_"), ("Leber  ä", "Leber  ä")):
        assert Segment(1, name, (0, 0, 0)).name == shown


def test_volume_must_fit_its_grid() -> None:
    assert Volume(np.zeros((1, 4, 3, 2), np.int16), GRID).array.dtype == np.int16
    with pytest.raises(InputError, match=r"geometry\.shape"):
        Volume(np.zeros((4, 3, 2)), GRID)


def test_volumes_are_counted_in_millilitres() -> None:
    labels = np.zeros(GRID.shape, np.uint8)
    labels[:2, :, 0] = 2
    segmentation = Segmentation(labels, GRID, (Segment(1, "a", (1, 2, 3)), Segment(2, "b", (1, 2, 3))))
    assert segmentation.voxel_counts() == {1: 0, 2: 6}
    assert segmentation.volumes_ml() == {1: 0.0, 2: pytest.approx(6 * 10 / 1000)}


def test_centroids_lie_in_the_patient() -> None:
    labels = np.zeros(GRID.shape, np.uint8)
    labels[1:3, 2, :] = 1
    segmentation = Segmentation(labels, GRID, (Segment(1, "a", (1, 2, 3)), Segment(2, "b", (1, 2, 3))))
    (label,), (place,) = zip(*segmentation.centroids_mm().items(), strict=True)
    assert label == 1
    np.testing.assert_allclose(place, [1.5, 4.0, 2.5])


def test_counting_takes_little_memory_beside_a_large_label_map() -> None:
    grid = Grid((512, 256, 128), np.eye(4))
    segmentation = Segmentation(np.ones(grid.shape, np.uint8), grid, (Segment(1, "a", (1, 2, 3)),))
    tracemalloc.start()
    segmentation.centroids_mm()
    assert tracemalloc.get_traced_memory()[1] < segmentation.array.nbytes / 8
    tracemalloc.stop()


def test_label_maps_are_unsigned() -> None:
    with pytest.raises(InputError, match=r"labels\.type"):
        Segmentation(np.zeros(GRID.shape, np.int16), GRID, ())


def test_confidence_cannot_be_changed() -> None:
    segmentation = Segmentation(np.zeros(GRID.shape, np.uint8), GRID, (), {1: 0.5})
    with pytest.raises(TypeError):
        segmentation.confidence[1] = 1.0  # type: ignore[index]


def test_smallest_label_type() -> None:
    assert [smallest_label_type(n) for n in (1, 255, 256, 65535)] == [np.uint8, np.uint8, np.uint16, np.uint16]


def test_colours_of_differences_are_none_of_the_structures() -> None:
    used = [(255, 150, 0), (0, 170, 255), (230, 60, 230), *(distinct_color(label) for label in range(1, 6))]
    usual = [(255, 150, 0), (0, 170, 255), (230, 60, 230)]
    assert distinct_from([(255, 0, 0), (0, 200, 0)], usual) == usual
    found = np.array(distinct_from(used, usual))
    apart = np.linalg.norm(found[:, None] - np.array([*used, (0, 0, 0)]), axis=2)
    assert apart.min() > 80
    assert min(np.linalg.norm(found[n] - found[n - 1]) for n in range(3)) > 80


def test_small_volumes_keep_their_significant_digits() -> None:
    assert [rounded_ml(ml) for ml in (0.0, 1.25e-4, 1.23456789e-7, 0.012, 12.345678)] == [
        0.0,
        0.000125,
        1.23457e-7,
        0.012,
        12.3457,
    ]


def test_infinite_values_are_no_labels() -> None:
    with pytest.raises(InputError, match=r"labels\.type: x holds the value inf; expected labels up to 65535"):
        as_labels(np.array([[0.0, np.inf]]), "x")


def test_high_labels_of_a_2d_image_take_little_memory() -> None:
    """The first axis of a 2D image is its width; masks of 16 bits are 0 and 65535."""
    array = np.zeros((600, 40, 1), np.uint16)
    array[100:200] = 65535
    image = Segmentation(array, Grid(array.shape, np.eye(4)), (Segment(65535, "cell", (1, 1, 1)),))
    tracemalloc.start()
    try:
        assert image.voxel_counts() == {65535: 4000}
        assert image.centroids_mm()[65535].tolist() == [149.5, 19.5, 0]
        assert labels_in(array) == [0, 65535]
        assert measure(array)[65535].center == (149, 19, 0)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()
