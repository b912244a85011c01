"""The pool over a Dask cluster, with cases that are small functions."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import phantoms
import pytest
from dask_processes import DaskProcesses

from napari_seg.bundles.read import read_bundle
from napari_seg.cohort.case import Case
from napari_seg.cohort.cohort import Cohort
from napari_seg.cohort.manifest import Manifest
from napari_seg.cohort.outcome import Outcome
from napari_seg.cohort.settings import RunSettings
from napari_seg.cohort.workers import Event, Failed, Finished, PlanLine, Step, Work
from napari_seg.errors import Cancelled, EnvironmentFault, InputError
from napari_seg.formats.scan import Scan
from napari_seg.volume import Volume

pytest.importorskip("distributed", reason="the extra 'dask' is not installed")

import dask
import distributed

from napari_seg.cohort import distributed as pools
from napari_seg.cohort.dask_cluster import local_cluster
from napari_seg.cohort.dask_task import worker_lost
from napari_seg.cohort.distributed import DaskPool


def write(work: Work, *, on_step: Any, on_plan: Any, is_stopping: Any) -> Finished:
    """A case that writes a file."""
    on_step("segmenting", 1, 2)
    on_plan("2 windows")
    (work.staging / "labels").write_text(work.case.name)
    return Finished(work.number, Outcome({}, modality=f"{work.case.name} {work.is_alone}"))


def wait(work: Work, *, on_step: Any, on_plan: Any, is_stopping: Any) -> Finished:
    """A case that runs until it is stopped or a file `go` lies beside the scan."""
    (work.staging / "begun").touch()
    folder = work.case.scan.files[0].parent
    while not is_stopping() and not (folder / "go").exists():
        time.sleep(0.02)
    (folder / f"{work.number} stopped").write_text(str(is_stopping()))
    return Finished(work.number, Outcome({}))


def fail(work: Work, *, on_step: Any, on_plan: Any, is_stopping: Any) -> Finished:
    raise KeyError("a private value")


def paths(work: Work, *, on_step: Any, on_plan: Any, is_stopping: Any) -> Finished:
    return Finished(work.number, Outcome({}, run={"paths": [*work.case.scan.files, work.staging]}))


def error_of(pool: DaskPool) -> EnvironmentFault:
    """Return the error that ends the run within 20 s."""
    start = time.monotonic()
    try:
        while time.monotonic() < start + 20:
            pool.next_event(1)
    except EnvironmentFault as error:
        return error
    raise AssertionError("the run goes on")


@pytest.fixture
def make_pool() -> Iterator[Callable[..., DaskPool]]:
    pools_made: list[DaskPool] = []

    def make(where: Any = "local:2", **options: Any) -> DaskPool:
        pools_made.append(DaskPool(where, **options))
        return pools_made[-1]

    yield make
    for pool in pools_made:
        pool.close(now=True)


def a_case(folder: Path, number: int = 0, is_alone: bool = False) -> Work:
    file = folder / f"scan{number}.nii.gz"
    file.touch()
    staging = folder / "out" / f"{number}.0"
    staging.mkdir(parents=True)
    case = Case(f"scan{number}", file.name, str(file), Scan(f"scan{number}", "nifti", (file,)))
    return Work(number, case, read_bundle(None), "", staging, RunSettings(), is_alone)


def events_of(pool: DaskPool, count: int) -> list[Event]:
    """Return events until `count` cases have ended."""
    events: list[Event] = []
    while sum(isinstance(event, (Finished, Failed)) for event in events) < count:
        event = pool.next_event(60)
        assert event is not None
        events.append(event)
    return events


def test_cases_run_and_hand_back_their_outcome_and_progress(make_pool: Any, tmp_path: Path) -> None:
    pool = make_pool(function=write)
    cases = [a_case(tmp_path, number, number == 3) for number in range(5)]
    for work in cases:
        pool.submit(work)
    events = events_of(pool, 5)
    outcomes = {event.number: event.outcome.modality for event in events if isinstance(event, Finished)}
    assert outcomes == {number: f"scan{number} {number == 3}" for number in range(5)}
    assert [event for event in events if event.number == 2][:-1] == [
        Step(2, "starting", 0, 1),
        Step(2, "segmenting", 1, 2),
        PlanLine(2, "2 windows"),
    ]
    # nothing but the results lies in the staging folders
    assert [[file.name for file in work.staging.iterdir()] for work in cases] == [["labels"]] * 5


def test_size_counts_threads_and_resources(make_pool: Any) -> None:
    assert make_pool("local:3").size == 6
    assert make_pool("local:3", resources={"GPU": 1}).size == 6
    cluster = local_cluster(2, {"GPU": 1})
    try:
        with distributed.Client(cluster, set_as_default=False) as client:
            assert make_pool(client, resources={"GPU": 1}).size == 4
            assert make_pool(client, resources={"GPU": 2}).size == 0
            assert make_pool(client, resources={"TPU": 1}).size == 0
    finally:
        cluster.close()


def test_a_local_cluster_opens_no_port(make_pool: Any, tmp_path: Path) -> None:
    psutil = pytest.importorskip("psutil")
    before = {connection.laddr for connection in psutil.Process().net_connections()}
    pool = make_pool(function=write)
    pool.submit(a_case(tmp_path))
    events_of(pool, 1)
    assert {connection.laddr for connection in psutil.Process().net_connections()} == before


def test_an_unexpected_error_is_a_failure_without_its_text(make_pool: Any, tmp_path: Path) -> None:
    pool = make_pool(function=fail)
    pool.submit(a_case(tmp_path))
    event = events_of(pool, 1)[-1]
    assert isinstance(event, Failed)
    assert (event.error.code, event.is_crash) == ("internal.error", False)
    assert "private" not in event.error.message


def test_next_event_waits_no_longer_than_asked(make_pool: Any) -> None:
    pool = make_pool()
    start = time.monotonic()
    assert pool.next_event(0.1) is None
    assert 0.1 <= time.monotonic() - start < 1
    assert pool.next_event(0) is None


def test_close_now_stops_running_cases(make_pool: Any, tmp_path: Path) -> None:
    pool = make_pool("local:1", function=wait)
    work = a_case(tmp_path)
    pool.submit(work)
    _until((work.staging / "begun").exists)
    pool.close(now=True)
    _until((tmp_path / "0 stopped").exists)


def test_waiting_cases_are_taken_back_and_running_ones_finish(make_pool: Any, tmp_path: Path) -> None:
    pool = make_pool("local:1", function=wait)
    cases = [a_case(tmp_path, number) for number in range(3)]
    for work in cases:
        pool.submit(work)
    _until(lambda: any((work.staging / "begun").exists() for work in cases))
    waiting = pool.take_back()
    assert len(waiting) == 2
    (tmp_path / "go").touch()
    event = events_of(pool, 1)[-1]
    assert {event.number, *waiting} == {0, 1, 2}
    assert pool.next_event(0.3) is None
    assert sum((work.staging / "begun").exists() for work in cases) == 1


def test_a_second_run_of_a_task_writes_nothing(make_pool: Any, tmp_path: Path) -> None:
    # Dask runs a task again if its worker was lost, while the first one may still write
    pool = make_pool(function=write)
    work = a_case(tmp_path)
    pool.submit(work)
    events_of(pool, 1)
    (work.staging / "labels").unlink()
    task = pools.Task(work, ".ticket-used", write, "topic")
    pool._send(task)
    event = events_of(pool, 1)[-1]
    assert isinstance(event, Failed)
    assert event.error.code == "cohort.worker_lost"
    assert list(work.staging.iterdir()) == []


def test_a_worker_that_does_not_see_the_folder_ends_the_run(make_pool: Any, tmp_path: Path, monkeypatch: Any) -> None:
    work = a_case(tmp_path)
    monkeypatch.setattr(pools.Path, "exists", lambda path: path != work.staging or _in_main_thread())
    pool = make_pool(function=write)
    pool.submit(work)
    error = error_of(pool)
    assert error.code == "cohort.not_shared"
    assert re.search(r"does not see .*0\.0; expected a file system", error.message)


def test_a_worker_that_does_not_see_the_folder_gets_no_further_cases(
    make_pool: Any, tmp_path: Path, monkeypatch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def exists(path: Path) -> bool:
        return _in_main_thread() or path.suffix != ".0" or distributed.get_worker().name != 0

    monkeypatch.setattr(pools.Path, "exists", exists)
    cluster = local_cluster(2, {})
    try:
        with distributed.Client(cluster, set_as_default=False) as client:
            pool = make_pool(client, function=write)
            for number in range(6):
                pool.submit(a_case(tmp_path, number))
            ends = [event for event in events_of(pool, 6) if not isinstance(event, (Step, PlanLine))]
            assert all(isinstance(event, Finished) for event in ends)
            assert len({event.number for event in ends}) == 6
            assert [record.message for record in caplog.records if "cohort.not_shared" in record.message] != []
            assert pool.size == 2
            # a case that waits for a worker which left goes to one that joins
            pool._function = wait
            works = [a_case(tmp_path, number) for number in (6, 7)]
            for work in works:
                pool.submit(work)
            _until(lambda: any((work.staging / "begun").exists() for work in works))
            client.retire_workers([address for address in pool._workers if address not in pool._refused])
            cluster.scale(3)
            (tmp_path / "go").touch()
            ends = [event for event in events_of(pool, 2) if not isinstance(event, (Step, PlanLine))]
            assert {event.number for event in ends} == {6, 7}
            assert sum(isinstance(event, Finished) for event in ends) >= 1
    finally:
        cluster.close()


def test_a_scan_is_not_named_by_its_private_path(make_pool: Any, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "Doe^John").mkdir()
    work = a_case(tmp_path / "Doe^John")
    monkeypatch.setattr(pools.Path, "exists", lambda path: path != work.case.scan.files[0] or _in_main_thread())
    pool = make_pool(function=write)
    pool.submit(work)
    assert re.search(r"does not see scan0\.nii\.gz; expected", error_of(pool).message)


def test_a_scan_that_is_gone_fails_alone(make_pool: Any, tmp_path: Path) -> None:
    pool = make_pool(function=write)
    work = a_case(tmp_path)
    work.case.scan.files[0].unlink()
    pool.submit(work)
    event = events_of(pool, 1)[-1]
    assert isinstance(event, Failed)
    assert event.error.code == "file.unreadable"


def test_another_version_is_refused(make_pool: Any, tmp_path: Path, monkeypatch: Any) -> None:
    pool = make_pool(function=write)
    run_case = pools.run_case
    monkeypatch.setattr(pools, "run_case", lambda version, task: run_case("0.0.1", task))
    pool.submit(a_case(tmp_path))
    error = error_of(pool)
    assert error.code == "cohort.worker_version"
    assert re.search(r"and this machine 0\.0\.1", error.message)


def test_scans_of_archives_need_a_local_cluster(make_pool: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(pools, "shown", lambda path: path.parent / "study.zip" / path.name)
    pool = make_pool(function=write)
    pool.submit(a_case(tmp_path))
    assert isinstance(events_of(pool, 1)[-1], Finished)
    pool._is_local = False
    pool.submit(a_case(tmp_path, 1))
    event = events_of(pool, 1)[-1]
    assert isinstance(event, Failed)
    assert event.error.code == "cohort.archive"


def test_relative_paths_are_sent_as_absolute_ones(make_pool: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    work = a_case(Path())
    pool = make_pool(function=paths)
    pool.submit(work)
    event = events_of(pool, 1)[-1]
    assert isinstance(event, Finished)
    assert event.outcome.run["paths"] == [tmp_path / "scan0.nii.gz", tmp_path / "out" / "0.0"]


def test_the_death_of_the_scheduler_ends_the_run(make_pool: Any, tmp_path: Path) -> None:
    cluster = local_cluster(1, {})
    client = distributed.Client(cluster, set_as_default=False)
    pool = make_pool(client, function=wait)
    pool.submit(a_case(tmp_path))
    cluster.close()
    assert error_of(pool).code == "cohort.scheduler"
    client.close()


def test_a_missing_scheduler_is_named(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="no Dask scheduler answers at tcp://127"):
        DaskPool("tcp://127.0.0.1:9", connect_seconds=1)
    with pytest.raises(EnvironmentFault, match="found no scheduler file"):
        DaskPool("no/such/file.json")
    for content in ("", "[]", "{}"):
        (tmp_path / "file.json").write_text(content)
        with pytest.raises(EnvironmentFault, match="is no scheduler file") as raised:
            DaskPool(tmp_path / "file.json")
        assert raised.value.code == "cohort.scheduler"


def test_tls_needs_certificates(tmp_path: Path) -> None:
    (tmp_path / "file.json").write_text('{"address": "tls://127.0.0.1:9"}')
    for where in ("tls://127.0.0.1:9", tmp_path / "file.json"):
        with pytest.raises(EnvironmentFault, match="names no certificates") as raised:
            DaskPool(where)
        assert raised.value.code == "cohort.tls"
    files = {f"distributed.comm.tls.{name}": str(tmp_path / "no.pem") for name in ("ca-file", "client.cert")}
    with dask.config.set(files), pytest.raises(EnvironmentFault, match="can't be read"):
        DaskPool("tls://127.0.0.1:9")


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def test_workers_of_other_processes_die_and_join(make_pool: Any, tmp_path: Path) -> None:
    environment = {"PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parent)])}
    with DaskProcesses(tmp_path, environment) as cluster:
        first = cluster.add_worker()
        pool = make_pool(str(cluster.file), function=wait)
        _until(lambda: pool.next_event(0.1) is None and pool.size == 2)
        work = a_case(tmp_path)
        pool.submit(work)
        _until((work.staging / "begun").exists)
        cluster.kill_worker(first)
        cluster.add_worker()
        event = events_of(pool, 1)[-1]
        assert isinstance(event, Failed)
        assert event.error.code == "cohort.worker_lost"
        # a client that dies leaves no case running
        code = f"""
