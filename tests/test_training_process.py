"""The process of a training: its terminal, its end, its errors; also on systems that lack signals and terminals."""

from __future__ import annotations

import importlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from runs import progress_of, write_lines

from napari_seg.errors import Cancelled, EnvironmentFault, NapariSegError, OutputError, TrainingError
from napari_seg.training import process


@pytest.mark.parametrize(
    ("handler", "said"),
    [("signal.signal(signal.SIGTERM, lambda *_: sys.exit(143));", "stopped and saved"), ("", "stopped without saving")],
)
def test_saved_is_said_only_of_what_was_saved(
    handler: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONWARNINGS", "error::ResourceWarning")
    ready = tmp_path / "ready"
    write = f"open({str(ready)!r}, 'w').write(os.environ['PYTHONWARNINGS'])"
    child = f"import os, signal, sys, time; {handler} {write}; time.sleep(60)"

    def stop_when_ready() -> None:
        deadline = time.monotonic() + 60
        while not (ready.is_file() and ready.read_text()) and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    stopper = threading.Thread(target=stop_when_ready)
    stopper.start()
    with pytest.raises(Cancelled, match=said):
        process.run([sys.executable, "-c", child], tmp_path / "stop")
    stopper.join()
    assert ready.read_text().endswith(",error::ResourceWarning")


@pytest.mark.parametrize(("age", "said"), [(0, "stopped and saved"), (3600, "stopped without saving")])
def test_an_interrupt_after_the_last_words_of_a_run_loses_nothing(age: int, said: str, tmp_path: Path) -> None:
    write_lines(tmp_path / "progress.jsonl", [progress_of(10, stage="ended", time=time.time() - age)])
    stop = tmp_path / "stop"
    child = f"import pathlib, time; pathlib.Path({str(stop)!r}).touch(); time.sleep(60)"
    with pytest.raises(Cancelled, match=said):
        process.run([sys.executable, "-c", child], stop, tmp_path)


def test_a_file_stops_whatever_runs(tmp_path: Path) -> None:
    stop = tmp_path / "stop"
    child = f"import pathlib, signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)); \
pathlib.Path({str(stop)!r}).touch(); time.sleep(60)"
    with pytest.raises(Cancelled, match="stopped and saved"):
        process.run([sys.executable, "-c", child], stop)
    assert not stop.exists()


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), 9)", "os._exit(137)"])
def test_a_training_that_the_system_kills_is_out_of_memory(end: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"training\.out_of_memory: .*accumulation_steps.*patch_size.*amp"):
        process.run([sys.executable, "-c", f"import os; {end}"], tmp_path / "stop")


