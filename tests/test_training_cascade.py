"""Cascades: labels of the first stage, and the bundle of both stages. The networks are not trained."""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import nibabel
import numpy as np
import pytest
import torch
import yaml
from runs import write_lines

from napari_seg.bundles.check import check
from napari_seg.bundles.digest import model_digest
from napari_seg.bundles.read import find_bundles, read_bundle, with_inner
from napari_seg.bundles.spec import METADATA, PREVIOUS, WEIGHTS, Bundle
from napari_seg.bundles.trust import check_runnable, forget, is_trusted, remember
from napari_seg.bundles.ways import missing_weights, way_of
from napari_seg.errors import BundleError, Cancelled, EnvironmentFault, InputError, TrainingError
from napari_seg.formats.exclusive import exclusive
from napari_seg.geometry import Grid
from napari_seg.inference.estimate import estimate
from napari_seg.inference.segment import segment
from napari_seg.inference.transforms import prepare_by_transforms
from napari_seg.learning.inherit import check_improvable
from napari_seg.memory import resident_bytes
from napari_seg.training import cascade, chosen, configurations, folds, held_out
from napari_seg.training.cascade import begin_second_stage
from napari_seg.training.choices import Choices
from napari_seg.training.comparison import COMPARISON, read_comparison
from napari_seg.training.configurations import (
    Configurations,
    _why_no_cascade,
    compare_configurations,
    plan_configurations,
)
from napari_seg.training.held_out import labels_file
from napari_seg.training.pace import read_configs
from napari_seg.training.postprocessing import METRIC
from napari_seg.training.prepare import plan_bundle
from napari_seg.training.report import REPORT
from napari_seg.training.scores import CASES, SUMMARY
from napari_seg.training.segnets_modules import with_segnets
from napari_seg.training.start import with_start
from napari_seg.volume import Segmentation, Volume

SMALL = {
    "network_def#channels": [4, 8],
    "network_def#strides": [1, 2],
    "network_def#encoder_convs": 1,
    "patch_size": [8, 8, 8],
}
DICE = {"3d_lowres": 0.5, "3d_cascade": 0.9}


@pytest.fixture(scope="module")
def balls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = datasets.write_decathlon(tmp_path_factory.mktemp("data") / "balls", cases=4, smallest=(22, 26, 20))
    description = json.loads((root / "dataset.json").read_text())
    description |= {"labels": {"0": "background", "1": "front", "2": "back"}, "modality": {"0": "MRI"}}
    (root / "dataset.json").write_text(json.dumps(description))
    return root


