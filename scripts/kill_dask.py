"""Kill workers and clients of a Dask cluster at random times, and compare the results with those of one machine.

    python scripts/kill_dask.py SCANS --work FOLDER
    python scripts/kill_dask.py SCANS --work FOLDER --kills 20 -- --model FOLDER
    python scripts/kill_dask.py --simulated 100 --work FOLDER

With --simulated, cases only sleep and write small files, so that a run takes seconds. Arguments after `--` go to
`napari-seg predict`, or to simulated_cases.py. Three experiments, each on a scheduler and three workers of this
machine: one worker is killed half-way and another one joins late; workers are killed and replaced; the client is
killed and started again. The exit status is 0 if every run ends with the files of an undisturbed run on one machine,
byte for byte, with each case done once and without a temporary file.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from dask_processes import DaskProcesses

_WORKERS = 3
_POLL_SECONDS = 0.1
_ENVIRONMENT = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])}
"""Variables of the workers, which import the simulated cases."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", type=Path, nargs="?", help="folder with scans, such as crops of a few kB")
    parser.add_argument(
        "--simulated", type=int, default=0, metavar="N", help="number of simulated cases, without SCANS"
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs; emptied first")
    parser.add_argument("--kills", type=int, default=20, help="kills of workers, and as many of clients")
    parser.add_argument("--seed", type=int, default=0)
    words = sys.argv[1:]
    further = words[words.index("--") + 1 :] if "--" in words else []
    arguments = parser.parse_args(words[: words.index("--")] if "--" in words else words)
    shutil.rmtree(arguments.work, ignore_errors=True)
    arguments.work.mkdir(parents=True)
    chance = random.Random(arguments.seed)
    if bool(arguments.simulated) == (arguments.scans is not None):
        parser.error("expected SCANS or --simulated")
    runs = Runs(arguments.scans or arguments.simulated, arguments.work, further)
    began = time.monotonic()
    runs.finish(runs.start("whole"))
    seconds = time.monotonic() - began
    print(f"one machine, undisturbed: {len(digests(runs.output('whole')))} files, {seconds:.0f} s", flush=True)
    differences = [
        one_dies_another_joins(runs),
        *workers_are_killed(runs, arguments.kills, chance, seconds),
        *clients_are_killed(runs, arguments.kills, chance, seconds),
    ]
    bad = [one for one in differences if one]
    print("all runs are equal" if not bad else f"{len(bad)} runs DIFFER: {bad}")
    return int(bool(bad))


class Runs:
    """Runs over the same scans, or as many simulated cases, into folders of their own."""

    def __init__(self, scans: Path | int, work: Path, further: list[str]) -> None:
        self._scans = scans
        self._work = work
        self._further = further

    def output(self, name: str) -> Path:
        """Return the output folder of a run."""
        return self._work / name

    @contextmanager
    def cluster(self, name: str) -> Iterator[DaskProcesses]:
        """Start a scheduler and its workers."""
        folder = self._work / f"{name}_cluster"
        folder.mkdir()
        with DaskProcesses(folder, _ENVIRONMENT) as cluster:
            for _ in range(_WORKERS):
                cluster.add_worker()
            yield cluster

    def start(self, name: str, cluster: DaskProcesses | None = None) -> subprocess.Popen[bytes]:
        """Start a run, on one machine or on a cluster."""
        where = ["--dask", "local:8" if cluster is None else str(cluster.file)]
        if isinstance(self._scans, int):
            words = [str(Path(__file__).with_name("simulated_cases.py")), str(self._scans), "--work", str(self._work)]
        else:
            if cluster is None:
                where = ["--workers", "1"]
            words = ["-P", "-m", "napari_seg", "predict", str(self._scans)]
        command = [sys.executable, *words, "--output", str(self.output(name)), *where, *self._further]
        with (self._work / f"{name}.log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log)

    def finish(self, process: subprocess.Popen[bytes]) -> None:
        """Wait for the end of a run.

        Raises:
            SystemExit: it failed.
        """
        if process.wait():
            raise SystemExit(f"a run ended with {process.returncode}; see the logs in {self._work}")

    def difference(self, name: str) -> str:
        """Return how a finished run differs from the undisturbed one; "" if it does not."""
        whole, this = digests(self.output("whole")), digests(self.output(name))
        different = sorted(file for file in whole.keys() | this.keys() if whole.get(file) != this.get(file))
        left = [path.name for path in self.output(name).glob(".napari-seg/*")]
        states = states_of(self.output(name))
        if set(states) - {"done"}:
            return f"{name}: states {states}"
        if different or left:
            return f"{name}: files {different[:5]} differ, {left[:5]} are left"
        return ""


def one_dies_another_joins(runs: Runs) -> str:
    """Kill a worker half-way, let another one join later, and return how the results differ."""
    name = "dies_and_joins"
    with runs.cluster(name) as cluster:
        process = runs.start(name, cluster)
        count = len(digests(runs.output("whole"))) // 3
        while done_in(runs.output(name)) < count // 2 and process.poll() is None:
            time.sleep(_POLL_SECONDS)
        cluster.kill_worker(cluster.workers[0])
        half = done_in(runs.output(name))
        while done_in(runs.output(name)) < count * 3 // 4 and process.poll() is None:
            time.sleep(_POLL_SECONDS)
        cluster.add_worker()
        runs.finish(process)
    difference = runs.difference(name)
    print(f"killed a worker after {half} of {count} cases, another joined: {difference or 'equal'}", flush=True)
    return difference


def workers_are_killed(runs: Runs, kills: int, chance: random.Random, seconds: float) -> Iterator[str]:
    """Kill workers at random times and replace them; yield how the results of each run differ."""
    killed = number = 0
    while killed < kills:
        name = f"workers_{number}"
        number += 1
        with runs.cluster(name) as cluster:
            process = runs.start(name, cluster)
            while process.poll() is None:
                _wait(process, chance.uniform(0, seconds / 4))
                if process.poll() is None and killed < kills and done_in(runs.output(name)):
                    cluster.kill_worker(chance.choice(cluster.workers))
                    cluster.add_worker()
                    killed += 1
            runs.finish(process)
        difference = runs.difference(name)
        print(f"{killed} kills of workers, run {number}: {difference or 'equal'}", flush=True)
        yield difference


def clients_are_killed(runs: Runs, kills: int, chance: random.Random, seconds: float) -> Iterator[str]:
    """Kill the client at random times and start it again; yield how the results of each run differ."""
    killed = number = 0
    while killed < kills:
        name = f"client_{number}"
        number += 1
        with runs.cluster(name) as cluster:
            while True:
                process = runs.start(name, cluster)
                if killed < kills:
                    _wait(process, chance.uniform(0, seconds / 2))
                    if process.poll() is None:
                        process.send_signal(getattr(signal, "SIGKILL", signal.SIGTERM))
                        process.wait()
                        killed += 1
                        continue
                runs.finish(process)
                break
        difference = runs.difference(name)
        print(f"{killed} kills of the client, run {number}: {difference or 'equal'}", flush=True)
        yield difference


def digests(output: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of the results, without the manifest and the report, which have times."""
    names = [path for path in output.rglob("*") if path.is_file() and ".napari-seg" not in path.parts]
    results = [path for path in names if "_seg" in path.name]
    return {os.fspath(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest() for path in results}


def states_of(output: Path) -> dict[str, int]:
    """Return state -> number of cases in the manifest; empty before there is one."""
    with suppress(sqlite3.Error):
        uri = f"{(output / 'manifest.sqlite').resolve().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=30)) as manifest:
            return dict(manifest.execute("SELECT state, count(*) FROM cases GROUP BY state"))
    return {}


def done_in(output: Path) -> int:
    """Return the number of finished cases."""
    return states_of(output).get("done", 0)


def _wait(process: subprocess.Popen[bytes], seconds: float) -> None:
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=seconds)


if __name__ == "__main__":
    raise SystemExit(main())
