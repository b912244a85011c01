"""Kill trainings at random times, resume them by the same command, and compare the end with an undisturbed training.

    python scripts/kill_trainings.py DATASET --work FOLDER
    python scripts/kill_trainings.py DATASET --work FOLDER --kills 20 --at planning -- --folds 2

Arguments after `--` go to `napari-seg train`. Every other kill hits the training process alone; the others hit the
command with all its processes. With --at only starts that have reached the stage are killed. The exit status is 0 if
weights, history and plan of each disturbed training equal those of the undisturbed one, byte for byte apart from times.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

SETTINGS = (
    "network_def#channels=[4,8,16]",
    "patch_size=[24,32,24]",
    "checkpoints#every_steps=3",
    "val_interval=4",
    "batch_size=2",
)
"""A tiny network, and many checkpoints: a kill costs little, and comes often while one is written."""

TIMES = ("seconds", "time", "seconds_left")
"""Values of the files of a run that depend on the clock."""

STAGES: dict[str, Callable[[Path, float], bool]] = {
    "start": lambda out, began: True,
    "converting": lambda out, began: (out / "data" / "imagesTr").is_dir() and not (out / "configs").is_dir(),
    "planning": lambda out, began: (out / "plan.json.unfinished").exists() and not (out / "plan.json").exists(),
    "writing": lambda out, began: (out / "configs").is_dir() and not (out / "plan.json").exists(),
    "training": lambda out, began: _written(out, "*/progress.jsonl", began),
    "checkpoint": lambda out, began: any(out.glob("*/checkpoints/latest.pt.*.part")),
    "fold": lambda out, began: _written(out, "fold_*/model_final.pt", began),
    "ensemble": lambda out, began: (out / "models" / "ensemble.unfinished").exists(),
    "end": lambda out, began: _written(out, "training/model_final.pt", began),
}
"""Stage -> whether a training in this folder has reached it since a time."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="folder for the trainings; emptied first")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--at", choices=STAGES, default="start", help="stage from which the time of a kill is counted")
    parser.add_argument("--within", type=float, help="longest time after that stage; default: half the training's time")
    words = sys.argv[1:]
    further = words[words.index("--") + 1 :] if "--" in words else []
    arguments = parser.parse_args(words[: words.index("--")] if "--" in words else words)

    shutil.rmtree(arguments.work, ignore_errors=True)
    arguments.work.mkdir(parents=True)

    def command(out: Path) -> list[str]:
        train = [sys.executable, "-P", "-m", "napari_seg", "train", str(arguments.dataset), "-o", str(out)]
        return [*train, "--max-epochs", str(arguments.epochs), "--set", *SETTINGS, *further]

    whole = arguments.work / "whole" / "bundle"  # equal names, because the bundle's title is its folder's name
    began = time.monotonic()
    _run(command(whole), whole)
    seconds = time.monotonic() - began
    print(f"undisturbed: {seconds:.0f} s", flush=True)
    within = arguments.within or seconds / 2
    chance, counts, differences = random.Random(arguments.seed), Counter[str](), 0
    rounds = starts = 0
    while counts.total() < arguments.kills:
        out = arguments.work / f"killed_{rounds}" / "bundle"
        rounds += 1
        while True:
            starts += 1
            left = arguments.kills - counts.total()
            hit = _run(command(out), out, STAGES[arguments.at], chance, within, counts) if left else None
            if hit is None:
                if not left:
                    _run(command(out), out)
                break
            print(f"kill {counts.total():3}  {hit}", flush=True)
        different = sorted(_compare(whole, out))
        differences += len(different)
        print(f"training {rounds}: {'equal' if not different else 'DIFFERS in ' + ', '.join(different)}", flush=True)
        if starts > 4 * arguments.kills:
            print("the trainings end before they are killed; shorten --within")
            return 1
    listed = ", ".join(f"{count} of {what}" for what, count in sorted(counts.items()))
    print(f"{counts.total()} kills ({listed}), {rounds} trainings in {starts} starts, {differences} differences")
    return int(differences > 0)


