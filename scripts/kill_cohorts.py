"""Kill runs of `napari-seg predict` at random times, resume each by the same command, and compare with a whole run.

    python scripts/kill_cohorts.py --work FOLDER
    python scripts/kill_cohorts.py SCANS --broken BROKEN --cases 40 --kills 200 --work FOLDER -- --tta shifts

SCANS is a folder of NIfTI files, of which the first are copied; without it, synthetic scans are written. BROKEN is a
folder of scans that fail. Arguments after `--` go to `napari-seg predict`.

Half of the kills hit all processes of the run, most others the coordinator alone, and some one worker; then the run
itself has to finish. A quarter of the kills come before the first result of a run, the others after a random number of
results, the last included. Every other run waits before and after each rename, so that many kills come in the middle of
a commit. A run is resumed at once, while orphaned workers may still live.

The exit status is 0 if each cohort ends as the whole run did: the same files, byte for byte; each case started once,
and once more for each kill that interrupted it; finished results never touched again; the same failures; no further
file, no process left, and a sound manifest.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

WITH_TIMES = ("manifest.sqlite", "report.html", "cases.csv", "cases.json")
"""Files of a run that contain times, so that their bytes differ."""

TARGETS = ("all", "coordinator", "all", "coordinator", "all", "coordinator", "all", "worker")
"""What the kills hit, one after the other."""

SLOW_RENAMES = """
import os, sys, time
rename = os.replace
def slow(source, target, **options):
    time.sleep(0.03)
    rename(source, target, **options)
    time.sleep(0.03)
os.replace = slow
from napari_seg.cli.main import main
sys.exit(main(sys.argv[1:]))
"""
"""Command line whose renames take long."""

HIDE = """
import sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"ignite", "matplotlib", "skimage"}:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Hide())
"""
"""Python's `sitecustomize` that hides optional packages of MONAI."""

REPLACE = """
import importlib.util, os, sys
names = {f"napari_seg.inference.{name}" for name in ("engine", "segment", "threads")} | {"napari_seg.bundles.monai"}
class Replace:
    def find_spec(self, name, path=None, target=None):
        if name in names:
            return importlib.util.spec_from_file_location(name, os.path.join(os.path.dirname(__file__), "stand_in.py"))
sys.meta_path.insert(0, Replace())
"""
"""Python's `sitecustomize` that replaces the network by `STAND_IN`."""

STAND_IN = """
import os, signal, time
import numpy as np
from napari_seg.volume import Segment, Segmentation

def use_threads(count):
    pass

def segment(volume, bundle=None, options=None, *, progress=None, **changes):
    progress("segmenting", 0, 1)
    image = volume.array[0]
    fault, mark = os.environ.get("FAULT"), os.environ.get("FAULT_MARK")
    if fault and image.max() >= 9000 and not (mark and os.path.exists(mark)):
        if mark:
            open(mark, "w").close()
        if fault == "memory":
            blocks = []
            while True:
                blocks.append(np.empty(2**27))
        os.kill(os.getpid(), getattr(signal, fault))
    time.sleep(float(os.environ.get("CASE_SECONDS", "0.1")))
    array = (image > image.mean()).astype(np.uint8)
    return Segmentation(array, volume.grid, (Segment(1, "bright", (255, 0, 0)),), {1: 0.9}, volume.notices)
"""
"""Module that stands for the network; it can fail in bright scans as the environment variable FAULT says."""

_PATIENCE_SECONDS = 900


@dataclass
class Snapshot:
    """What the manifest knew when a run was killed.

    Attributes:
        states: case -> state.
        done: finished case -> what must never change again.
    """

    states: dict[str, str]
    done: dict[str, Any]


