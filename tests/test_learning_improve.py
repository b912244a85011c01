"""A model is fine-tuned on accepted cases, compared and offered; a killed improvement goes on where it was."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import yaml
from nnunet_models import write_model
from task_models import write_task

from napari_seg.bundles.digest import model_digest
from napari_seg.bundles.read import find_bundles, read_bundle, whole_task
from napari_seg.bundles.spec import METADATA, WEIGHTS, CoarseSpec
from napari_seg.bundles.totalsegmentator.task import TaskBundle
from napari_seg.bundles.totalsegmentator.weights import WEIGHTS_VARIABLE
from napari_seg.bundles.trust import remember
from napari_seg.errors import BundleError, Cancelled, InputError
from napari_seg.formats.read import read
from napari_seg.inference.segment import segment
from napari_seg.learning import improve as module
from napari_seg.learning.accept import accept
from napari_seg.learning.improve import COMPARISON, begun_output, improve, next_output, read_improvement
from napari_seg.learning.inherit import inherited_choices, learning_model, lineage, others_of
from napari_seg.learning.training_set import (
    Provenance,
    StructureChange,
    TrainingSet,
    read_training_set,
    write_training_set,
)
from napari_seg.training.choices import Choices
from napari_seg.training.gather.referenced import VARIABLE
from napari_seg.training.prepare import plan_bundle
from napari_seg.training.run import train
from napari_seg.volume import Segment, Segmentation, as_labels

SMALL = {
    "network_def#channels": [4, 8],
    "network_def#strides": [1, 2],
    "network_def#encoder_convs": 1,
    "num_workers": 0,
    "learning_rate": 0.01,
}
BRIEF = {"max_epochs": 2, "val_interval": 2, "num_workers": 0}


def fill(folder: Path, cases: range, names: tuple[str, ...] = ("front", "back")) -> Path:
    """Accept cases of synthetic balls, as they are."""
    data = datasets.write_decathlon(folder.parent / "balls", cases=cases.stop)
    for number in cases:
        scan = read(data / "imagesTr" / f"case_{number:02d}.nii.gz")
        array = as_labels(read(data / "labelsTr" / f"case_{number:02d}.nii.gz").array[0], "")
        segments = tuple(Segment(n, name, (n, 0, 0)) for n, name in enumerate(names, 1))
        array = np.where(array <= len(names), array, 0).astype(np.uint8)
        accept(Segmentation(array, scan.grid, segments), scan, folder, Provenance("Ada"))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of balls, trained for a second."""
    root = tmp_path_factory.mktemp("model")
    data = datasets.write_decathlon(root / "data", cases=4)
    (data / "labels.json").write_text('{"front": 1, "back": 2}')
    (data / "dataset.json").write_text(
        json.dumps(json.loads((data / "dataset.json").read_text()) | {"modality": {"0": "MRI"}})
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("matplotlib.figure.Figure.savefig", lambda self, path, **options: Path(path).touch())
        plan_bundle(data, root / "balls", Choices(settings=SMALL | {"max_epochs": 2, "val_interval": 2}))
        train(root / "balls", data)
    return root / "balls"


@pytest.fixture(autouse=True)
def known_scans(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "known"))
    remember(read_bundle(model))  # in the store of this test


