"""A run is a function of its config: not of processes, of kills, or of how its batches are computed."""

from __future__ import annotations

import copy
import errno
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import write_decathlon
from ignite.engine import Engine, Events
from tiny_run import (
    children,
    losses,
    make_run,
    run,
    run_distributed,
    spoil_the_middle,
    steps_so_far,
    volumes,
    without_times,
)

from napari_seg.bundles.spec import shipped_root

from segnets.errors import TrainingError  # isort: skip - within reach by tiny_run
from segnets.files import load_verified, lock  # isort: skip
from segnets.training import Checkpoints, WeightAverage  # isort: skip


# --- going on ---


def test_a_finished_run_goes_on_along_a_longer_schedule(tmp_path: Path) -> None:
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


def test_what_can_not_be_the_same_run_is_refused(tmp_path: Path) -> None:
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


def test_two_starts_do_not_disturb_one_another(tmp_path: Path) -> None:
    run(tmp_path, max_epochs=1)
    hold = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.lockf(f, fcntl.LOCK_EX); print(1, flush=True); input()"
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


def test_a_file_system_without_locks_is_told_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("segnets.files.fcntl.lockf", fail)
    for number in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
        caplog.clear()
        with lock(tmp_path / "lock") as file:
            assert file.writable()
        assert f"can't be locked ({os.strerror(number)})" in caplog.text
    number = errno.EIO
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        lock(tmp_path / "lock")


def test_any_damage_to_a_checkpoint_is_noticed(tmp_path: Path) -> None:
    whole, damaged = tmp_path / "whole.pt", tmp_path / "damaged.pt"
    torch.save({"a": torch.arange(1000.0), "step": 3}, whole)
    content, rng, outcomes = whole.read_bytes(), np.random.default_rng(0), Counter()
    for n in range(200):
        some = bytearray(content)
        place = int(rng.integers(0, len(some) - 64))
        if n % 4 == 0:
            some = some[:place]
        elif n % 4 == 1:
            some = rng.bytes(500)
        else:
            some[place : place + 64] = bytes(64) if n % 4 == 2 else rng.bytes(64)
        damaged.write_bytes(some)
        try:
            state = load_verified(damaged)
        except Exception as error:
            outcomes[type(error).__name__] += 1
        else:  # it hit what only fills up
            assert torch.equal(state["a"], torch.arange(1000.0))
            assert state["step"] == 3
    assert sum(outcomes.values()) > 150
    assert len(outcomes) > 1


def test_a_damaged_checkpoint_gives_way_to_the_one_before_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
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
    """Sends SIGKILL as soon as `due`."""
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


def test_a_run_goes_on_with_the_same_files_only(tmp_path: Path) -> None:
    files = {f"case_{n}": f"{n:08x}" for n in range(9)}
    run(tmp_path, max_epochs=1, digests=files)
    said = r"run\.differs: .*files of cases: was case_1 \(00000001\), is case_1 \(new\)"
    with pytest.raises(TrainingError, match=said):
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
    """The bundle's own training on small patches; a checkpoint after every third step."""
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


# --- the average of the weights ---