def _run(
    command: list[str],
    out: Path,
    reached: Callable[[Path, float], bool] | None = None,
    chance: random.Random | None = None,
    within: float = 0.0,
    counts: Counter[str] | None = None,
) -> str | None:
    """Run a command to its end, or kill it; return what was killed when, None if it has ended.

    Raises:
        SystemExit: the command failed by itself.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    log_file = out.parent / "log.txt"
    with log_file.open("ab") as log:
        log.write(b"\n--- start ---\n")
        log.flush()
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        if reached is None or chance is None or counts is None:
            status = process.wait()
        else:
            delay, only_child = chance.random() * within, counts.total() % 2 == 1
            began = time.time()
            while process.poll() is None and not reached(out, began):
                time.sleep(0.001)
            with suppress(subprocess.TimeoutExpired):
                process.wait(delay)
            if process.poll() is None:
                what = _kill(process, only_child)
                counts[what] += 1
                return f"{time.time() - began:6.1f} s after the start, {what}, at {_position(out)}"
            status = process.wait()
    if status:
        print(log_file.read_text(encoding="utf-8", errors="replace")[-3000:])
        raise SystemExit(f"the training failed with status {status}; see {log_file}")
    return None


def _kill(process: subprocess.Popen[bytes], only_child: bool) -> str:
    """Send SIGKILL to a command with all its processes, or to the process that it trains in; return which."""
    parent = psutil.Process(process.pid)
    below = parent.children(recursive=True)
    training = [one for one in below if "monai.bundle" in one.cmdline()] if only_child else []
    for one in training[:1] or [parent, *below]:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()
    psutil.wait_procs(below, timeout=60)
    return "the training process" if training else "all processes"


def _written(out: Path, pattern: str, began: float) -> bool:
    """Return whether a file was written since a time."""
    return any(path.stat().st_mtime > began for path in out.glob(pattern))


def _position(out: Path) -> str:
    lines = [line for path in sorted(out.glob("*/progress.jsonl")) for line in _lines(path)]
    stage = ", ".join(f"{line['stage']} step {line['step']}" for line in lines) or "no step"
    parts = len(list(out.rglob("*.part")))
    return stage + (f", {parts} file{'s' * (parts > 1)} half written" if parts else "")


def _compare(one: Path, other: Path) -> Iterator[str]:
    """Yield the names of the files that differ between two bundles, apart from times."""
    contents = [{path.relative_to(root): path for path in _compared(root)} for root in (one, other)]
    for name in contents[0].keys() ^ contents[1].keys():
        yield f"{name} (only in one)"
    for name in contents[0].keys() & contents[1].keys():
        if _content(contents[0][name]) != _content(contents[1][name]):
            yield str(name)
    for left in other.rglob("*"):
        if left.name.endswith((".part", ".unfinished")):
            yield f"{left.relative_to(other)} (left over)"


def _compared(root: Path) -> Iterator[Path]:
    for path in sorted(root.rglob("*")):
        inside = path.relative_to(root)
        is_run = inside.parts[0] == "training" or inside.parts[0].startswith("fold_")
        kept = (
            path.name in ("model.pt", "model_final.pt", "history.jsonl", "validation.jsonl", "worst_best.png")
            or path.suffix == ".json"
        )
        if path.is_file() and "cache" not in inside.parts and (not is_run or kept):
            yield path


def _content(path: Path) -> Any:
    if path.suffix == ".jsonl":
        return list(map(_without_times, _lines(path)))
    if path.suffix == ".json":
        return _without_times(json.loads(path.read_text(encoding="utf-8")))
    if path.name.startswith("model"):
        return _weights(path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _weights(path: Path) -> str:
    """Return a digest of the names and bytes of the tensors in a file."""
    import torch

    content = torch.load(path, weights_only=True, map_location="cpu")
    digest = hashlib.sha256()
    for name, tensor in content.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_times(part) for name, part in value.items() if name not in TIMES}
    return [_without_times(part) for part in value] if isinstance(value, list) else value


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    except OSError:
        return []


if __name__ == "__main__":
    os.nice(5) if hasattr(os, "nice") else None
    sys.exit(main())
