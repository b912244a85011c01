"""What a run tells while it goes on: history, progress, curves, pictures of cases, and out of memory in words."""

from __future__ import annotations

import itertools
import json
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader, MetaTensor
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import MeanDice, StatsHandler, ValidationHandler, from_engine
from monai.inferers import SlidingWindowInferer
from monai.transforms import AsDiscreted
from PIL import Image
from torch import nn

from napari_seg.bundles.spec import shipped_root

sys.path.insert(0, str(shipped_root()))

from segnets.errors import TrainingError
from segnets.training.curves import LearningCurve, best_validation, draw_curves, main
from segnets.training.history import History, read_history
from segnets.training.memory import OutOfMemory
from segnets.training.preview import WorstBest, case_dice, planes
from segnets.training.progress import Progress

NAMES = ("front", "back")


def case(n: int) -> dict[str, Any]:
    """A box of class 1 beside one of class 2; their intensities are far apart from one case to the next."""
    label = torch.zeros(1, 8, 10, 6)
    label[:, 1:7, 1:4, 1:5], label[:, 1:7, 5:9, 2:4] = 1, 2
    affine = torch.diag(torch.tensor([1.0, 2.0, 3.0, 1.0]))
    return {
        "name": f"case_{n:02d}",
        "image": MetaTensor(label * (n + 1), affine=affine),
        "label": MetaTensor(label, affine=affine),
    }


def engines(folder: Path, *, epochs: int, extra: list[Any] | None = None) -> tuple[SupervisedTrainer, History]:
    """A small run: 3 steps an epoch, all on one case, and 4 cases to validate on after every second epoch."""
    torch.manual_seed(3)
    network = nn.Conv3d(1, 3, 3, padding=1)
    validator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader([case(n) for n in range(4)], batch_size=1),
        network=network,
        postprocessing=AsDiscreted(["pred", "label"], argmax=[True, False], to_onehot=3),
        key_val_metric={
            "val_mean_dice": MeanDice(include_background=False, output_transform=from_engine(["pred", "label"]))
        },
        val_handlers=[WorstBest(folder / "worst_best.png", count=1)],
    )
    history = History(folder / "history.jsonl", validator, NAMES)
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=DataLoader([case(2)] * 6, batch_size=2),
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.02),
        loss_function=lambda logits, label: nn.functional.cross_entropy(logits, label[:, 0].long()),
        train_handlers=[ValidationHandler(2, validator), history, *(extra or [])],
    )
    return trainer, history


