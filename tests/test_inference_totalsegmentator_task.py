"""The chain of a task, with functions in place of networks: order, geometry and bookkeeping."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from task_models import write_task

from napari_seg.bundles.nnunet.configuration import Configuration, NnunetBundle, Resampling
from napari_seg.bundles.read import read_bundle
from napari_seg.bundles.totalsegmentator.task import Part, RoughCrop, Task, TaskBundle
from napari_seg.errors import BundleError, Cancelled, EnvironmentFault, Notice
from napari_seg.geometry import Grid
from napari_seg.inference.fitness import check_fit
from napari_seg.inference.options import SegmentOptions
from napari_seg.inference.scan import segment_scan
from napari_seg.inference.segment import segment
from napari_seg.inference.totalsegmentator import task as chain
from napari_seg.inference.totalsegmentator.task import segment_task, task_runs
from napari_seg.progress import Progress, ignore_progress
from napari_seg.volume import ConfidenceMaps, Segment, Segmentation, Volume

SHAPE = (40, 34, 26)
AFFINE = np.array([[-1.1, 0.2, 0.1, 30], [0.2, 1.2, -0.3, -20], [0.05, 0.2, 2.4, 4], [0, 0, 0, 1]])


def scan(seed: int = 0) -> Volume:
    """Return an oblique CT with the first axis reversed: smooth noise from -1000 to 1000."""
    array = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=SHAPE), 3)
    array = (array / np.abs(array).max() * 1000).astype(np.int16)
    affine = AFFINE.copy()
    u, _, v = np.linalg.svd(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0))
    affine[:3, :3] = u @ v * np.linalg.norm(affine[:3, :3], axis=0)  # at right angles
    return Volume(array[None], Grid(SHAPE, affine.astype(np.float32)), "scan", "CT")


def model(threshold: int, label_count: int = 1) -> NnunetBundle:
    """Return a model whose name is its threshold."""
    segments = tuple(Segment(n, f"s{n}", (n, 0, 0)) for n in range(1, label_count + 1))
    configuration = Configuration(
        "3d_fullres", "", "", "", (8, 8, 8), (1.5, 1.5, 1.5), (0, 1, 2), "SimpleITKIO", (),
        Resampling(), Resampling(), Resampling(), "", "", ("CT",), (),
    )  # fmt: skip
    return NnunetBundle(
        root=Path(f"Dataset{threshold}", "model"), name=str(threshold), version="",
        description="", modality="CT", in_channels=1,
        network_segments=segments, segments=segments, kind="nnunet", channel_names=("CT",),
        configuration=configuration, folds=("fold_0",),
    )  # fmt: skip


def task(*parts: tuple[int, int], names: tuple[str, ...] = ("liver", "spleen", "brain"), **fields) -> TaskBundle:
    """Return a task from pairs of a threshold and the label that it gives."""
    segments = tuple(Segment(n, name, (n, 0, 0)) for n, name in enumerate(names, 1))
    crop = fields.pop("crop_bundle", None)
    rules = tuple(
        Part(n, "", "", "3d_fullres", (0,), ((1, label),) if label else ()) for n, (_, label) in enumerate(parts)
    )
    fields = {"spacing_mm": (1.5, 1.5, 1.5), **fields}
    return TaskBundle(
        root=Path("task"), name="task", version="", description="", modality="CT", in_channels=1,
        network_segments=segments, segments=segments, kind="totalsegmentator", channel_names=("CT",), crop=crop,
        parts=tuple(model(threshold) for threshold, _ in parts), task=Task("task", "CT", parts=rules, **fields),
    )  # fmt: skip


class Runner:
    """Labels voxels above the threshold of a model, and remembers what it was shown."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Volume, SegmentOptions, NnunetBundle]] = []

    def __call__(self, volume: Volume, bundle: NnunetBundle, options: SegmentOptions, report: Progress) -> Segmentation:
        self.seen.append((bundle.name, volume, options, bundle))
        report("loading", 0, 1)
        report("segmenting", 1, 2)
        report("segmenting", 2, 2)
        labels = (volume.array[0] > int(bundle.name)).astype(np.uint8)
        notices = (Notice("environment.backend", "slow"), Notice("fitness.intensities", "cropped"))
        confidence = {1: int(bundle.name) / 1000}
        level = np.uint8(int(bundle.name) // 10 % 100)
        maps = ConfidenceMaps(np.full_like(labels, level), np.full_like(labels, 200 - level))
        return Segmentation(labels, volume.grid, bundle.segments, confidence, notices, maps, {"precision": bundle.name})


def on_task_grid(volume: Volume, spacing: tuple[float, float, float], box=None) -> tuple[nib.Nifti1Image, NDArray]:
    """Return the canonical scan and its values in another voxel size, by nibabel and SciPy."""
    box = box or (slice(None),) * 3
    affine = volume.grid.affine.copy()
    affine[:3, 3] = volume.grid.to_world([part.start or 0 for part in box])
    canonical = nib.as_closest_canonical(nib.Nifti1Image(volume.array[0][box].astype(np.int32), affine))
    zoom = np.array(canonical.header.get_zooms()) / np.array(spacing)
    return canonical, ndimage.zoom(canonical.get_fdata(), zoom, order=1, mode="nearest").astype(np.int32)


def on_scan_grid(labels: NDArray, canonical: nib.Nifti1Image, volume: Volume, box=None) -> NDArray[np.uint8]:
    """Return labels of another voxel size on the scan, by nibabel and SciPy."""
    back = ndimage.zoom(labels.astype(np.uint8), np.divide(canonical.shape, labels.shape), order=0, mode="nearest")
    own = nib.orientations.io_orientation(volume.grid.affine)
    turn = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), own)
    result = np.zeros(volume.grid.shape, np.uint8)
    result[box or (slice(None),) * 3] = nib.Nifti1Image(back, canonical.affine).as_reoriented(turn).get_fdata()
    return result


