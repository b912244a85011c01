"""Test that a run depends on its config alone, also after kills and in several processes."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import write_decathlon
from tiny_run import (
    children,
    losses,
    run,
    spoil_the_middle,
    steps_so_far,
    without_times,
)

from napari_seg.bundles.read import shipped_root

from segnets.errors import TrainingError  # isort: skip - within reach by tiny_run
from segnets.training import Checkpoints  # isort: skip


# --- going on ---


def test_a_finished_run_resumes_on_a_longer_schedule(tmp_path: Path) -> None:
    first = run(tmp_path, max_epochs=2)
    assert first.state.iteration == 6
    weights = torch.load(tmp_path / "model_final.pt", weights_only=True)
    again = run(tmp_path, max_epochs=2)  # nothing left to do
    assert again.state.iteration == 6
    assert all(torch.equal(weights[k], v) for k, v in torch.load(tmp_path / "model_final.pt").items())
    assert len(losses(tmp_path)) == 6
    trainer = run(tmp_path, max_epochs=4)
    assert len(losses(tmp_path)) == 12
    # the rate after each epoch is that of a run planned for four from the start
    run(tmp_path / "planned", max_epochs=4)
    rates = [[line["lr"] for line in without_times(f) if "lr" in line] for f in (tmp_path, tmp_path / "planned")]
    assert rates[0][2:] == rates[1][2:]
    assert rates[0][:2] != rates[1][:2]
    assert trainer.state.epoch == 4


def test_a_run_with_other_settings_is_refused(tmp_path: Path) -> None:
    run(tmp_path, max_epochs=1)
    with pytest.raises(TrainingError, match=r"run\.differs.*cases a step: was 2, is 1.*steps an epoch: was 3, is 5"):
        run(tmp_path, max_epochs=2, batch_size=1)
    with pytest.raises(TrainingError, match=r"run\.differs.*cases: was 5 .*, is 6"):
        run(tmp_path, max_epochs=2, cases=6)
    with pytest.raises(TrainingError, match=r"run\.differs.*seed: was 0, is 1"):
        run(tmp_path, max_epochs=2, seed=1)
    with pytest.raises(TrainingError, match=r"run\.differs.*network: was Network of 189 weights"):
        run(tmp_path, max_epochs=2, dropout=0.5)
    with pytest.raises(TrainingError, match=r"preprocessing: was Spacingd \(\w{8}\), is Spacingd \(\w{8}\)\. "):
        run(tmp_path, max_epochs=2, spacing=2.0)
    with pytest.raises(TrainingError, match=r"augmentation: was RandGaussianNoised \(\w{8}\), is RandG.*\)\. "):
        run(tmp_path, max_epochs=2, noise=0.2)
    with pytest.raises(TrainingError, match=r"loss: was DiceCELoss \(\w{8}\), is DiceCELoss \(\w{8}\)\. "):
        run(tmp_path, max_epochs=2, dice_share=0.5)
    with pytest.raises(TrainingError, match=r"run\.exists"):
        run(tmp_path, max_epochs=2, resume=False)
    assert len(losses(tmp_path)) == 3


def test_fewer_epochs_than_were_trained_are_refused(tmp_path: Path) -> None:
    run(tmp_path, max_epochs=3)
    with pytest.raises(TrainingError, match=r"run\.longer.* 3 epochs already, and max_epochs is 2"):
        run(tmp_path, max_epochs=2)


def test_two_starts_do_not_disturb_each_other(tmp_path: Path) -> None:
    run(tmp_path, max_epochs=1)
    posix, windows = "import fcntl; fcntl.lockf(f, fcntl.LOCK_EX)", "import msvcrt; msvcrt.locking(f.fileno(), 2, 1)"
    take = windows if sys.platform == "win32" else posix
    hold = f"import sys; f = open(sys.argv[1], 'a'); {take}; print(1, flush=True); input()"
    command = [sys.executable, "-c", hold, str(tmp_path / "checkpoints" / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.read(1)
        parts = [tmp_path / "checkpoints" / "latest.pt.123.part", tmp_path / "films.part"]
        for part in parts:
            part.touch()
        with pytest.raises(TrainingError, match=r"run\.in_use.*another process"):
            run(tmp_path, max_epochs=2)
        assert all(part.exists() for part in parts)
        other.kill()
    run(tmp_path, max_epochs=2)
    assert len(losses(tmp_path)) == 6
    assert [part.exists() for part in parts] == [False, True]  # the other is none of ours


def test_a_damaged_checkpoint_is_replaced_by_the_previous_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    run(tmp_path / "whole", max_epochs=3)
    run(tmp_path / "a", max_epochs=3, every_steps=4)  # at steps 4, 8 and at the end, 9
    for name in ("latest.pt", "previous.pt"):
        state = torch.load(tmp_path / "a" / "checkpoints" / name, weights_only=True)
        assert state["step"] == {"latest.pt": 9, "previous.pt": 8}[name]
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.copytree(tmp_path / "a", tmp_path / "c")
    shutil.copytree(tmp_path / "a", tmp_path / "d")

    latest = tmp_path / "a" / "checkpoints" / "latest.pt"
    os.truncate(latest, latest.stat().st_size // 2)
    run(tmp_path / "a", max_epochs=3)
    assert "latest.pt can't be read" in caplog.text
    assert "after step 8" in caplog.text

    (tmp_path / "b" / "checkpoints" / "latest.pt").unlink()  # as between the two renamings
    run(tmp_path / "b", max_epochs=3)
    spoil_the_middle(tmp_path / "d" / "checkpoints" / "latest.pt")
    run(tmp_path / "d", max_epochs=3)
    for name in ("a", "b", "d"):
        assert without_times(tmp_path / name) == without_times(tmp_path / "whole")

    for path in (tmp_path / "c" / "checkpoints").iterdir():
        path.write_bytes(b"PK")
    with pytest.raises(TrainingError, match=r"run\.damaged.*latest\.pt.*previous\.pt"):
        run(tmp_path / "c", max_epochs=3)


# --- kills ---


def start(folder: Path, **options: Any) -> Any:
    child = children().Process(target=run, args=(folder,), kwargs=options)
    child.start()
    return child


def kill_at(child: Any, due: Callable[[], bool], seconds: float = 300) -> None:
    """Send SIGKILL as soon as `due` returns true."""
    alive = child.is_alive if hasattr(child, "is_alive") else lambda: child.poll() is None
    end = time.monotonic() + seconds
    while not due():
        assert alive(), "the run has ended before it could be killed"
        assert time.monotonic() < end, "the run takes too long"
        time.sleep(0.001)
    child.kill()
    child.join() if hasattr(child, "join") else child.wait()


def half_written(folder: Path, child: Any) -> list[Path]:
    return list((folder / "checkpoints").glob(f"*.{child.pid}.part"))


def test_a_run_resumes_only_with_the_same_files(tmp_path: Path) -> None:
    files = {f"case_{n}": f"{n:08x}" for n in range(9)}
    run(tmp_path, max_epochs=1, digests=files)
    pattern = r"run\.differs: .*files of cases: was case_1 \(00000001\), is case_1 \(new\)"
    with pytest.raises(TrainingError, match=pattern):
        run(tmp_path, max_epochs=2, digests=files | {"case_1": "new"})
    run(tmp_path, max_epochs=2, digests=files | {"case_8": "new"})  # which is not trained on
    assert run(tmp_path, max_epochs=3).state.epoch == 3


@pytest.mark.parametrize(("every_minutes", "written"), [(5.0, [1, 6]), (0.5, [0.5, 1, 1.5])])
def test_the_first_checkpoint_comes_after_a_minute(
    every_minutes: float, written: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, saved = 0.0, []
    monkeypatch.setattr("time.monotonic", lambda: now)
    checkpoints = Checkpoints(tmp_path, every_minutes=every_minutes)
    monkeypatch.setattr(checkpoints, "_tensors", lambda trainer: {})
    trainer = SimpleNamespace(state=SimpleNamespace(iteration=0))
    save = checkpoints._save
    monkeypatch.setattr(checkpoints, "_save", lambda trainer: (saved.append(now / 60), save(trainer))[1])
    while now < 60 * written[-1]:
        now += 15
        trainer.state.iteration += 1
        checkpoints._before_step(trainer)
    assert saved == written


def test_killed_twice_and_resumed_it_is_the_same_run(tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_epochs": 6, "ballast_mb": 24}
    run(tmp_path / "whole", **options)
    folder = tmp_path / "killed"
    kill_at(start(folder, **options), lambda: steps_so_far(folder) >= 5)
    child = start(folder, **options)
    kill_at(child, lambda: bool(half_written(folder, child)))
    assert half_written(folder, child)  # the kill came before the file was whole
    last = start(folder, **options)
    last.join(120)
    assert last.exitcode == 0
    assert without_times(folder) == without_times(tmp_path / "whole")
    assert not list(folder.rglob("*.part"))
    for name in ("model.pt", "model_final.pt"):
        a, b = (torch.load(f / name, weights_only=True) for f in (folder, tmp_path / "whole"))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[k], b[k]) for k in a)


def bundle(
    folder: Path, dataset: Path, *config_files: str, launcher: Sequence[str] = ("-m",), **values: object
) -> subprocess.Popen[str]:
    """Start the bundle's own training on small patches, with a checkpoint after every third step."""
    configs = shipped_root() / "configs"
    files = [str(configs / name) for name in ("train.yaml", *config_files)]
    options = {"config_file": files, "meta_file": configs / "metadata.json", "bundle_root": shipped_root()}
    options |= {"dataset_dir": dataset, "output_dir": folder, "patch_size": [16, 24, 16], "val_interval": 10}
    options |= {"history#every_step": True, "checkpoints#every_steps": 3} | values
    command = [sys.executable, *launcher, "monai.bundle", "run", "training"]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    folder.parent.mkdir(exist_ok=True)
    with (folder.parent / f"{folder.name}.log").open("a") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


