"""A task of TotalSegmentator runs with an improved model in the place of one of its own."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from improved_parts import TASK, change_weights, part_names, write_improved, write_parts
from test_inference_totalsegmentator_task import scan

from napari_seg.bundles.digest import model_digest, model_stamp
from napari_seg.bundles.parts import nnunet_models
from napari_seg.bundles.read import find_bundles, read_bundle, whole_task
from napari_seg.bundles.spec import METADATA, WEIGHTS, PartOf
from napari_seg.bundles.store.installed import task_name
from napari_seg.bundles.totalsegmentator.part_model import part_with
from napari_seg.bundles.totalsegmentator.task import TaskBundle
from napari_seg.bundles.trust import check_runnable
from napari_seg.cli.main import main
from napari_seg.errors import BundleError
from napari_seg.formats.nifti import write_volume
from napari_seg.inference.estimate import estimate
from napari_seg.inference.segment import segment
from napari_seg.learning.inherit import inherited_choices, learning_model
from napari_seg.training.choices import Choices
from napari_seg.training.start import with_start
from napari_seg.volume import Volume


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the weights of the task, and a bundle of each part before its first step."""
    root = tmp_path_factory.mktemp("improved")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOTALSEG_WEIGHTS_PATH", str(root / "weights"))
        patch.setenv("NAPARI_SEG_MODELS", str(root / "store"))
        write_parts(root / "weights")
        for number in (0, 1):
            names = part_names(number)
            write_improved(root / f"part{number}", number, [*names[3:], *names[:3]], root / f"data{number}")
    return root


