"""Test that a step does not depend on how its batch is computed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Events
from tiny_run import (
    children,
    losses,
    make_run,
    run,
    run_distributed,
)

from segnets.errors import TrainingError  # isort: skip - within reach by tiny_run
from segnets.training import amp_dtype  # isort: skip - by tiny_run
from segnets.training.history import read_history  # isort: skip - by tiny_run


def test_two_processes_compute_what_one_with_twice_the_batch_does(tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_epochs": 3, "dropout": 0.0, "cases": 6, "val_cases": 3}
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
    scores = [[line["dice"] for line in read_history(tmp_path / name) if "dice" in line] for name in ("one", "two")]
    assert [len(lines) for lines in scores] == [2, 2]
    for alone, shared in zip(*scores, strict=True):  # one process validates two cases, the other one
        assert shared == pytest.approx(alone, abs=1e-3)
    run(tmp_path / "two", batch_size=4, **(options | {"max_epochs": 4}))  # what two began, one goes on with
    assert len(losses(tmp_path / "two")) == 8


def test_a_batch_in_parts_is_the_same_step(tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_epochs": 2, "dropout": 0.0, "batch_size": 3, "max_gradient_norm": 0.1}
    run(tmp_path / "whole", **options)
    run(tmp_path / "parts", accumulation_steps=2, **options)  # two cases, then one
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), abs=1e-5)


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_run_resumes_exactly_and_also_without_compilation(
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


def test_a_loss_of_nan_stops_the_run_before_it_changes_the_weights(tmp_path: Path) -> None:
    trainer = make_run(tmp_path, max_epochs=1)
    before = {k: p.detach().clone() for k, p in trainer.network.named_parameters()}
    trainer.loss_function = lambda logits, label: logits.mean() * float("nan")
    with pytest.raises(TrainingError, match=r"training\.diverged.*learning_rate"):
        trainer.run()
    for name, parameter in trainer.network.named_parameters():
        torch.testing.assert_close(parameter, before[name])


def test_mixed_precision_has_a_type_by_name_or_by_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert amp_dtype("float16", "cpu") == torch.float16
    assert amp_dtype("bfloat16", "cuda:1") == torch.bfloat16
    assert amp_dtype(True, "cpu") == torch.bfloat16
    for is_supported, expected in ((True, torch.bfloat16), (False, torch.float16)):
        # a GPU before Ampere emulates bfloat16 at a crawl
        monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True, is_supported=is_supported:
                            is_supported or including_emulation)  # fmt: skip
        assert amp_dtype(True, torch.device("cuda")) == expected
    with pytest.raises(TrainingError, match=r"bundle\.setting: found amp 'fp8'; expected true, false, bfloat16 or"):
        amp_dtype("fp8", "cpu")


def test_a_run_in_float16_goes_on_in_bfloat16(tmp_path: Path) -> None:
    first = run(tmp_path, max_epochs=1, amp="float16")
    assert first.scaler.is_enabled()
    assert torch.load(tmp_path / "checkpoints" / "latest.pt", weights_only=True)["scaler"]["scale"] > 1
    second = run(tmp_path, max_epochs=2, amp="bfloat16")
    assert not second.scaler.is_enabled()
    assert second.amp_kwargs == {"dtype": torch.bfloat16}
    assert run(tmp_path, max_epochs=3, amp="float16").scaler.is_enabled()
    assert len(losses(tmp_path)) == 9


def test_bfloat16_on_the_cpu_learns_too(tmp_path: Path) -> None:
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
