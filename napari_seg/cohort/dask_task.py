"""What runs on a worker of a Dask cluster: one case, in a process that keeps its models loaded."""

from __future__ import annotations

import pickle
import platform
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Protocol

import distributed
from distributed.core import Status

from napari_seg.cohort.workers import CaseWorker, Failed, Finished, Work
from napari_seg.errors import Cancelled, EnvironmentFault
from napari_seg.memory import SAFE_FRACTION, free_bytes
from napari_seg.progress import Progress
from napari_seg.version import __version__
from napari_seg.worker import core_count

_PROGRESS_SECONDS = 0.5
"""Shortest time between two reports of one stage of a case."""

_IDLE_SECONDS = 600.0
"""Time after which a worker releases a process, and its models, that no case has needed."""


class CaseFunction(Protocol):
    """Run one case on a worker; the default is `run_in_process`."""

    def __call__(
        self,
        work: Work,
        *,
        on_step: Progress,
        on_plan: Callable[[str], None],
        is_stopping: Callable[[], bool],
    ) -> Finished | Failed: ...


@dataclass(frozen=True)
class Task:
    """What travels to a worker.

    Attributes:
        work: the case.
        ticket: name of a file in the staging folder; see above.
        function: function that runs the case.
        topic: topic of Dask's events under which the client listens.
    """

    work: Work
    ticket: str
    function: CaseFunction
    topic: str


@dataclass(frozen=True)
class Reply:
    """What a task hands back.

    Attributes:
        event: result of the case; None if the worker refused it.
        worker: address of the worker.
        host: name of its machine.
        versions: versions that may change results.
        refusal: why the worker can't run any case.
        unseen: file or folder that the worker does not see.
    """

    event: Finished | Failed | None
    worker: str
    host: str
    versions: dict[str, str]
    refusal: EnvironmentFault | None = None
    unseen: Path | None = None


def run_case(version: str, pickled: bytes) -> Reply:
    """Run one case on a worker.

    Args:
        version: version of the program that sent the case; another one can't be trusted to give the same results.
        pickled: the `Task`, which Dask does not look into.
    """
    worker = distributed.get_worker()
    host = socket.gethostname()

    def refused(fault: EnvironmentFault, unseen: Path | None = None) -> Reply:
        return Reply(None, worker.address, host, result_versions(), fault, unseen)

    if version != __version__:
        return refused(other_version(f"{host} runs napari-seg {__version__}, and this machine {version}"))
    task: Task = pickle.loads(pickled)
    work = task.work
    # a path of a scan may contain the name of a patient
    places = {str(work.staging): work.staging, work.case.source: work.case.scan.files[0]}
    for name, place in (places | {str(work.bundle.root): work.bundle.root}).items():
        if not place.exists():
            return refused(_not_shared(host, "see", name), place)
    try:
        (work.staging / task.ticket).unlink()
    except FileNotFoundError:
        return Reply(worker_lost(work.number), worker.address, host, result_versions())
    except OSError:
        return refused(_not_shared(host, "write to", str(work.staging)))
    key, reported = worker.get_current_task(), (-1e9, "")

    def is_stopping() -> bool:
        state = worker.state.tasks.get(key)
        is_running = worker.status in (Status.running, Status.paused, Status.closing_gracefully)
        return (
            task.topic in _stopped
            or state is None
            or state.state not in ("executing", "long-running")
            or not is_running
        )

    def on_step(stage: str, done: int, total: int) -> None:
        nonlocal reported
        now = time.monotonic()
        if stage != reported[1] or now - reported[0] > _PROGRESS_SECONDS:
            reported = now, stage
            worker.log_event(task.topic, (work.number, stage, done, total))

    def on_plan(text: str) -> None:
        worker.log_event(task.topic, (work.number, text))

    on_step("starting", 0, 1)
    event = task.function(work, on_step=on_step, on_plan=on_plan, is_stopping=is_stopping)
    if isinstance(event, Failed) and isinstance(event.error, Cancelled) and task.topic not in _stopped:
        event = worker_lost(work.number)  # this worker ends
    return Reply(event, worker.address, host, result_versions())


_stopped: set[str] = set()
"""Topics of the runs that were stopped."""


def stop_cases(topic: str) -> None:
    """Stop the cases of a run on this worker within a second."""
    _stopped.add(topic)


@dataclass(eq=False)
class _Idle:
    """A process that waits for a case: how it was started, and since when it waits."""

    process: CaseWorker
    start: tuple[int, int, int | None]
    since: float


_idle: list[_Idle] = []
"""Idle processes of this worker; the last one was used last."""


def run_in_process(
    work: Work,
    *,
    on_step: Progress,
    on_plan: Callable[[str], None],
    is_stopping: Callable[[], bool],
    threads: int | None = None,
    count: int | None = None,
) -> Finished | Failed:
    """Run a case in a process of the worker that keeps its models loaded.

    Args:
        work: the case.
        on_step: called with (stage, done, total).
        on_plan: called with a line of text on the windows and the memory of the scan.
        is_stopping: function that is polled; the case is given up once it returns true.
        threads: threads of the network; None: the machine's cores divided by `count`.
        count: cases that share the cores and the memory; None: as many as the worker has threads.
    """
    count = count or distributed.get_worker().state.nthreads
    threads = threads or max(1, core_count() // count)
    limit = work.settings.options.memory_bytes
    start = (threads, count, limit)
    process = _taken(start)
    if process is None:
        each = None if count == 1 else (limit or int(SAFE_FRACTION * free_bytes())) // count
        process = CaseWorker(threads, each)
    try:
        return process.run(work, on_step=on_step, on_plan=on_plan, is_stopping=is_stopping)
    finally:
        _idle.append(_Idle(process, start, time.monotonic()))
        timer = threading.Timer(_IDLE_SECONDS + 1, release_processes, [_IDLE_SECONDS])
        timer.daemon = True
        timer.start()


def release_processes(idle_seconds: float = 0.0) -> None:
    """End the processes of this worker that have been idle for so long, and release their memory."""
    for one in list(_idle):
        if time.monotonic() - one.since >= idle_seconds and _is_taken(one):
            one.process.close()


def _taken(start: tuple[int, int, int | None]) -> CaseWorker | None:
    """Return an idle process that was started in this way, and which is not idle any more."""
    fitting = (one for one in reversed(_idle) if one.start == start)
    return next((one.process for one in fitting if _is_taken(one)), None)


def _is_taken(one: _Idle) -> bool:
    """Take a process from the idle ones, and return whether no other thread was faster."""
    try:
        _idle.remove(one)
    except ValueError:
        return False
    return True


@cache
def result_versions() -> dict[str, str]:
    """Return the versions that could change results; the libraries are not imported."""
    return {"Python": ".".join(platform.python_version_tuple()[:2]), "torch": metadata.version("torch")}


def worker_lost(number: int) -> Failed:
    text = "the Dask worker that ran this case died or left before the case was finished"
    return Failed(number, EnvironmentFault("cohort.worker_lost", text))


def _not_shared(host: str, verb: str, place: str) -> EnvironmentFault:
    text = f"{host} does not {verb} {place}; expected a file system that this machine and all workers share at one path"
    return EnvironmentFault("cohort.not_shared", text)


def other_version(found: str) -> EnvironmentFault:
    return EnvironmentFault("cohort.worker_version", f"{found}; install the same version of napari-seg everywhere")
