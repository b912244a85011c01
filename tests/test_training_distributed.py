"""Several processes that train as one: how they end together, and a whole training in two of them."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import datasets
import pytest

from napari_seg.cli.main import main
from napari_seg.errors import Cancelled, EnvironmentFault, TrainingError
from napari_seg.training import distributed, process, time_plan
from napari_seg.training import run as training_run
from napari_seg.training.distributed import count_gpus, run_processes
from napari_seg.training.pace import Pace

_COMMON = """
import os, pathlib, signal, sys, time
rank, folder = int(os.environ["RANK"]), pathlib.Path(__file__).parent
def everyone():
    (folder / f"begun_{rank}").touch()
    while len(list(folder.glob("begun_*"))) < 2:
        time.sleep(0.01)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file of a module "ranks", which the processes run."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setattr(distributed, "_GRACE_SECONDS", 0.3)
    return tmp_path / "ranks.py"


def test_each_process_knows_its_place_and_the_first_one_speaks(
    module: Path, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    names = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "OMP_NUM_THREADS"]
    module.write_text(f"{_COMMON}\nprint(sys.argv[1], *(os.environ[n] for n in {names}), file=sys.stderr)\n"
                      "(folder / f'port_{rank}').write_text(os.environ['MASTER_PORT'])")  # fmt: skip
    before = signal.getsignal(signal.SIGTERM)
    assert run_processes(2, "ranks", "word") == 0
    assert capfd.readouterr().err == "word 0 0 2 2 127.0.0.1 7\n"
    ports = [(module.parent / f"port_{rank}").read_text() for rank in range(2)]
    assert ports[0] == ports[1]
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("fails", "status"),
    [("sys.exit('RuntimeError: no memory')", 1), ("os.kill(os.getpid(), signal.SIGKILL)", 128 + 9)],
)
def test_one_process_that_fails_ends_all(fails: str, status: int, module: Path, capfd: pytest.CaptureFixture) -> None:
    waits = "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"  # as in a call of NCCL
    module.write_text(f"{_COMMON}\nif rank == 0: everyone(); {waits}\nelse: everyone(); {fails}\n")
    assert run_processes(2, "ranks") == status
    printed = capfd.readouterr().err
    assert printed.startswith(f"\nprocess 2 of 2 failed first, with status {status}\n")
    assert ("RuntimeError: no memory" in printed) is (status == 1)


def test_the_error_of_the_process_that_failed_first_is_reported(module: Path, tmp_path: Path) -> None:
    """Let the first process lose its connection in the same moment, as with gloo."""
    command = [sys.executable, "-m", "napari_seg.training.distributed", "2", "ranks"]
    module.write_text(
        f"{_COMMON}\n"
        "if rank:\n"
        "    (folder / 'part').write_text(str(os.getpid()))\n"
        "    (folder / 'part').rename(folder / 'pid')\n"
        "    sys.exit('TrainingError: data.faults: two faults')\n"
        "while not (folder / 'pid').exists():\n"
        "    time.sleep(0.01)\n"
        "while True:\n"
        "    try:\n"
        "        os.kill(int((folder / 'pid').read_text()), 0)\n"
        "    except ProcessLookupError:\n"
        "        sys.exit('RuntimeError: connection closed')\n"
        "    time.sleep(0.01)\n"
    )
    with pytest.raises(TrainingError, match=r"^data\.faults: two faults \(process 2 of 2 of the training\)$"):
        process.run(command, tmp_path / "stop")


def test_of_two_that_fail_at_once_the_one_with_a_cause_is_the_first(
    module: Path, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "_POLL_SECONDS", 1.0)
    module.write_text(f"{_COMMON}\neveryone()\nsys.exit('TrainingError: a.b: c' if rank else 'RuntimeError: lost')")
    assert run_processes(2, "ranks") == 1
    assert capfd.readouterr().err.endswith("process 2 of 2 failed first, with status 1\nTrainingError: a.b: c\n")


@pytest.mark.parametrize(
    ("handled", "said", "saved"),
    [("signal.SIGTERM", "stopped and saved", 2), ("signal.SIGABRT", "stopped without saving", 0)],
)
def test_a_stop_reaches_all_processes(handled: str, said: str, saved: int, module: Path, tmp_path: Path) -> None:
    module.write_text(
        f"{_COMMON}\n"
        "def save(*_): time.sleep(0.3 * rank); (folder / f'saved_{rank}').touch(); sys.exit(143)\n"
        f"signal.signal({handled}, save)\n"
        "everyone()\n"
        "(folder / 'stop').touch() if rank else None\n"
        "time.sleep(60)\n"
    )
    with pytest.raises(Cancelled, match=said):
        process.run([sys.executable, "-m", "napari_seg.training.distributed", "2", "ranks"], tmp_path / "stop")
    assert len(list(tmp_path.glob("saved_*"))) == saved


