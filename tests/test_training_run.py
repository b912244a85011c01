"""Trainings that are run from a plan: how they end, their folds and the ensemble of those."""

from __future__ import annotations

import ast
import errno
import json
import os
import re
import shutil
from pathlib import Path

import datasets
import pytest
from runs import progress_of, write_lines, write_run

from napari_seg.bundles.read import read_bundle, shipped_root
from napari_seg.bundles.spec import METADATA, WEIGHTS
from napari_seg.bundles.trust import check_runnable
from napari_seg.cli.train_output import print_folds
from napari_seg.errors import BundleError, Cancelled, OutputError, TrainingError
from napari_seg.training import folds, run
from napari_seg.training.choices import Choices
from napari_seg.training.prepare import plan_bundle
from napari_seg.training.run import training_command, writing
from napari_seg.training.segnets_modules import with_segnets


def test_a_fold_is_finished_when_its_epochs_or_its_minutes_are_over(tmp_path: Path) -> None:
    fold = tmp_path / "fold_0"
    for folder in (fold / "evaluation", tmp_path / "configs"):
        folder.mkdir(parents=True)
    (tmp_path / "configs" / "train.yaml").write_text("max_epochs: 100\nmax_minutes: null\n")
    lines = [{"epoch": 9, "step": 90, "loss": 0.1, "seconds": 1790}, {"epoch": 9, "mean_dice": 0.8, "seconds": 1801}]
    (fold / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (fold / "model.pt").touch()
    assert not folds._finished(fold, {})
    (fold / "evaluation" / "summary.json").touch()
    assert not folds._finished(fold, {})  # of an evaluation that a kill or a full disk has ended
    assert folds.cross_validated_cases(tmp_path, 1) == {}
    (fold / "evaluation" / "summary.json").write_text("{}")
    assert folds._finished(fold, {"learning_rate": 0.1})
    assert folds._finished(fold, {"max_minutes": 30})
    assert not folds._finished(fold, {"max_minutes": 60})
    assert folds._finished(fold, {"max_epochs": 9})
    assert not folds._finished(fold, {"max_epochs": 10})
    assert not folds._finished(fold, {"patience": 5})
    (tmp_path / "configs" / "train.yaml").write_text("max_epochs: 9\nmax_minutes: null\n")
    assert folds._finished(fold, {"max_minutes": 60, "patience": 5})


def test_a_fold_says_how_far_it_was_trained(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    plan_bundle(dataset, out, Choices(folds=2))

    def pretend(words: list[str], stop_file: Path, run_folder: Path | None = None) -> None:
        (out / "fold_1" / "evaluation").mkdir(parents=True, exist_ok=True)
        line = {"epoch": 1, "step": 16, "mean_dice": 0.1, "planned_steps": 4000}
        (out / "fold_1" / "history.jsonl").write_text(json.dumps(line) + "\n")
        (out / "fold_1" / "evaluation" / "summary.json").write_text('{"mean_dice": {"mean": 0.1}}')

    monkeypatch.setattr(folds, "run", pretend)
    assert folds.cross_validate(out, dataset, 2, 1, report=print) == {"mean": [0.1]}
    assert "fold 1 of 2 was trained for 16 of 4000 planned steps" in capsys.readouterr().out


@pytest.mark.parametrize("is_finished", [True, False])
def test_a_late_interrupt_stops_no_finished_training(
    is_finished: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        write_run(tmp_path / "training", epochs=9)
        write_lines(tmp_path / "training" / "progress.jsonl", [progress_of(9, "ended", finished=is_finished)])
        raise Cancelled("run.stopped", "stopped and saved")

    monkeypatch.setattr(run, "run", interrupted)
    monkeypatch.setattr(run, "write_report", lambda root: None)
    if is_finished:
        assert run.train(tmp_path, tmp_path).steps == (24, 30)
    else:
        with pytest.raises(Cancelled, match="stopped and saved"):
            run.train(tmp_path, tmp_path)


def test_an_ensemble_cut_short_says_what_it_lacks(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    out = tmp_path / "out"
    plan_bundle(dataset, out, Choices(folds=2))
    for fold in ("fold_0", "fold_1"):
        (out / fold).mkdir()
        torch.save({"weight": torch.zeros(1)}, out / fold / "model.pt")

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(folds, "ship", killed)
    with pytest.raises(KeyboardInterrupt):
        folds._make_ensemble(out, 2, {})
    assert datasets.configs(out)["inference"]["network_def"]["members"] == 2
    with pytest.raises(BundleError, match=r"has no models/model\.pt; train it first"):
        check_runnable(read_bundle(out, trust=True))

    (out / "weights.pt").write_bytes(b"weights")
    before = (out / METADATA).read_text()
    monkeypatch.setattr(Path, "write_bytes", killed)
    with pytest.raises(KeyboardInterrupt):
        run.ship(out, out / "weights.pt", {"Dice": 0.5})
    assert (out / "models" / "model.pt").read_bytes() == b"weights"
    assert (out / METADATA).read_text() == before


def test_windows_of_a_start_are_those_of_its_evaluations_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"windows#device": "cpu", "windows::sw_batch_size": 1, "learning_rate": 0.1}
    commands = []
    monkeypatch.setattr(run, "run", lambda words, *_: commands.append(words))
    monkeypatch.setattr(run, "ship", lambda *_: None)
    monkeypatch.setattr(run, "write_report", lambda root: None)
    monkeypatch.setattr(run, "_unseen_part", lambda *_: "test")
    monkeypatch.setattr(run, "_metric_name", lambda root: "Dice")
    write_run(tmp_path / "training")
    (tmp_path / "training" / "model.pt").touch()
    run.train(tmp_path, tmp_path, **values)
    for words in (*commands, *folds.fold_commands(tmp_path, tmp_path, 0, 2, **values)):
        assert words[words.index("--windows#device") + 1] == "cpu"
        assert words[words.index("--windows::sw_batch_size") + 1] == "1"
        assert ("--learning_rate" in words) == ("training" in words)


def test_scores_stay_while_the_weights_are_the_same(tmp_path: Path) -> None:
    scores = {"part": "test", "cases": 6}
    (tmp_path / "configs").mkdir()
    (tmp_path / "models").mkdir()
    (tmp_path / "weights.pt").write_bytes(b"weights")
    run_metrics = {"validation mean Dice": 0.8}
    (tmp_path / METADATA).write_text(json.dumps({"eval_metrics": {}, "description": "heads"}))
    run.ship(tmp_path, tmp_path / "weights.pt", run_metrics)
    metadata = json.loads((tmp_path / METADATA).read_text())
    metadata["eval_metrics"]["mean Dice of the test part"] = 0.7
    (tmp_path / METADATA).write_text(json.dumps(metadata | {"napari_seg": {"evaluation": scores}}))
    run.ship(tmp_path, tmp_path / "weights.pt", run_metrics, (40, 400))  # a later start that was refused or interrupted
    metadata = json.loads((tmp_path / METADATA).read_text())
    assert metadata["eval_metrics"] == run_metrics | {"mean Dice of the test part": 0.7}
    assert metadata["napari_seg"] == {"evaluation": scores}
    assert metadata["description"] == "heads Trained for 40 of 400 planned steps."
    (tmp_path / "weights.pt").write_bytes(b"changed")
    run.ship(tmp_path, tmp_path / "weights.pt", run_metrics)
    metadata = json.loads((tmp_path / METADATA).read_text())
    assert (metadata["eval_metrics"], metadata["napari_seg"]) == (run_metrics, {})


def test_folds_that_there_can_not_be_leave_nothing_behind(dataset: Path, tmp_path: Path) -> None:
    for number in (-2, 0, 1):
        with pytest.raises(BundleError, match=r"bundle\.folds"):
            plan_bundle(dataset, tmp_path / "out", Choices(folds=number))
    with pytest.raises(TrainingError, match=r"split\.too_few: found 6 cases of 6 patients"):
        plan_bundle(dataset, tmp_path / "out", Choices(folds=7))
    with pytest.raises(TrainingError, match=r"split\.too_few: found 6 cases of 1 patient "):
        plan_bundle(dataset, tmp_path / "out", Choices(settings={"patient": "^case"}))
    for fold, of in ((5, 5), (0, None)):
        with pytest.raises(BundleError, match=rf"bundle\.fold: found fold {fold}"):
            plan_bundle(dataset, tmp_path / "out", Choices(folds=of), fold=fold)
    assert list(tmp_path.iterdir()) == []


def test_a_structure_that_a_fold_lacks_costs_no_ensemble(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    import torch

    out = tmp_path / "out"
    plan_bundle(dataset, out, Choices(folds=2))
    for fold, scores in enumerate(({"mean": 0.8, "front": 0.8}, {"mean": 0.6, "front": None})):
        summary = out / f"fold_{fold}" / "evaluation" / "summary.json"
        summary.parent.mkdir(parents=True)
        torch.save({"weight": torch.zeros(1)}, out / f"fold_{fold}" / "model.pt")
        summary.write_text(json.dumps({"mean_dice": scores | {"back": None}}))
    for _ in range(2):
        dice = folds.cross_validate(out, dataset, 2, None, report=print)
        assert dice == {"mean": [0.8, 0.6], "front": [0.8], "back": []}
        metadata = json.loads((out / METADATA).read_text())
        assert metadata["eval_metrics"] == {"mean Dice over 2 folds, mean": 0.7, "mean Dice over 2 folds, front": 0.8}
        assert (out / "models" / "model.pt").is_file()
    print_folds(dice, 2)
    table = capsys.readouterr().out
    assert "Dice    front 0.8000 over 1 of 2 folds" in table
    assert "Dice    back nan over 0 of 2 folds" in table
    assert "slightly optimistic" in table


def test_an_ensemble_of_pictures_can_be_loaded(tmp_path: Path) -> None:
    import torch
    from monai.bundle import ConfigParser

    pictures, out = datasets.write_pictures(tmp_path / "pictures", cases=4), tmp_path / "out"
    plan_bundle(pictures, out, Choices(folds=2, labels={"myelin": ["120-135"], "axon": [255]}))
    with with_segnets():
        from segnets import UNet

        for fold in range(2):
            folder = out / f"fold_{fold}" / "evaluation"
            folder.mkdir(parents=True)
            torch.save(UNet(2, 3, 3).state_dict(), folder.parent / "model.pt")
            (folder / "summary.json").write_text(json.dumps({"mean_dice": {"mean": 0.8}}))
    folds.cross_validate(out, pictures, 2, None, report=print)
    parser = ConfigParser()
    parser.read_config(str(out / "configs" / "inference.yaml"))
    parser.read_meta(str(out / METADATA))
    with with_segnets():
        network = parser.get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(out / WEIGHTS, weights_only=True))
    assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 3, 32, 32)


def test_an_ensemble_is_not_measured_on_what_trained_it(dataset: Path, tmp_path: Path) -> None:
    from monai.bundle import ConfigParser

    out = tmp_path / "out"
    plan_bundle(dataset, out, Choices(folds=2))
    ensemble = {"_target_": "segnets.Ensemble", "members": 2, "network": datasets.configs(out)["train"]["network_def"]}

    def begin(**values: object) -> None:
        parser = ConfigParser()
        parser.read_config(str(out / "configs" / "evaluate.yaml"))
        parser.read_meta(str(out / METADATA))
        parser.update(values)
        parser.get_parsed_content("initialize")

    for part in ("validation", "test", "training"):
        with pytest.raises(SystemExit, match=r"evaluation\.seen.*other patients"):
            begin(network_def=ensemble, part=part)
    begin(network_def=ensemble, part="all")
    begin(part="validation")  # one fold
    page = (out / "docs" / "README.md").read_text()
    assert "--dataset_dir OTHERS  --part all --output_dir evaluation" in page
    assert "slightly optimistic" in page


def test_a_tracker_is_a_file_of_the_bundle_for_one_start(tmp_path: Path) -> None:
    plain = training_command(tmp_path, tmp_path, track=["tensorboard"])
    assert plain[plain.index("--config_file") + 1] == str(tmp_path / "configs" / "train.yaml")
    tracked = training_command(tmp_path, tmp_path, track=["wandb", "aim"])
    files = ast.literal_eval(tracked[tracked.index("--config_file") + 1])
    assert files == [str(tmp_path / "configs" / f"{name}.yaml") for name in ("train", "wandb", "aim")]
    with with_segnets():
        from monai.bundle import ConfigParser

        configs = [str(shipped_root() / "configs" / Path(file).name) for file in files]
        parser = ConfigParser(ConfigParser.load_config_files(configs))
    assert parser["life"][-2:] == ["@wandb", "@aim"]
    assert {parser[name]["_target_"].rpartition(".")[2] for name in ("wandb", "aim")} == {"WandB", "Aim"}


@pytest.mark.parametrize(("number", "code"), [("ENOSPC", "output.disk_full"), ("EACCES", "output.not_written")])
def test_an_error_within_a_copied_folder_has_a_code(number: str, code: str, tmp_path: Path) -> None:
    inner = OSError(getattr(errno, number), os.strerror(getattr(errno, number)), "/from/a.py", None, "/to/a.py")
    with pytest.raises(OutputError, match=re.escape(code)) as caught, writing(tmp_path):
        raise shutil.Error([("/from/a.py", "/to/a.py", str(inner))])
    assert "[" not in caught.value.message