@dataclass
class Disturbed:
    """A cohort that is killed and resumed until it is finished.

    Attributes:
        out: its output folder.
        interrupted: how often kills found a case running.
        done: finished case -> what must never change again.
        worker_kills: number of killed workers, each of which may cost one further start of a case.
        faults: differences from the whole run.
    """

    out: Path
    interrupted: Counter[str] = field(default_factory=Counter)
    done: dict[str, Any] = field(default_factory=dict)
    worker_kills: int = 0
    faults: list[str] = field(default_factory=list)

    def note(self, snapshot: Snapshot) -> None:
        """Take what the manifest knew at a kill."""
        for name, before in self.done.items():
            if snapshot.done.get(name) != before:
                self.faults.append(f"{name} was finished and is {snapshot.states.get(name)}, or changed")
        self.done |= snapshot.done
        self.interrupted.update(name for name, state in snapshot.states.items() if state == "running")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", type=Path, nargs="?", help="folder of NIfTI files; synthetic scans if left out")
    parser.add_argument("--broken", type=Path, nargs="+", default=[], help="folders of scans that fail")
    parser.add_argument("--work", type=Path, required=True, help="folder for inputs and results; emptied first")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--cases", type=int, default=40, help="number of scans, without the broken ones")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    fast = parser.add_mutually_exclusive_group()
    fast.add_argument("--light", action="store_true", help="hide optional packages of MONAI: workers start faster")
    fast.add_argument("--stand-in", action="store_true", help="replace the network, so that workers start at once")
    words = sys.argv[1:]
    further = words[words.index("--") + 1 :] if "--" in words else []
    arguments = parser.parse_args(words[: words.index("--")] if "--" in words else words)

    work = arguments.work.resolve()
    shutil.rmtree(work, ignore_errors=True)
    (work / "tmp").mkdir(parents=True)
    os.environ["TMPDIR"] = str(work / "tmp")
    tempfile.tempdir = str(work / "tmp")
    write_inputs(work / "scans", arguments.scans, arguments.broken, arguments.cases)
    write_network(work / "network")
    if arguments.light or arguments.stand_in:
        customise(work / "customised", HIDE if arguments.light else REPLACE)
    predict = ["predict", str(work / "scans"), "--model", str(work / "network"), "--workers", str(arguments.workers)]
    predict += ["--device", "cpu", *further]

    began = time.monotonic()
    whole = work / "whole"
    status = start(predict, whole, is_slow=False).wait()
    print(f"whole run: {time.monotonic() - began:.0f} s, exit status {status}", flush=True)
    expected, usual = cases_of(whole), set((work / "tmp").iterdir())
    if not any(case["state"] == "done" for case in expected.values()):
        print(last_lines(whole))
        return 1
    print(", ".join(f"{n} {state}" for state, n in sorted(Counter(c["state"] for c in expected.values()).items())))

    chance = random.Random(arguments.seed)
    kills, places, faults = Counter[str](), Counter[str](), 0
    startup, rounds, starts = (time.monotonic() - began) / 2, 0, 0
    while kills.total() < arguments.kills:
        rounds += 1
        cohort = Disturbed(work / f"killed_{rounds}")
        while True:
            starts += 1
            target = TARGETS[kills.total() % len(TARGETS)] if kills.total() < arguments.kills else None
            process = start(predict, cohort.out, is_slow=starts % 2 == 0)
            if target is not None:
                left = len(expected) - len(cohort.done)
                startup = wait_for_moment(process, cohort.out, left, startup, chance)
                hit = kill(process, target)
                if hit:
                    kills[hit] += 1
                    snapshot = read_snapshot(cohort.out)
                    place = place_of(snapshot, results_so_far(cohort.out))
                    places[place] += 1
                    print(f"kill {kills.total():3}  {hit:<11} {place:<18} {counted(snapshot)}", flush=True)
                    if hit == "worker":
                        cohort.worker_kills += 1
                    else:
                        cohort.note(snapshot)
                        continue
            ended = wait(process)
            break
        if ended != status:
            cohort.faults.append(f"exit status {ended}, not {status}: {last_lines(cohort.out)}")
        cohort.faults += compare(whole, cohort, expected)
        cohort.faults += [f"{path.relative_to(work)} is left" for path in sorted(set((work / "tmp").iterdir()) - usual)]
        faults += len(cohort.faults)
        print(f"cohort {rounds}: {'equal' if not cohort.faults else 'DIFFERS'}", flush=True)
        for fault in cohort.faults:
            print(f"    {fault}", flush=True)
        if not cohort.faults:
            shutil.rmtree(cohort.out)
        if starts > 4 * arguments.kills + 8:
            print("the runs end before they are killed")
            return 1
    print_table("killed", kills)
    print_table("when", places)
    print(f"{kills.total()} kills, {rounds} cohorts of {len(expected)} cases in {starts} starts, {faults} differences")
    return int(faults > 0)


# inputs


