"""segment(): labels where they belong on the scan's own grid, for every storage, side and spacing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bundles import write_threshold_bundle
from monai.data import MetaTensor
from monai.transforms import Compose, NormalizeIntensityd, Orientationd, Spacingd
from phantoms import ORIENTATIONS
from scipy import ndimage

from napari_seg import localise as localise_module
from napari_seg.bundles.load import load_model
from napari_seg.bundles.model import Model
from napari_seg.bundles.read import read_bundle
from napari_seg.bundles.spec import Bundle
from napari_seg.errors import BundleError, Cancelled, EnvironmentFault
from napari_seg.geometry import Grid, resample
from napari_seg.inference.fitness import fitted_options
from napari_seg.inference.options import SegmentOptions
from napari_seg.inference.plausibility import remove_islands
from napari_seg.inference.prepare import prepare
from napari_seg.inference.segment import _only, segment
from napari_seg.volume import Segment, Segmentation, Volume


@pytest.fixture
def threshold(tmp_path: Path) -> Bundle:
    return read_bundle(write_threshold_bundle(tmp_path / "threshold"), trust=True)


def test_labels_lie_where_the_intensities_are(head: Volume, threshold: Bundle) -> None:
    result = segment(head, threshold)
    assert result.grid == head.grid
    assert result.array.dtype == np.uint8
    np.testing.assert_array_equal(result.array, head.array[0] > 100)
    assert result.volumes_ml()[1] == pytest.approx((head.array[0] > 100).sum() * head.grid.voxel_ml)
    assert result.confidence[1] > 0.99
    assert 2 not in result.confidence


def test_a_result_without_the_required_structures_says_so(head: Volume) -> None:
    segments = (Segment(1, "anterior hippocampus", (1, 1, 1)),)
    found = Segmentation(np.ones(head.grid.shape, np.uint8), head.grid, segments)
    empty = _only(found, ["left anterior hippocampus"])
    assert not empty.array.any()
    assert [notice.code for notice in empty.notices] == ["result.structures"]
    assert _only(found, ["anterior hippocampus"]).notices == ()


def test_a_structure_of_the_network_stands_for_those_of_all_regions(threshold: Bundle) -> None:
    shipped = read_bundle()
    options = fitted_options(SegmentOptions(structures=("Hippocampus anterior",)), shipped)
    sides = ("left anterior hippocampus", "right anterior hippocampus")
    assert options.structures == ("anterior hippocampus", *sides)
    assert fitted_options(options, shipped) == options
    assert fitted_options(SegmentOptions(structures=sides[:1]), shipped).structures == sides[:1]
    with pytest.raises(BundleError, match=r"bundle\.structures"):
        fitted_options(SegmentOptions(structures=("anterior hippocampus",)), threshold)


def test_a_label_map_that_is_segmented_is_doubted(head: Volume, threshold: Bundle) -> None:
    labels = replace(head, array=(head.array > 100) * np.uint8(3))
    for scan, is_label_map in ((head, False), (labels, True)):
        codes = {notice.code for notice in segment(scan, threshold).notices}
        assert ("fitness.label_map" in codes) is is_label_map


@pytest.mark.parametrize("orientation", ORIENTATIONS[::5])
def test_storage_order_does_not_matter(head: Volume, threshold: Bundle, orientation: str) -> None:
    grid = head.grid.reoriented(orientation)
    turned = Volume(resample(head.array, head.grid, grid), grid)
    np.testing.assert_array_equal(segment(turned, threshold).array, turned.array[0] > 100)


def test_another_spacing_comes_back_to_the_scan(head: Volume, tmp_path: Path) -> None:
    bundle = read_bundle(write_threshold_bundle(tmp_path / "fine", spacing=(1.0, 1.0, 1.0)), trust=True)
    result = segment(head, bundle)
    truth = head.array[0] > 100
    agreement = 2 * (truth & (result.array == 1)).sum() / (truth.sum() + (result.array == 1).sum())
    assert result.grid == head.grid
    assert agreement > 0.97


def test_many_small_windows_give_what_one_gives(head: Volume, tmp_path: Path) -> None:
    bundle = read_bundle(write_threshold_bundle(tmp_path / "small", roi=(10, 12, 8)), trust=True)
    steps: list[tuple[str, int, int]] = []
    result = segment(head, bundle, windows="bundle", progress=lambda *step: steps.append(step))
    np.testing.assert_array_equal(result.array, head.array[0] > 100)
    windows = [step for step in steps if step[0] == "segmenting"]
    assert [done for _, done, _ in windows] == list(range(windows[-1][2] + 1))
    assert windows[-1][2] == 3 * 3 * 2  # 20, 26 and 14 voxels; windows of 10, 12 and 8 every 7, 9 and 6


def side_regions() -> dict[str, object]:
    def region(name: str, x: float, mirror: bool, labels: dict[str, int]) -> dict[str, object]:
        return {"name": name, "center_mm": [x, 0, 0], "size_mm": [30, 30, 24], "mirror": mirror, "labels": labels}

    names = ("left outer", "left inner", "right outer", "right inner")
    return {
        "segments": [{"label": n + 1, "name": name, "color": [9, 9, 9]} for n, name in enumerate(names)],
        "localiser": {
            "template": "mni152_t1",
            "crop_below_mm": 50,
            "min_similarity": 0,
            "spacing_mm": [1, 1, 1],
            "regions": [
                region("left", -20, False, {"1": 1, "2": 2}),
                region("right", 20, True, {"1": 3, "2": 4}),
            ],
        },
    }


def lopsided() -> Volume:
    """A small ball on the patient's left, a larger one further up on the right, in LPS storage, 1 mm."""
    grid = Grid.around((0, 0, 0), (80, 60, 50), (1, 1, 1)).reoriented("LPS")
    x, y, z = np.moveaxis(grid.to_world(np.moveaxis(np.indices(grid.shape), 0, -1)), -1, 0)
    array = np.where((x + 21) ** 2 + y**2 + z**2 < 36, 500, 0) + np.where(
        (x - 18) ** 2 + y**2 + (z - 2) ** 2 < 81, 500, 0
    )
    return Volume(array.astype(np.int16)[None], grid)


