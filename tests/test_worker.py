"""Worker process: results, cancellation, time limits, and recovery after a crash."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest

from napari_seg.errors import Cancelled, InputError
from napari_seg.volume import Segment, Segmentation, Volume
from napari_seg.worker import WorkerDied, WorkerError, WorkerProcess, is_process_alive

# the worker can import this module, because pytest puts its folder on the path


def doubled(segmentation: Segmentation, progress: Callable[[str, int, int], None]) -> Segmentation:
    print("this must not get between the replies")
    for n in range(3):
        progress("segmenting", n, 3)
    return Segmentation(2 * segmentation.array, segmentation.grid, segmentation.segments, {2: 0.5})


def process_id() -> int:
    return os.getpid()


def spawned_flag() -> str:
    code = "import multiprocessing, sys; print(sys.flags.safe_path)"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def refused() -> None:
    raise InputError("input.none", "nothing there")


def greedy() -> None:
    np.ones(2**60, np.uint8)


def careless() -> None:
    raise KeyError("Jane^Doe")


def warned() -> str:
    logging.getLogger("napari_seg.inference.backends.base").warning("%s has too little memory", "cuda:0")
    logging.getLogger("pydicom").warning("Jane^Doe")  # a library's warning, which may quote headers
    return "done"


def endless() -> None:
    while True:
        time.sleep(1)


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def crashed() -> None:
    os.abort()


@pytest.fixture(scope="module")
def worker() -> Iterator[WorkerProcess]:
    process = WorkerProcess()
    yield process
    process.close()


def test_the_result_and_the_callbacks_arrive(worker: WorkerProcess, head: Volume) -> None:
    messages: list[tuple] = []
    labels = Segmentation((head.array[0] > 300).astype(np.uint8), head.grid, (Segment(1, "head", (1, 2, 3)),))
    found = worker.run(doubled, labels, callbacks={"progress": lambda *message: messages.append(message)})
    np.testing.assert_array_equal(found.array, 2 * labels.array)
    assert found.grid == labels.grid
    assert (found.segments, dict(found.confidence)) == (labels.segments, {2: 0.5})
    assert messages == [("segmenting", n, 3) for n in range(3)]


def test_warnings_are_logged_in_this_process(worker: WorkerProcess, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        caplog.clear()
        assert worker.run(warned) == "done"
        found = [(record.name, record.levelno, record.getMessage()) for record in caplog.records]
        assert found == [("napari_seg.inference.backends.base", logging.WARNING, "cuda:0 has too little memory")]


def test_the_worker_is_another_process_and_is_reused(worker: WorkerProcess) -> None:
    first = worker.run(process_id)
    assert first != os.getpid()
    assert worker.run(process_id) == first


def test_errors_are_raised_here_and_the_worker_survives(worker: WorkerProcess) -> None:
    first = worker.run(process_id)
    with pytest.raises(InputError, match=r"input.none: nothing there"):
        worker.run(refused)
    with pytest.raises(MemoryError):
        worker.run(greedy)
    with pytest.raises(WorkerError) as caught:
        worker.run(careless)
    assert caught.value.kind == str(caught.value) == "KeyError"
    assert "in careless" in caught.value.places
    assert "Jane" not in caught.value.places
    with pytest.raises(WorkerError) as caught:
        worker.run(threading.Lock)  # its result can't be pickled
    assert caught.value.kind == "TypeError"
    assert worker.run(process_id) == first


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_a_worker_that_dies_is_reported_and_replaced(worker: WorkerProcess) -> None:
    first = worker.run(process_id)
    with pytest.raises(WorkerDied, match=r"environment.memory"):
        worker.run(killed)
    with pytest.raises(WorkerDied, match=r"environment.ended"):
        worker.run(crashed)
    assert worker.run(process_id) not in (first, os.getpid())


def test_any_function_is_stopped_within_a_second(worker: WorkerProcess) -> None:
    worker.run(process_id)  # start it
    stop = threading.Event()
    threading.Timer(0.5, stop.set).start()
    start = time.monotonic()
    with pytest.raises(Cancelled):
        worker.run(endless, is_stopping=stop.is_set)
    assert time.monotonic() - start < 2


def test_the_time_limit_starts_with_the_call(worker: WorkerProcess) -> None:
    worker.run(process_id)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(worker.run, time.sleep, 1.5)
        time.sleep(0.3)
        second = pool.submit(worker.run, process_id, seconds=0.8)
        assert first.result() is None
        assert second.result() != os.getpid()
    with pytest.raises(WorkerDied, match=r"environment.too_slow"):
        worker.run(endless, seconds=0.3)


def test_a_call_that_waits_for_another_can_be_stopped(worker: WorkerProcess) -> None:
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(worker.run, time.sleep, 1.5)
        time.sleep(0.3)
        with pytest.raises(Cancelled):
            worker.run(process_id, is_stopping=lambda: True)
        assert first.result() is None


def test_the_worker_ends_with_its_parent(tmp_path: Path) -> None:
    """Windows keeps the id of a dead parent; so does the replaced `os.getppid` here."""
    (tmp_path / "sitecustomize.py").write_text("import os\nos.getppid = lambda: 4242\n")
    code = (
        "import threading, time\n"
        "from napari_seg.worker import WorkerProcess\n"
        "process = WorkerProcess()\n"
        "threading.Thread(target=process.run, args=(time.sleep, 60), daemon=True).start()\n"
        "while process._popen is None: time.sleep(0.01)\n"
        "time.sleep(0.7)\n"
        "print(process._popen.pid, flush=True)\n"
        "time.sleep(60)"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        other = psutil.Process(int(parent.stdout.readline()))
        assert other.is_running()
        parent.kill()
    gone, _ = psutil.wait_procs([other], timeout=10)
    assert gone


def test_no_module_comes_from_the_folder_of_the_data(
    worker: WorkerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("argparse", "logging", "multiprocessing", "pickle", "runpy"):
        (tmp_path / f"{name}.py").write_text("open('ran', 'a').write(__name__)\nraise SystemExit\n")
    monkeypatch.chdir(tmp_path)
    assert worker.run(spawned_flag) == "True\n"
    subprocess.run([sys.executable, "-m", "napari_seg", "--version"], check=True)
    assert not (tmp_path / "ran").exists()


def test_an_error_in_a_callback_leaves_nothing_in_the_pipe(worker: WorkerProcess, head: Volume) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    labels = Segmentation(np.ones(head.grid.shape, np.uint8), head.grid, ())
    with pytest.raises(MemoryError):
        worker.run(doubled, labels, callbacks={"progress": fail})
    found = worker.run(doubled, labels, callbacks={"progress": lambda *_: None})
    np.testing.assert_array_equal(found.array, 2 * labels.array)


def test_a_callback_can_cancel_the_call(worker: WorkerProcess, head: Volume) -> None:
    def stop(*_: object) -> None:
        raise Cancelled()

    labels = Segmentation(np.zeros(head.grid.shape, np.uint8), head.grid, ())
    with pytest.raises(Cancelled):
        worker.run(doubled, labels, callbacks={"progress": stop})
    assert worker.run(process_id) != os.getpid()


def test_torch_is_not_imported_in_this_process(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "import napari_seg.plugin.job\n"
        "from napari_seg.inference.segment import segment\n"
        "from napari_seg.inference.estimate import estimate\n"
        "print('loaded:', *({'torch', 'monai'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "loaded:"


def test_a_process_is_known_by_its_id_and_its_start() -> None:
    assert is_process_alive(os.getpid(), time.time())
    assert not is_process_alive(os.getpid(), time.time() - 10 * 24 * 3600)  # another process had the id then
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert not is_process_alive(ended.pid, time.time())
    assert not is_process_alive(2**40, time.time())