def test_labels_are_decided_on_the_grid_of_the_models_and_later_parts_overwrite() -> None:
    volume, run = scan(), Runner()
    found = segment_task(volume, task((100, 3), (300, 1)), SegmentOptions(), ignore_progress, run)
    canonical, image = on_task_grid(volume, (1.5, 1.5, 1.5))
    expected = np.where(image > 300, 1, np.where(image > 100, 3, 0))
    assert np.array_equal(found.array, on_scan_grid(expected, canonical, volume))
    assert found.array.dtype == np.uint8
    assert found.grid == volume.grid
    assert [segment.name for segment in found.segments] == ["liver", "spleen", "brain"]
    assert found.confidence == {3: 0.1, 1: 0.3}
    # one image for both parts, in the small type of the scan
    (_, first, options, bundle), (_, second, _, _) = run.seen
    assert first is second
    assert first.array.dtype == np.int16
    assert options.tta == "none"
    assert bundle.overlap == 0.5


def test_notices_of_the_parts_come_once_and_doubts_about_the_crop_never() -> None:
    volume = replace(scan(), notices=(Notice("file.longer", "as read"),))
    found = segment_task(volume, task((100, 3), (300, 1)), SegmentOptions(), ignore_progress, Runner())
    assert [notice.code for notice in found.notices] == ["file.longer", "environment.backend"]


def test_doubts_are_about_the_whole_scan() -> None:
    volume = scan()
    bright = replace(volume, array=np.maximum(volume.array, 0))
    found = segment_task(
        bright, task((100, 3), spacing_mm=(0.7, 0.7, 0.7)), SegmentOptions(), ignore_progress, Runner()
    )
    assert [notice.code for notice in found.notices] == [
        "fitness.intensities",
        "fitness.spacing",
        "environment.backend",
    ]


def scaled(factor: float) -> Volume:
    volume = scan()
    array = (volume.array.astype(np.float32) + 1000) / 2000 * factor
    return replace(volume, array=array.astype(np.float32), modality="MR")


