"""Test trainings of several configurations; what trains and evaluates a fold is replaced by a quick stand-in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import write_lines

from napari_seg.bundles.read import read_bundle
from napari_seg.bundles.spec import WEIGHTS
from napari_seg.bundles.trust import check_runnable
from napari_seg.errors import BundleError, Cancelled, EnvironmentFault, OutputError
from napari_seg.training import configurations, folds
from napari_seg.training.choices import Choices, changed_settings
from napari_seg.training.chosen import copy_bundle
from napari_seg.training.comparison import COMPARISON, read_comparison
from napari_seg.training.configurations import (
    _convert,
    compare_configurations,
    lowres_spacing,
    plan_configurations,
)
from napari_seg.training.pairs import Pair
from napari_seg.training.part import _of_config
from napari_seg.training.postprocessing import METRIC, LargestGain
from napari_seg.training.prepare import plan_bundle
from napari_seg.training.report import REPORT
from napari_seg.training.scores import CASES, SUMMARY, read_evaluation
from napari_seg.training.segnets_modules import with_segnets

DICE = {"2d": 0.7, "3d": 0.8, "3d_lowres": 0.6, "2d+3d": 0.801}
NO_VALUES: dict[str, dict] = {name: {} for name in DICE}


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace training and evaluation, and return what was run: "2d/fold_0 training", ..."""
    import torch

    called: list[str] = []

    def pretend(words: list[str], stop_file: Path, run_folder: Path | None = None) -> None:
        folder = Path(words[words.index("--output_dir") + 1])
        is_training = "training" in words
        folder = folder if is_training else folder.parent
        name = folder.parent.name
        assert stop_file == folder.parents[2] / "stop"
        called.append(f"{name}/{folder.name} {'training' if is_training else 'evaluating'}")
        folder.mkdir(exist_ok=True)
        if is_training:
            torch.save({"weight": torch.zeros(1)}, folder / "model.pt")
            write_lines(folder / "history.jsonl", [{"epoch": 1, "step": 1, "loss": 0.5, "seconds": 90.0}])
            return
        (folder / CASES).parent.mkdir(exist_ok=True)
        dice = {"front": DICE[name], "back": DICE[name]}
        write_lines(folder / CASES, [{"case": folder.name, "epoch": 1, "mean_dice": dice, METRIC: dice}])
        summary = {"mean": DICE[name], **dice}
        (folder / SUMMARY).write_text(json.dumps({"mean_dice": summary, METRIC: summary}))

    def pair(out: Path, data: Path, folders: dict[str, Path], *rest: Any) -> tuple[list[Pair], dict[str, float]]:
        cases = {f"fold_{n}": dict.fromkeys(("front", "back"), DICE.get("+".join(folders), 0.0)) for n in (0, 1)}
        gains = [LargestGain("front", 0.25, (0.25, 0.25))]
        return [Pair(tuple(folders), cases, gains)] * (len(folders) == 2), dict.fromkeys(folders, 1.5)

    monkeypatch.setattr(folds, "run", pretend)
    monkeypatch.setattr(configurations, "score_pairs", pair)
    return called


def test_the_best_configuration_becomes_the_bundle(dataset: Path, tmp_path: Path, commands: list[str]) -> None:
    out = tmp_path / "balls"
    planned = plan_configurations(dataset, out, Choices(folds=2), ())
    assert list(planned.plans) == ["2d", "3d"]
    assert "a patch of 3d shows 100 % of a typical image" in planned.left_out["3d_lowres"].replace("%", " %")
    assert compare_configurations(out, planned, 1, lambda text: None, NO_VALUES) is None
    assert not (out / "configs").exists()
    rows = compare_configurations(out, planned, None, lambda text: None, NO_VALUES)
    assert rows is not None
    assert [row.name for row in rows] == ["3d", "2d+3d", "2d"]  # the pair is better, but hardly
    steps = [f"{name}/fold_{n} {step}" for n in (1, 0) for name in ("2d", "3d") for step in ("training", "evaluating")]
    assert commands == steps
    assert rows[1].cells()[3:6] == ["+0.0010 (+0.0010 to +0.0010)", "3.00", "6.0"]
    assert rows[2].cells()[3:6] == ["-0.1000 (-0.1000 to -0.1000)", "1.50", "3.0"]
    bundle = read_bundle(out, trust=True)
    check_runnable(bundle)
    assert (bundle.name, bundle.spatial_dims) == ("balls", 3)
    assert (out / WEIGHTS).read_bytes() == (out / "training" / "3d" / WEIGHTS).read_bytes()
    assert (out / "docs" / "README.md").read_text().startswith("# balls\n")
    assert (read_evaluation(out) or {})["part"] == "cross-validation"
    page = (out / REPORT).read_text(encoding="utf-8")
    assert "<h2>Configurations</h2>" in page
    assert "-0.1000 (-0.1000 to -0.1000)" in page
    record = read_comparison(out)
    assert record is not None
    assert [result["name"] for result in record["results"]] == ["3d", "2d+3d", "2d"]

    # again, without the choices: everything is finished
    again = plan_configurations(dataset, out, Choices(), ())
    assert compare_configurations(out, again, None, lambda text: None, NO_VALUES) == rows
    assert commands == steps
    with pytest.raises(OutputError, match=r"output\.exists: .* folds 2, now 3"):
        plan_configurations(dataset, out, Choices(folds=3), ())
    with pytest.raises(OutputError, match=r"output\.exists: .* compares configurations"):
        plan_bundle(dataset, out, Choices())


