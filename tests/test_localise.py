"""Regions in a scan: crops, boxes carried by a known transform, and a registration that must find one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from phantoms import rotation

from napari_seg import localise as module
from napari_seg.bundles.read import read_bundle
from napari_seg.bundles.spec import Bundle, LocaliserSpec, RegionSpec
from napari_seg.errors import Cancelled, LocaliseError
from napari_seg.geometry import Grid, resample
from napari_seg.localise import itk_image, localise, register
from napari_seg.volume import Volume


@pytest.fixture(autouse=True)
def forgotten_templates() -> Iterator[None]:
    """Keep the templates of one test from another."""
    module.template_image.cache_clear()
    yield
    module.template_image.cache_clear()


def blobs(grid: Grid) -> np.ndarray:
    """A smooth, lopsided head of a world function, so that it can be sampled on any grid."""
    points = grid.to_world(np.stack(np.indices(grid.shape), axis=-1))
    head = 100.0 / (1 + np.exp((np.linalg.norm(points / [60, 75, 55], axis=-1) - 1) * 20))
    for center, width, height in (((-25, 10, 5), 14, 80), ((30, -30, 20), 20, -60), ((5, 40, -20), 10, 90)):
        head += height * np.exp(-np.sum(((points - center) / width) ** 2, axis=-1))
    return head.astype(np.float32)


@pytest.fixture(scope="module")
def template() -> Volume:
    grid = Grid.around((0, 0, 0), (150, 180, 140), (2, 2, 2))
    return Volume(blobs(grid)[None], grid)


def moved(template: Volume, world: np.ndarray, orientation: str = "LPS") -> Volume:
    """The template's head moved by an affine, on an anisotropic grid stored in another orientation."""
    grid = Grid.around(world[:3, 3], (170, 200, 160), (1.5, 2.0, 2.5)).reoriented(orientation)
    back = np.linalg.inv(world)
    points = grid.to_world(np.stack(np.indices(grid.shape), axis=-1)) @ back[:3, :3].T + back[:3, 3]
    from scipy.ndimage import map_coordinates

    indices = template.grid.to_index(points).transpose(3, 0, 1, 2)
    return Volume(map_coordinates(template.array[0], indices, order=1)[None].astype(np.float32), grid)


def known_move(degrees: tuple[float, float, float] = (6, -4, 9)) -> np.ndarray:
    world = np.eye(4)
    world[:3, :3] = rotation(*degrees) @ np.diag([0.95, 1.06, 1.02])
    world[:3, 3] = [12.0, -20.0, 31.0]
    return world


def bundle_with(regions: tuple[RegionSpec, ...]) -> Bundle:
    spec = LocaliserSpec("mni152_t1", 100.0, 0.25, 0.4, (1.0, 1.0, 1.0), regions)
    return replace(read_bundle(), localiser=spec)


LEFT = RegionSpec("left part", (-25.0, 10.0, 5.0), (30.0, 40.0, 20.0), False, {1: 1, 2: 2})
RIGHT = RegionSpec("right part", (25.0, 10.0, 5.0), (30.0, 40.0, 20.0), True, {1: 3, 2: 4})


@pytest.mark.parametrize("degrees", [(6, -4, 9), (24, 0, 3), (-18, 6, -5)])
def test_registration_finds_a_known_move(template: Volume, degrees: tuple[float, float, float]) -> None:
    world = known_move(degrees)
    found, similarity = register(itk_image(template), itk_image(moved(template, world)))
    assert similarity > 0.5
    for point in ([-25, 10, 5, 1], [30, -30, 20, 1], [5, 40, -20, 1]):
        assert np.linalg.norm((found - world) @ point) < 2.0


def test_registration_gives_the_same_answer_twice(template: Volume) -> None:
    images = itk_image(template), itk_image(moved(template, known_move()))
    first, second = register(*images), register(*images)
    np.testing.assert_allclose(first[0], second[0], atol=1e-5)
    assert first[1] == pytest.approx(second[1], abs=1e-6)