def test_values_that_vanish_as_whole_numbers_are_reported() -> None:
    mr = replace(task((0, 1)), modality="MR")
    with pytest.raises(BundleError, match=r"bundle\.intensities: .*task 'task' truncates .* multiply"):
        segment_task(scaled(1), mr, SegmentOptions(), ignore_progress, Runner())
    notices = {}
    for factor in (10, 1000):
        result = segment_task(scaled(factor), mr, SegmentOptions(), ignore_progress, Runner())
        notices[factor] = [notice.code for notice in result.notices if notice.code.startswith("fitness.")]
    assert notices == {10: ["fitness.intensities"], 1000: []}
    shown = replace(mr, task=replace(mr.task, spacing_mm=None))  # nothing is truncated
    segment_task(scaled(1), shown, SegmentOptions(), ignore_progress, Runner())


def test_an_empty_result_of_a_task_is_reported() -> None:
    result = segment_task(scan(), task((5000, 1)), SegmentOptions(), ignore_progress, Runner())
    assert "result.empty" in [notice.code for notice in result.notices]


def test_confidence_is_that_of_the_model_that_gave_the_label_or_of_the_most_doubtful_one() -> None:
    volume = scan()
    options = SegmentOptions(confidence_maps=True)
    found = segment_task(volume, task((100, 3), (300, 1), spacing_mm=None), options, ignore_progress, Runner())
    assert found.confidence_maps is not None
    for label, confidence, entropy in ((0, 10, 190), (3, 10, 190), (1, 30, 170)):
        assert {*found.confidence_maps.confidence[found.array == label]} == {confidence}
        assert {*found.confidence_maps.entropy[found.array == label]} == {entropy}


def test_progress_covers_all_parts() -> None:
    steps: list[tuple[str, int, int]] = []
    segment_task(scan(), task((1, 1), (2, 2)), SegmentOptions(), lambda *step: steps.append(step), Runner())
    # the next model is loaded after two of four windows
    assert steps == [("loading", 0, 1), *[("segmenting", n, 4) for n in (1, 2, 2, 3, 4)]]


def test_a_run_can_be_cancelled_in_any_part() -> None:
    run = Runner()

    def stop(stage: str, done: int, total: int) -> None:
        if done == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        segment_task(scan(), task((1, 1), (2, 2), (3, 3)), SegmentOptions(), stop, run)
    assert len(run.seen) == 2


def test_a_task_looks_where_the_coarser_one_found_something() -> None:
    volume, run = scan(), Runner()
    rough = task((700, 2), names=("liver", "spleen"), spacing_mm=(6.0, 6.0, 6.0))
    crop = RoughCrop("rough", ("spleen",), (5.0, 5.0, 5.0))
    steps: list[str] = []
    fine = task((100, 1), (400, 2), spacing_mm=(0.9, 0.9, 2.0), crop=crop, crop_bundle=rough)
    found = segment_task(volume, fine, SegmentOptions(), lambda stage, *_: steps.append(stage), run)
    canonical, image = on_task_grid(volume, (6.0, 6.0, 6.0))
    mask = on_scan_grid(image > 700, canonical, volume) > 0
    margin = (5 / np.array(canonical.header.get_zooms())).astype(int)
    spots = np.argwhere(mask)
    box = tuple(
        slice(max(0, low - more), min(size, high + 1 + more))
        for low, high, more, size in zip(spots.min(0), spots.max(0), margin, SHAPE, strict=True)
    )
    assert mask.any()
    assert mask[box].size < mask.size
    canonical, image = on_task_grid(volume, (0.9, 0.9, 2.0), box)
    expected = np.where(image > 400, 2, np.where(image > 100, 1, 0))
    assert np.array_equal(found.array, on_scan_grid(expected, canonical, volume, box))
    assert steps == ["locating", "locating", "loading", *["segmenting"] * 5]
    voxels = [[part.start, part.stop - 1] for part in box]
    assert found.run["parts"] == {"Dataset100": {"precision": "100"}, "Dataset400": {"precision": "400"}}
    assert found.run["crop"]["voxels"] == voxels
    assert found.run["crop"]["parts"] == {"Dataset700": {"precision": "700"}}