@pytest.fixture
def parts(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with copies of both bundles."""
    monkeypatch.setenv("TOTALSEG_WEIGHTS_PATH", str(made / "weights"))
    for number in (0, 1):
        shutil.copytree(made / f"part{number}", tmp_path / f"part{number}", ignore=shutil.ignore_patterns("training"))
    return tmp_path


def mr() -> Volume:
    return replace(scan(), modality="MR")


def task_with(*folders: Path) -> TaskBundle:
    found = read_bundle("+".join((TASK, *map(str, folders))))
    assert isinstance(found, TaskBundle)
    return found


def labels_of_parts() -> list[list[int]]:
    return [[label for _, label in part.labels] for part in task_with().task.parts]


def test_before_the_first_step_the_task_gives_its_own_labels(parts: Path) -> None:
    own = segment(mr(), TASK)
    assert min(np.isin(own.array, labels).mean() for labels in labels_of_parts()) > 0.1
    both = task_with(parts / "part0", parts / "part1")
    assert [one.network_segments[0].name for one in both.parts] == [part_names(number)[3] for number in (0, 1)]
    found = segment(mr(), both)
    assert np.array_equal(found.array, own.array)
    assert found.segments == own.segments
    assert found.confidence == pytest.approx(own.confidence)
    for name, run in found.run["parts"].items():
        before = own.run["parts"][name]
        assert run["improved"].startswith("part")
        assert run["weights"].keys() == {"models"}
        assert {*run} - {"improved"} == {*before}
    assert estimate(mr(), both).windows == estimate(mr(), TASK).windows


def test_labels_of_the_other_models_stay(parts: Path) -> None:
    change_weights(parts / "part0")
    own, found = segment(mr(), TASK), segment(mr(), task_with(parts / "part0"))
    task = task_with()
    first, second = labels_of_parts()
    others = np.isin(own.array, second)
    assert others.any()
    assert np.array_equal(np.isin(found.array, second), others)
    assert np.array_equal(found.array[others], own.array[others])
    changed = found.array != own.array
    assert changed.any()
    assert {*np.unique(found.array[changed])} <= {0, *first}
    assert found.run["parts"].keys() == own.run["parts"].keys()
    name = task.parts[1].data_set
    assert found.run["parts"][name]["weights"] == own.run["parts"][name]["weights"]
    assert "improved" not in found.run["parts"][name]


def test_the_digest_covers_the_improved_model_and_no_folder(parts: Path) -> None:
    before = task_with(parts / "part0")
    digest, stamp = model_digest(before), model_stamp(before)
    assert digest != model_digest(read_bundle(TASK))
    assert str(parts / "part0" / WEIGHTS) in [path for path, _, _ in stamp]
    moved = parts / "else+where"
    shutil.copytree(parts / "part0", moved)
    assert model_digest(task_with(moved)) == digest
    change_weights(moved)
    assert model_digest(task_with(moved)) != digest
    assert model_digest(task_with(moved, parts / "part1")) == model_digest(task_with(parts / "part1", moved))
    check_runnable(before)
    assert nnunet_models(before)[0].root.name == "part0"


def test_it_is_found_by_its_name_and_title_and_listed(
    parts: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NAPARI_SEG_MODELS", str(parts))
    found = task_with(Path("part1"))
    assert found.reference == f"{TASK}+{parts / 'part1'}"
    assert found.name == "TotalSegmentator total_mr, with part1"
    assert task_name(found) == f"{TASK}+part1"
    for text in (found.reference, found.name, f"{TASK}+part1"):
        assert read_bundle(text) == found
    assert whole_task(read_bundle("part1")) == found
    assert whole_task(read_bundle()) is None
    titles = [one.name for one in find_bundles()[0]]
    assert titles[-3:] == [f"TotalSegmentator total_mr, with {names}" for names in ("part0", "part1", "part0, part1")]
    assert main(["models"]) == 0
    assert f"name: {TASK}+part0" in capsys.readouterr().out
    assert main(["models", "show", "part0"]) == 0
    assert f"in its task: --model {TASK}+part0" in capsys.readouterr().out
    assert main(["models", "show", f"{TASK}+part0"]) == 0
    assert "with part0 in place of" in capsys.readouterr().out
    assert main(["models", "check", f"{TASK}+part0"]) == 0


def test_improved_models_of_other_parts_stay_in_the_next_round(parts: Path) -> None:
    first, second = (read_bundle(parts / f"part{number}") for number in (0, 1))
    shutil.copytree(parts / "part0", parts / "part0_round2")
    newer, before = read_bundle(parts / "part0_round2"), task_with(first.root, second.root)
    assert whole_task(second, task_with(first.root)) == before
    assert whole_task(newer, before) == task_with(newer.root, second.root)
    assert whole_task(newer, first) == whole_task(newer, read_bundle()) == task_with(newer.root)


def test_other_models_are_refused(parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = parts / "part0"
    metadata = json.loads((folder / METADATA).read_text())

    def refusal(*models: Path) -> str:
        with pytest.raises(BundleError, match=r"bundle\.part") as raised:
            task_with(*models)
        return raised.value.message

    shutil.copytree(folder, parts / "again")
    assert "the same model of the task as 'part0'" in refusal(folder, parts / "again")
    (folder / METADATA).write_text(json.dumps(metadata | {"napari_seg": {}}))
    assert "no model of TotalSegmentator" in refusal(folder)
    part = {"task": "total", "part": "Dataset291_x/y"}
    (folder / METADATA).write_text(json.dumps(metadata | {"napari_seg": {"part_of": part}}))
    assert read_bundle(folder).part_of == PartOf("total", "Dataset291_x/y")
    assert "was made from Dataset291_x/y" in refusal(folder)
    channels = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
    for change, text in (({"2": "tumour"}, "also finds tumour"), ({"0": "x"}, "also finds x")):
        changed = json.loads(json.dumps(metadata))
        changed["network_data_format"]["outputs"]["pred"]["channel_def"] = channels | change
        (folder / METADATA).write_text(json.dumps(changed))
        if "0" not in change:
            assert text in refusal(folder)
    changed["network_data_format"]["outputs"]["pred"]["channel_def"] = dict(list(channels.items())[:-1])
    changed["network_data_format"]["outputs"]["pred"]["num_channels"] = len(channels) - 1
    (folder / METADATA).write_text(json.dumps(changed))
    assert f"does not find {[*channels.values()][-1]}" in refusal(folder)
    (folder / METADATA).write_text(json.dumps(metadata))
    config = folder / "configs" / "inference.yaml"
    text = config.read_text()
    for old, new, found in (
        ("spacing_mm: [1.5, 1.5, 1.5]", "spacing_mm: [1.5, 1.5, 1.6]", "another spacing_mm"),
        ("reorient: true", "reorient: false", "another preprocessing"),
        ("conv_bias: true", "conv_bias: false", "another network_def"),
    ):
        assert old in text
        config.write_text(text.replace(old, new))
        assert found in refusal(folder)
    config.write_text("[")
    (folder / WEIGHTS).rename(folder / "weights")
    assert "not trained yet" in refusal(folder)
    (folder / "weights").rename(folder / WEIGHTS)
    assert "config that can't be read" in refusal(folder)
    assert "with part1" in find_bundles([folder, parts / "part1"])[0][-1].name
    with pytest.raises(BundleError, match=r"bundle\.unknown"):
        read_bundle(f"{TASK}+nothing")


def test_the_improved_model_learns_on(parts: Path, tmp_path: Path) -> None:
    folder = parts / "part0"
    metadata = json.loads((folder / METADATA).read_text())
    metadata["napari_seg"]["improved"] = {"round": 1, "structures of other models": part_names(1)}
    (folder / METADATA).write_text(json.dumps(metadata))
    task = task_with(folder)
    assert part_with(task, part_names(0)[:2]) == read_bundle(folder)
    assert part_with(task, part_names(1)[:1]).root == task.parts[1].root
    learning = learning_model(task, lambda: part_names(0)[:1])
    again = inherited_choices(learning, tmp_path / "out")
    assert again.fine_tune["task"] == "total_mr"
    assert again.fine_tune["part"] == read_bundle(folder).part_of.part
    assert with_start(Choices(), folder, tmp_path / "out").fine_tune == again.fine_tune
    with pytest.raises(BundleError, match=rf"bundle\.fine_tune.*consists of 2 models.*{folder}"):
        with_start(Choices(), task.reference, tmp_path / "out")


@pytest.mark.usefixtures("inline_cohorts")
def test_a_cohort_runs_it(parts: Path, tmp_path: Path) -> None:
    volume = mr()
    write_volume(volume, tmp_path / "scan.nii.gz")
    change_weights(parts / "part1")
    task = task_with(parts / "part1")
    words = ["predict", str(tmp_path / "scan.nii.gz"), "-o", str(tmp_path / "results"), "--model", task.reference]
    assert main(words) == 0
    record = json.loads((tmp_path / "results" / "scan_seg.json").read_text())
    assert record["bundle"]["name"] == "TotalSegmentator total_mr, with part1"
    assert record["bundle"]["sha256"] == model_digest(task)
    change_weights(parts / "part1")
    assert main(words) != 0  # results of other weights are not mixed