@pytest.fixture
def poor_system(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No terminals, no select on pipes and none of the signals that Windows lacks."""
    for module, names in ((signal, ("SIGHUP", "SIGKILL", "SIGWINCH")), (os, ("openpty",)), (select, ("select",))):
        for name in names:
            monkeypatch.delattr(module, name)
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda self: True, raising=False)
    importlib.reload(process)
    yield
    monkeypatch.undo()
    importlib.reload(process)


@pytest.mark.usefixtures("poor_system")
def test_nothing_is_needed_that_windows_lacks(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    def run(code: str) -> None:
        process.run([sys.executable, "-c", code], tmp_path / "stop")

    run("import sys; print('7 of 9', file=sys.stderr)")
    assert "7 of 9" in capfd.readouterr().err
    with pytest.raises(TrainingError, match=r"data\.faults: two"):
        run("raise SystemExit('TrainingError: data.faults: two')")
    with pytest.raises(TrainingError, match=r"training\.out_of_memory"):
        run("import os; os.kill(os.getpid(), 9)")
    code = f"import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)); \
open({str(tmp_path / 'stop')!r}, 'w').close(); time.sleep(60)"
    with pytest.raises(Cancelled, match="stopped and saved"):
        run(code)


@pytest.mark.usefixtures("poor_system")
def test_windows_interrupts_a_group_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: dict[str, object] = {}

    class Popen(subprocess.Popen):
        def __init__(self, *words: object, **options: object) -> None:
            started.update(options)
            super().__init__(*words, **options | {"creationflags": 0})  # type: ignore[call-overload]

    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 512, raising=False)
    monkeypatch.setattr(subprocess, "Popen", Popen)
    monkeypatch.setattr(signal, "CTRL_BREAK_EVENT", signal.SIGUSR1, raising=False)
    code = f"import signal, sys, time; signal.signal(signal.SIGUSR1, lambda *_: sys.exit(143)); \
open({str(tmp_path / 'stop')!r}, 'w').close(); time.sleep(60)"
    with pytest.raises(Cancelled, match="stopped and saved"):
        process.run([sys.executable, "-c", code], tmp_path / "stop")
    assert started["creationflags"] == 512
    assert "process_group" not in started


@pytest.mark.usefixtures("poor_system")
def test_a_program_without_a_console_stops_a_training_by_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, refused = subprocess.Popen.send_signal, set[int]()

    def send_signal(child: subprocess.Popen, number: int) -> None:
        if child.pid not in refused:  # Ctrl-Break; `terminate` needs no console
            refused.add(child.pid)
            raise OSError(9, "The handle is invalid")
        real(child, number)

    monkeypatch.setattr(subprocess.Popen, "send_signal", send_signal)
    stop, run_folder = tmp_path / "stop", tmp_path / "training"
    code = f"import os, time; open({str(stop)!r}, 'w').close()\n\
while not os.path.exists({str(run_folder / 'stop')!r}): time.sleep(0.01)"
    with pytest.raises(Cancelled, match="stopped and saved"):
        process.run([sys.executable, "-c", code], stop, run_folder)
    assert list(run_folder.iterdir()) == []
    with pytest.raises(Cancelled, match="stopped without saving"):
        process.run([sys.executable, "-c", f"import time; open({str(stop)!r}, 'w').close(); time.sleep(60)"], stop)


def test_names_arrive_whatever_the_encoding_of_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "cp1252")  # as that of a pipe on Windows
    name = "M\xfcller/\u4e2d"
    with pytest.raises(TrainingError, match=name):
        process.run(
            [sys.executable, "-c", f"raise SystemExit('TrainingError: data.faults: {name}')"], tmp_path / "stop"
        )
    assert name in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no pseudo-terminals here")
@pytest.mark.parametrize(("columns", "expected"), [(100, 100), (0, 80)])
def test_the_terminal_of_a_training_has_the_size_of_ours(
    columns: int, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import termios

    ours, slave = os.openpty()
    termios.tcsetwinsize(ours, (30 if columns else 0, columns))
    go_on = tmp_path / "go_on"
    code = f"""
import os, sys, time
from pathlib import Path
print("first", os.get_terminal_size(2).columns, file=sys.stderr, flush=True)
Path({str(go_on)!r}).touch()
end = time.monotonic() + 20
while os.get_terminal_size(2).columns != 66 and time.monotonic() < end:
    time.sleep(0.05)
print("then", os.get_terminal_size(2).columns, file=sys.stderr, flush=True)
"""

    def resize() -> None:
        while not go_on.exists():
            time.sleep(0.05)
        termios.tcsetwinsize(ours, (20, 66))

    resizer = threading.Thread(target=resize)
    resizer.start()
    with os.fdopen(slave, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        process.run([sys.executable, "-c", code], tmp_path / "stop")
        monkeypatch.undo()
        resizer.join()
        shown = ""
        while select.select([ours], [], [], 1.0)[0]:  # a read returns what has arrived so far
            shown += os.read(ours, 4096).decode()
    os.close(ours)
    assert f"first {expected}" in shown
    assert "then 66" in shown


def test_a_training_ends_with_the_program_that_started_it(tmp_path: Path) -> None:
    (tmp_path / "endless.py").write_text(
        "import os, pathlib, signal, sys, time\n"
        "def save(*_): pathlib.Path(sys.argv[1], 'saved').touch(); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "pathlib.Path(sys.argv[1], 'part').write_text(str(os.getpid()))\n"
        "os.replace(sys.argv[1] + '/part', sys.argv[1] + '/pid')\n"
        "time.sleep(60)\n"
    )
    code = (
        "import sys; from pathlib import Path; from napari_seg.training.process import run\n"
        f"run([sys.executable, '-m', 'endless', {str(tmp_path)!r}], Path({str(tmp_path / 'stop')!r}))"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", code], env=environment) as asking:
        _wait(lambda: (tmp_path / "pid").exists() or asking.poll() is not None)
        training = psutil.Process(int((tmp_path / "pid").read_text()))
        asking.kill()
    gone, _ = psutil.wait_procs([training], timeout=15)
    assert gone
    assert (tmp_path / "saved").exists()


@pytest.mark.parametrize(
    ("said", "kind", "code"),
    [
        ("OSError: [Errno 28] No space left on device", OutputError, "output.disk_full"),
        ("segnets.errors.TrainingError: output.not_written: x\n", OutputError, "output.not_written"),
        ("KeyError: Caught KeyError in DataLoader worker process 0.", EnvironmentFault, "environment.data_worker"),
        ("ValueError: bad", TrainingError, "training.failed"),
    ],
)
def test_an_error_has_a_code_and_a_kind(said: str, kind: type[NapariSegError], code: str, tmp_path: Path) -> None:
    with pytest.raises(kind) as caught:
        process.run([sys.executable, "-c", f"import sys; sys.exit({said!r})"], tmp_path / "stop")
    assert caught.value.code == code


def test_an_error_with_a_code_has_no_traceback(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    (tmp_path / "failing.py").write_text(
        "class TrainingError(Exception):\n"
        "    code = 'split.too_few'\n"
        "try:\n"
        "    raise TrainingError('split.too_few: found 1')\n"
        "except TrainingError as error:\n"
        "    raise RuntimeError('in a config') from error\n"
    )
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from napari_seg.training.process import run_module; "
    code += f"run_module({os.getpid()}, 'failing')"
    with pytest.raises(TrainingError, match=r"^split\.too_few: found 1$"):
        process.run([sys.executable, "-c", code], tmp_path / "stop")
    assert capfd.readouterr().err == "TrainingError: split.too_few: found 1\n"


def test_no_module_comes_from_the_folder_of_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pickle", "runpy"):
        (tmp_path / f"{name}.py").write_text("open('ran', 'a').write(__name__)\n")
    monkeypatch.chdir(tmp_path)
    process.run([sys.executable, "-m", "platform"], tmp_path / "stop")
    assert not (tmp_path / "ran").exists()


def test_output_that_a_child_holds_open_is_not_awaited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_GRACE_POLLS", 2)
    child = "import time; time.sleep(8)"
    begin = time.monotonic()
    process.run([sys.executable, "-c", f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}])"],
                tmp_path / "stop")  # fmt: skip
    assert time.monotonic() - begin < 6


def _wait(is_done: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not is_done() and time.monotonic() < end:
        time.sleep(0.05)