def test_an_empty_place_gives_an_empty_result_with_a_notice() -> None:
    rough = task((5000, 2), names=("liver", "spleen"))
    fine = task((100, 1), crop=RoughCrop("rough", ("spleen",)), crop_bundle=rough)
    run = Runner()
    found = segment_task(scan(), fine, SegmentOptions(), ignore_progress, run)
    assert not found.array.any()
    assert len(run.seen) == 1
    assert [notice.code for notice in found.notices] == ["environment.backend", "result.nowhere"]


def test_a_scan_without_resampling_is_shown_as_it_is() -> None:
    volume, run = scan(), Runner()
    found = segment_task(volume, task((100, 1), spacing_mm=None), SegmentOptions(), ignore_progress, run)
    assert np.shares_memory(run.seen[0][1].array, volume.array)
    assert np.array_equal(found.array, volume.array[0] > 100)


def test_auxiliary_labels_are_removed_and_the_body_is_cleaned() -> None:
    volume = scan()
    found = segment_task(volume, task((100, 3), (300, 1), auxiliary=(3,)), SegmentOptions(), ignore_progress, Runner())
    assert {*np.unique(found.array)} == {0, 1}
    names = ("body_trunc", "body_extremities")
    body = task((500, 1), names=names, body=True, spacing_mm=(3.0, 3.0, 3.0))
    found = segment_task(volume, body, SegmentOptions(), ignore_progress, Runner())
    assert ndimage.label(found.array == 1)[1] == 1
    assert ndimage.label(volume.array[0] > 500)[1] > 1


def test_vertebrae_are_refined_with_a_model_that_is_not_merged() -> None:
    names = ("vertebrae_C1", "vertebrae_L5")
    steps = ("vertebrae_pp", "vertebrae_pp_refined")
    found = segment_task(
        scan(), task((200, 1), (250, 0), names=names, steps=steps), SegmentOptions(), ignore_progress, Runner()
    )
    only = segment_task(scan(), task((250, 1), names=names), SegmentOptions(), ignore_progress, Runner())
    assert np.array_equal(found.array > 0, only.array > 0)  # the mask lies within the grown labels


def test_nothing_far_from_a_structure_of_the_coarser_task_stays() -> None:
    rough = task((600, 2), names=("liver", "heart"), spacing_mm=None)
    crop = RoughCrop("rough", ("heart",), (50.0, 50.0, 50.0))
    fine = task((0, 1), spacing_mm=None, crop=crop, crop_bundle=rough, remove_outside=("heart",), remove_outside_mm=4.0)
    volume = scan()
    found = segment_task(volume, fine, SegmentOptions(), ignore_progress, Runner())
    steps = int(4 / np.mean(volume.grid.spacing_mm))
    near = ndimage.binary_dilation(volume.array[0] > 600, iterations=steps)
    assert np.array_equal(found.array > 0, near & (volume.array[0] > 0))


def test_a_thin_scan_has_one_plane_in_the_voxel_size_of_its_task() -> None:
    thick, run = scan(), Runner()
    volume = replace(thick, array=thick.array[..., :4], grid=thick.grid.box((0, 0, 0), (*thick.grid.shape[:2], 4)))

    def checked(image: Volume, model: NnunetBundle, *arguments: Any) -> Segmentation:
        check_fit(image, model)
        return run(image, model, *arguments)

    coarse = task((100, 3), spacing_mm=(20.0, 20.0, 20.0))
    assert segment_task(volume, coarse, SegmentOptions(), ignore_progress, checked).grid == volume.grid
    assert 1 in run.seen[0][1].grid.shape[2:]
    assert [image.grid.shape[2] for image, model, _ in task_runs(volume, coarse, SegmentOptions())] == [1]
    one = replace(thick, array=thick.array[..., :1], grid=thick.grid.box((0, 0, 0), (*thick.grid.shape[:2], 1)))
    with pytest.raises(BundleError, match="the scan has one slice"):
        segment_task(one, coarse, SegmentOptions(), ignore_progress, checked)


def test_a_task_refuses_scans_of_another_modality() -> None:
    with pytest.raises(BundleError, match="modality"):
        segment_task(replace(scan(), modality="MR"), task((1, 1)), SegmentOptions(), ignore_progress, Runner())