@pytest.fixture(scope="module")
def finished(balls: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A finished comparison, and its reports; each fold has another network with random weights."""
    out = tmp_path_factory.mktemp("finished") / "out"
    planned = plan_configurations(balls, out, Choices(folds=2, settings=SMALL), ("3d_cascade",))

    def pretend(words: list[str], stop_file: Path, run_folder: Path | None = None) -> None:
        folder = Path(words[words.index("--output_dir") + 1])
        folder = folder if "training" in words else folder.parent
        folder.mkdir(exist_ok=True)
        root, fold = folder.parent, int(folder.name[-1])
        torch.manual_seed(len(root.name) + fold)
        with with_segnets():
            parser = read_configs(root, balls)
            if "training" in words:
                torch.save(parser.get_parsed_content("network_def").state_dict(), folder / "model.pt")
                return
            parser["fold"], parser["folds"] = fold, 2
            cases = [case["name"] for case in parser.get_parsed_content("cases")("validation")]
        (folder / CASES).parent.mkdir(exist_ok=True)
        dice = dict.fromkeys(("front", "back"), DICE[root.name])
        write_lines(folder / CASES, [{"case": case, "mean_dice": dice, METRIC: dice} for case in cases])
        (folder / SUMMARY).write_text(json.dumps({"mean_dice": {"mean": DICE[root.name], **dice}, METRIC: dice}))

    reports: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folds, "run", pretend)
        values: dict[str, dict] = {name: {} for name in planned.plans}
        assert compare_configurations(out, planned, 1, reports.append, values) is None
        assert reports[-1] == "3d_cascade is trained when all folds of 3d_lowres are finished"
        rows = compare_configurations(out, planned, None, reports.append, values)
    assert rows is not None
    assert rows[0].name == "3d_cascade"
    assert {row.name for row in rows} == {"3d_lowres", "3d_cascade", "3d_lowres+3d_cascade"}
    single = {row.name: row for row in rows}
    assert single["3d_cascade"].parameters > 2 * single["3d_lowres"].parameters  # both stages, and more channels
    assert single["3d_cascade"].seconds > single["3d_lowres"].seconds
    return out, reports


@pytest.fixture
def out(finished: tuple[Path, list[str]], tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished[0], tmp_path / "out"))


def stages(out: Path) -> tuple[Path, Path]:
    return out / "training" / "3d_cascade", out / "training" / "3d_lowres"


def scan_of(balls: Path, case: str = "case_00") -> Volume:
    image = nibabel.load(balls / "imagesTr" / f"{case}.nii.gz")
    return Volume(np.array(image.dataobj, np.float32)[None], Grid(image.shape, image.affine))


def labels_of(path: Path) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj)


def test_each_case_gets_the_labels_of_the_fold_that_did_not_train_it(out: Path, balls: Path) -> None:
    root, first = stages(out)
    config = first / "configs" / "inference.yaml"
    content = yaml.safe_load(config.read_text())
    content["network_def"] = content["network_def"]["network"]
    config.write_text(yaml.safe_dump(content))
    for fold in (0, 1):
        shutil.copy(first / f"fold_{fold}" / "model.pt", first / WEIGHTS)
        bundle = read_bundle(first, trust=True)
        for line in (first / f"fold_{fold}" / CASES).read_text().splitlines():
            case = json.loads(line)["case"]
            found = segment(scan_of(balls, case), bundle, device="cpu", match="exact", backend="torch")
            assert np.array_equal(found.array, labels_of(labels_file(root, case)))
            assert len(np.unique(found.array)) > 1
            shutil.copy(first / f"fold_{1 - fold}" / "model.pt", first / WEIGHTS)
            other = segment(scan_of(balls, case), read_bundle(first, trust=True), device="cpu", match="exact")
            assert not np.array_equal(found.array, other.array)
            shutil.copy(first / f"fold_{fold}" / "model.pt", first / WEIGHTS)


def test_the_labels_are_written_once_and_again_for_other_weights(out: Path, balls: Path) -> None:
    root, first = stages(out)
    reports: list[str] = []

    def begin(stop: bool = False) -> None:
        def report(text: str) -> None:
            reports.append(text)
            if stop:
                (out / "stop").touch()

        reports.clear()
        begin_second_stage(root, first, balls, 2, report, out / "stop")

    (cached := root / "training" / "cache" / "case.pt").parent.mkdir(exist_ok=True)
    cached.touch()
    begin()
    assert reports == []
    assert cached.is_file()
    case = json.loads((root / "fold_1" / CASES).read_text().splitlines()[0])["case"]
    labels_file(root, case).unlink()
    with pytest.raises(Cancelled, match=r"run\.stopped"):
        begin(stop=True)
    assert not (out / "stop").exists()
    assert not cached.exists()  # it holds the labels of before
    begin()
    assert reports == ["labels of 3d_lowres on fold 1 of 2: 1 case"]
    assert not (root / "fold_1" / SUMMARY).exists()
    # a fold that was trained further: its cases are shown other labels, so that the second stage is evaluated again
    weights = torch.load(first / "fold_1" / "model.pt", weights_only=True)
    torch.save(weights, first / "fold_1" / "model.pt", _use_new_zipfile_serialization=False)
    shutil.copy(first / "fold_1" / "model.pt", first / WEIGHTS)
    times = {path: path.stat().st_mtime_ns for path in labels_file(root, "").parent.iterdir()}
    with pytest.raises(BundleError):  # these weights are not those of the ensemble
        begin()
    assert reports == ["labels of 3d_lowres on fold 1 of 2: 2 cases"]
    assert (root / "fold_0" / SUMMARY).is_file()
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_one_command_after_another_writes_the_labels(
    out: Path, balls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, first = stages(out)
    other, reports = ExitStack(), []
    waiting = "another command writes the labels of 3d_lowres; waiting for its end"

    def begin() -> None:
        reports.clear()
        begin_second_stage(root, first, balls, 2, reports.append, out / "stop")

    path = root / "training" / "previous.lock"
    other.enter_context(exclusive(path, TrainingError("run.in_use", "")))
    (out / "stop").touch()
    with pytest.raises(Cancelled, match=r"run\.stopped"):
        begin()
    monkeypatch.setattr(cascade.time, "sleep", lambda seconds: other.close())
    begin()
    assert reports == [waiting]
    assert not path.exists()


def test_the_record_keeps_the_lines_of_another_command(out: Path, balls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a file system without locks two commands write at once."""
    root, first = stages(out)
    record = labels_file(root, "").parent / "cases.jsonl"
    before = record.read_text()
    record.write_text("".join(before.splitlines(keepends=True)[:1]))
    monkeypatch.setattr(held_out.HeldOut, "settings", lambda *_: SimpleNamespace(bundle=None))
    monkeypatch.setattr("napari_seg.localise.localise", lambda *_: ((), None))
    monkeypatch.setattr("napari_seg.inference.scan.run_regions", lambda *_: (None, None, None))
    monkeypatch.setattr(cascade, "write_map", lambda *_: record.write_text(record.read_text() + '{"case": "other"}\n'))
    begin_second_stage(root, first, balls, 2, lambda text: None, out / "stop")
    cases = {json.loads(line)["case"] for line in record.read_text().splitlines()}
    assert cases == {json.loads(line)["case"] for line in before.splitlines()} | {"other"}


def test_labels_are_written_again_if_other_largest_components_are_kept(out: Path, balls: Path) -> None:
    root, first = stages(out)
    config = first / "configs" / "evaluate.yaml"
    config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | {"largest": [2]}))

    def report(text: str) -> None:
        raise Cancelled("run.stopped", text)

    with pytest.raises(Cancelled, match="labels of 3d_lowres on fold 0 of 2: 2 cases"):
        begin_second_stage(root, first, balls, 2, report, out / "stop")


