"""Work in a process of its own: what it answers, how it is stopped, and what its death costs."""

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
from napari_seg.worker import Ended, Mistake, OwnProcess

# the other process finds this module, whose folder pytest puts on the path


def doubled(segmentation: Segmentation, progress: Callable[[str, int, int], None]) -> Segmentation:
    print("this must not get between the answers")
    for n in range(3):
        progress("segmenting", n, 3)
    return Segmentation(2 * segmentation.array, segmentation.grid, segmentation.segments, {2: 0.5})


def process_id() -> int:
    return os.getpid()


def refused() -> None:
    raise InputError("input.none", "nothing there")


def greedy() -> None:
    np.ones(2**60, np.uint8)


def careless() -> None:
    raise KeyError("Jane^Doe")


def warned() -> str:
    logging.getLogger("napari_seg.inference.backends.base").warning("%s has too little memory", "cuda:0")
    logging.getLogger("pydicom").warning("Jane^Doe")  # a library's own, which may quote headers
    return "done"


def endless() -> None:
    while True:
        time.sleep(1)


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def crashed() -> None:
    os.abort()


@pytest.fixture(scope="module")
def apart() -> Iterator[OwnProcess]:
    process = OwnProcess()
    yield process
    process.close()


def test_the_answer_and_what_is_told_meanwhile(apart: OwnProcess, head: Volume) -> None:
    told: list[tuple] = []
    labels = Segmentation((head.array[0] > 300).astype(np.uint8), head.grid, (Segment(1, "head", (1, 2, 3)),))
    found = apart.run(doubled, labels, told={"progress": lambda *what: told.append(what)})
    np.testing.assert_array_equal(found.array, 2 * labels.array)
    assert found.grid == labels.grid
    assert (found.segments, dict(found.confidence)) == (labels.segments, {2: 0.5})
    assert told == [("segmenting", n, 3) for n in range(3)]


def test_warnings_reach_this_process(apart: OwnProcess, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        caplog.clear()
        assert apart.run(warned) == "done"
        found = [(record.name, record.levelno, record.getMessage()) for record in caplog.records]
        assert found == [("napari_seg.inference.backends.base", logging.WARNING, "cuda:0 has too little memory")]


def test_the_process_is_another_one_and_kept(apart: OwnProcess) -> None:
    first = apart.run(process_id)
    assert first != os.getpid()
    assert apart.run(process_id) == first


def test_errors_come_back_and_cost_nothing(apart: OwnProcess) -> None:
    first = apart.run(process_id)
    with pytest.raises(InputError, match=r"input.none: nothing there"):
        apart.run(refused)
    with pytest.raises(MemoryError):
        apart.run(greedy)
    with pytest.raises(Mistake) as caught:
        apart.run(careless)
    assert caught.value.kind == str(caught.value) == "KeyError"
    assert "in careless" in caught.value.places
    assert "Jane" not in caught.value.places
    with pytest.raises(Mistake) as caught:
        apart.run(threading.Lock)  # whose answer can't be pickled
    assert caught.value.kind == "TypeError"
    assert apart.run(process_id) == first


@pytest.mark.skipif(sys.platform == "win32", reason="signals are another matter there")
def test_a_process_that_dies_is_told_and_started_again(apart: OwnProcess) -> None:
    first = apart.run(process_id)
    with pytest.raises(Ended, match=r"environment.memory"):
        apart.run(killed)
    with pytest.raises(Ended, match=r"environment.ended"):
        apart.run(crashed)
    assert apart.run(process_id) not in (first, os.getpid())


def test_stopped_within_a_second_whatever_it_does(apart: OwnProcess) -> None:
    apart.run(process_id)  # it is there
    stop = threading.Event()
    threading.Timer(0.5, stop.set).start()
    start = time.monotonic()
    with pytest.raises(Cancelled):
        apart.run(endless, is_stopping=stop.is_set)
    assert time.monotonic() - start < 2


def test_time_counts_once_it_is_its_turn(apart: OwnProcess) -> None:
    apart.run(process_id)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(apart.run, time.sleep, 1.5)
        time.sleep(0.3)
        second = pool.submit(apart.run, process_id, seconds=0.8)
        assert first.result() is None
        assert second.result() != os.getpid()
    with pytest.raises(Ended, match=r"environment.too_slow"):
        apart.run(endless, seconds=0.3)


def test_work_that_waits_for_its_turn_can_be_stopped(apart: OwnProcess) -> None:
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(apart.run, time.sleep, 1.5)
        time.sleep(0.3)
        with pytest.raises(Cancelled):
            apart.run(process_id, is_stopping=lambda: True)
        assert first.result() is None


def test_work_ends_with_the_program_that_asked(tmp_path: Path) -> None:
    """Also where a process keeps the number of its dead parent, as on Windows."""
    (tmp_path / "sitecustomize.py").write_text("import os\nos.getppid = lambda: 4242\n")
    code = (
        "import threading, time\n"
        "from napari_seg.worker import OwnProcess\n"
        "process = OwnProcess()\n"
        "threading.Thread(target=process.run, args=(time.sleep, 60), daemon=True).start()\n"
        "while process._popen is None: time.sleep(0.01)\n"
        "time.sleep(0.7)\n"
        "print(process._popen.pid, flush=True)\n"
        "time.sleep(60)"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as asking:
        assert asking.stdout is not None
        other = psutil.Process(int(asking.stdout.readline()))
        assert other.is_running()
        asking.kill()
    gone, _ = psutil.wait_procs([other], timeout=10)
    assert gone


def test_a_fault_on_this_side_leaves_nothing_in_the_pipe(apart: OwnProcess, head: Volume) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    labels = Segmentation(np.ones(head.grid.shape, np.uint8), head.grid, ())
    with pytest.raises(MemoryError):
        apart.run(doubled, labels, told={"progress": fail})
    found = apart.run(doubled, labels, told={"progress": lambda *_: None})
    np.testing.assert_array_equal(found.array, 2 * labels.array)


def test_a_callback_can_stop_it(apart: OwnProcess, head: Volume) -> None:
    def stop(*_: object) -> None:
        raise Cancelled()

    labels = Segmentation(np.zeros(head.grid.shape, np.uint8), head.grid, ())
    with pytest.raises(Cancelled):
        apart.run(doubled, labels, told={"progress": stop})
    assert apart.run(process_id) != os.getpid()


def test_nothing_of_torch_comes_into_this_process(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "import napari_seg.plugin.job\n"
        "from napari_seg.inference import segment\n"
        "from napari_seg.inference.estimate import foresee\n"
        "print('loaded:', *({'torch', 'monai'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "loaded:"
