"""Long work of the plugin: in a thread, often in a worker process, with progress and stop. Without Qt.

A `Job` runs one function in a thread of its own, so that the window stays responsive. The function never touches layers
or widgets. Its callbacks wait in a queue until the main thread calls `Jobs.deliver`: a window does so on a timer
(`controls.deliver_on_timer`), a test or a script calls `Jobs.wait`.
"""

from __future__ import annotations

import queue
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from psygnal import Signal

from napari_seg.errors import Cancelled
from napari_seg.worker import WorkerProcess

NETWORK_WORKER = WorkerProcess()
"""Worker process of all networks, which are kept from one scan to the next."""

COMPARISON_WORKER = WorkerProcess()
"""Worker process of comparisons with references; scipy blocks Python for up to a second."""

SAVING_WORKER = WorkerProcess()
"""Worker process that writes files and reads them back while others work; highdicom blocks Python for a second."""

_STAGES = {
    "reading": "Reading the accepted cases",
    "locating": "Locating the region",
    "loading": "Loading the model",
    "segmenting": "Segmenting",
    "looking": "Looking at the scans again",
    "comparing": "Comparing on the validation cases",
}
"""Stages that the library reports, in the words of the window."""


@dataclass(frozen=True)
class JobProgress:
    """Progress of a job.

    Attributes:
        stage: display name of the stage.
        done: steps of this stage that are done.
        total: steps of this stage; 0 if their number is unknown, or if there is only one.
        seconds_left: estimate for this stage; None if there is none yet.
    """

    stage: str
    done: int = 0
    total: int = 0
    seconds_left: float | None = None

    @property
    def time_left(self) -> str:
        """Estimate for this stage in words; "" if there is none."""
        if self.seconds_left is None or self.done >= self.total:
            return ""
        minutes, seconds = divmod(round(self.seconds_left), 60)
        return f"{f'{minutes} min ' if minutes else ''}{seconds} s left"

    def __str__(self) -> str:
        text = f"{self.stage}: {self.done} of {self.total}" if self.total else f"{self.stage} …"
        return f"{text}, {self.time_left}" if self.time_left else text


_Call = tuple["Job", Callable[..., object], tuple]


class Job:
    """One function that runs in a thread of its own; made by `Jobs.start`.

    The function gets the job, to report progress, to hand over parts of its result and to call worker processes.

    Attributes:
        progress: latest progress; may be read by any thread.
        is_abandoned: whether the callbacks of the job are dropped.
    """

    def __init__(self, calls: queue.SimpleQueue[_Call]) -> None:
        self._calls = calls
        self._stop = threading.Event()
        self._ended = threading.Event()
        self._stage_start: tuple[str, float, int] = ("", 0.0, 0)
        self.progress = JobProgress("Starting")
        self.is_abandoned = False

    # called by the owner in the main thread

    @property
    def is_running(self) -> bool:
        """Return whether the thread is running."""
        return not self._ended.is_set()

    @property
    def is_stopping(self) -> bool:
        """Return whether the job was stopped."""
        return self._stop.is_set()

    def stop(self) -> None:
        """Ask the job to end at its next step; a worker process that it waits for is ended."""
        self._stop.set()

    def abandon(self) -> None:
        """Stop the job and drop its callbacks, including `on_end`."""
        self.is_abandoned = True
        self.stop()

    # called by the function in the thread of the job

    def check(self) -> None:
        """Raise `Cancelled` if the job was stopped.

        Raises:
            Cancelled: the job was stopped.
        """
        if self._stop.is_set():
            raise Cancelled()

    def report(self, stage: str, done: int = 0, total: int = 0) -> None:
        """Set the progress and estimate the time left; a `progress` callback of `napari_seg.inference.segment`.

        Args:
            stage: name of a stage of the library.
            done: steps that are done.
            total: steps of the stage; 0 if unknown.

        Raises:
            Cancelled: the job was stopped. Not raised after the last step of a stage: then results are written.
        """
        if not total or done < total:
            self.check()
        now = time.monotonic()
        if stage != self._stage_start[0]:
            self._stage_start = (stage, now, done)
        _, start, first = self._stage_start
        is_known = done > first and now - start > 1  # caches are cold in the first second
        seconds_left = (now - start) / (done - first) * (total - done) if is_known else None
        words = _STAGES.get(stage, stage.capitalize())
        self.progress = JobProgress(words, done, total, seconds_left) if total > 1 else JobProgress(words)

    def post(self, callback: Callable[..., object], *args: object) -> None:
        """Call a function in the main thread, after all functions that were posted earlier.

        Raises:
            Cancelled: the job was abandoned.
        """
        if self.is_abandoned:
            raise Cancelled()
        self._calls.put((self, callback, args))

    def call(
        self,
        process: WorkerProcess,
        function: Callable[..., Any],
        *args: Any,
        callbacks: Mapping[str, Callable[..., None]] | None = None,
        ends_between_steps: bool = False,
        poll: Callable[[bool], object] | None = None,
        stage: str = _STAGES["loading"],
        **options: Any,
    ) -> Any:
        """Run a function in a worker process and return its result; waits for other work of that process.

        Args:
            process: runs the function.
            function: function of a module, so that the process can import it.
            args: for the function; can be pickled.
            callbacks: by the names of the function's arguments, functions to call here, in the thread of the job.
            ends_between_steps: a stop takes effect at the next callback, not at once; for functions that write files.
            poll: called ten times a second, in another thread, with whether the job was stopped. It must not raise, and
                it has to end the function after a stop, which then does not end the process.
            stage: display name of the stage until the function reports one.
            options: for the function; can be pickled.

        Raises:
            Cancelled: the job was stopped.
            NapariSegError: the function raised it, or the process died.
        """
        has_begun = threading.Event()

        def begin() -> None:
            has_begun.set()
            self.progress = JobProgress(stage)

        def is_stopping() -> bool:
            if poll is not None and has_begun.is_set():
                poll(self._stop.is_set())
                return False
            return self._stop.is_set() and not (ends_between_steps and has_begun.is_set())

        self.progress = JobProgress("Waiting for another run to end")
        return process.run(
            function, *args, callbacks=callbacks or {}, on_start=begin, is_stopping=is_stopping, **options
        )

    def _run(
        self,
        work: Callable[[Job], Any],
        on_result: Callable[[Any], object],
        on_error: Callable[[Exception], object],
        on_end: Callable[[], object],
    ) -> None:
        try:
            self.check()
            self._calls.put((self, on_result, (work(self),)))
        except Cancelled:
            pass
        except Exception as error:
            self._calls.put((self, on_error, (error,)))
        finally:
            self._calls.put((self, on_end, ()))
            self._ended.set()


