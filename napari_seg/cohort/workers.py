"""Worker processes that segment cases: each runs whole cases, one at a time, and keeps its models loaded.

Two or more workers overlap reading, network and writing. A crash costs the case that ran, and its worker starts again.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from napari_seg.bundles.spec import Bundle
from napari_seg.cohort.case import Case
from napari_seg.cohort.outcome import Outcome
from napari_seg.cohort.segment_case import segment_case
from napari_seg.cohort.settings import RunSettings
from napari_seg.errors import Cancelled, EnvironmentFault, InputError, NapariSegError
from napari_seg.memory import SAFE_FRACTION, free_bytes
from napari_seg.progress import Progress, describe_seconds
from napari_seg.worker import WorkerDied, WorkerError, WorkerProcess, core_count

PASSING_CODES = ("environment.memory", "environment.drive", "file.too_large")
"""Codes of errors that another try, alone, may not have."""

MAX_SMALL_BYTES = 16 * 2**20
"""Size of the files of a small scan, which one core segments about as fast as two."""

MIN_WORKER_BYTES = 3 * 2**29
"""Memory that each worker should have: its libraries, a model and a scan of usual size."""


@dataclass(frozen=True)
class Work:
    """A case on its way to a worker.

    Attributes:
        number: number of the case in the manifest.
        case: the case.
        bundle: the model that segments it.
        model_digest: digest of the model.
        staging: folder for its files.
        settings: settings of the run.
        is_alone: whether it may use the memory of all workers, because nothing else runs.
        was_killed: whether its worker died at the first try: then it uses half of that memory.
    """

    number: int
    case: Case
    bundle: Bundle
    model_digest: str
    staging: Path
    settings: RunSettings
    is_alone: bool = False
    was_killed: bool = False


@dataclass(frozen=True)
class Step:
    """A running case came further."""

    number: int
    stage: str
    done: int
    total: int


@dataclass(frozen=True)
class PlanLine:
    """A line of text on the windows and the memory of a running case."""

    number: int
    text: str


@dataclass(frozen=True)
class Finished:
    """A case is segmented, and its files lie complete in the staging folder."""

    number: int
    outcome: Outcome


@dataclass(frozen=True)
class Failed:
    """A case could not be segmented.

    Attributes:
        number: number of the case in the manifest.
        error: the reason.
        is_crash: whether its worker died, or memory or a drive failed, so that another try may succeed.
    """

    number: int
    error: NapariSegError
    is_crash: bool = False


Event = Step | PlanLine | Finished | Failed


class Pool(Protocol):
    """Workers on this machine or on others."""

    @property
    def size(self) -> int:
        """Number of cases to submit at a time; it may change while workers join or leave."""

    def submit(self, work: Work) -> None:
        """Hand a case to a worker, at once or when one is free."""

    def next_event(self, seconds: float) -> Event | None:
        """Return the next event; None if there is none for so long."""

    def take_back(self) -> list[int]:
        """Return the numbers of cases that no worker has begun, and which none will begin any more."""

    def close(self, now: bool) -> None:
        """End all workers: at once, or after the cases that run."""


class CaseWorker:
    """A worker process of this machine.

    Args:
        threads: threads of the network; None: all cores.
        memory_bytes: most memory of the process; None for that of the settings.
        kinds: kinds of the bundles, whose libraries are loaded before the first case.
    """

    def __init__(
        self, threads: int | None = None, memory_bytes: int | None = None, kinds: Collection[str] = ()
    ) -> None:
        self._process = WorkerProcess()
        self._threads = threads
        self._memory_bytes = memory_bytes
        self._kinds = sorted(kinds)

    def warm_up(self, is_stopping: Callable[[], bool] = lambda: False) -> None:
        """Start the process, if it does not run, and load its libraries."""
        self._process.run(_warm_up, self._threads, self._kinds, is_stopping=is_stopping)

    def run(
        self,
        work: Work,
        *,
        on_step: Progress | None = None,
        on_plan: Callable[[str], None] | None = None,
        is_stopping: Callable[[], bool] = lambda: False,
    ) -> Finished | Failed:
        """Segment a case, and return its result or the reason of its failure; nothing is raised."""
        callbacks = {"progress": on_step, "on_plan": on_plan}
        seconds = work.settings.timeout_seconds or float("inf")
        memory_bytes = self._memory_bytes
        if work.is_alone:  # no other case uses memory
            memory_bytes = work.settings.options.memory_bytes or int(SAFE_FRACTION * free_bytes())
            if work.was_killed:
                memory_bytes //= 2
        name = work.case.name
        try:
            outcome = self._process.run(
                _segment_case,
                self._threads,
                work.case,
                work.bundle,
                work.staging,
                work.settings,
                model_digest=work.model_digest,
                memory_bytes=memory_bytes,
                callbacks={name: call for name, call in callbacks.items() if call is not None},
                is_stopping=is_stopping,
                seconds=seconds,
            )
            return Finished(work.number, outcome)
        except WorkerDied as died:
            if died.code == "environment.too_slow":
                limit = describe_seconds(seconds)
                text = f"{name} took more than {limit}, the limit of --timeout; raise it or leave it out"
                text += "; the first scan with a model takes longer if it compiles the network"
                return Failed(work.number, InputError("cohort.timeout", text))
            return Failed(work.number, died, is_crash=True)
        except MemoryError:
            text = f"{name} needs more memory than is free; close other programs, or run it on a larger machine"
            return Failed(work.number, InputError("environment.memory", text), is_crash=True)
        except NapariSegError as error:
            return Failed(work.number, error, is_crash=error.code in PASSING_CODES)
        except OSError as error:  # the process could not start
            text = f"the worker process of {name} could not start ({error.strerror or type(error).__name__})"
            return Failed(work.number, EnvironmentFault("environment.ended", text), is_crash=True)
        except WorkerError as error:  # an error in the program; its text may contain private data
            where = error.places.rpartition("\n")[2]
            text = f"this should not have happened: {error.kind} in {where}; please report it"
            return Failed(work.number, InputError("internal.error", text))

    def kill(self) -> None:
        """Kill the process of an idle worker, which releases its memory; it starts again when it is needed."""
        self._process.kill()

    def close(self) -> None:
        """Kill the process and what it runs."""
        self._process.close()


def _warm_up(threads: int | None, kinds: Collection[str]) -> None:
    """Load what each case needs, so that the time of the first one counts its own work only."""
    import napari_seg.evaluation.overlay
    import napari_seg.inference.engine
    import napari_seg.inference.segment

    if "monai" in kinds:
        import napari_seg.bundles.monai  # noqa: F401

    _use_threads(threads)


def _segment_case(threads: int | None, *args: object, **options: object) -> Outcome:
    _use_threads(threads)
    return segment_case(*args, **options)  # type: ignore[arg-type]


def _use_threads(threads: int | None) -> None:
    if threads is not None:
        from napari_seg.inference.threads import use_threads

        use_threads(threads)


class LocalPool:
    """Workers of this machine.

    Args:
        size: number of workers.
        threads: threads of each network; None: the cores are divided.
        memory_bytes: memory of all workers together; None for a safe part of the free memory.
        kinds: kinds of the bundles of the run.
    """

    def __init__(
        self, size: int, threads: int | None = None, memory_bytes: int | None = None, kinds: Collection[str] = ()
    ) -> None:
        self.size = size
        if threads is None and size > 1:
            threads = max(1, core_count() // size)
        each = None
        if size > 1:
            each = (memory_bytes or int(SAFE_FRACTION * free_bytes())) // size
        self._waiting: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._is_stopping = threading.Event()
        self._workers = [CaseWorker(threads, each, kinds) for _ in range(size)]
        self._threads = [threading.Thread(target=self._serve, args=(one,), daemon=True) for one in self._workers]
        for thread in self._threads:
            thread.start()

    def submit(self, work: Work) -> None:
        """Hand a case to the next free worker."""
        self._waiting.put(work)

    def next_event(self, seconds: float) -> Event | None:
        """Return the next event; None if there is none for so long."""
        try:
            return self._events.get(timeout=seconds)
        except queue.Empty:
            return None

    def take_back(self) -> list[int]:
        """Return the numbers of cases that no worker has begun, and which none will begin any more."""
        numbers = []
        with suppress(queue.Empty):
            while work := self._waiting.get_nowait():
                numbers.append(work.number)
        return numbers

    def close(self, now: bool) -> None:
        """End all workers: at once, or after the cases that were submitted."""
        if now:
            self._is_stopping.set()
        for _ in self._threads:
            self._waiting.put(None)
        for thread in self._threads:
            thread.join()
        for worker in self._workers:
            worker.close()

    def _serve(self, worker: CaseWorker) -> None:
        """Run cases in one worker until the pool closes; in a thread of its own."""
        while True:
            if not self._is_stopping.is_set():
                # before the time of a case counts; the case finds out why if it fails
                with suppress(Exception):
                    worker.warm_up(self._is_stopping.is_set)
            work = self._waiting.get()
            if work is None or self._is_stopping.is_set():
                return
            if work.is_alone:
                for other in self._workers:
                    if other is not worker:
                        other.kill()
            self._events.put(Step(work.number, "starting", 0, 1))
            event = self._run(worker, work)
            if not (isinstance(event, Failed) and isinstance(event.error, Cancelled)):
                self._events.put(event)

    def _run(self, worker: CaseWorker, work: Work) -> Finished | Failed:
        try:
            return worker.run(
                work,
                on_step=partial(self._put_step, work.number),
                on_plan=partial(self._put_plan, work.number),
                is_stopping=self._is_stopping.is_set,
            )
        except Exception as error:  # a thread that ends without an event would let the run wait for ever
            text = f"this should not have happened: {type(error).__name__} in a worker's thread; please report it"
            return Failed(work.number, InputError("internal.error", text), is_crash=True)

    def _put_step(self, number: int, stage: str, done: int, total: int) -> None:
        self._events.put(Step(number, stage, done, total))

    def _put_plan(self, number: int, text: str) -> None:
        self._events.put(PlanLine(number, text))


def worker_count(case_count: int, largest_bytes: int, memory_bytes: int | None, *, has_gpu: bool) -> int:
    """Return a number of workers that keeps the cores, or the GPU, busy within the memory.

    Two workers overlap reading, network and writing. Small scans use few cores each, so they get a worker for each of
    up to eight cores.

    Args:
        case_count: number of cases.
        largest_bytes: size of the files of the largest case.
        memory_bytes: memory of all workers together; None for a safe part of the free memory.
        has_gpu: whether the networks run on a GPU.
    """
    useful = min(core_count(), 8) if largest_bytes <= MAX_SMALL_BYTES and not has_gpu else 2
    fitting = (memory_bytes or int(SAFE_FRACTION * free_bytes())) // MIN_WORKER_BYTES
    return max(1, min(useful, fitting, case_count, core_count()))
