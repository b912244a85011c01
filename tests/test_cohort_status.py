"""Test the state of a run as another program reads it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cohorts import add_done, add_failed, new_manifest

import napari_seg.cohort.status
from napari_seg.cohort.manifest import Manifest
from napari_seg.cohort.outputs import HIDDEN
from napari_seg.cohort.runners import BEAT, DEAD_SECONDS, machine
from napari_seg.cohort.status import MAX_FAILURES, read_status
from napari_seg.errors import CohortError


@pytest.fixture
def now() -> float:
    return time.time()


@pytest.fixture
def manifest(tmp_path: Path, now: float) -> Iterator[Manifest]:
    """The manifest of a run of this process: 5 cases in 50 s, 2 waiting, 1 running."""
    with new_manifest(tmp_path / "out", host=socket.gethostname(), pid=os.getpid()) as manifest:
        manifest._write("UPDATE runners SET started = ?", (now - 50,))
        for n in range(4):
            add_done(manifest, f"done_{n}", {"front": 1.0}, started=now - 40 + 10 * n - 2, seconds=2.0)
        add_failed(manifest, "broken", started=now - 0.5)
        values = {"state": "running", "stage": "segmenting", "runner": 1, "started": now - 3, "attempts": 1}
        manifest.add_case("now", values)
        for n in range(2):
            manifest.add_case(f"waiting_{n}", {"state": "waiting"})
        manifest.add_case("excluded", {"state": "skipped"})
        yield manifest


def test_a_run_that_goes_on(manifest: Manifest, now: float) -> None:
    status = read_status(manifest.path.parent)
    assert status.state == "running"
    assert (status.total, status.left) == (9, 3)
    assert status.per_minute == pytest.approx(6, rel=0.02)
    assert status.seconds_left == pytest.approx(30, rel=0.02)
    assert [(one.row.pid, one.is_alive) for one in status.runners] == [(os.getpid(), True)]
    assert [(row.name, row.stage) for row in status.running] == [("now", "segmenting")]
    assert [row.name for row in status.failures] == ["broken"]
    assert status.read_at == pytest.approx(now, abs=5)


def test_a_run_whose_process_died_is_stopped(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(napari_seg.cohort.status, "is_process_alive", lambda pid, started: False)
    status = read_status(manifest.path.parent)
    assert status.state == "stopped"
    assert status.seconds_left is None
    assert status.per_minute == pytest.approx(6, rel=0.02)
    assert [one.is_alive for one in status.runners] == [False]


def test_a_run_without_cases_left_is_finished(manifest: Manifest, now: float) -> None:
    manifest._write("UPDATE cases SET state = 'done', ended = ? WHERE state IN ('waiting', 'running')", (now,))
    manifest.end_runner(1)
    status = read_status(manifest.path.parent)
    assert status.state == "finished"
    assert status.left == 0
    assert [(one.row.pid, one.is_alive) for one in status.runners] == [(os.getpid(), False)]


def test_a_runner_of_another_machine_is_alive_while_it_touches_its_file(manifest: Manifest, now: float) -> None:
    folder = manifest.path.parent
    manifest._write("UPDATE runners SET host = 'elsewhere', machine = 'another', folder = 'abc'", ())
    (one,) = read_status(folder).runners
    assert (one.is_alive, one.silent_seconds) == (False, None)
    lock = folder / HIDDEN / "abc" / BEAT
    lock.parent.mkdir(parents=True)
    lock.touch()
    os.utime(lock, (now - 7, now - 7))
    (one,) = read_status(folder).runners
    assert one.is_alive
    assert one.silent_seconds == pytest.approx(7, abs=3)
    os.utime(lock, (now - 2 * DEAD_SECONDS,) * 2)
    assert read_status(folder).state == "stopped"


def test_a_process_id_of_another_container_is_not_looked_up(
    manifest: Manifest, now: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = manifest.path.parent
    with monkeypatch.context() as inside:
        inside.setattr(os, "readlink", lambda path: "pid:[1]")
        container = machine()
    manifest._write("UPDATE runners SET host = 'a1b2c3', machine = ?, folder = 'abc', pid = 0", (container,))
    beat = folder / HIDDEN / "abc" / BEAT
    beat.parent.mkdir(parents=True)
    beat.touch()
    assert read_status(folder).state == "running"
    manifest._write("UPDATE runners SET pid = ?", (os.getpid(),))  # another process has that id here
    os.utime(beat, (now - 3 * DEAD_SECONDS,) * 2)
    assert read_status(folder).state == "stopped"


def test_cases_of_earlier_runs_do_not_set_the_rate(manifest: Manifest, now: float) -> None:
    for n in range(30):
        add_done(manifest, f"old_{n}", {}, started=now - 90_000 + n, seconds=0.5)
    for n in range(30):
        manifest.add_case(f"refused_{n}", {"state": "failed", "ended": now - 30 + 0.01 * n})
    assert read_status(manifest.path.parent).per_minute == pytest.approx(6, rel=0.02)


def test_only_the_last_failures_are_listed(manifest: Manifest, now: float) -> None:
    for n in range(9):
        add_failed(manifest, f"bad_{n}", started=now + n)
    names = [row.name for row in read_status(manifest.path.parent).failures]
    assert names == [f"bad_{8 - n}" for n in range(MAX_FAILURES)]


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(CohortError) as fault:
        read_status(tmp_path)
    assert fault.value.code == "cohort.no_manifest"


def test_the_state_as_plain_values(manifest: Manifest) -> None:
    known = read_status(manifest.path.parent).as_dict()
    assert known["state"] == "running"
    assert known["counts"] == {"waiting": 2, "running": 1, "moving": 0, "done": 4, "failed": 1, "skipped": 1}
    assert known["runners"][0]["pid"] == os.getpid()
    assert known["running"][0]["stage"] == "segmenting"
    assert known["failures"] == [{"name": "broken", "code": "file.not_nifti", "message": "found text; expected NIfTI"}]