class Losses:
    """What the trainer itself says of each step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def attach(self, trainer: Engine) -> None:
        trainer.add_event_handler(
            Events.ITERATION_COMPLETED, lambda e: self.values.append(float(e.state.output[0]["loss"]))
        )


def without_seconds(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def test_a_line_an_epoch_and_a_line_a_validation(tmp_path: Path) -> None:
    losses = Losses()
    trainer, history = engines(tmp_path, epochs=4, extra=[losses])
    trainer.run()
    lines = read_history(tmp_path)
    assert [(x["epoch"], x["step"], "loss" in x) for x in lines] == [
        (1, 3, True),
        (2, 6, False),
        (2, 6, True),
        (3, 9, True),
        (4, 12, False),
        (4, 12, True),
    ]
    means = np.reshape(losses.values, (4, 3)).mean(axis=1)
    assert [x["loss"] for x in lines if "loss" in x] == pytest.approx(means, rel=1e-6)
    assert all(x["lr"] == 0.02 for x in lines if "loss" in x)
    assert all(a["seconds"] <= b["seconds"] for a, b in itertools.pairwise(lines))
    details = history.validator.state.metric_details["val_mean_dice"]
    assert lines[4]["dice"] == pytest.approx(dict(zip(NAMES, details.nanmean(0).tolist(), strict=True)))
    assert lines[4]["mean_dice"] == history.mean_dice == pytest.approx(np.mean(list(lines[4]["dice"].values())))
    assert history.best == (max(x["mean_dice"] for x in lines if "dice" in x), best_validation(lines)["epoch"])


def test_a_resumed_history_is_as_if_never_interrupted(tmp_path: Path) -> None:
    trainer, history = engines(tmp_path / "whole", epochs=4)
    history.every_step = True
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED(once=8),
        lambda e: torch.save([history.state_dict(), trainer.network.state_dict()], tmp_path / "checkpoint.pt"),
    )
    trainer.run()
    whole = read_history(tmp_path / "whole")
    assert [x["step"] for x in whole if "step_loss" in x] == list(range(1, 13))
    # what a run killed in step 10 leaves behind, the last line half written
    (tmp_path / "killed").mkdir()
    text = (tmp_path / "whole" / "history.jsonl").read_text()
    (tmp_path / "killed" / "history.jsonl").write_text(text[: text.index('"step": 10') + 20])

    trainer, history = engines(tmp_path / "killed", epochs=4)
    history.every_step = True
    state, weights = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    trainer.network.load_state_dict(weights)
    trainer.load_state_dict({"iteration": 8, "epoch_length": 3, "max_epochs": 4})
    trainer.add_event_handler(Events.STARTED, lambda: history.load_state_dict(state))
    trainer.run()
    assert without_seconds(read_history(tmp_path / "killed")) == without_seconds(whole)


def test_a_run_begun_anew_leaves_no_old_line(tmp_path: Path) -> None:
    (tmp_path / "history.jsonl").write_text('{"epoch": 99, "step": 1}\n')
    engines(tmp_path, epochs=1)[0].run()
    assert [x["epoch"] for x in read_history(tmp_path)] == [1]


def test_nothing_that_json_does_not_know(tmp_path: Path) -> None:
    trainer, history = engines(tmp_path, epochs=1)
    history._validation_completed(_validated(torch.tensor([[0.5, torch.nan], [0.7, torch.nan]]), mean=0.6), trainer)
    history._validation_completed(_validated(torch.full((1, 2), torch.nan), mean=float("nan")), trainer)
    lines = [json.loads(x, parse_constant=pytest.fail) for x in history.path.read_text().splitlines()]
    assert lines[0]["dice"] == {"front": pytest.approx(0.6), "back": None}
    assert lines[1]["mean_dice"] is None
    assert history.best == (0.6, 0)


def _validated(details: torch.Tensor, mean: float) -> Engine:
    engine = Engine(lambda e, b: None)
    engine.state.key_metric_name = "dice"
    engine.state.metrics, engine.state.metric_details = {"dice": mean}, {"dice": details}
    return engine


def test_log_lines_where_there_is_no_terminal(tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: Any) -> None:
    trainer, history = engines(tmp_path, epochs=4)
    progress = Progress(history, every_seconds=0)
    progress.attach(trainer)
    with caplog.at_level(logging.INFO, logger="segnets"):
        trainer.run()
    lines = [r.message for r in caplog.records if r.name == "segnets" and not r.message.startswith("a step takes")]
    assert len(lines) == 13
    assert lines[0].startswith("epoch 1/4  ")
    assert "  loss " in lines[0]
    assert "Dice" not in lines[5]
    assert f"Dice {history.mean_dice:.3f}  best {history.best[0]:.3f} (epoch {history.best[1]})" in lines[-1]
    assert lines[-1].split("  ")[1] == "00:00 left"
    assert "\r" not in capsys.readouterr().err


def test_time_left_is_of_the_whole_run_and_within_the_minutes(tmp_path: Path, monkeypatch: Any) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    trainer, history = engines(tmp_path, epochs=10)
    history.load_state_dict(history.state_dict() | {"seconds": 100.0})
    progress = Progress(history)
    trainer.state.iteration = 6
    progress._start(trainer)
    now += 8.0
    trainer.state.iteration = 10  # 4 steps in 8 seconds, 20 of 30 to go
    assert progress.seconds_left(trainer) == pytest.approx(40)
    assert progress.line(trainer).split("  ")[1] == "00:40 left"
    progress.max_minutes = 2  # 108 seconds of 120 are over
    assert progress.seconds_left(trainer) == pytest.approx(12)


@pytest.mark.parametrize(
    ("pace", "minutes", "level", "said"),
    [
        (11.0, 3.0, "WARNING", "a step takes 11 s, all 4000 about 12:13:20; the 3 minutes (max_minutes) reach about"),
        (11.0, 3.0, "WARNING", "reach about step 17, 0.4% of them: too few for a useful network"),
        (0.01, 3.0, "INFO", "the 3 minutes (max_minutes) reach about step 4000"),
        (0.02, 1.0, "INFO", "reach about step 300"),
        (0.95, None, "INFO", "a step takes 0.95 s, all 4000 about 1:03:"),
    ],
)
def test_what_the_time_will_reach_is_told_after_a_few_steps(
    pace: float, minutes: float | None, level: str, said: str, tmp_path: Path, monkeypatch: Any, caplog: Any
) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    trainer, history = engines(tmp_path, epochs=4)
    trainer.state.max_epochs, trainer.state.epoch_length = 80, 50
    progress = Progress(history, minutes, every_seconds=1e9)
    trainer.state.iteration = 0
    progress._start(trainer)
    with caplog.at_level(logging.INFO, logger="segnets"):
        for step in range(1, 30):
            now += pace if step > 1 else 0.0  # the first one is not counted
            trainer.state.iteration = step
            progress._step(trainer)
    (record,) = caplog.records
    assert record.levelname == level
    assert said in record.message


def test_a_terminal_that_is_closed_does_not_end_the_run(tmp_path: Path, monkeypatch: Any) -> None:
    trainer, history = engines(tmp_path, epochs=2)
    progress = Progress(history)

    def closed(*_: object) -> None:
        raise OSError(5, "Input/output error")

    progress.attach(trainer)
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda self: True, raising=False)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=1), lambda: setattr(progress, "_shown", -1e9))
    trainer.add_event_handler(Events.STARTED, lambda: monkeypatch.setattr(progress._bar, "set_description_str", closed))
    trainer.run()
    assert trainer.state.iteration == 6


def test_a_bar_on_a_terminal(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda self: True, raising=False)
    trainer, history = engines(tmp_path, epochs=2)
    Progress(history).attach(trainer)
    trainer.run()
    shown = capsys.readouterr().err
    assert "\r100%|" in shown
    assert f"best {history.best[0]:.3f} (epoch 2)" in shown


def test_curves_are_drawn_and_runs_compared(tmp_path: Path, capsys: Any) -> None:
    for name, epochs in (("short", 2), ("long", 4)):
        trainer, history = engines(tmp_path / name, epochs=epochs)
        LearningCurve(history, tmp_path / name / "learning_curve.png").attach(trainer)
        trainer.run()
        with Image.open(tmp_path / name / "learning_curve.png") as picture:
            assert picture.size == (880, 770)
            assert len(picture.convert("RGB").getcolors(1 << 20)) > 10
    main([str(tmp_path / "short"), str(tmp_path / "long"), "-o", str(tmp_path / "compare.png")])
    rows = capsys.readouterr().out.splitlines()
    best = best_validation(read_history(tmp_path / "long"))
    assert rows[0].split()[:6] == ["run", "best", "Dice", "epoch", "epochs", "minutes"]
    assert rows[2].split()[1:4] == [f"{best['mean_dice']:.4f}", str(best["epoch"]), "4"]
    assert f"front {best['dice']['front']:.4f}" in rows[2]
    assert (tmp_path / "compare.png").is_file()
    assert not list(tmp_path.rglob("*.part"))
    assert "matplotlib.pyplot" not in sys.modules or "napari" in sys.modules
    with pytest.raises(SystemExit):
        main([str(tmp_path)])
    assert "no history.jsonl" in capsys.readouterr().err


def test_a_run_without_validation_has_a_curve_too(tmp_path: Path) -> None:
    draw_curves({"run": [{"epoch": 1, "step": 3, "loss": 0.5, "lr": 0.1, "seconds": 1.0}]}, tmp_path / "curve.png")
    assert best_validation([]) is None
    assert (tmp_path / "curve.png").is_file()


def test_without_matplotlib_a_run_goes_on_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as if it were not installed
    with caplog.at_level(logging.INFO, logger="segnets"):
        trainer, history = engines(tmp_path, epochs=2)
        LearningCurve(history, tmp_path / "learning_curve.png").attach(trainer)
        trainer.run()
    said = [record.message for record in caplog.records if "matplotlib" in record.message]
    assert said == [
        f"{name} will not be drawn: matplotlib is not installed" for name in ("worst_best.png", "learning_curve.png")
    ]
    assert not list(tmp_path.glob("*.png"))
    assert read_history(tmp_path)


def one_hot(labels: torch.Tensor) -> torch.Tensor:
    return nn.functional.one_hot(labels.long(), 3).movedim(-1, 0).float()


def test_worst_and_best_cases_are_kept_and_nothing_else(tmp_path: Path) -> None:
    """Of seven cases the prediction misses n of 16 voxels of class 1: Dice 2 (16 - n) / (32 - n), and 1 for class 2."""
    handler = WorstBest(tmp_path / "run" / "worst_best.png", count=2)
    evaluator = Engine(lambda e, b: None)
    evaluator.state.epoch = 1
    evaluator.state.best_metric_epoch = 1
    for n in (3, 0, 6, 2, 5, 1, 4):
        reference = torch.zeros(6, 8, 10)
        reference[1:3, 2:4, 3:7], reference[4:6, 5, 5] = 1, 2
        prediction = reference.clone()
        missed = (reference == 1).nonzero()[:n]
        prediction[tuple(missed.T)] = 0
        output = {"image": reference[None], "label": one_hot(reference), "pred": one_hot(prediction)}
        expected = (2 * (16 - n) / (32 - n) + 1) / 2
        assert case_dice(output["pred"], output["label"]) == pytest.approx(expected)
        evaluator.state.batch, evaluator.state.output = [{"name": f"missed_{n}"}], [output]
        handler._batch_completed(evaluator)
    assert [name for _, name, _ in handler._cases] == ["missed_6", "missed_5", "missed_1", "missed_0"]
    handler._completed(evaluator)
    with Image.open(tmp_path / "run" / "worst_best.png") as picture:
        assert picture.size == (900, 1280)
    (tmp_path / "run" / "worst_best.png").unlink()
    evaluator.state.epoch = 2  # no better than before: the picture stays with the weights that are kept
    handler._completed(evaluator)
    assert not (tmp_path / "run" / "worst_best.png").exists()


def test_dice_of_a_case_without_reference() -> None:
    empty, something = one_hot(torch.zeros(4, 4)), one_hot(torch.eye(4))
    assert case_dice(empty, empty) == 1
    assert case_dice(something, empty) == 0
    assert case_dice(empty, something) == 0


def test_planes_lie_where_the_two_differ_and_know_the_spacing() -> None:
    """Index axes towards P, L, S with 2, 1 and 3 mm; the prediction misses what lies at (5, 3, 8)."""
    affine = torch.tensor([[0.0, -1, 0, 0], [-2, 0, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1]])
    reference = torch.zeros(12, 9, 14)
    reference[4:7, 2:5, 4:9] = 1
    prediction = reference.clone()
    prediction[5, 3, 8] = 0
    image = torch.arange(reference.numel()).reshape(1, *reference.shape).float()
    sagittal, coronal, axial = planes(
        MetaTensor(image, affine=affine), MetaTensor(one_hot(reference), affine=affine), one_hot(prediction)
    )
    for plane in (sagittal, coronal, axial):
        assert (plane.reference != plane.prediction).sum() == 1
    # RAS: x is the second index axis turned round, y the first
    assert (sagittal.aspect, coronal.aspect, axial.aspect) == (1.5, 3, 2)
    assert (plane.reference > 0).sum() == 9
    low, high = np.percentile(image, [0.5, 99.5])
    differing = sagittal.image[sagittal.reference != sagittal.prediction]
    assert differing == pytest.approx([(float(image[0, 5, 3, 8]) - low) / (high - low)], abs=1e-4)


def test_an_image_on_another_grid_is_brought_to_the_labels() -> None:
    reference = torch.zeros(8, 8, 8)
    reference[2:6, 2:6, 2:6] = 1
    label = MetaTensor(one_hot(reference), affine=torch.eye(4))
    coarse = MetaTensor(reference[::2, ::2, ::2][None].clone(), affine=torch.diag(torch.tensor([2.0, 2, 2, 1])))
    for plane in planes(coarse, label, one_hot(reference)):
        assert plane.image.shape == plane.reference.shape
        assert plane.image[3, 3] == 1
        assert plane.image[0, 0] == 0


def test_a_colour_picture_is_one_plane() -> None:
    label = torch.zeros(5, 7)
    label[1:3, 2:6] = 2
    (plane,) = planes(torch.rand(3, 5, 7), one_hot(label), one_hot(label))
    assert plane.image.shape == (5, 7, 3)
    assert plane.aspect == 1
    assert (plane.reference == label.numpy()).all()


def out_of_memory(trainer: Engine, history: History, **settings: Any) -> str:
    """What a run says that dies of it, with two cases a batch in one part if nothing else is said."""
    settings = {"batch_size": 2, "accumulation_steps": 1, "patch_size": (48, 64, 48), "amp": False} | settings
    for handler in (OutOfMemory(history.validator, **settings), StatsHandler(iteration_log=False)):
        handler.attach(trainer)
    with pytest.raises(TrainingError) as caught:
        trainer.run()
    assert caught.value.code == "training.out_of_memory"
    assert str(caught.value.__cause__).splitlines()[0] in caught.value.message
    return caught.value.message


@pytest.mark.parametrize(
    "cause",
    [
        lambda: torch.empty(10**16),
        lambda: np.empty(10**17),
        lambda: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")),
    ],
    ids=["torch", "numpy", "cuda"],
)
def test_out_of_memory_says_what_to_lower(tmp_path: Path, cause: Any) -> None:
    trainer, history = engines(tmp_path, epochs=1)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), lambda: cause())
    message = out_of_memory(trainer, history)
    goes_on = "the same command resumes from the last checkpoint, if one was written"  # there is none yet
    assert f"raise accumulation_steps (now 1, at most 2), then set amp to true: {goes_on}; or else lower" in message
    # the patch is part of what makes a run the same, so another folder is needed
    assert "lower patch_size (now [48, 64, 48]), which starts a new run, in another output_dir" in message
    assert message.startswith("cpu ran out of memory in step 2; ")


def test_out_of_memory_advises_nothing_that_is_done_already(tmp_path: Path) -> None:
    trainer, history = engines(tmp_path, epochs=1)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), lambda: torch.empty(10**16))
    message = out_of_memory(trainer, history, accumulation_steps=2, amp=True)
    assert message.startswith("cpu ran out of memory in step 2; lower patch_size (now [48, 64, 48]), which")
    assert "accumulation_steps" not in message
    assert "amp" not in message


def test_out_of_memory_in_a_validation_is_about_its_windows(tmp_path: Path) -> None:
    trainer, history = engines(tmp_path, epochs=2)
    history.validator.inferer = SlidingWindowInferer((8, 8, 4), sw_batch_size=16)
    history.validator.add_event_handler(Events.ITERATION_COMPLETED, lambda: torch.empty(10**16))
    message = out_of_memory(trainer, history)
    assert message.startswith(
        "cpu ran out of memory in the validation after step 6; set windows#sw_batch_size to 1 (now 16), then lower "
        "windows#roi_size (now [8, 8, 4]): the same command resumes from the last checkpoint, if one was written. "
    )


@pytest.mark.parametrize("where", ["training", "validation"])
def test_other_errors_stay_what_they_are(tmp_path: Path, where: str) -> None:
    trainer, history = engines(tmp_path, epochs=2)
    OutOfMemory(history.validator, batch_size=1, accumulation_steps=1, patch_size=(8, 8), amp=True).attach(trainer)
    engine = {"training": trainer, "validation": history.validator}[where]
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=1), lambda: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match=r"inconsistent tensor size|size mismatch"):
        trainer.run()