def test_the_first_of_several_regions_logs_the_time_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(localise_module, "register", lambda *_: (np.eye(4), 1.0))
    root = write_threshold_bundle(tmp_path / "sides", halves=True, spacing=(1, 1, 1), own=side_regions())
    with caplog.at_level("INFO", "napari_seg.inference.engine"):
        segment(lopsided(), read_bundle(root, trust=True))
    logged = [record.getMessage() for record in caplog.records if record.name.endswith("engine")]
    plans = [text for text in logged if ": took " not in text]
    assert [" in all)" in plan for plan in plans] == [True, False]


def test_left_is_left_and_the_mirrored_scan_gives_mirrored_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(localise_module, "register", lambda *_: (np.eye(4), 1.0))
    root = write_threshold_bundle(tmp_path / "sides", halves=True, spacing=(1, 1, 1), own=side_regions())
    bundle = read_bundle(root, trust=True)
    scan = lopsided()
    result = segment(scan, bundle)
    x = scan.grid.to_world(np.moveaxis(np.indices(scan.grid.shape), 0, -1))[..., 0]
    bright = scan.array[0] > 100
    np.testing.assert_array_equal(result.array == 1, bright & (x < -20))
    np.testing.assert_array_equal(result.array == 2, bright & (x > -20) & (x < 0))
    np.testing.assert_array_equal(result.array == 3, bright & (x > 20))
    np.testing.assert_array_equal(result.array == 4, bright & (x < 20) & (x > 0))
    counts = result.voxel_counts()
    assert counts[1] + counts[2] < counts[3] + counts[4]

    mirrored = segment(replace(scan, array=scan.array[:, ::-1]), bundle)
    swapped = np.array([0, 3, 4, 1, 2], np.uint8)[result.array[::-1]]
    np.testing.assert_array_equal(mirrored.array, swapped)


def test_stopping_leaves_at_the_next_window(head: Volume, tmp_path: Path) -> None:
    bundle = read_bundle(write_threshold_bundle(tmp_path / "small", roi=(10, 12, 8)), trust=True)
    seen = []

    def stop(stage: str, done: int, total: int) -> None:
        seen.append((stage, done))
        if (stage, done) == ("segmenting", 2):
            raise Cancelled

    with pytest.raises(Cancelled):
        segment(head, bundle, progress=stop)
    assert seen[-1] == ("segmenting", 2)