def test_the_first_stage_is_replaced_as_a_whole(out: Path, balls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, first = stages(out)
    inner = root / PREVIOUS
    with (inner / WEIGHTS).open("ab") as file:
        file.write(b"0")
    files = sorted(inner.rglob("*"))

    def full(*_: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(chosen, "atomic_file", full)
        with pytest.raises(OSError, match="No space"):
            begin_second_stage(root, first, balls, 2, lambda text: None, out / "stop")
    assert sorted(inner.rglob("*")) == files
    begin_second_stage(root, first, balls, 2, lambda text: None, out / "stop")
    assert (inner / WEIGHTS).read_bytes() == (first / WEIGHTS).read_bytes()
    assert json.loads((inner / METADATA).read_text())["name"] == PREVIOUS
    assert not (root / "training" / "part").exists()


def test_both_stages_are_one_bundle(out: Path, balls: Path) -> None:
    bundle = read_bundle(out)
    assert bundle.previous is not None
    assert bundle.previous.root == (out / PREVIOUS).resolve()
    assert (bundle.in_channels, [one.name for one in bundle.segments]) == (1, ["front", "back"])
    assert [one.root.name for one in with_inner(bundle)] == ["out", PREVIOUS]
    assert missing_weights(bundle) == ""
    assert not [finding for finding in check(out) if finding.level == "error"]
    assert any(finding.file.startswith(f"{PREVIOUS}/configs") for finding in check(out))
    assert "--previous_dir" in (out / "docs" / "README.md").read_text()

    # the consent to the bundle is one to both stages, and the digest one of both
    with pytest.raises(BundleError, match=r"bundle\.untrusted"):
        check_runnable(bundle)
    trusted = read_bundle(out, trust=True)
    check_runnable(trusted)
    assert trusted.previous is not None
    assert trusted.previous.trusted
    remember(bundle)
    check_runnable(bundle)
    (out / PREVIOUS / "segnets" / "unet.py").write_text("changed = True\n")
    with pytest.raises(BundleError, match=r"bundle\.trust_changed"):
        check_runnable(bundle)
    remember(bundle)
    forget(out)
    assert not is_trusted(bundle.previous)
    before = model_digest(bundle)
    with (out / PREVIOUS / WEIGHTS).open("ab") as file:
        file.write(b"0")
    assert model_digest(bundle) != before
    (out / PREVIOUS / WEIGHTS).unlink()
    assert WEIGHTS.name in missing_weights(bundle)


def test_monai_runs_one_stage_after_the_other(
    out: Path, balls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MONAI's own workflow is the reference of the engine; without the labels of the first stage it refuses."""
    from monai.bundle import ConfigWorkflow

    monkeypatch.syspath_prepend(str(out))
    one = tmp_path / "one"
    one.mkdir()
    shutil.copy(balls / "imagesTr" / "case_00.nii.gz", one)

    def run(root: Path, **values: Path) -> None:
        workflow = ConfigWorkflow(
            str(root / "configs" / "inference.yaml"),
            meta_file=str(root / METADATA),
            logging_file=False,
            run_id="inference",
            bundle_root=str(root),
            dataset_dir=str(one),
            **{key: str(value) for key, value in values.items()},
        )
        workflow.initialize()
        workflow.run()

    with pytest.raises(RuntimeError) as refused:
        run(out, output_dir=tmp_path / "none")
    causes, error = [], refused.value
    while error is not None:
        causes, error = [*causes, str(error)], error.__cause__
    assert any(cause.startswith("dataset.previous_stage: found no labels") for cause in causes)
    run(out / PREVIOUS, output_dir=tmp_path / "labels")
    run(out, output_dir=tmp_path / "results", previous_dir=tmp_path / "labels")
    scan, bundle = scan_of(balls), read_bundle(out, trust=True)
    found = segment(scan, bundle, device="cpu", match="exact", backend="torch")
    expected = labels_of(tmp_path / "results" / "case_00_seg.nii.gz")
    assert np.mean(found.array == expected) > 0.999
    assert len(np.unique(expected)) > 1
    assert "previous" in found.run
    first = labels_of(tmp_path / "labels" / "case_00_seg.nii.gz")
    assert np.mean(found.array == first) < 0.9  # the second stage does not copy the first one
    # the labels count
    blind = segment(scan, read_bundle(cleared(out, tmp_path / "blind"), trust=True), device="cpu", match="exact")
    assert not np.array_equal(blind.array, found.array)


def cleared(out: Path, copy: Path) -> Path:
    """Return a copy of a cascade whose first stage finds nothing."""
    shutil.copytree(out, copy, ignore=shutil.ignore_patterns("training"))
    weights = torch.load(copy / PREVIOUS / WEIGHTS, weights_only=True)
    torch.save({key: torch.zeros_like(value) for key, value in weights.items()}, copy / PREVIOUS / WEIGHTS)
    return copy


def test_a_cascade_is_estimated_and_keeps_to_the_memory(out: Path, balls: Path) -> None:
    scan, bundle = scan_of(balls), read_bundle(out, trust=True)
    assert bundle.previous is not None
    from monai.transforms import Compose

    both, first = estimate(scan, bundle, device="cpu"), estimate(scan, bundle.previous, device="cpu")
    assert both is not None
    assert first is not None
    assert both.windows > first.windows > 0
    shape = (200, 200, 200)
    large = Volume(np.broadcast_to(np.uint8(0), (1, *shape)), Grid(shape, np.eye(4)))
    previous = Segmentation(np.broadcast_to(np.uint8(0), shape), large.grid, ())
    budget = resident_bytes() + 2**26  # the image alone takes less
    with pytest.raises(EnvironmentFault, match=r"environment\.memory"):
        prepare_by_transforms(large, None, bundle, Compose([]), budget_bytes=budget, previous=previous)
    prepare_by_transforms(large, None, bundle, Compose([]), budget_bytes=budget)


def test_a_cascade_whose_labels_do_not_fit_is_left_out(out: Path, balls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    next(labels_file(stages(out)[0], "").parent.glob("*_seg.nii.gz")).unlink()
    monkeypatch.setattr(held_out, "default_budget", lambda: 1)
    write_lines(stages(out)[1] / "fold_0" / "history.jsonl", [{"epoch": 1, "step": 1, "loss": 0.5, "seconds": 90.0}])
    planned = plan_configurations(balls, out, Choices(), ())
    reports: list[str] = []
    rows = compare_configurations(out, planned, None, reports.append, {name: {} for name in planned.plans})
    assert rows is not None
    assert [row.name for row in rows] == ["3d_lowres"]
    text = "the labels of 3d_lowres could not be written: environment.memory: "
    assert reports[-1].startswith(f"3d_cascade is left out, because {text}")
    record = read_comparison(out)
    assert record is not None
    assert record["left out"]["3d_cascade"].startswith(text)
    assert f"Left out: 3d_cascade: {text}" in (out / REPORT).read_text(encoding="utf-8")
    assert read_bundle(out).previous is None

    # the message of another fault can name a file
    def fail(*rest: Any) -> None:
        raise InputError("file.damaged", "/data/a.nii.gz")

    monkeypatch.setattr(configurations, "begin_second_stage", fail)
    compare_configurations(out, planned, None, reports.append, {name: {} for name in planned.plans})
    assert "a.nii.gz" in reports[-1]
    assert "a.nii.gz" not in (out / COMPARISON).read_text()


def test_a_planned_cascade_goes_on_without_consent(out: Path, balls: Path) -> None:
    again = plan_configurations(balls, out, Choices(), ())
    assert list(again.plans) == ["3d_lowres", "3d_cascade"]
    assert again.choices["3d_cascade"].previous == "3d_lowres"
    root, _ = stages(out)
    (root / PREVIOUS / "segnets" / "unet.py").write_text("changed = True\n")
    with pytest.raises(BundleError, match=r"bundle\.untrusted: previous/segnets/unet\.py is not a module"):
        plan_configurations(balls, out, Choices(), ())


def test_a_cascade_is_no_start_of_a_training(out: Path, tmp_path: Path, balls: Path) -> None:
    root, _ = stages(out)
    for start in (out, out / WEIGHTS, root, root / "fold_0" / "model.pt"):
        text = r"bundle\.fine_tune: .*needs the result of a previous stage; expected a model of one network, such as .*"
        with pytest.raises(BundleError, match=f"{text}previous$"):
            with_start(Choices(), start, tmp_path / "new")
    (out / "training" / "3d").mkdir()
    with pytest.raises(BundleError, match=r"one network, such as .*3d$"):
        with_start(Choices(), out, tmp_path / "new")
    first = with_start(Choices(), out / PREVIOUS, tmp_path / "new")
    assert first.fine_tune["file"].endswith("previous/models/model.pt")
    with pytest.raises(
        BundleError, match=r"improve\.model: .*needs the result of a previous stage; improve .*previous;"
    ):
        check_improvable(read_bundle(out))
    with pytest.raises(BundleError, match=r"bundle\.option: found option 'cascade'"):
        plan_bundle(balls, tmp_path / "new", Choices(options=("cascade",)))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"previous": "../3d_lowres"}, "expected a folder in it"),
        ({"previous": "none"}, "can't be used"),
        ({"previous": PREVIOUS, "members": [PREVIOUS, "."]}, "expected a folder in it"),
    ],
)
def test_an_odd_previous_stage_is_refused(out: Path, entry: dict[str, Any], message: str) -> None:
    write(out, napari_seg=entry)
    with pytest.raises(BundleError, match=rf"bundle\.metadata: .*{message}"):
        read_bundle(out)