def test_boxes_follow_the_head_and_the_mirrored_one_is_mirrored(
    template: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = known_move()
    monkeypatch.setattr(module, "read_template", lambda name, root: template)
    monkeypatch.setattr(module, "register", lambda *_: (world, 1.0))
    scan = moved(template, world)
    (left, right), notices = localise(scan, bundle_with((LEFT, RIGHT)))
    for region, spec in ((left, LEFT), (right, RIGHT)):
        assert region.grid is not None
        np.testing.assert_allclose(region.grid.center_mm, world[:3, :3] @ spec.center_mm + world[:3, 3], atol=1e-9)
        np.testing.assert_allclose(region.grid.spacing_mm, (1, 1, 1))
    assert left.grid is not None
    assert right.grid is not None
    assert np.linalg.det(left.grid.affine) > 0 > np.linalg.det(right.grid.affine)
    # first index axis: towards the patient's right on the left side, towards the left on the right side
    assert left.grid.orientation == "RAS"
    assert right.grid.orientation == "LAS"
    # what the network sees of the left part holds the bright blob in its middle
    seen = resample(scan.array[0], scan.grid, left.grid)
    middle = tuple(n // 2 for n in seen.shape)
    assert seen[middle] > np.median(seen) + 20
    assert [s.label for s in left.segments] == [1, 2]
    assert [s.label for s in right.segments] == [3, 4]
    assert notices == ()
    monkeypatch.setattr(module, "register", lambda *_: (world, 0.3))
    assert [notice.code for notice in localise(scan, bundle_with((LEFT, RIGHT)))[1]] == ["localise.doubtful"]


@pytest.mark.parametrize(("similarity", "is_doubted"), [(0.51, False), (0.41, False), (0.36, True)])
def test_the_shipped_bound_lies_between_right_and_wrong_registrations(
    similarity: float, is_doubted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # heads and templates of seven makers reach 0.41 to 0.51, with noise, a bias field or contrast agent too; a head
    # that lies upside down or on its side reaches 0.32, one with back and front exchanged 0.36
    scan = module.read_template("mni152_t1", read_bundle().root)
    monkeypatch.setattr(module, "register", lambda *_: (np.eye(4), similarity))
    assert [notice.code for notice in localise(scan, read_bundle())[1]] == ["localise.doubtful"] * is_doubted


def test_a_crop_is_seen_directly() -> None:
    grid = Grid.around((0, 0, 0), (40, 50, 36), (1, 1, 1))
    (region,), _ = localise(Volume(np.zeros((1, *grid.shape), np.float32), grid), read_bundle())
    assert region.grid is None
    assert region.labels == {1: 1, 2: 2}
    assert [s.name for s in region.segments] == ["anterior hippocampus", "posterior hippocampus"]


def test_noise_is_not_taken_for_a_head(template: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "read_template", lambda name, root: template)
    noise = np.random.default_rng(0).normal(100, 20, template.array.shape).astype(np.float32)
    with pytest.raises(LocaliseError) as caught:
        localise(Volume(noise, template.grid), bundle_with((LEFT,)))
    assert caught.value.code == "localise.low_similarity"
    expected = (
        "a T1-weighted MRI of a whole head",
        "shorter than 100 mm",
        "a crop around a left hippocampus",
        "--model",
    )
    assert all(text in caught.value.message for text in expected)


def test_a_box_outside_the_scan_is_refused(template: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "read_template", lambda name, root: template)
    monkeypatch.setattr(module, "register", lambda *_: (np.eye(4), 1.0))
    upper_half = template.grid.box((0, 0, 40), template.grid.shape)
    scan = Volume(resample(template.array, template.grid, upper_half), upper_half)
    with pytest.raises(LocaliseError) as caught:
        localise(scan, bundle_with((LEFT,)))
    assert caught.value.code == "localise.outside"
    monkeypatch.setattr(module, "register", lambda *_: (np.diag([2.0, 2, 2, 1]), 1.0))
    with pytest.raises(LocaliseError) as caught:
        localise(scan, bundle_with((LEFT,)))
    assert caught.value.code == "localise.stretched"
    monkeypatch.setattr(module, "register", lambda *_: (np.diag([-1.0, 1, 1, 1]), 1.0))
    with pytest.raises(LocaliseError) as caught:
        localise(scan, bundle_with((LEFT,)))
    assert caught.value.code == "localise.mirrored"


@pytest.mark.parametrize("fault", ["empty", "thin"])
def test_a_scan_without_a_head_fails_with_a_code(fault: str, template: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "read_template", lambda name, root: template)
    grid = template.grid if fault == "empty" else Grid.around((0, 0, 0), (150, 150, 1.5), (2, 2, 0.5))
    array = np.zeros(grid.shape, np.float32) if fault == "empty" else blobs(grid)
    with pytest.raises(LocaliseError):
        localise(Volume(array[None], grid), bundle_with((LEFT,)))


@pytest.mark.parametrize("reason", [Cancelled, KeyboardInterrupt])
def test_registration_stops_if_the_callback_raises(template: Volume, reason: type[BaseException]) -> None:
    calls = []

    def stop(stage: str, done: int, total: int) -> None:
        calls.append((stage, done, total))
        raise reason()

    with pytest.raises(reason):
        register(itk_image(template), itk_image(moved(template, known_move())), stop)
    assert len(calls) == 1
    assert calls[0][0] == "locating"
