"""Run the cases of a cohort on the workers of a Dask cluster, which may come, go and die at any time.

Each case is one task. Its worker hands it to a process that keeps the models loaded, so that a crash of a network costs
the case and not the worker. No voxels travel: a worker reads the scan and writes the results through a file system
that all machines share, and hands back a few numbers.

Dask runs a task again if its worker died, and a worker that was cut off may still write. So that no folder has two
writers, the pool puts a ticket into the staging folder of each attempt, and a task begins by removing it:

- Only one run of the task can succeed in that. A second one reports that the worker was lost, and the runner tries the
  case again in a new folder.
- A worker that shares neither the folder nor the scan can't, and gets no further cases.
- A case that waits on a worker is taken back by removing its ticket.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import logging
import pickle
import queue
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import distributed

from napari_seg.cohort.dask_cluster import connected_client, local_cluster
from napari_seg.cohort.dask_task import (
    CaseFunction,
    Reply,
    Task,
    other_version,
    release_processes,
    result_versions,
    run_case,
    run_in_process,
    stop_cases,
    worker_lost,
)
from napari_seg.cohort.workers import Event, Failed, PlanLine, Step, Work
from napari_seg.errors import EnvironmentFault, InputError, NapariSegError
from napari_seg.formats.archive import shown
from napari_seg.formats.channels import ChannelSet
from napari_seg.version import __version__

if TYPE_CHECKING:
    from napari_seg.formats.scan import Scan

_log = logging.getLogger(__name__)

_FOLLOW_SECONDS = 1.0
"""Time between two looks at which workers there are."""

_STOP_SECONDS = 5.0
"""Time in which workers have to stop their cases, or the scheduler to close the connection."""

_CASES_PER_THREAD = 2
"""Cases submitted for each thread of the workers: one runs, one waits at its side."""


@dataclass
class _Pending:
    """A case that was submitted and has no result yet."""

    task: Task
    future: distributed.Future
    serial: int
    workers: frozenset[str] | None


@dataclass(frozen=True)
class _Lost:
    """The connection to the scheduler ended."""


@dataclass(frozen=True)
class _Joined:
    """Workers joined or left."""


@dataclass(frozen=True)
class _Done:
    """A task ended: with a reply, or with the error that Dask gives instead."""

    number: int
    serial: int
    result: Reply | BaseException


class DaskPool:
    """A pool whose workers are those of a Dask cluster.

    Args:
        where: address of a scheduler, such as "tcp://host:8786" or "tls://host:8786"; a scheduler file; "local:4" for
            four workers of this process, which opens no port; or a connected client, which stays open.
        resources: Dask's resources that each case takes, such as {"GPU": 1}.
        threads: threads of the network of each case; None: the cores of its machine, divided by the threads of
            the worker.
        function: function that runs a case on a worker.
        connect_seconds: time limit of the connection to the scheduler.

    Raises:
        EnvironmentFault: `cohort.scheduler`, no scheduler answers there; `cohort.tls`, TLS is not configured.
    """

    def __init__(
        self,
        where: str | Path | distributed.Client,
        *,
        resources: Mapping[str, float] | None = None,
        threads: int | None = None,
        function: CaseFunction | None = None,
        connect_seconds: float = 30,
    ) -> None:
        self._resources = dict(resources or {})
        self._name = f"napari-seg-{secrets.token_hex(8)}"
        self._serials = itertools.count()
        self._received: queue.SimpleQueue[_Done | _Lost | _Joined | Step | PlanLine] = queue.SimpleQueue()
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._pending: dict[int, _Pending] = {}
        self._refused: dict[str, EnvironmentFault] = {}
        self._warned: set[tuple[str, str, str]] = set()
        self._is_closed = False
        logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what matters is reported by this class
        self._cluster: distributed.SpecCluster | None = None
        count = None
        self._is_own = not isinstance(where, distributed.Client)
        self._is_local = isinstance(where, str) and where.startswith("local:")
        if isinstance(where, distributed.Client):
            self._client = where
        elif self._is_local:
            count = int(str(where).removeprefix("local:"))
            self._cluster = local_cluster(count, self._resources)
            self._client = distributed.Client(self._cluster, set_as_default=False)
        else:
            self._client = connected_client(str(where), connect_seconds)
        self._function: CaseFunction = function or partial(run_in_process, threads=threads, count=count)
        self._identity_options = (
            {"n_workers": -1} if "n_workers" in inspect.signature(distributed.Scheduler.identity).parameters else {}
        )
        self._workers: dict[str, int] = self._client.sync(self._slots)
        self._client.subscribe_topic(self._name, self._on_progress)
        self._client.loop.add_callback(self._follow)

    @property
    def size(self) -> int:
        """Number of cases to submit at a time; it changes as workers join and leave, and may be 0."""
        return _CASES_PER_THREAD * sum(self._usable().values())

    def submit(self, work: Work) -> None:
        """Hand a case to the cluster; its result is an event."""
        scan = work.case.scan
        if not self._is_local and any(shown(file) != file for file in scan.files):
            text = (
                f"{work.case.source} lies in an archive, which is unpacked on this machine only; expected a file that "
                "all machines see: unpack it into a shared folder, or run it without --dask"
            )
            self._events.put(Failed(work.number, InputError("cohort.archive", text)))
            return
        staging, ticket = work.staging.absolute(), f".ticket-{secrets.token_hex(8)}"
        (staging / ticket).touch()
        bundle = replace(work.bundle, root=work.bundle.root.absolute())
        case = replace(work.case, scan=_absolute(scan), bundle=bundle)
        work = replace(work, case=case, bundle=bundle, staging=staging)
        self._send(Task(work, ticket, self._function, self._name))

    def next_event(self, seconds: float) -> Event | None:
        """Return the next event, or None if there is none in time.

        Raises:
            EnvironmentFault: `cohort.scheduler`, the connection is lost; `cohort.not_shared` or
                `cohort.worker_version`, no worker can be used.
        """
        deadline = time.monotonic() + seconds
        while True:
            with suppress(queue.Empty):
                return self._events.get_nowait()
            try:
                received = self._received.get(timeout=max(0.0, min(1.0, deadline - time.monotonic())))
            except queue.Empty:
                if self._client.status != "running":
                    raise _scheduler_lost() from None
                if time.monotonic() >= deadline:
                    return None
                continue
            if isinstance(received, (Step, PlanLine)):
                if received.number in self._pending:
                    return received
            elif isinstance(received, _Lost):
                raise _scheduler_lost()
            elif isinstance(received, _Joined):
                self._move_stranded()
            elif (pending := self._pending.get(received.number)) and pending.serial == received.serial:
                event = self._event(pending, received.result)
                if event is not None:
                    self._events.put(event)

    def take_back(self) -> list[int]:
        """Return the numbers of cases that no worker has begun, and which none will begin any more."""
        waiting = [pending for pending in self._pending.values() if _removed(pending.task)]
        for pending in waiting:
            del self._pending[pending.task.work.number]
        self._cancel([pending.future for pending in waiting])
        return [pending.task.work.number for pending in waiting]

    def close(self, now: bool) -> None:
        """End the work: at once, or when the cases that run are finished; those that wait are taken back."""
        if self._is_closed:
            return
        self._is_closed = True
        self.take_back()
        if now:
            self._run_everywhere(stop_cases, self._name)
        deadline = time.monotonic() + (_STOP_SECONDS if now else float("inf"))
        with suppress(NapariSegError):
            while self._pending and time.monotonic() < deadline:
                self.next_event(0.1)
        self._cancel([pending.future for pending in self._pending.values()])
        self._run_everywhere(release_processes)
        with suppress(Exception):  # the scheduler may be dead
            self._client.unsubscribe_topic(self._name)
        if self._is_own:
            with suppress(Exception):
                self._client.close(timeout=_STOP_SECONDS)
        if self._cluster is not None:
            self._cluster.close()

    def _send(self, task: Task) -> None:
        """Submit a task, to the workers that can be used if others can't."""
        usable = self._usable()
        workers = frozenset(usable) if len(usable) < len(self._workers) else None
        number, serial = task.work.number, next(self._serials)
        try:
            future = self._client.submit(
                run_case,
                __version__,
                pickle.dumps(task),
                key=(self._name, number, serial),
                pure=False,
                workers=sorted(workers) if workers else None,
                resources=self._resources or None,
            )
        except Exception as error:
            if self._client.status == "running":
                raise
            raise _scheduler_lost() from error
        self._pending[number] = _Pending(task, future, serial, workers)
        self._client.loop.add_callback(self._await, number, serial, future)

    async def _await(self, number: int, serial: int, future: distributed.Future) -> None:
        """Wait for a task in the thread of the client."""
        try:
            result = await future
        except (Exception, asyncio.CancelledError) as error:
            result = error
        self._received.put(_Done(number, serial, result))

    def _event(self, pending: _Pending, result: Reply | BaseException) -> Event | None:
        """Return the event of a task that ended; None if the task is sent again.

        Raises:
            EnvironmentFault: the connection is lost, or no worker can be used.
        """
        number = pending.task.work.number
        if isinstance(result, Reply):
            self._warn_about_versions(result)
            if result.refusal is None:
                del self._pending[number]
                return result.event
            if result.unseen is not None and not result.unseen.exists():
                del self._pending[number]
                return Failed(number, InputError("file.unreadable", f"{pending.task.work.case.source} is gone"))
            self._refuse(result, result.refusal)
            self._send(pending.task)
            return None
        if isinstance(result, distributed.CancelledError):
            raise _scheduler_lost()
        del self._pending[number]
        if isinstance(result, distributed.KilledWorker):
            return worker_lost(number)
        if isinstance(result, (ImportError, AttributeError)):
            raise other_version(f"a worker can't import what napari-seg {__version__} sends ({result})")
        message = f"this should not have happened: {type(result).__name__} in a task; please report it"
        return Failed(number, InputError("internal.error", message))

    def _refuse(self, reply: Reply, fault: EnvironmentFault) -> None:
        """Leave a worker out from now on.

        Raises:
            EnvironmentFault: no other worker is left.
        """
        if reply.worker not in self._refused:
            self._refused[reply.worker] = fault
            if not self._usable():
                raise fault
            _log.warning("a worker is not used: %s", fault)

    def _usable(self) -> dict[str, int]:
        return {address: slots for address, slots in self._workers.items() if address not in self._refused}

    def _warn_about_versions(self, reply: Reply) -> None:
        """Warn once about each difference of a machine that could change results."""
        for name, here in result_versions().items():
            there = reply.versions.get(name, "none")
            if there != here and (reply.host, name, there) not in self._warned:
                self._warned.add((reply.host, name, there))
                text = "%s runs %s %s, and this machine %s; results may differ in single voxels"
                _log.warning(text, reply.host, name, there, here)

    def _move_stranded(self) -> None:
        """Send cases again that wait for workers which have left."""
        usable = self._usable()
        for pending in list(self._pending.values()):
            if pending.workers is not None and not pending.workers & usable.keys() and usable:
                self._cancel([pending.future])
                self._send(pending.task)

    def _cancel(self, futures: list[distributed.Future]) -> None:
        with suppress(Exception):  # the scheduler may be dead, and its tasks with it
            self._client.cancel(futures, force=True)

    def _run_everywhere(self, function: Callable[..., None], *args: Any) -> None:
        """Run a function on all workers that answer in time."""

        async def run() -> None:
            await self._client.run(function, *args, on_error="ignore")

        if self._client.status == "running":
            with suppress(Exception):  # a worker or the scheduler may be dead
                self._client.sync(run, callback_timeout=_STOP_SECONDS)

    async def _slots(self) -> dict[str, int]:
        """Return how many cases each worker runs at once."""
        identity = await self._client.scheduler.identity(**self._identity_options)
        slots = {}
        for address, worker in identity["workers"].items():
            limits = [worker["resources"].get(name, 0) // amount for name, amount in self._resources.items()]
            slots[address] = int(min([worker["nthreads"], *limits]))
        return slots

    async def _follow(self) -> None:
        """Follow which workers there are, in the thread of the client."""
        while not self._is_closed:
            if self._client.status != "running":
                self._received.put(_Lost())
                return
            with suppress(Exception):
                before, self._workers = self._workers, await self._slots()
                if before.keys() != self._workers.keys():
                    self._received.put(_Joined())
            await asyncio.sleep(_FOLLOW_SECONDS)

    def _on_progress(self, event: tuple[float, Any]) -> None:
        number, *content = event[1]
        self._received.put(Step(number, *content) if len(content) == 3 else PlanLine(number, *content))


def _absolute(scan: Scan | ChannelSet) -> Scan | ChannelSet:
    """Return the scan with absolute paths: workers have other working folders."""
    if isinstance(scan, ChannelSet):
        return replace(scan, channels=tuple((name, _absolute(one)) for name, one in scan.channels))  # type: ignore[misc]
    return replace(scan, files=tuple(file.absolute() for file in scan.files))


def _removed(task: Task) -> bool:
    """Remove the ticket of a task, and return whether no worker was first."""
    try:
        (task.work.staging / task.ticket).unlink()
    except OSError:
        return False
    return True


def _scheduler_lost() -> EnvironmentFault:
    text = (
        "the connection to the Dask scheduler is lost; finished cases are kept: start the scheduler and its workers "
        "again, then run the same command, which goes on with the rest"
    )
    return EnvironmentFault("cohort.scheduler", text)