def write_inputs(folder: Path, scans: Path | None, broken: list[Path], count: int) -> None:
    """Copy scans and broken scans into a folder, or write synthetic ones."""
    folder.mkdir()
    if scans is not None:
        found = sorted(path for path in scans.rglob("*.nii*") if path.is_file() and not path.name.startswith("."))
        for path in found[:count]:
            shutil.copy(path, folder / path.name)
    else:
        for number in range(count):
            write_synthetic(folder / f"scan_{number:03}.nii.gz", number)
    for source in broken:
        shutil.copytree(source, folder / "broken" / source.name)
    if not broken:
        (folder / "text.nii").write_text("no scan\n" * 100)
        (folder / "empty.nii.gz").write_bytes(b"")
        content = next(iter(sorted(folder.glob("*.nii.gz"))[1:])).read_bytes()
        (folder / "cut_off.nii.gz").write_bytes(content[: len(content) // 2])
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def write_synthetic(path: Path, seed: int, peak: int = 0) -> None:
    """Write a scan of smooth noise, with one voxel of a value if that is not 0."""
    import nibabel
    import numpy as np
    from scipy.ndimage import gaussian_filter

    noise = np.random.default_rng(seed).normal(size=(36, 50, 36))
    image = (1000 * gaussian_filter(noise, 3) + 500).astype(np.int16)
    image[0, 0, 0] = peak or image[0, 0, 0]
    nibabel.save(nibabel.Nifti1Image(image, np.diag([1.0, 1.0, 1.0, 1.0])), path)


def write_network(root: Path) -> None:
    """Write a bundle with a tiny network and random weights, which segments a case in a tenth of a second."""
    import torch
    from monai.networks.nets import UNet

    for name in ("configs", "models"):
        (root / name).mkdir(parents=True)
    unet = {"spatial_dims": 3, "in_channels": 1, "out_channels": 3, "channels": [4, 8], "strides": [2]}
    transforms = [
        {"_target_": "LoadImaged", "keys": "image"},
        {"_target_": "EnsureChannelFirstd", "keys": "image"},
        {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
        {"_target_": "NormalizeIntensityd", "keys": "image"},
    ]
    config = {
        "network_def": {"_target_": "UNet", **unet},
        "preprocessing": {"_target_": "Compose", "transforms": transforms},
        "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [32, 32, 32], "overlap": 0.25},
    }
    (root / "configs" / "inference.json").write_text(json.dumps(config))
    classes = {"0": "background", "1": "one", "2": "two"}
    data_format = {
        "inputs": {"image": {"num_channels": 1, "modality": "MR", "channel_def": {"0": "image"}}},
        "outputs": {"pred": {"num_channels": 3, "channel_def": classes}},
    }
    metadata = {"version": "1.0", "name": "tiny", "network_data_format": data_format}
    (root / "configs" / "metadata.json").write_text(json.dumps(metadata))
    torch.manual_seed(0)
    torch.save(UNet(**unet).state_dict(), root / "models" / "model.pt")


def customise(folder: Path, code: str) -> None:
    """Let all Python processes that start from now on run code first."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(code)
    (folder / "stand_in.py").write_text(STAND_IN)
    os.environ["PYTHONPATH"] = str(folder)


# runs


def log_of(out: Path) -> Path:
    """Return the file that takes what the runs of a cohort print."""
    return out.with_suffix(".log")


def start(predict: list[str], out: Path, *, is_slow: bool) -> subprocess.Popen[bytes]:
    """Start a run in a session of its own.

    Args:
        predict: arguments of `napari-seg`, without the output folder.
        out: the output folder.
        is_slow: whether renames take long.
    """
    entry = ["-P", "-c", SLOW_RENAMES] if is_slow else ["-P", "-m", "napari_seg"]
    with log_of(out).open("wb") as log:
        return subprocess.Popen(
            [sys.executable, *entry, *predict, "-o", str(out)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def results_so_far(out: Path) -> int:
    """Return how many results the present run has printed."""
    return sum(line.startswith(b"[") for line in log_of(out).read_bytes().splitlines())


def last_lines(out: Path) -> str:
    """Return the end of what a run has printed."""
    return log_of(out).read_text(errors="replace")[-500:]


def wait_for_moment(
    process: subprocess.Popen[bytes], out: Path, left: int, startup: float, chance: random.Random
) -> float:
    """Wait until a random moment in the life of a run, or its end; return the seconds that starts take.

    Args:
        process: the run.
        out: its output folder.
        left: number of cases that it has to finish.
        startup: seconds that earlier starts took.
        chance: source of random numbers.
    """
    if chance.random() < 0.25:
        with suppress(subprocess.TimeoutExpired):
            process.wait(chance.random() * startup)
        return startup
    goal, began = chance.randint(1, max(left, 1)), time.monotonic()
    while process.poll() is None:
        found = results_so_far(out)
        if found == 1:
            startup = time.monotonic() - began
        if found >= goal:
            break
        time.sleep(0.005)
    with suppress(subprocess.TimeoutExpired):
        process.wait(chance.random() * 0.4)
    return startup


def kill(process: subprocess.Popen[bytes], target: str) -> str | None:
    """Send SIGKILL to a run with all its processes, to its coordinator, or to a worker; return which.

    Args:
        process: the run.
        target: "all", "coordinator" or "worker".
    """
    if target == "worker":
        while process.poll() is None:
            if workers := workers_of(process.pid):
                with suppress(psutil.NoSuchProcess):
                    random.choice(workers).kill()
                return target
            time.sleep(0.01)
        return None
    if process.poll() is not None:
        return None
    if target == "all":
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()
    return target


def workers_of(pid: int) -> list[psutil.Process]:
    """Return the worker processes of a run."""
    with suppress(psutil.NoSuchProcess):
        children = psutil.Process(pid).children()
        return [one for one in children if any("napari_seg.worker" in word for word in one.cmdline())]
    return []


def wait(process: subprocess.Popen[bytes]) -> int:
    """Wait for the end of a run, and return its exit status."""
    return process.wait(_PATIENCE_SECONDS)


# comparison


def read_snapshot(out: Path) -> Snapshot:
    """Return what the manifest of a killed run knows; the file itself is not opened, because that could mend it."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("manifest.sqlite", "manifest.sqlite-wal", "manifest.sqlite-journal"):
            with suppress(FileNotFoundError):
                shutil.copy(out / name, folder)
        try:
            cases = cases_of(Path(folder))
        except sqlite3.OperationalError:  # killed before it had tables
            return Snapshot({}, {})
    states = {name: case["state"] for name, case in cases.items()}
    return Snapshot(states, {name: kept(case) for name, case in cases.items() if case["state"] == "done"})


def cases_of(out: Path) -> dict[str, dict[str, Any]]:
    """Return the cases of a manifest by name."""
    if not (out / "manifest.sqlite").exists():
        return {}
    with closing(sqlite3.connect(out / "manifest.sqlite")) as connection:
        connection.row_factory = sqlite3.Row
        return {row["name"]: dict(row) for row in connection.execute("SELECT * FROM cases ORDER BY id")}


def kept(case: dict[str, Any]) -> tuple[Any, ...]:
    """Return what must not change once a case is finished."""
    return case["attempts"], case["started"], case["ended"], case["outputs"]


def place_of(snapshot: Snapshot, results: int) -> str:
    """Return in which part of its life a run was killed.

    Args:
        snapshot: what its manifest knew.
        results: number of results that the run had printed.
    """
    states = set(snapshot.states.values())
    if "moving" in states:
        return "during a commit"
    if not results:
        return "before a result"
    return "between commits" if states & {"waiting", "running"} else "after the last case"


def counted(snapshot: Snapshot) -> str:
    """Return the number of cases in each state."""
    counts = Counter(snapshot.states.values())
    return ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))


def compare(whole: Path, cohort: Disturbed, expected: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Yield the differences between a cohort that was killed and one that was not."""
    out = cohort.out
    files = [{str(path.relative_to(root)) for path in root.rglob("*")} for root in (whole, out)]
    yield from (f"{name} is missing" for name in sorted(files[0] - files[1]))
    yield from (f"{name} is left over" for name in sorted(files[1] - files[0]))
    for name in sorted(files[0] & files[1]):
        one, other = whole / name, out / name
        if one.is_file() and name not in WITH_TIMES and one.read_bytes() != other.read_bytes():
            yield f"{name} has other bytes"
    cases, further = cases_of(out), 0
    for name in sorted(expected.keys() ^ cases.keys()):
        yield f"{name} is only in one manifest"
    for name in sorted(expected.keys() & cases.keys()):
        case, like = cases[name], expected[name]
        for column in ("state", "code", "message", "volumes_ml", "confidence", "notices", "input_sha256", "modality"):
            if case[column] != like[column]:
                yield f"{name}: {column} is {case[column]!r}, not {like[column]!r}"
        if case["state"] != "done":
            continue
        if name in cohort.done and kept(case) != cohort.done[name]:
            yield f"{name} was finished and ran again, or changed"
        further += max(case["attempts"] - 1 - cohort.interrupted[name], 0)
        for output in json.loads(case["outputs"]).values():
            path = out / output["path"]
            if not path.exists() or path.stat().st_mtime_ns != output["mtime_ns"]:
                yield f"{output['path']} is not as the manifest says"
    if further > cohort.worker_kills:
        yield f"cases were started {further} times more than they were interrupted"
    with closing(sqlite3.connect(out / "manifest.sqlite")) as connection:
        if (sound := connection.execute("PRAGMA integrity_check").fetchone()[0]) != "ok":
            yield f"the manifest is damaged: {sound}"
        if open_runners := connection.execute("SELECT count(*) FROM runners WHERE ended IS NULL").fetchone()[0]:
            yield f"{open_runners} runners have no end"


def print_table(title: str, counts: Counter[str]) -> None:
    """Print counts, one a line."""
    print(f"{title}:")
    for name, count in sorted(counts.items()):
        print(f"    {name:<20} {count:4}")


if __name__ == "__main__":
    sys.exit(main())
