"""Kill acceptances and improvements at random times, and check that nothing is lost but what was under way.

    python scripts/kill_learning.py --work FOLDER
    python scripts/kill_learning.py --work FOLDER --accepts 200 --improves 10

An acceptance counts from the moment at which its process has said so. After each kill the index must be readable, hold
every case that was reported, name files that are whole, and hold labels and record of the same acceptance. A killed
improvement is started again by the same command until it ends. In turn, all its processes are killed (SIGKILL), the
process that trains alone, the command alone, after which the training saves and ends, and what runs at the start. The
training set and the old model must be as they were, and every epoch of the training must occur once. The exit status is
0 if all of this holds and no kill came too late.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil

from napari_seg.formats.read import read
from napari_seg.geometry import Grid
from napari_seg.learning.accept import accept
from napari_seg.learning.improve import COMPARISON
from napari_seg.learning.training_set import Provenance, read_training_set
from napari_seg.training.gather.referenced import voxel_digest
from napari_seg.volume import Segment, Segmentation, Volume

GRID = Grid((28, 36, 28), np.diag([1.5, 1.0, 2.0, 1.0]))
TINY = ("network_def#channels=[4,8]", "network_def#strides=[1,2]", "network_def#encoder_convs=1")
RUN = ("num_workers=0", "checkpoints#every_steps=2", "val_interval=10")
EPOCHS = 60
WAYS = ("all processes", "the training", "the command", "its start")
SCANS = 4
"""Number of scans that are accepted again and again."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for everything; emptied first")
    parser.add_argument("--accepts", type=int, default=50, help="number of killed acceptances")
    parser.add_argument("--improves", type=int, default=5, help="number of kills of an improvement")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--accept-until-killed", type=Path, metavar="SET", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.accept_until_killed:
        accept_for_ever(arguments.accept_until_killed, arguments.seed)
    shutil.rmtree(arguments.work, ignore_errors=True)
    arguments.work.mkdir(parents=True)
    os.environ |= {
        "NAPARI_SEG_SCANS": str(arguments.work / "scans"),
        "NAPARI_SEG_MODELS": str(arguments.work / "store"),
    }
    rng = random.Random(arguments.seed)
    faults = [] if arguments.accepts + arguments.improves > 0 else ["there was no kill"]
    if arguments.accepts:
        faults += kill_accepts(arguments.work / "set", arguments.accepts, rng)
    if arguments.improves:
        faults += kill_improves(arguments.work, arguments.improves, rng)
    print("\n".join(faults) or "nothing was lost")
    return bool(faults)


def scan_of(number: int) -> Volume:
    """Return a scan with a bright block in noise."""
    rng = np.random.default_rng(number)
    array = rng.normal(100, 20, (1, *GRID.shape)).astype(np.float32)
    array[0, 8:18, 10:24, 8 : 16 + number] += 150
    return Volume(array, GRID)


def labels_of(number: int, turn: int) -> Segmentation:
    """Return labels of a scan, with the number of the acceptance in their first voxels."""
    array = np.zeros(GRID.shape, np.uint8)
    array[8:18, 10:24, 8 : 16 + number] = 1
    array[0, 0, :16] = [turn >> bit & 1 for bit in range(16)]
    return Segmentation(array, GRID, (Segment(1, "block", (255, 0, 0)),))


def accept_for_ever(folder: Path, first: int) -> None:
    """Accept scans again and again, and say each time which one was accepted."""
    turn = first
    while True:
        number = turn % SCANS
        accept(labels_of(number, turn), scan_of(number), folder, Provenance("killed", actions=(str(turn),)))
        print(turn, flush=True)
        turn += 1