def test_scans_that_do_not_fit_the_bundle_are_refused(head: Volume, threshold: Bundle) -> None:
    with pytest.raises(BundleError, match=r"bundle\.channels"):
        segment(replace(head, array=np.repeat(head.array, 2, axis=0)), threshold)
    with pytest.raises(BundleError, match=r"bundle\.modality"):
        segment(replace(head, modality="CT"), threshold)
    with pytest.raises(EnvironmentFault, match=r"environment\.device"):
        segment(head, threshold, device="cuda:77")
    with pytest.raises(EnvironmentFault, match=r"environment\.device"):
        segment(head, threshold, device="gpu")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("raise RuntimeError('no such layer')", "no such layer"),
        ("return image[:, :, ::2]", "with 3 classes or more of the image's size"),
        ("return torch.cat([image, image], dim=1)", "with 3 classes or more"),
        ("return 3", "expected logits as a tensor"),
        ("return torch.full((len(image), 3, *image.shape[2:]), float('nan'))", "no number"),
    ],
)
def test_a_network_that_fails_is_reported(head: Volume, tmp_path: Path, fault: str, message: str) -> None:
    root = write_threshold_bundle(tmp_path / "faulty")
    nets = root / "scripts" / "nets.py"
    nets.write_text(
        nets.read_text().replace("    def forward(self, image):\n", f"    def forward(self, image):\n        {fault}\n")
    )
    config = root / "configs" / "inference.yaml"
    config.write_text(config.read_text().split("inferer:")[0] + "inferer: {_target_: monai.inferers.SimpleInferer}\n")
    with pytest.raises(BundleError, match=message) as caught:
        segment(head, read_bundle(root, trust=True))
    assert caught.value.code == "bundle.network"


def test_what_progress_raises_is_nobody_elses_fault(head: Volume, threshold: Bundle) -> None:
    def broken(stage: str, done: int, total: int) -> None:
        if stage == "segmenting":
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        segment(head, threshold, progress=broken)


@pytest.mark.parametrize("answer", ["[{}]", "({}, 0)", "{{'logits': {}}}"])
def test_logits_may_come_first_in_a_list_or_a_dictionary(head: Volume, tmp_path: Path, answer: str) -> None:
    root = write_threshold_bundle(tmp_path / "listing", roi=(10, 12, 8))
    nets = root / "scripts" / "nets.py"
    code, logits = nets.read_text().rsplit("return ", 1)
    nets.write_text(f"{code}return {answer.format(logits.strip())}\n")
    config = root / "configs" / "inference.yaml"
    config.write_text(config.read_text() + "  sw_batch_size: 4\n")
    result = segment(head, read_bundle(root, trust=True))
    np.testing.assert_array_equal(result.array, head.array[0] > 100)


def test_modalities_are_compared_only_where_both_are_known(head: Volume, threshold: Bundle) -> None:
    for bundle, scan in (("MRI", "MR"), ("n/a", "MR"), ("T1", "MR"), ("MR", "")):
        segment(replace(head, modality=scan), replace(threshold, modality=bundle))


def test_doubtful_results_say_so(head: Volume, tmp_path: Path) -> None:
    own = {
        "segments": [
            {"label": 1, "name": "bright", "color": [1, 2, 3], "plausible_ml": [100, 200], "in_one_piece": True},
            {"label": 2, "name": "upper", "color": [1, 2, 3], "plausible_ml": [1, 2]},
        ],
        "min_confidence": 1.1,
    }
    root = write_threshold_bundle(tmp_path / "doubt", own=own, roi=(24, 24, 24))
    bundle = read_bundle(root, trust=True)
    bundle = replace(bundle, network_segments=bundle.segments)
    array = head.array.copy()
    array[:, 10] = 0  # cut the head in two
    notices = segment(replace(head, array=array), bundle).notices
    assert {notice.code for notice in notices} == {"result.implausible", "result.islands"}
    text = " | ".join(notice.message for notice in notices)
    assert "bright" in text
    assert "islands" in text
    assert "confidence" in text
    assert "upper: volume 0.00 ml is outside the plausible range of 1 to 2 ml" in text


