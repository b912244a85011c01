"""Tasks of TotalSegmentator become bundles where their weights are on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest
from task_models import write_part, write_task

from napari_seg.bundles.places import store_root
from napari_seg.bundles.read import find_bundles, read_bundle
from napari_seg.bundles.totalsegmentator.read import find_tasks, read_task
from napari_seg.bundles.totalsegmentator.table import task_of, weights_of
from napari_seg.bundles.totalsegmentator.task import TaskBundle
from napari_seg.errors import BundleError


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TOTALSEG_WEIGHTS_PATH", str(tmp_path / "results"))
    return tmp_path / "results"


def test_a_task_of_several_parts(results: Path) -> None:
    write_task(results, "total_mr")
    bundle = read_bundle("totalsegmentator:total_mr")
    assert isinstance(bundle, TaskBundle)
    assert (bundle.kind, bundle.name, bundle.version, bundle.modality) == (
        "totalsegmentator",
        "TotalSegmentator total_mr",
        "2.18.0",
        "MR",
    )
    assert [part.configuration.dataset for part in bundle.parts] == ["Dataset001_Phantom"] * 2
    assert [part.root.parent.name for part in bundle.parts] == [weights_of(n).folder for n in (850, 851)]
    assert [part.overlap for part in bundle.parts] == [0.2, 0.2]
    assert [len(part.segments) for part in bundle.parts] == [29, 21]  # labels of the networks, not of the task
    assert len(bundle.segments) == 50
    assert bundle.segments[0].name == "spleen"
    assert bundle.segments[0].kind is not None
    assert bundle.crop is None
    assert bundle.licence == "Apache-2.0"


def test_the_task_that_finds_where_another_one_looks_comes_along(results: Path) -> None:
    write_task(results, "teeth")
    bundle = read_task("teeth")
    assert bundle.crop is not None
    assert bundle.crop.task.name == "craniofacial_structures"
    assert bundle.crop.crop is not None
    assert bundle.crop.crop.task.name == "total_fastest"
    assert bundle.crop.parts[0].overlap == 0.5
    assert bundle.crop.crop.parts[0].overlap == 0.2


def test_missing_weights_name_the_folders_and_the_command(results: Path) -> None:
    write_part(results, task_of("total_mr").parts[0])
    with pytest.raises(BundleError) as caught:
        read_task("total_mr")
    assert caught.value.code == "bundle.weights"
    text = caught.value.message
    assert weights_of(851).folder in text
    assert weights_of(850).folder not in text
    assert str(results) in text
    assert str(store_root() / "totalsegmentator") in text
    assert "'napari-seg models add totalsegmentator:total_mr' fetches them" in text


def test_a_wrong_name_is_refused_before_missing_weights(results: Path) -> None:
    with pytest.raises(BundleError) as caught:
        read_task("total")
    assert f"({weights_of(291).folder} and 4 more); 'napari-seg models" in caught.value.message
    with pytest.raises(BundleError, match="found no model at 'nix'"):
        read_bundle("totalsegmentator:total+nix")
    with pytest.raises(BundleError, match="no task 'totl'; did you mean total\\?"):
        read_task("totalsegmentator:totl")


def test_a_missing_model_for_the_crop_is_named_with_the_command(results: Path) -> None:
    write_part(results, task_of("liver_vessels").parts[0])
    with pytest.raises(BundleError) as caught:
        read_task("liver_vessels")
    assert caught.value.code == "bundle.weights"
    assert "'total_fastest'" in caught.value.message
    assert weights_of(298).folder in caught.value.message
    assert "'napari-seg models add totalsegmentator:liver_vessels'" in caught.value.message


def test_licensed_weights_are_never_fetched_but_used_where_they_are(results: Path) -> None:
    with pytest.raises(BundleError) as caught:
        read_task("tissue_types")
    assert "need a licence" in caught.value.message
    assert "models add" not in caught.value.message
    write_task(results, "tissue_types")
    assert "free for non-commercial use" in read_task("tissue_types").licence


def test_the_small_form_is_never_taken_for_the_big_one(results: Path) -> None:
    write_task(results, "total_v3_small")
    assert [part.root.name for part in read_task("total_v3_small").parts] == [
        "nnUNetTrainerNoMirroring__nnUNetResEncUNetLPlans_8__3d_fullres"
    ] * 5
    with pytest.raises(BundleError) as caught:
        read_task("total_v3")
    assert caught.value.code == "bundle.weights"


def test_another_model_in_the_folder_is_refused(results: Path) -> None:
    part = task_of("total_fastest").parts[0]
    write_part(results, task_of("body").parts[0]).parent.rename(results / weights_of(298).folder)
    training = next((results / weights_of(298).folder).iterdir())
    training.rename(training.with_name(f"{part.trainer}__{part.plans}__{part.configuration}"))
    with pytest.raises(BundleError) as caught:
        read_task("total_fastest")
    assert caught.value.code == "bundle.metadata"
    bundles, faults = find_tasks()
    assert bundles == []
    assert [fault.code for fault in faults] == ["bundle.metadata"]


def test_tasks_on_this_machine_are_listed(results: Path) -> None:
    assert [bundle.kind for bundle in find_bundles()[0]] == ["monai"]
    write_task(store_root() / "totalsegmentator", "liver_vessels")
    bundles, faults = find_bundles()
    assert [bundle.name for bundle in bundles[1:]] == [
        "TotalSegmentator total_fastest",
        "TotalSegmentator liver_vessels",
    ]
    assert faults == []