def kill_accepts(folder: Path, kills: int, rng: random.Random) -> list[str]:
    """Kill processes that accept, and return what was lost."""
    faults: list[str] = []
    reported: dict[str, int] = {}
    digests = {voxel_digest(scan_of(number)): number for number in range(SCANS)}
    turn = 0
    for kill in range(kills):
        words = [sys.executable, __file__, "--work", str(folder), "--accept-until-killed", str(folder)]
        process = subprocess.Popen([*words, "--seed", str(turn)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        line = process.stdout.readline()  # the first one is over: Python and its modules are loaded
        time.sleep(rng.uniform(0, 0.3))
        if process.poll() is not None:
            faults.append(f"kill {kill}: the process ended by itself")
        process.send_signal(getattr(signal, "SIGKILL", signal.SIGTERM))
        told = [int(word) for word in (line + process.communicate()[0]).split()]
        found = {digests[case.scan]: case for case in read_training_set(folder).cases}
        for one in told:
            reported[str(one % SCANS)] = one
        turn = max(told, default=turn) + 2
        for number, last in reported.items():
            case = found.get(int(number))
            if case is None:
                faults.append(f"kill {kill}: scan {number} is gone")
                continue
            recorded = int(case.provenance.actions[0])
            array = read(folder / case.labels).array[0]
            written = sum(int(bit) << place for place, bit in enumerate(array[0, 0, :16]))
            if recorded < last or written != recorded:
                faults.append(
                    f"kill {kill}: scan {number} has the record {recorded}, labels {written}; expected {last}"
                )
            if voxel_digest(read(folder / case.image)) != case.scan:
                faults.append(f"kill {kill}: the image of scan {number} has changed")
    left = [path.name for path in folder.rglob(".*") if path.is_file() and path.name != ".lock"]
    print(f"{kills} kills of acceptances, {turn} acceptances; {len(left)} unfinished files before the next", flush=True)
    return faults


def kill_improves(work: Path, kills: int, rng: random.Random) -> list[str]:
    """Kill an improvement so many times, let it end, and return what was lost."""
    folder, model, out = work / "improved", work / "model", work / "model_round1"
    for number in range(SCANS):
        accept(labels_of(number, 0), scan_of(number), folder, Provenance("killed"))
    run("train", str(folder), "-o", str(model), "--max-epochs", "2", "--set", *TINY, *RUN)
    before = {path: path.read_bytes() for root in (folder, model) for path in files(root)}
    words = ["improve", str(folder), "--model", str(model), "-o", str(out), "--max-minutes", "60"]
    words += ["--set", f"max_epochs={EPOCHS}", *RUN]
    counts = Counter[str]()
    for number in range(kills):
        way = WAYS[number % len(WAYS)]
        process = subprocess.Popen(command(words), start_new_session=True)
        began = time.monotonic()
        progress = out / "training" / "progress.jsonl"
        start = time.time()
        while way != "its start" and time.monotonic() - began < 300 and process.poll() is None:
            if progress.is_file() and progress.stat().st_mtime > start:
                break
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 4 if way == "its start" else 1))
        if process.poll() is not None:
            break
        counts[kill_in(process, way)] += 1
    run(*words)
    faults = [f"{path} has changed" for path, content in before.items() if not same(path, content)]
    history = [json.loads(line) for line in (out / "training" / "history.jsonl").read_text().splitlines()]
    epochs = [line["epoch"] for line in history if "loss" in line]
    if counts.total() < kills:
        faults.append(f"the improvement ended after {counts.total()} of {kills} kills")
    if epochs != list(range(1, EPOCHS + 1)):
        faults.append(f"the epochs of the training are {epochs}")
    if not (out / COMPARISON).is_file():
        faults.append("there is no comparison")
    listed = ", ".join(f"{count} of {what}" for what, count in sorted(counts.items()))
    print(f"{counts.total()} kills of an improvement ({listed}); then {len(epochs)} epochs, and it ended", flush=True)
    return faults


def kill_in(process: subprocess.Popen, way: str) -> str:
    """Kill as one of `WAYS`, wait until all processes have ended, and return what was killed.

    The training has a session and a group of its own: a signal to the group of the command does not reach it.
    """
    command = psutil.Process(process.pid)
    below = command.children(recursive=True)
    training = [one for one in below if "monai.bundle" in one.cmdline()]
    if not training or way == "its start":
        way = "all processes" if training else "its start"
    for one in {"the training": training, "the command": [command]}.get(way, [command, *below]):
        with suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()
    psutil.wait_procs(below, timeout=120)
    return way


def files(root: Path) -> list[Path]:
    """Return the files that an improvement must not change."""
    unread = ("__pycache__", "scores", "rounds")
    return [path for path in root.rglob("*") if path.is_file() and not set(unread) & set(path.parts)]


def same(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() == content


def command(words: list[str]) -> list[str]:
    return [sys.executable, "-P", "-m", "napari_seg", *words]


def run(*words: str) -> None:
    subprocess.run(command(list(words)), check=True)


if __name__ == "__main__":
    sys.exit(main())
