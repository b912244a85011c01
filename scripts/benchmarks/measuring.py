"""What every comparison shares: processes that take turns or are watched, and figures of what they took."""

from __future__ import annotations

import importlib.metadata
import multiprocessing
import os
import platform
import signal
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import psutil

CHECKOUT = Path(__file__).resolve().parents[2]
SPAWN = multiprocessing.get_context("spawn")
NAPARI_SEG = (sys.executable, "-P", "-m", "napari_seg")
"""Command of napari-seg; without -P Python would import from the folder that it is started in first."""


class Contender:
    """A process that, whenever it is its turn, takes a number of steps and answers with what each of them took.

    Args:
        name: how the report calls it.
        serve: a function of a module, called in the process with a connection and `args`; it receives
            numbers of steps and sends, for each, a list of that many {phase: seconds}.
        args: passed to `serve`.
        log: the file that gets what the process prints.
    """

    def __init__(self, name: str, serve: Callable, *args: object, log: Path) -> None:
        self.name, self.log, self.peak_bytes = name, log, 0
        self.connection, theirs = SPAWN.Pipe()
        self.process = SPAWN.Process(target=_serve, args=(serve, theirs, log, args))
        self.process.start()
        theirs.close()

    def turn(self, steps: int) -> list[dict[str, float]]:
        """What each of the next steps took, in seconds by phase; the process stands still before and after."""
        self._signal(signal.SIGCONT)
        try:
            self.connection.send(steps)
            while not self.connection.poll(2):
                self.peak_bytes = max(self.peak_bytes, tree_bytes(self.process.pid))
            taken = self.connection.recv()
        except (EOFError, ConnectionError):
            raise SystemExit(f"{self.name} ended early; what it said stands in {self.log}") from None
        self._signal(signal.SIGSTOP)
        return taken

    def close(self) -> None:
        """Ends the process and its workers."""
        self._signal(signal.SIGKILL)
        self.process.join()

    def _signal(self, number: int) -> None:
        for process in _tree(self.process.pid):
            try:
                process.send_signal(number)
            except psutil.NoSuchProcess:
                continue


def _serve(serve: Callable, connection: Connection, log: Path, args: Sequence) -> None:
    multiprocessing.set_start_method(None, force=True)  # workers begin as usual here, not as this process did
    with log.open("w") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    serve(connection, *args)


def _memory_bytes(process: psutil.Process) -> int:
    """Resident memory of a process, a page that it shares with others counted in parts (Linux's PSS)."""
    try:
        fields = Path(f"/proc/{process.pid}/smaps_rollup").read_text().split("\nPss:")
        return int(fields[1].split()[0]) * 1024
    except (OSError, IndexError):  # it has ended, or the system tells it otherwise
        try:
            return getattr(process.memory_full_info(), "pss", 0)
        except psutil.Error:
            return 0


def _tree(pid: int | None) -> list[psutil.Process]:
    """A process and all its children; none once it has ended."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def tree_bytes(pid: int | None) -> int:
    """Resident memory of a process and all its children together; 0 once it has ended."""
    return sum(map(_memory_bytes, _tree(pid)))


@dataclass(frozen=True)
class Watched:
    """What became of a command.

    Attributes:
        seconds: from its start to its end.
        peak_bytes: of resident memory, its children's included.
        output: what it printed.
        log: what it printed on standard error.
    """

    seconds: float
    peak_bytes: int
    output: str
    log: str


def watch(command: Sequence[object], folder: Path, environment: Mapping[str, str] | None = None) -> Watched:
    """Runs a command to its end and tells what it took.

    Reading a large process's memory costs the processor time, so it is done seldom enough to take a twentieth of one
    core at most.

    Args:
        command: the program and its arguments.
        folder: gets what it prints, as stdout.txt and stderr.txt; made if missing.
        environment: variables beside this process's own.

    Raises:
        SystemExit: it failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "stdout.txt", folder / "stderr.txt"]
    words = [str(word) for word in command]
    with paths[0].open("w") as output, paths[1].open("w") as log:
        start = time.perf_counter()
        process = psutil.Popen(words, stdout=output, stderr=log, env={**os.environ, **(environment or {})})
        peak = 0
        try:
            while process.poll() is None:
                before = time.perf_counter()
                peak = max(peak, tree_bytes(process.pid))
                try:
                    process.wait(max(0.05, 20 * (time.perf_counter() - before)))
                except psutil.TimeoutExpired:
                    continue
        except BaseException:
            for running in reversed(_tree(process.pid)):
                running.kill()
            raise
        seconds = time.perf_counter() - start
    said = [path.read_text(errors="replace") for path in paths]
    if process.returncode:
        raise SystemExit(f"{words[:4]} failed with {process.returncode}; what it said stands in {folder}")
    return Watched(seconds, peak, *said)


def take_turns(contenders: Sequence[Contender], rounds: int, steps: int) -> dict[str, list[list[dict[str, float]]]]:
    """By name, round and step what was taken; each round's order is the reverse of the one before."""
    taken: dict[str, list] = {contender.name: [] for contender in contenders}
    for n in range(rounds):
        for contender in contenders if n % 2 == 0 else reversed(contenders):
            taken[contender.name].append(contender.turn(steps))
            print(f"round {n + 1} of {rounds}: {contender.name}", file=sys.stderr)
    return taken


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest of some values."""
    return {"median": statistics.median(values), "least": min(values), "greatest": max(values)}


def compare(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> dict[str, float]:
    """Our time as a share of theirs: the medians of each round divided, and the spread of that over the rounds."""
    pairs = zip(ours, theirs, strict=True)
    return spread([statistics.median(our) / statistics.median(their) for our, their in pairs])


def machine(packages: Sequence[str]) -> dict[str, object]:
    """The machine and the versions that the figures belong to."""
    import torch

    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text().splitlines() if cpus.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "versions": {package: importlib.metadata.version(package) for package in packages},
        "load_before": os.getloadavg()[0],
    }