def test_the_first_stage_is_no_model_of_its_own(out: Path) -> None:
    found, faults = find_bundles([out])
    assert [bundle.root for bundle in found][1:] == [out]
    assert faults == []
    assert out.resolve() in [bundle.root.resolve() for bundle in find_bundles([out.parent])[0]]

    (out / PREVIOUS / WEIGHTS).unlink()
    assert missing_weights(read_bundle(out)).startswith("the first stage of bundle 'out' has no models/model.pt")
    first = read_bundle(out / PREVIOUS)
    for file, read in (("inference.yaml", lambda: way_of(first)), ("metadata.json", lambda: read_bundle(out))):
        (out / PREVIOUS / "configs" / file).unlink()
        with pytest.raises(
            BundleError, match=rf"the first stage of bundle .out. .*{file}|{file} of the first stage of bundle"
        ):
            read()


def test_a_previous_stage_with_other_classes_is_refused(out: Path) -> None:
    formats = json.loads((out / PREVIOUS / METADATA).read_text())["network_data_format"]
    formats["outputs"]["pred"]["channel_def"] = {"0": "background", "1": "back", "2": "front"}
    write(out / PREVIOUS, network_data_format=formats)
    with pytest.raises(BundleError, match=r"bundle\.metadata: .*previous' has other network_segments"):
        read_bundle(out)