def test_the_average_of_a_short_run_is_as_good_as_its_network(tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_epochs": 16, "dropout": 0.0, "every_steps": None}
    first = make_run(tmp_path / "first", **options).network
    trainer = run(tmp_path / "run", **options)
    assert trainer.state.iteration == 48
    average = copy.deepcopy(first)
    average.load_state_dict(torch.load(tmp_path / "run" / "model_final.pt", weights_only=True))
    images, labels = (torch.as_tensor(np.stack([case[key] for case in volumes(5)])) for key in ("image", "label"))
    with torch.no_grad():
        begun, last, mean = (
            trainer.loss_function(net.eval()(images), labels).item() for net in (first, trainer.network, average)
        )
    assert last < 0.95 * begun
    assert mean < last + 0.1 * (begun - last)  # with momentum alone: by nine tenths


def test_the_average_weighs_its_steps_by_their_number() -> None:
    network = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(network.weight, 100.0)
    average = WeightAverage(network, momentum=0.7)
    engine = Engine(lambda engine, batch: network.weight.data.fill_(batch))
    average.attach(engine)
    engine.run([1.0, 2.0, 3.0, 4.0])
    expected = 100.0
    for weight, momentum in ((1.0, 9 / 11), (2.0, 9 / 12), (3.0, 0.7), (4.0, 0.7)):
        expected = (1 - momentum) * expected + momentum * weight
    assert average.ema_model.weight.item() == pytest.approx(expected)


# --- several processes, parts, mixed precision ---


def test_two_processes_compute_what_one_with_twice_the_batch_does(tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_epochs": 3, "dropout": 0.0, "cases": 6}
    run(tmp_path / "one", batch_size=4, **options)
    ranks = [
        children().Process(target=run_distributed, args=(tmp_path / "two", rank, 2), kwargs={"batch_size": 2} | options)
        for rank in (0, 1)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
        assert process.exitcode == 0
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == 6  # 1.5 steps an epoch, rounded up
    assert two == pytest.approx(one, abs=1e-5)
    run(tmp_path / "two", batch_size=4, **(options | {"max_epochs": 4}))  # what two began, one goes on with
    assert len(losses(tmp_path / "two")) == 8


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


def test_a_batch_in_parts_is_the_same_step(tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_epochs": 2, "dropout": 0.0, "batch_size": 3, "max_gradient_norm": 0.1}
    run(tmp_path / "whole", **options)
    run(tmp_path / "parts", accumulation_steps=2, **options)  # two cases, then one
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), abs=1e-5)


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_run_goes_on_exactly_and_also_without_compilation(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "code"))
    compiled: dict[str, Any] = {"compile": True, "compile_kwargs": {"backend": backend}}

    def run_in_two(folder: Path, then: dict[str, Any], **options: Any) -> list[float]:
        first = make_run(folder, **compiled, **options)
        first.add_event_handler(Events.ITERATION_COMPLETED(once=4), lambda: (folder / "stop").touch())
        first.run()
        assert len(losses(folder)) == 4
        run(folder, **then, **options)
        return losses(folder)

    torch.compiler.reset()
    run(tmp_path / "whole", **compiled)  # with dropout
    assert run_in_two(tmp_path / "stopped", compiled) == losses(tmp_path / "whole")
    run(tmp_path / "plain", dropout=0.0)
    mixed = run_in_two(tmp_path / "mixed", {}, dropout=0.0)
    assert mixed == pytest.approx(losses(tmp_path / "plain"), abs=1e-5)
    assert bool(list((tmp_path / "code").rglob("*.so"))) == (backend == "inductor")
    torch.compiler.reset()


def test_clipping_and_the_penalty_change_the_gradient_and_nothing_else(tmp_path: Path) -> None:
    def first_step(name: str, **settings: Any) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        trainer = make_run(tmp_path / name, max_epochs=1, **settings)
        before = {k: p.detach().clone() for k, p in trainer.network.named_parameters()}
        trainer.state.epoch_length = 1
        trainer.run()
        return before, {k: p.grad for k, p in trainer.network.named_parameters()}

    weights, plain = first_step("plain")
    _, clipped = first_step("clipped", max_gradient_norm=0.01)
    norm = torch.cat([g.flatten() for g in clipped.values()]).norm()
    assert norm.item() == pytest.approx(0.01, rel=1e-3)
    _, penalised = first_step("penalised", l1_penalty=0.5)
    for name, gradient in penalised.items():
        expected = plain[name] + (0.5 * weights[name].sign() if name.endswith("weight") else 0)
        torch.testing.assert_close(gradient, expected)


def test_a_loss_that_is_no_number_stops_the_run_before_it_spoils_the_weights(tmp_path: Path) -> None:
    trainer = make_run(tmp_path, max_epochs=1)
    before = {k: p.detach().clone() for k, p in trainer.network.named_parameters()}
    trainer.loss_function = lambda logits, label: logits.mean() * float("nan")
    with pytest.raises(TrainingError, match=r"training\.diverged.*learning_rate"):
        trainer.run()
    for name, parameter in trainer.network.named_parameters():
        torch.testing.assert_close(parameter, before[name])


def test_bfloat16_on_the_processor_learns_too(tmp_path: Path) -> None:
    seconds = {}
    for name, amp in (("float32", False), ("bfloat16", True)):
        start_time = time.monotonic()
        trainer = run(tmp_path / name, max_epochs=20, dropout=0.0, amp=amp, every_steps=None)
        seconds[name] = (time.monotonic() - start_time) / trainer.state.iteration
        curve = losses(tmp_path / name)
        assert np.mean(curve[-3:]) < 0.9 * curve[0]
    full, half = losses(tmp_path / "float32"), losses(tmp_path / "bfloat16")
    assert half != full
    assert half[:10] == pytest.approx(full[:10], rel=0.02)
    print({name: f"{1000 * s:.1f} ms a step" for name, s in seconds.items()})
