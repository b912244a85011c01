"""The measuring that scripts/benchmark.py rests on, with contenders that only sleep."""

from __future__ import annotations

import json
import sys
import time
from multiprocessing import Process, Value
from pathlib import Path

import pytest
import yaml

from napari_seg.bundle import shipped_root

pytest.importorskip("psutil")
sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import benchmark


def _sleeper(connection, seconds: float) -> None:
    while steps := connection.recv():
        for _ in range(steps):
            time.sleep(seconds)
        connection.send([{"sleep": seconds}] * steps)


def _counter(connection) -> None:
    """Has a worker that counts as long as it may run; a step tells how far it has come."""
    count = Value("L", 0)

    def work() -> None:
        while True:
            count.value += 1
            time.sleep(0.001)

    worker = Process(target=work, daemon=True)
    worker.start()
    while connection.recv():
        time.sleep(0.2)
        connection.send([{"count": count.value}])


def _faulty(connection) -> None:
    raise ValueError("no such file")


def test_turns_alternate_and_every_step_is_kept(tmp_path, capsys):
    contenders = [benchmark.Contender(name, _sleeper, 0.01, log=tmp_path / name) for name in "ab"]
    taken = benchmark.take_turns(contenders, rounds=3, steps=2)
    for contender in contenders:
        contender.close()
    assert taken == {name: [[{"sleep": 0.01}] * 2] * 3 for name in "ab"}
    assert [line[-1] for line in capsys.readouterr().err.splitlines()] == list("abbaab")


@pytest.mark.skipif(sys.platform != "linux", reason="a forked worker")
def test_who_waits_stands_still_with_its_workers(tmp_path):
    contender = benchmark.Contender("counter", _counter, log=tmp_path / "log")
    before = contender.turn(1)[0]["count"]
    time.sleep(2)
    after = contender.turn(1)[0]["count"]
    contender.close()
    assert before > 0
    assert 0 < after - before < 1000  # 2 s would have brought far more than the turn's 0.2 s


def test_a_contender_that_fails_is_named_with_its_log(tmp_path):
    contender = benchmark.Contender("peer", _faulty, log=tmp_path / "log")
    with pytest.raises(SystemExit, match=r"peer ended early.*log"):
        contender.turn(1)
    contender.close()
    assert "no such file" in (tmp_path / "log").read_text()


def test_comparison_is_by_rounds():
    # medians 2, 3, 10 beside 4, 4, 10
    assert benchmark.compare([[1, 2, 9], [3], [10]], [[4], [3, 4, 5], [10]]) == {
        "median": 0.75,
        "least": 0.5,
        "greatest": 1.0,
    }


def test_report_keeps_other_sections(tmp_path):
    figures = {
        "machine": {
            "processor": "a processor",
            "cores": 2,
            "memory_gib": 8,
            "gpu": None,
            "system": "Linux",
            "python": "3.11.7",
            "versions": {"torch": "2.13.0"},
            "load_before": 0.04,
        },
        "device": "cpu",
        "dataset": "phantoms",
        "patch": [40, 56, 40],
        "batch": 9,
        "rounds": 6,
        "steps_a_turn": 4,
        "trainers": {
            "napari-seg": {
                "seconds_a_step": {"median": 1.5, "least": 1.25, "greatest": 2.0},
                "seconds_a_sample": 1.5 / 9,
                "minutes_an_epoch": 6.25,
                "share_of_nnunet": {"median": 0.75, "least": 0.7, "greatest": 0.8},
                "phases": {"data": 0.001, "forward": 0.5},
                "peak_memory_gib": 1.23,
            }
        },
    }
    (tmp_path / "benchmarks.json").write_text(json.dumps({"predict": {"kept": True}}))
    benchmark.write_report(tmp_path, "train", figures)
    assert json.loads((tmp_path / "benchmarks.json").read_text()) == {"predict": {"kept": True}, "train": figures}
    text = (tmp_path / "benchmarks.md").read_text()
    assert "| napari-seg | 1.5 (1.25-2) | 0.167 | 6.25 | 0.75 (0.7-0.8) | 1.2 |" in text
    assert "2 cores of a processor" in text
    assert "patch\n40×56×40, batch 9" in text
    assert "- napari-seg: data 0.001, forward 0.5" in text


def test_phantoms_are_a_data_set(tmp_path):
    import nibabel

    folder = benchmark.make_phantoms(tmp_path / "phantoms", cases=2)
    about = json.loads((folder / "dataset.json").read_text())
    assert len(about["training"]) == 2
    label = nibabel.load(folder / about["training"][1]["label"])
    assert set(label.get_fdata().ravel()) == {0, 1, 2}
    assert label.shape == nibabel.load(folder / about["training"][1]["image"]).shape


class Asked:
    """A connection that asks for steps and keeps the answers, then is closed."""

    def __init__(self, *steps: int) -> None:
        self.steps, self.answers = list(steps), []

    def recv(self) -> int:
        if not self.steps:
            raise EOFError
        return self.steps.pop(0)

    def send(self, taken: list[dict[str, float]]) -> None:
        self.answers.append(list(taken))


def _small_network(spatial_dims, in_channels, out_channels, architecture):
    from segnets import UNet

    return UNet(spatial_dims, in_channels, out_channels, **architecture)


def test_every_phase_of_our_training_is_measured_compiled_too(tmp_path, monkeypatch):
    import torch

    assert yaml.safe_load((shipped_root() / "configs" / "compile.yaml").read_text()) == benchmark.COMPILED
    monkeypatch.setattr(benchmark, "planned_network", _small_network)
    monkeypatch.setattr(sys, "path", list(sys.path))
    architecture = {"channels": [4, 8], "strides": [1, 2], "encoder_convs": 1}
    planned = {"batch_size": 2, "patch_size": [16, 24, 16], "architecture": architecture}
    phantoms = benchmark.make_phantoms(tmp_path / "phantoms", cases=4)
    options = benchmark.COMPILED | {"train#trainer#compile_kwargs": {"backend": "eager"}, "num_workers": 0}
    torch.compiler.reset()
    connection = Asked(2, 1)
    with pytest.raises(RuntimeError, match="trainer"):  # as MONAI says that the connection was closed
        benchmark.serve_training(
            connection, phantoms, tmp_path / "run", {"configurations": {"3d_fullres": planned}}, "cpu", options
        )
    assert [len(turn) for turn in connection.answers] == [2, 1]
    for step in (step for turn in connection.answers for step in turn):
        assert list(step) == ["data", "forward", "loss", "backward", "optimiser", "handlers"]
        assert all(seconds > 0 for seconds in step.values())