def write(root: Path, **entries: Any) -> None:
    metadata = json.loads((root / METADATA).read_text()) | entries
    (root / METADATA).write_text(json.dumps(metadata))


def test_a_cascade_is_left_out_where_it_can_not_be() -> None:
    found, choices = Configurations(Path()), Choices(settings={"preprocessing#transforms#1#pixdim": [2, 2, 2]})
    assert _why_no_cascade(found, choices) == "there is no 3d_lowres, whose labels it needs"
    found.plans["3d_lowres"] = {"regions": {"whole": 1}}
    assert _why_no_cascade(found, choices) == "its structures may overlap"
    found.plans["3d_lowres"] = {}
    assert _why_no_cascade(found, choices) == ""
    for name in ("preprocessing", "preprocessing#transforms", "+preprocessing::transforms"):
        reason = _why_no_cascade(found, Choices(settings={name: []}))
        assert reason == f"--set {name} replaces the steps that add the labels of 3d_lowres"


def test_a_cascade_takes_part_only_if_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configurations, "_plan", lambda read, out, first, choices, names, options: names)
    data = tmp_path / "data"
    monkeypatch.setattr(configurations, "_convert", lambda *rest: (configurations._Read(data, False, False), {}))
    plan = partial(plan_configurations, data, tmp_path / "out", Choices(folds=2))
    assert plan(()) == ["2d", "3d", "3d_lowres"]
    assert read_comparison(tmp_path / "out")["compared"] == ["2d", "3d", "3d_lowres"]
    assert plan(("3d", "3d_cascade")) == ["3d", "3d_lowres", "3d_cascade"]


def test_a_member_of_a_pair_may_be_a_cascade(out: Path, balls: Path) -> None:
    from napari_seg.training.chosen import copy_ensemble
    from napari_seg.training.pairs import Pair

    root, first = stages(out)
    pair = Pair(("3d_lowres", "3d_cascade"), {"case_00": {"front": 0.5, "back": 0.7}}, ())
    copy_ensemble(pair, {"3d_lowres": first, "3d_cascade": root}, out, "3d_cascade")
    bundle = read_bundle(out, trust=True)
    assert not (out / PREVIOUS).exists()
    member: Bundle = bundle.models[1]
    assert member.previous is not None
    assert member.previous.trusted
    found = segment(scan_of(balls), bundle, device="cpu")
    assert set(found.run["members"]) == {"3d_lowres", "3d_cascade"}