def test_the_runs_of_all_models_are_known_before() -> None:
    volume, run = scan(), Runner()
    rough = task((700, 2), names=("liver", "spleen"), spacing_mm=(6.0, 6.0, 6.0), overlap=0.2)
    fine = task((100, 1), (400, 2), crop=RoughCrop("rough", ("spleen",)), crop_bundle=rough)
    runs = list(task_runs(volume, fine, SegmentOptions()))
    segment_task(volume, fine, SegmentOptions(), ignore_progress, run)
    assert [bundle for _, bundle, _ in runs] == [bundle for _, _, _, bundle in run.seen]
    assert [options for _, _, options in runs] == [options for _, _, options, _ in run.seen]
    assert runs[0][0].grid == run.seen[0][1].grid
    assert runs[1][0].grid.shape >= run.seen[1][1].grid.shape


def test_required_structures_alone_are_looked_for_around_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    volume, run = scan(), Runner()
    rough = task((700, 1), names=("liver", "spleen"), spacing_mm=(6.0, 6.0, 6.0))
    monkeypatch.setattr(chain, "read_task", lambda name, trust: {"rough": rough}[name])
    whole = task((100, 1), (200, 2), (300, 3), subset_task="rough")
    found = segment_task(volume, whole, SegmentOptions(structures=("liver",)), ignore_progress, run)
    assert [name for name, *_ in run.seen] == ["700", "100"]
    assert [segment.name for segment in found.segments] == ["liver"]
    assert {*np.unique(found.array)} == {0, 1}
    assert found.run["crop"]["structures"] == ["liver"]
    # the coarser task does not know that name: the whole scan is looked at
    run.seen.clear()
    found = segment_task(volume, whole, SegmentOptions(structures=("brain",)), ignore_progress, run)
    assert [name for name, *_ in run.seen] == ["300"]
    assert "crop" not in found.run
    canonical, image = on_task_grid(volume, (1.5, 1.5, 1.5))
    assert np.array_equal(found.array, on_scan_grid(3 * (image > 300), canonical, volume))


def test_required_structures_of_one_model_are_cut_out_of_its_result() -> None:
    volume = scan()
    found = segment_task(
        volume, task((100, 3), (300, 1)), SegmentOptions(structures=("brain",)), ignore_progress, Runner()
    )
    assert {*np.unique(found.array)} == {0, 3}


def test_a_task_runs_from_its_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOTALSEG_WEIGHTS_PATH", str(tmp_path))
    write_task(tmp_path, "total_mr")
    volume = replace(scan(), modality="MR")
    bundle = read_bundle("totalsegmentator:total_mr")
    assert isinstance(bundle, TaskBundle)
    options = SegmentOptions(backend="torch")
    found = segment(volume, bundle, options)
    merged = np.zeros(on_task_grid(volume, (1.5, 1.5, 1.5))[1].shape, np.uint8)
    for (image, own, own_options), part in zip(task_runs(volume, bundle, options), bundle.task.parts, strict=True):
        labels = segment_scan(image, own, own_options, ignore_progress).array
        table = np.zeros(256, np.uint8)
        for label, meaning in part.labels:
            table[label] = meaning
        merged = np.where(table[labels] > 0, table[labels], merged)
    canonical, _ = on_task_grid(volume, (1.5, 1.5, 1.5))
    assert np.array_equal(found.array, on_scan_grid(merged, canonical, volume))
    assert {*found.confidence} == {*np.unique(found.array)} - {0}
    assert found.run["parts"].keys() == {own.root.parent.name for own in bundle.parts}


def test_an_image_that_does_not_fit_is_refused_before_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    far = Grid(scan().grid.shape, np.diag([400.0, 400.0, 400.0, 1.0]))
    volume = replace(scan(), grid=far)
    monkeypatch.setattr(chain.TaskGrid, "image", lambda *_: pytest.fail("made"))
    bundle = task((1, 1), spacing_mm=(1.5, 1.5, 1.5))
    for run in (
        lambda: segment_task(volume, bundle, SegmentOptions(), ignore_progress),
        lambda: [*task_runs(volume, bundle, SegmentOptions())],
    ):
        with pytest.raises(EnvironmentFault) as raised:
            run()
        assert raised.value.code == "environment.memory"