@pytest.mark.slow
def test_twenty_kills_of_the_bundles_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(7)
    dataset, whole, folder = write_decathlon(tmp_path / "scans", cases=10), tmp_path / "whole", tmp_path / "killed"
    assert bundle(whole, dataset, max_epochs=30).wait() == 0  # of 4 steps
    rows = []
    for n in range(20):
        latest = folder / "checkpoints" / "latest.pt"
        begun = torch.load(latest, weights_only=True)["step"] if latest.exists() else 0
        written = (folder / "history.jsonl").stat().st_mtime_ns if begun else 0
        child = bundle(folder, dataset, max_epochs=30)
        target = begun + rng.randint(1, 9)

        def due(n: int = n, child: Any = child, target: int = target, written: int = written) -> bool:
            if n % 2:
                return bool(half_written(folder, child))
            return steps_so_far(folder) >= target and (folder / "history.jsonl").stat().st_mtime_ns > written

        kill_at(child, due)
        rows.append((n + 1, begun, steps_so_far(folder), "yes" if half_written(folder, child) else "no"))
    assert bundle(folder, dataset, max_epochs=30).wait() == 0
    one, other = losses(whole), losses(folder)
    difference = max(abs(a - b) for a, b in zip(one, other, strict=True))
    with capsys.disabled():
        print("\nkill  resumed after step  killed after step  while a checkpoint was written")
        for row in rows:
            print("{:4d}  {:18d}  {:17d}  {}".format(*row))
        print(f"{len(one)} steps; largest difference of a step's loss: {difference:g}")
    assert difference <= 1e-6
    assert sum(row[3] == "yes" for row in rows) >= 5
    assert without_times(folder) == without_times(whole)
    for name in ("model.pt", "model_final.pt"):
        a, b = (torch.load(f / name, weights_only=True) for f in (folder, whole))
        assert all(torch.equal(a[k], b[k]) for k in a)


# --- distributed ---


@pytest.mark.slow
def test_the_bundle_under_torchrun(tmp_path: Path) -> None:
    dataset = write_decathlon(tmp_path / "scans", cases=10)
    # AdamW divides by what is almost nothing, and makes steps of what is rounding in the sum of two processes
    plain, settings = "sgd_poly.yaml", {"max_epochs": 4}
    assert bundle(tmp_path / "one", dataset, plain, batch_size=4, **settings).wait() == 0
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m")
    two = bundle(tmp_path / "two", dataset, plain, "multi_gpu_train.yaml", launcher=torchrun, batch_size=2, **settings)
    assert two.wait() == 0, (tmp_path / "two.log").read_text()[-3000:]
    assert len(losses(tmp_path / "one")) == 8
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-6)
    print([abs(a - b) for a, b in zip(losses(tmp_path / "one"), losses(tmp_path / "two"), strict=True)])