SINGLE = tuple(Segment(n, f"part {n}", (1, 2, 3), in_one_piece=n < 4) for n in (1, 2, 3, 4))


def test_islands_are_removed_and_reported() -> None:
    labels = np.zeros((20, 20, 20), np.uint8)
    labels[2:8, 2:8, 2:8] = 1
    labels[8:12, 2:8, 2:8] = 2
    labels[9, 4, 4] = 1  # within its neighbour: no island
    labels[8:10, 8:10, 8:10] = 2  # touches by a corner
    labels[15:17, 2:4, 2:4] = 1  # an island of both
    labels[17, 2:4, 2:4] = 2
    labels[2, 15, 15] = labels[2, 18, 18] = 4  # may lie in pieces
    expected = labels.copy()
    expected[15:18, 2:4, 2:4] = 0
    notices = remove_islands(labels, 0.001, SINGLE)
    np.testing.assert_array_equal(labels, expected)
    assert [(notice.code, notice.segment) for notice in notices] == [
        ("result.islands", "part 1"),
        ("result.islands", "part 2"),
    ]
    assert "1 island of 0.008 ml" in notices[0].message
    assert remove_islands(labels, 0.001, SINGLE) == ()
    assert remove_islands(np.zeros((3, 3, 3), np.uint8), 1.0, SINGLE) == ()


def test_a_structure_in_halves_is_doubted_and_kept_whole_on_request(head: Volume, tmp_path: Path) -> None:
    own = {"segments": [{"label": 1, "name": "bright", "color": [1, 2, 3], "in_one_piece": True}]}
    own |= {"network_segments": own["segments"]}
    root = write_threshold_bundle(tmp_path / "single", own=own, roi=(24, 24, 24))
    bundle, array = read_bundle(root, trust=True), head.array.copy()
    array[:, 10] = 0  # cuts the head in two
    halved = replace(head, array=array)
    whole, largest = segment(halved, bundle, keep_islands=True), segment(halved, bundle)
    assert ndimage.label(whole.array, np.ones((3, 3, 3)))[1] == 2
    assert ndimage.label(largest.array, np.ones((3, 3, 3)))[1] == 1
    assert 0 < (largest.array > 0).sum() < (whole.array > 0).sum()
    assert {notice.code for notice in whole.notices} == {"result.implausible"}
    assert {notice.code for notice in largest.notices} == {"result.implausible", "result.islands"}


def test_result_is_a_valid_segmentation(head: Volume, threshold: Bundle) -> None:
    assert isinstance(segment(head, threshold), Segmentation)


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "SPL"])
@pytest.mark.parametrize(
    "asked",
    [
        pytest.param([Orientationd("image", "RAS", labels=None), Spacingd("image", (1.5, 0.9, 2.2))], id="both"),
        pytest.param([Spacingd("image", (1.5, 0.9, 2.2)), Orientationd("image", "LPI", labels=None)], id="other order"),
        pytest.param([Orientationd("image", "RAS", labels=None), NormalizeIntensityd("image")], id="turned only"),
        pytest.param([NormalizeIntensityd("image"), Spacingd("image", (2.0, 2.0, 2.0))], id="spacing not first"),
        pytest.param([Spacingd("image", (1.5, 0.9, 2.2), mode="nearest")], id="nearest"),
        pytest.param([Spacingd("image", (1.5, 0.9, 2.2), align_corners=True)], id="corners aligned"),
    ],
)
def test_the_network_is_shown_what_the_transforms_would_give(
    head: Volume, threshold: Bundle, orientation: str, asked: list
) -> None:
    grid = head.grid.reoriented(orientation)
    scan = Volume(resample(head.array, head.grid, grid), grid)
    model = load_model(threshold, "cpu")
    shown, inverse = prepare(scan, None, threshold, Model(model.network, Compose(asked), model.inferer, model.device))
    image = MetaTensor(torch.from_numpy(scan.array.astype(np.float32)), affine=torch.from_numpy(grid.affine.copy()))
    expected = Compose(asked)({"image": image})["image"]
    np.testing.assert_allclose(inverse.grid.affine, expected.affine, atol=1e-6)
    torch.testing.assert_close(shown, expected.as_tensor(), rtol=1e-5, atol=1e-3)