@pytest.mark.parametrize("is_seen", [True, False])
def test_on_windows_the_death_of_the_command_stops_all_processes_by_a_file(
    is_seen: bool, module: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupt the launcher alone, as `run_module` does after the death of its parent."""
    monkeypatch.setattr(sys, "platform", "win32")
    stop = module.parent / "run" / "stop"
    module.write_text(
        f"{_COMMON}\n"
        "everyone()\n"
        "stop, deadline = pathlib.Path(sys.argv[2], 'stop'), time.monotonic() + 10\n"
        "while not (folder / 'seen').exists():\n"
        "    if time.monotonic() > deadline: sys.exit('no stop')\n"
        "    if rank == 0 and stop.exists():\n"
        f"        if {is_seen}: stop.unlink()\n"
        "        (folder / 'seen').touch()\n"
        "    time.sleep(0.01)\n"
    )

    def interrupt() -> None:
        deadline = time.monotonic() + 10
        while len(list(module.parent.glob("begun_*"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        signal.raise_signal(signal.SIGTERM)

    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    assert run_processes(2, "ranks", "--output_dir", str(stop.parent)) == 0
    interrupter.join()
    assert not stop.exists()


@pytest.mark.parametrize(
    ("printed", "said"),
    [
        (
            "\nprocess 2 of 4 failed first, with status 1\nValueError: bad\n",
            r"process 2 of 4 .* status 1 \(ValueError: bad",
        ),
        ("OSError: lost\n\nprocess 1 of 4 failed first, with status 1\n", r"process 1 of 4 .* \(OSError: lost\)"),
        ("TrainingError: a.b: c\n[rank1]:[W1129] a warning\n", r"^a\.b: c$"),
    ],
)
def test_the_cause_is_what_the_first_process_said(printed: str, said: str, tmp_path: Path) -> None:
    code = f"import sys; sys.stderr.write({printed!r}); sys.exit(1)"
    with pytest.raises(TrainingError, match=said):
        process.run([sys.executable, "-c", code], tmp_path / "stop")


def test_more_gpus_than_there_are_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert (count_gpus("all"), count_gpus(1), count_gpus(2)) == (2, 1, 2)
    with pytest.raises(EnvironmentFault, match=r"environment\.gpus: found 2 GPUs .*; expected 3 \(--gpus\)"):
        count_gpus(3)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(EnvironmentFault, match=r"found 0 GPUs .*; expected at least one"):
        count_gpus("all")


def test_two_processes_train_a_bundle(
    tmp_path: Path, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Train with gloo on the processor, by the command that two GPUs get."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    pace = Pace("cpu", step=0.5, case=0.1, validation=1.0, training_cases=16, validation_cases=2)
    monkeypatch.setattr(time_plan, "measure_pace", lambda *_: pace)
    monkeypatch.setattr(training_run, "evaluate_unseen", lambda *_: None)  # of one process
    dataset, out = datasets.write_decathlon(tmp_path / "balls", cases=20), tmp_path / "out"
    words = ["train", str(dataset), "-o", str(out), "--gpus", "all", "--set", "max_epochs=2", "val_interval=2"]
    words += ["num_workers=0", *(f"network_def#{x}" for x in ("channels=[4,8]", "strides=[1,2]", "encoder_convs=1"))]
    assert main(words) == 0
    printed, errors = capfd.readouterr()
    assert "find_unused_parameters" not in errors
    assert "Grad strides" not in errors
    assert "gpus    2 x batch_size 2: 4 cases a step, 8 steps instead of 16; as on one GPU about 32 cases" in printed
    history = [json.loads(line) for line in (out / "training" / "history.jsonl").read_text().splitlines()]
    assert [(line["epoch"], line["step"]) for line in history if "loss" in line] == [(1, 4), (2, 8)]
    validated = [json.loads(line)["case"] for line in (out / "training" / "validation.jsonl").read_text().splitlines()]
    assert len(validated) == len(set(validated)) == 2
    progress = json.loads((out / "training" / "progress.jsonl").read_text())
    assert (progress["stage"], progress["finished"], progress["step"]) == ("ended", True, 8)
    assert (out / "models" / "model.pt").is_file()