class Jobs:
    """Jobs of one window, and the queue of their callbacks.

    Args:
        on_error: called with the error of a job that has no `on_error` of its own.

    Attributes:
        started: emitted after a job was started.
        delivered: emitted by each `deliver`; read the progress of jobs then.
    """

    started = Signal()
    delivered = Signal()

    def __init__(self, on_error: Callable[[Exception], object]) -> None:
        self._on_error = on_error
        self._calls: queue.SimpleQueue[_Call] = queue.SimpleQueue()
        self._running: list[Job] = []
        self.is_closed = False

    def start(
        self,
        work: Callable[[Job], Any],
        *,
        on_result: Callable[[Any], object] = lambda _: None,
        on_error: Callable[[Exception], object] | None = None,
        on_end: Callable[[], object] = lambda: None,
    ) -> Job:
        """Run a function in a thread of its own; call in the main thread, which gets all callbacks.

        Python waits for the thread before it ends, so that files are written to their end.

        Args:
            work: called with the job.
            on_result: called with the result of `work`.
            on_error: called with the exception of `work`, unless it is `Cancelled`.
            on_end: called last, also after a stop.
        """
        # napari creates the colours of labels with this warning off, which is not safe while threads run
        warnings.filterwarnings("ignore", "Conversion from CIE-LAB", UserWarning)
        job = Job(self._calls)
        if self.is_closed:
            job.abandon()
        self._running.append(job)
        callbacks = (on_result, on_error or self._on_error, on_end)
        threading.Thread(target=job._run, args=(work, *callbacks), name="napari-seg job").start()
        self.started.emit()
        return job

    @property
    def is_idle(self) -> bool:
        """Return whether no job runs and no callback waits."""
        return not self._running

    def deliver(self) -> None:
        """Call the callbacks that wait; in the main thread."""
        ended = [job for job in self._running if not job.is_running]  # before the queue is read: all of theirs is there
        while True:
            try:
                job, callback, args = self._calls.get_nowait()
            except queue.Empty:
                break
            if not job.is_abandoned:
                callback(*args)
        self._running = [job for job in self._running if job not in ended]
        self.delivered.emit()

    def wait(self, seconds: float = 60) -> None:
        """Deliver until no job runs; for tests and scripts, which have no timer.

        Raises:
            TimeoutError: jobs still run after that time.
        """
        end = time.monotonic() + seconds
        while not self.is_idle:
            if time.monotonic() > end:
                raise TimeoutError(f"jobs still run after {seconds:.0f} s")
            self.deliver()
            time.sleep(0.005)

    def close(self) -> None:
        """Stop all jobs and deliver nothing more, also of jobs that are started later."""
        self.is_closed = True
        for job in self._running:
            job.abandon()