@pytest.mark.usefixtures("unrendered_figures")
def test_a_model_is_improved_and_the_old_one_stays(model: Path, tmp_path: Path) -> None:
    folder = fill(tmp_path / "set", range(4))
    (folder / "imagesTr" / "case0004.nii.gz").write_text("no scan")
    old = {path: path.read_bytes() for path in model.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    told: list[str] = []
    found = improve(folder, model, tmp_path / "balls_round1", max_minutes=5, settings=BRIEF, report=told.append)
    assert {path: path.read_bytes() for path in old} == old
    assert (found.parent, found.round, found.cases) == ("balls", 1, 2)
    assert [*found.left_out] == ["case0004"]
    assert sum(line.startswith("left out case0004: file.not_nifti") for line in told) == 1
    assert [(row.structure, row.cases) for row in found.rows] == [("back", 1), ("front", 1), ("mean", 1)]
    assert all(0 <= value <= 1 for row in found.rows for value in (row.before, row.after))
    assert read_improvement(found.output) == found or any(math.isnan(row.low) for row in found.rows)
    new = read_bundle(found.output)
    assert new.version == "0.2.0"
    assert lineage(new)["parent"]["name"] == "balls"
    # what the network sees and what it is are those of the old model
    configs = [(root / "configs" / "inference.yaml").read_text().splitlines()[1:] for root in (model, found.output)]
    assert configs[0] == configs[1]
    # the table is that of the files: the new weights give the new Dice
    content = read_training_set(folder)
    (case,) = content.part_of("validation")
    labels = read(folder / case.labels).array[0]
    result = segment(read(folder / case.image), new)
    dice = 2 * ((labels == 1) & (result.array == 1)).sum() / ((labels == 1).sum() + (result.array == 1).sum())
    assert found.rows[1].after == pytest.approx(dice, abs=1e-4)
    # trained weights are those of the last step
    last = (found.output / "training" / "model_final.pt").read_bytes()
    assert (found.output / WEIGHTS).read_bytes() == last

    # the next round knows its parent, and reads the scores that are known
    fill(folder, range(3, 5))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("napari_seg.learning.compare.segment", _counted := _Counted())
        again = improve(folder, found.output, next_output(new), max_minutes=5, settings=BRIEF)
    assert again.output == found.output.parent / "balls_round2"
    assert (again.round, again.cases) == (2, 4)
    assert again.rows[-1].before == pytest.approx(found.rows[-1].after)
    assert _counted.count == 1, "the old model was not run again"
    assert [one["name"] for one in lineage(read_bundle(again.output))["earlier"]] == ["balls"]


class _Counted:
    count = 0

    def __call__(self, *arguments: Any) -> Segmentation:
        self.count += 1
        return segment(*arguments)


@pytest.mark.usefixtures("unrendered_figures")
@pytest.mark.slow
def test_an_improvement_goes_on_with_its_own_cases(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = fill(tmp_path / "set", range(3)), tmp_path / "out"

    def killed(*_: Any, **__: Any) -> None:
        raise Cancelled

    with monkeypatch.context() as patch:
        patch.setattr(module, "run", killed)
        with pytest.raises(Cancelled):
            improve(folder, model, out, max_minutes=5, settings=BRIEF)
    assert not (out / COMPARISON).exists()
    first = read_training_set(folder).cases[0]
    fill(folder, range(4))  # corrects the first ones again, and adds one
    assert (folder / first.labels).is_file()
    found = improve(folder, model, out, max_minutes=5, settings=BRIEF)
    assert found.cases == 2
    (listed,) = (folder / "rounds").iterdir()
    assert [entry["label"][-9:] for entry in json.loads(listed.read_text())["training"]] == ["r1.nii.gz"] * 3


@pytest.mark.usefixtures("unrendered_figures")
@pytest.mark.slow
def test_new_and_missing_structures(model: Path, tmp_path: Path) -> None:
    folder = fill(tmp_path / "set", range(3), ("lesion",))
    found = improve(folder, model, tmp_path / "out", max_minutes=5, settings=BRIEF)
    new = read_bundle(found.output)
    assert [one.name for one in new.segments] == ["front", "back", "lesion"], "nothing is forgotten"
    row = found.rows[0]
    assert (row.structure, row.cases) == ("lesion", 1)
    assert math.isnan(row.before)
    assert not found.is_better


@pytest.mark.usefixtures("unrendered_figures")
@pytest.mark.slow
def test_a_model_of_nnunet_is_improved(tmp_path: Path) -> None:
    labels = {"background": 0, "front": 1, "side": 2}
    changes = {"dataset_changes": {"labels": labels, "channel_names": {"0": "MRI"}}, "folds": (0, 1)}
    source = write_model(tmp_path / "results", **changes)
    old = read_bundle(source)
    out = next_output(old)
    assert out == tmp_path / "store" / "Dataset001_Phantom_3d_fullres_round1"
    files = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    folder = fill(tmp_path / "set", range(3))
    told: list[str] = []
    found = improve(folder, old, out, max_minutes=5, settings=BRIEF, report=told.append)
    assert any("Dataset001_Phantom 3d_fullres, fold 0, of 2 folds on 2 cases" in line for line in told)
    assert {path: path.read_bytes() for path in files} == files
    assert {path for path in source.rglob("*") if path.is_file()} == {*files}
    new = read_bundle(out)
    assert [one.name for one in new.segments] == ["front", "side", "back"], "nothing is forgotten"
    assert [(row.structure, row.cases) for row in found.rows] == [("back", 1), ("front", 1), ("mean", 1)]
    assert lineage(new)["parent"]["name"] == "Dataset001_Phantom 3d_fullres"
    metadata = json.loads((out / METADATA).read_text())
    assert metadata["data_source"].endswith("the nnU-Net model Dataset001_Phantom 3d_fullres, fold 0, of 2 folds")
    # the result is a model like any other one, and can be improved again
    again = inherited_choices(new, tmp_path / "again")
    assert (again.network, again.settings["network_def"]["_target_"]) == ("NnunetUNet", "segnets.NnunetUNet")


@pytest.mark.usefixtures("unrendered_figures")
@pytest.mark.slow
def test_one_model_of_a_task_of_totalsegmentator_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(tmp_path / "weights"))
    write_task(tmp_path / "weights", "total_mr")
    old = read_bundle("totalsegmentator:total_mr")
    first, other = old.segments[0].name, old.segments[-1].name  # of two models
    folder = fill(tmp_path / "set", range(3), (first, other))
    with pytest.raises(InputError, match=rf"improve\.parts.*{first}.*{other}"):
        improve(folder, old, tmp_path / "out", max_minutes=5)
    content = read_training_set(folder)
    same = StructureChange(8, 1.0, 8, 1.0, 0, 0)
    changes = {first: replace(same, added=3), other: same}
    cases = (replace(one, provenance=replace(one.provenance, changes=changes)) for one in content.cases)
    write_training_set(folder, replace(content, cases=tuple(cases)))
    out = next_output(old)
    assert out.name == "TotalSegmentator_total_mr_round1"
    found = improve(folder, old, out, max_minutes=5, settings=BRIEF)
    assert (found.parent, [row.structure for row in found.rows]) == (old.name, [first, "mean"])
    new = read_bundle(out)
    names = [one.name for one in new.segments]
    assert len(names) == len(old.parts[0].segments)
    assert first in names
    assert other not in names
    metadata = json.loads((out / METADATA).read_text())
    assert metadata["license"] == "Apache-2.0"
    assert lineage(new)["parent"] == {"name": old.name, "version": old.version, "digest": model_digest(old)}
    # in the next round, too, what the other model finds is background
    assert other in others_of(learning_model(new, lambda: (first, other)))
    # the task runs with it, and in the next round it learns on
    whole = whole_task(new)
    assert isinstance(whole, TaskBundle)
    assert [one.name for one in find_bundles()[0]][-1] == whole.name == f"{old.name}, with {out.name}"
    assert whole.segments == old.segments
    assert begun_output(whole) is None
    again = next_output(whole)
    assert again.name == "TotalSegmentator_total_mr_round2"
    found = improve(folder, whole, again, max_minutes=5, settings=BRIEF)
    assert (found.parent, found.round) == (whole.name, 2)
    newer = read_bundle(again)
    assert newer.part_of == new.part_of
    assert lineage(newer)["earlier"] == [lineage(new)["parent"]]
    assert other in lineage(newer)["structures of other models"]
    assert json.loads((again / METADATA).read_text())["license"] == "Apache-2.0"
    assert read_bundle(f"{old.reference}+{again}").parts[1] == whole.parts[1]


@pytest.mark.usefixtures("unrendered_figures")
@pytest.mark.slow
def test_old_cases_are_replayed(model: Path, tmp_path: Path) -> None:
    folder = fill(tmp_path / "set", range(4, 7))
    out = tmp_path / "out"
    improve(folder, model, out, max_minutes=5, settings=BRIEF, replay=[model.parent / "data"])
    plan = json.loads((out / "plan.json").read_text())
    assert [one.get("replayed", False) for one in plan["converted"]["data sets"]] == [False, True]
    assert lineage(read_bundle(out))["replayed data sets"] == 1
    description = json.loads((out / "data" / "dataset.json").read_text())
    validated = [entry for entry in description["training"] if entry["split"] == "validation"]
    assert len(validated) == 1
    assert not any(entry.get("replay") for entry in validated)


def test_too_few_cases_and_other_channels_are_refused(model: Path, tmp_path: Path) -> None:
    folder = fill(tmp_path / "set", range(1))
    with pytest.raises(InputError, match=r"improve\.too_few"):
        improve(folder, model, tmp_path / "out", max_minutes=1)
    with pytest.raises(InputError, match=r"improve\.too_few"):
        improve(tmp_path / "nothing", model, tmp_path / "out", max_minutes=1)
    assert not (tmp_path / "out").exists()


def test_a_refusal_leaves_no_list(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fill(tmp_path / "set", range(3))

    def refuse(*_: Any, **__: Any) -> None:
        raise InputError("data.faults", "found a fault")

    monkeypatch.setattr(module, "evaluate", lambda *_: {})
    monkeypatch.setattr(module, "plan_bundle", refuse)
    with pytest.raises(InputError, match=r"data\.faults"):
        improve(folder, model, tmp_path / "out", max_minutes=1)
    assert not list((folder / "rounds").iterdir())


def test_the_list_of_a_training_that_was_planned_stays(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = fill(tmp_path / "set", range(3)), tmp_path / "out"

    def plan(*_: Any, **__: Any) -> dict[str, Any]:
        out.mkdir()
        (out / "plan.json").touch()
        return {"labels": {}}

    def refuse(*_: Any) -> None:
        raise Cancelled

    monkeypatch.setattr(module, "evaluate", lambda *_: {})
    monkeypatch.setattr(module, "plan_bundle", plan)
    monkeypatch.setattr(module, "check_classes", refuse)
    with pytest.raises(Cancelled):
        improve(folder, model, out, max_minutes=1)
    assert list((folder / "rounds").glob("*.json"))


def test_other_models_are_refused(model: Path, tmp_path: Path) -> None:
    folder = fill(tmp_path / "set", range(3))
    for changed in ({"coarse": CoarseSpec("fast", 5)}, {"kind": "nnunet"}):
        with pytest.raises(BundleError, match=r"improve\.model"):
            inherited_choices(replace(read_bundle(model), **changed), tmp_path / "out")
    foreign = tmp_path / "foreign"
    shutil.copytree(model, foreign)
    path = foreign / "configs" / "inference.yaml"
    written = path.read_text()
    for old, new, code in (
        ("segnets.UNet", "monai.networks.nets.UNet", r"improve\.model"),
        ("axcodes: RAS", "axcodes: \"$__import__('os').system('touch /tmp/x')\"", r"bundle\.untrusted"),
        ("monai.transforms.Spacingd", "subprocess.run", r"bundle\.untrusted"),
        ("regions: false", "regions: true", r"improve\.model"),
    ):
        assert old in written
        path.write_text(written.replace(old, new))
        with pytest.raises(BundleError, match=code):
            improve(folder, read_bundle(foreign), tmp_path / "out", max_minutes=1)
    path.unlink()
    with pytest.raises(BundleError, match=r"improve\.model|bundle\."):
        improve(folder, foreign, tmp_path / "out", max_minutes=1)
    assert not (tmp_path / "out").exists()
    assert not (folder / "rounds").exists()


def test_an_ensemble_is_improved_from_its_first_network(model: Path, tmp_path: Path) -> None:
    single = inherited_choices(read_bundle(shutil.copytree(model, tmp_path / "five")), tmp_path / "out")
    path = tmp_path / "five" / "configs" / "inference.yaml"
    content = yaml.safe_load(path.read_text())
    content["network_def"] = {"_target_": "segnets.Ensemble", "members": 2, "network": content["network_def"]}
    path.write_text(yaml.safe_dump(content))
    assert inherited_choices(read_bundle(tmp_path / "five"), tmp_path / "out") == single


def test_a_model_in_boxes_stays_one(tmp_path: Path) -> None:
    shipped = read_bundle(None)
    choices = inherited_choices(shipped, tmp_path / "out")
    assert choices.settings["patch_size"] == [48, 64, 48]
    out = tmp_path / "out"
    (out / "configs").mkdir(parents=True)
    (out / METADATA).write_text(json.dumps({"version": "0.1.0", "napari_seg": {}}))
    module._describe(out, shipped, shipped, TrainingSet(), 0)
    own, theirs = (json.loads((root / METADATA).read_text())["napari_seg"] for root in (out, shipped.root))
    assert own.pop("improved")["parent"]["name"] == shipped.name
    assert own.items() <= theirs.items()
    assert own["localiser"]["regions"][1]["mirror"]


def test_the_folder_of_the_next_model(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = read_bundle(model)
    assert next_output(bundle) == model.parent / "balls_round1"
    assert next_output(read_bundle(None)).parent == tmp_path / "store"
    copy = tmp_path / "balls_round1"
    shutil.copytree(model, copy)
    metadata = json.loads((copy / METADATA).read_text())
    metadata["napari_seg"] = {"improved": {"round": 1, "parent": {"name": "balls"}}}
    (copy / METADATA).write_text(json.dumps(metadata))
    assert next_output(read_bundle(copy)) == tmp_path / "balls_round2"


def test_a_begun_model_is_found_until_it_is_compared(model: Path, tmp_path: Path) -> None:
    old = read_bundle(shutil.copytree(model, tmp_path / "balls"))
    assert begun_output(old) is None
    for number, parent in ((1, "another"), (2, model_digest(old))):
        out = shutil.copytree(model, tmp_path / f"balls_round{number}")
        metadata = json.loads((out / METADATA).read_text())
        metadata["napari_seg"] = {"improved": {"round": 1, "parent": {"name": "balls", "digest": parent}}}
        (out / METADATA).write_text(json.dumps(metadata))
    (tmp_path / "balls_round3").mkdir()  # of something else
    assert begun_output(old) == tmp_path / "balls_round2"
    (tmp_path / "balls_round2" / COMPARISON).write_text("{}")
    assert begun_output(old) is None
    assert next_output(old) == tmp_path / "balls_round4"