import os
from pathlib import Path
from test_cohort_distributed import DaskPool, a_case, wait
pool = DaskPool({str(cluster.file)!r}, function=wait)
while not pool.size:
    pool.next_event(0.1)
work = a_case(Path({str(tmp_path)!r}), 1)
pool.submit(work)
while not (work.staging / "begun").exists():
    pool.next_event(0.1)
os._exit(9)
"""
        assert subprocess.run([sys.executable, "-c", code], env=os.environ | environment).returncode == 9
        _until((tmp_path / "1 stopped").exists)
        cluster.scheduler.kill()
        assert error_of(pool).code == "cohort.scheduler"


@pytest.fixture
def two_scans(tmp_path: Path, head: Volume) -> Path:
    (tmp_path / "scans").mkdir()
    for name in ("a", "b"):
        phantoms.write_nifti(head, tmp_path / "scans" / f"{name}.nii.gz")
    return tmp_path / "scans"


def lose(work: Work, *, on_step: Any, on_plan: Any, is_stopping: Any) -> Failed:
    """A case that its worker loses each time, and notes its attempts beside the scan."""
    with (work.case.scan.files[0].parent / f"{work.case.name} attempts").open("a") as file:
        file.write(f"{work.staging.name}\n")
    return worker_lost(work.number)


def test_a_case_that_loses_four_workers_fails(make_pool: Any, two_scans: Path, tmp_path: Path) -> None:
    cohort = Cohort(two_scans, tmp_path / "out", make_pool=lambda cases: make_pool(function=lose))
    assert [(result.status, result.code) for result in cohort] == [("failed", "cohort.worker_lost")] * 2
    # each attempt has a folder of its own
    attempts = [len(set((two_scans / f"{name} attempts").read_text().split())) for name in "ab"]
    assert attempts == [4, 4]
    assert [path.name for path in (tmp_path / "out").rglob("*") if "napari-seg" in path.name] == []


def fail_later(work: Work, *, on_step: Any, on_plan: Any, is_stopping: Any) -> Failed:
    """A case that begins, and fails once a file `go` lies beside the scan."""
    folder = work.case.scan.files[0].parent
    (folder / "begun").touch()
    _until((folder / "go").exists)
    return Failed(work.number, InputError("file.unreadable", "no"))


def test_a_stop_leaves_waiting_cases_to_the_next_run(make_pool: Any, two_scans: Path, tmp_path: Path) -> None:
    cohort = Cohort(two_scans, tmp_path / "out", make_pool=lambda cases: make_pool("local:1", function=fail_later))

    def stop() -> None:
        _until((two_scans / "begun").exists)
        cohort.stop.request()
        # the folder of the case that waits is removed
        _until(lambda: len(list((tmp_path / "out").glob(".napari-seg/*/*.*"))) == 1)
        (two_scans / "go").touch()

    threading.Thread(target=stop).start()
    with pytest.raises(Cancelled):
        list(cohort)
    with Manifest.open(tmp_path / "out", read_only=True) as manifest:
        assert {state: count for state, count in manifest.counts().items() if count} == {"failed": 1, "waiting": 1}