def test_a_pair_that_is_better_becomes_the_bundle(
    dataset: Path, tmp_path: Path, commands: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, reports = tmp_path / "balls", list[str]()
    monkeypatch.setitem(DICE, "2d+3d", 0.81)
    planned = plan_configurations(dataset, out, Choices(folds=2), ())
    rows = compare_configurations(out, planned, None, reports.append, NO_VALUES)
    assert rows is not None
    assert [row.name for row in rows] == ["2d+3d", "3d", "2d"]
    bundle = read_bundle(out)
    assert [member.root.name for member in bundle.models] == ["2d", "3d"]
    assert "2d+3d: front: largest component alone kept: Dice +0.2500" in reports
    entry = read_evaluation(out) or {}
    assert entry["dice"][-1]["mean"] == 0.81
    assert entry["largest component"] == [{"structure": "front", "gain": 0.25, "kept": True}]
    assert ">2d+3d</td>" in (out / REPORT).read_text(encoding="utf-8")
    assert json.loads((out / "plan.json").read_text())["network"] == planned.plans["3d"]["network"]

    # the single one is better after more epochs, or there is too little memory for both
    def fail(*rest: Any) -> None:
        raise EnvironmentFault("environment.memory", "too large")

    monkeypatch.setattr(configurations, "score_pairs", fail)
    rows = compare_configurations(out, planned, None, reports.append, NO_VALUES)
    assert rows is not None
    assert [row.name for row in rows] == ["3d", "2d"]
    assert rows[0].cells()[4] == "–"
    assert "pairs of configurations are not compared: too large" in reports
    assert read_bundle(out).kind == "monai"


def test_a_comparison_goes_on_after_a_kill(
    dataset: Path, tmp_path: Path, commands: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, choices = tmp_path / "balls", Choices(folds=2, settings={"patch_size": [8, 8, 8], "batch_size": 3})
    planned = plan_configurations(dataset, out, choices, ("3d", "3d_lowres"))
    low = planned.plans["3d_lowres"]["settings"]["spacing_mm"]["value"]
    assert all(length > 1.5 for length in low)

    pretend: Callable[..., None] = folds.run

    def stop(words: list[str], *rest: Path) -> None:
        if len(commands) == 5:
            raise Cancelled("run.stopped", "stopped")
        pretend(words, *rest)

    monkeypatch.setattr(folds, "run", stop)
    with pytest.raises(Cancelled):
        compare_configurations(out, planned, None, lambda text: None, NO_VALUES)
    monkeypatch.setattr(folds, "run", pretend)
    # as after a kill while the second one was planned: it is planned again, with the choices of the first start
    (out / "training" / "3d_lowres" / "plan.json").rename(out / "training" / "3d_lowres" / "plan.json.unfinished")
    for fold in (out / "training" / "3d_lowres").glob("fold_*"):
        for file in sorted(fold.rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
        fold.rmdir()
    again = plan_configurations(dataset, out, Choices(), ())
    assert again.plans["3d_lowres"]["settings"]["spacing_mm"]["value"] == low
    assert again.plans["3d_lowres"]["settings"]["batch_size"]["value"] == 3
    rows = compare_configurations(out, again, None, lambda text: None, NO_VALUES)
    assert rows is not None
    assert [row.name for row in rows] == ["3d", "3d_lowres", "3d+3d_lowres"]
    assert commands[:4] == [f"3d/fold_{n} {step}" for n in (0, 1) for step in ("training", "evaluating")]
    assert not any(command.startswith("3d/") for command in commands[4:])


def test_all_configurations_read_what_was_converted_once(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import SimpleITK

    nrrd = tmp_path / "nrrd"
    for number, path in enumerate(sorted((dataset / "imagesTr").iterdir())):  # two scans of each of three patients
        folder = nrrd / f"p{number // 2}" / f"day{number % 2}"
        folder.mkdir(parents=True)
        for given, name in ((path, "ct"), (dataset / "labelsTr" / path.name, "ct_seg")):
            SimpleITK.WriteImage(SimpleITK.ReadImage(str(given)), str(folder / f"{name}.nrrd"))
    out, reports = tmp_path / "out", []
    choices = Choices(folds=3, settings={"patient": "^[^/]+", "layout": "auto"}, labels={"front": [1], "back": [2]})
    dry = plan_configurations(nrrd, out, choices, (), dry_run=True, report=reports.append)
    assert not out.exists()
    assert dry.data == out / "data"
    converted = len(reports)

    plan = configurations.plan_bundle

    def fail(*given: Any, **options: Any) -> dict[str, Any]:
        if given[1].name == "3d":
            raise KeyboardInterrupt
        return plan(*given, **options)

    monkeypatch.setattr(configurations, "plan_bundle", fail)
    with pytest.raises(KeyboardInterrupt):
        plan_configurations(nrrd, out, choices, (), report=reports.append)
    assert (out / "training" / "2d" / "plan.json").is_file()  # it is kept, as the converted cases are
    monkeypatch.setattr(configurations, "plan_bundle", plan)
    times = {path: path.stat().st_mtime_ns for path in (out / "data").rglob("*.nii.gz")}
    assert len(times) == 12
    planned = plan_configurations(nrrd, out, Choices(), ())
    assert planned.data == out / "data"
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert not any(
        "converted" in one or (planned.folders[name] / "data").exists() for name, one in planned.plans.items()
    )
    assert converted > 0
    splits = []
    for name, folder in planned.folders.items():
        # nothing of how the user's data are read reaches the command
        assert changed_settings(planned.plans[name], planned.choices[name]) == {}
        reading, split = _of_config(folder / "configs" / "train.yaml")
        with with_segnets():
            from segnets.data import Split, find_dataset

            found = find_dataset(planned.data, **reading)
            splits.append([[case["name"] for case in Split(found, **split | {"fold": 0, "folds": 3})("validation")]])
    assert splits[0] == splits[1]
    assert len(splits[0][0]) == 2  # both scans of one patient
    with pytest.raises(OutputError, match=r"output\.exists"):
        plan_configurations(dataset, out, Choices(), ())
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_several_data_sets_are_combined_once_for_all_configurations(dataset: Path, tmp_path: Path) -> None:
    description = json.loads((dataset / "dataset.json").read_text()) | {"labels": {"front": 1, "back": 2}}
    for name in ("a", "b"):
        shutil.copytree(dataset, tmp_path / name)
        (tmp_path / name / "dataset.json").write_text(json.dumps(description))
    sources, out = [tmp_path / "a", tmp_path / "b"], tmp_path / "out"
    read, facts = _convert(sources, out, Choices(folds=3), {}, lambda text: None, dry_run=False)
    assert _convert(sources, out, Choices(folds=3), facts, lambda text: None, dry_run=False) == (read, facts)
    with with_segnets():
        from segnets.data import find_dataset

        found = find_dataset(read.folder, **read.choices(Choices(folds=3)).reading)
    assert {Path(case["image"]).parents[1] for case in found.cases} == set(sources)  # they stay where they are
    with pytest.raises(OutputError, match=r"output\.exists: the training was planned for 2 data sets, now 3"):
        _convert([*sources, dataset], out, Choices(folds=3), facts, lambda text: None, dry_run=False)
    description["training"].pop()
    (sources[1] / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(OutputError, match=r"output\.exists: data set 2 has other cases"):
        _convert(sources, out, Choices(folds=3), facts, lambda text: None, dry_run=False)
    with pytest.raises(OutputError, match=r"run\.outdated"):
        _convert(sources, out, Choices(folds=3), facts | {"dataset": {}}, lambda text: None, dry_run=False)


@pytest.mark.parametrize("where", ["value", "key"])
def test_a_stranger_s_comparison_runs_no_code(where: str, dataset: Path, tmp_path: Path) -> None:
    evil = f"$open({str(tmp_path / 'pwned')!r}, 'w')"
    settings = {"num_workers": evil} if where == "value" else {evil: 1}
    record = {"compared": ["2d", "3d"], "choices": {"folds": 2, "settings": settings}}
    (tmp_path / COMPARISON).write_text(json.dumps(record))
    with pytest.raises(
        BundleError, match=r"bundle\.compare: .*without --folds"
    ):  # nothing is planned: they don't count
        plan_configurations(dataset, tmp_path, Choices(), ())
    (tmp_path / "training" / "2d").mkdir(parents=True)
    (tmp_path / "training" / "2d" / "plan.json").write_text("{}")
    with pytest.raises(BundleError, match=r"bundle\.untrusted: .*comparison\.json contains"):
        plan_configurations(dataset, tmp_path, Choices(), ())
    for damaged in ("{", "[]", '{"compared": [], "choices": {"evil": 1}}', '{"compared": 1, "choices": {}}'):
        (tmp_path / COMPARISON).write_text(damaged)
        with pytest.raises(BundleError, match=r"bundle\.compare: .* is damaged"):
            plan_configurations(dataset, tmp_path, Choices(), ())
    assert not (tmp_path / "pwned").exists()
    assert [path.name for path in (tmp_path / "training").rglob("*")] == ["2d", "plan.json"]


def test_a_copy_follows_no_links(tmp_path: Path) -> None:
    source, out, mine = (tmp_path / name for name in ("source", "out", "mine"))
    for folder in ("segnets", "configs", "docs", "models"):
        (source / folder).mkdir(parents=True)
    for file in ("LICENSE", "plan.json", "configs/metadata.json", "docs/README.md", "models/model.pt"):
        (source / file).write_text("{}")
    (mine / "models").mkdir(parents=True)
    (mine / "thesis").write_text("mine")
    (mine / "models" / "model.pt").write_text("mine")
    out.mkdir()
    try:
        (out / "plan.json").symlink_to(mine / "thesis")
        (out / "models").symlink_to(mine / "models")
    except OSError:
        pytest.skip("no links on this system")
    copy_bundle(source, out)
    assert (mine / "thesis").read_text() == (mine / "models" / "model.pt").read_text() == "mine"
    assert (out / "plan.json").read_text() == (out / "models" / "model.pt").read_text() == "{}"
    assert json.loads((out / "configs" / "metadata.json").read_text()) == {"name": "out"}


def test_what_can_not_be_compared_leaves_nothing_behind(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for choices, names, message in (
        (Choices(), (), "without --folds"),
        (Choices(folds=2, dims=2), (), "--dims 2"),
        (Choices(folds=2, fine_tune={"file": "x"}), (), "--fine-tune"),
        (Choices(folds=2), ("3d", "3d_lowres"), "found 3d to compare.*3d_lowres is left out: .*--compare 2d 3d"),
    ):
        with pytest.raises(BundleError, match=rf"bundle\.compare: .*{message}"):
            plan_configurations(dataset, out, choices, names)
        assert not out.exists()
    out.mkdir()
    (out / "notes.txt").touch()
    with pytest.raises(OutputError, match=r"output\.exists"):
        plan_configurations(dataset, out, Choices(folds=2), ())
    assert not (out / COMPARISON).exists()


def test_a_lower_resolution_shows_a_quarter_of_a_typical_image() -> None:
    def full(edge: int) -> dict:
        return {
            "fingerprint": {"median shape": [64, 128, 128], "median spacing_mm": [2.0, 0.5, 0.5]},
            "settings": {"patch_size": {"value": [edge] * 3}, "spacing_mm": {"value": [2.0, 0.5, 0.5]}},
        }

    reason = "a patch of 3d shows 25% of a typical image, so that it would gain little"
    assert lowres_spacing(full(64)) == (None, reason)
    assert lowres_spacing(full(56))[0] is None  # the images would have less than two times fewer voxels
    for edge in (48, 32):
        spacing, reason = lowres_spacing(full(edge))
        assert reason == ""
        assert spacing is not None
        assert 0.25 <= edge**3 / (64 * 2 / spacing[0] * 64 / spacing[1] * 64 / spacing[2]) < 0.3
        assert spacing[0] / 2.0 < spacing[1] / 0.5  # the fine axes first
        assert spacing[1] == spacing[2]
