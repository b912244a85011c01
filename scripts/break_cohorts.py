"""Break runs of `napari-seg predict` in the ways that docs/reference/when-a-run-breaks.md lists, and check its rows.

    python scripts/break_cohorts.py --work FOLDER
    python scripts/break_cohorts.py --work FOLDER --only disk-full sigsegv

Each fault happens to a real run of a few small scans, with a stand-in for the network. The exit status and the code
must be those of the table; finished results must be kept; and once the fault is gone, the same command must end as an
undisturbed run does: the same files, byte for byte, and nothing else. Some faults need Linux and root, to mount drives.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from kill_cohorts import (
    REPLACE,
    WITH_TIMES,
    cases_of,
    customise,
    last_lines,
    log_of,
    results_so_far,
    workers_of,
    write_synthetic,
)

CASES = 6

WITHOUT_ROOT = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search"]
"""Command that takes root's right to read and write everything."""


class Wrong(AssertionError):
    """A run did not end as the table says."""


@dataclass
class Bench:
    """Where the faults happen.

    Attributes:
        work: the folder of everything.
        scans: the scans.
        whole: results of an undisturbed run.
    """

    work: Path
    scans: Path
    whole: Path

    def command(self, out: Path, *options: str) -> list[str]:
        """Return the command line of a run."""
        words = [
            sys.executable,
            "-P",
            "-m",
            "napari_seg",
            "predict",
            str(self.scans),
            "--model",
            str(self.work / "network"),
        ]
        return [*words, "--workers", "1", "--device", "cpu", "-o", str(out), *options]

    def start(
        self, out: Path, *options: str, before: tuple[str, ...] = (), **variables: str
    ) -> subprocess.Popen[bytes]:
        """Start a run, whose output goes to a file beside its output folder."""
        with log_of(self.work / out.name).open("wb") as log:
            return subprocess.Popen(
                [*before, *self.command(out, *options)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | variables,
                start_new_session=True,
            )

    def run(self, out: Path, *options: str, before: tuple[str, ...] = (), **variables: str) -> int:
        """Run to the end, and return the exit status."""
        return self.start(out, *options, before=before, **variables).wait(300)

    def said(self, out: Path) -> str:
        """Return what the last run printed."""
        return log_of(self.work / out.name).read_text(errors="replace")

    def wait_for_results(self, out: Path, count: int, process: subprocess.Popen[bytes]) -> None:
        """Wait until a run has printed so many results."""
        while process.poll() is None and results_so_far(self.work / out.name) < count:
            time.sleep(0.005)
        expect(process.poll() is None, f"the run ended early: {last_lines(self.work / out.name)}")

    def expect_end(self, out: Path, status: int, expected: int, code: str = "") -> None:
        """Check the exit status of a run, and the code that it printed."""
        said = self.said(out)
        expect(status == expected, f"exit status {status}, not {expected}: {said[-600:]}")
        if code:
            expect(f"{code}:" in said, f"no {code} in: {said[-600:]}")
        expect("Traceback" not in said, f"a traceback: {said[-1500:]}")

    def expect_whole(self, out: Path, *, redone: int | None = None) -> None:
        """Check that the same command ends as an undisturbed run does.

        Args:
            out: the output folder.
            redone: number of cases that it has to run; None: any.
        """
        before = {name: case for name, case in cases_of(out).items() if case["state"] == "done"}
        status = self.run(out)
        expect(status == 0, f"the next run ended with {status}: {self.said(out)[-600:]}")
        files = [{str(path.relative_to(root)) for path in root.rglob("*")} for root in (self.whole, out)]
        expect(files[0] == files[1], f"other files: {sorted(files[0] ^ files[1])}")
        for name in files[0]:
            one, other = self.whole / name, out / name
            if one.is_file() and name not in WITH_TIMES:
                expect(one.read_bytes() == other.read_bytes(), f"{name} has other bytes")
        after = cases_of(out)
        for name, case in before.items():
            same = all(after[name][column] == case[column] for column in ("attempts", "started", "ended", "outputs"))
            expect(same, f"{name} was finished and ran again")
        if redone is not None:
            expect(len(after) - len(before) == redone, f"{len(before)} were finished, {len(after) - redone} expected")


def expect(condition: object, text: str) -> None:
    """Raise unless a condition holds."""
    if not condition:
        raise Wrong(text)


# drives


@contextmanager
def drive(folder: Path, megabytes: int) -> Iterator[Path]:
    """Mount a small drive in memory on a folder."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=False)


def disk_full(bench: Bench) -> None:
    """The drive of the results is full: environment error; the rest follows once there is room."""
    with drive(bench.work / "small", 8) as small:
        (small / "filler").write_bytes(b"x" * (8 * 2**20 - 600_000))
        out = small / "disk-full"
        bench.expect_end(out, bench.run(out), 5, "output.disk_full")
        finished = [name for name, case in cases_of(out).items() if case["state"] == "done"]
        expect(finished, "nothing was finished before the disk was full")
        for name in finished:
            expect((out / f"{name}_seg.nii.gz").is_file(), f"{name} is lost")
        (small / "filler").unlink()
        bench.expect_whole(out)


def drive_gone(bench: Bench) -> None:
    """The drive of the results is taken away: environment error, nothing is written below its empty folder."""
    place = bench.work / "network_drive"
    with drive(place, 64):
        subprocess.run(["mount", "--bind", place, bench.work / "kept"], check=True)
        try:
            out = place / "drive-gone"
            process = bench.start(out, CASE_SECONDS="0.5")
            bench.wait_for_results(out, 2, process)
            subprocess.run(["umount", "-l", place], check=True)
            bench.expect_end(out, process.wait(120), 5, "output.folder")
            expect(not list(place.iterdir()), f"something was written in its place: {list(place.iterdir())}")
            subprocess.run(["mount", "--bind", bench.work / "kept", place], check=True)
            bench.expect_whole(out)
        finally:
            subprocess.run(["umount", "-l", bench.work / "kept"], check=False)


def output_removed(bench: Bench) -> None:
    """The output folder is renamed: environment error; under its new name, the folder can be continued."""
    out, moved = bench.work / "output-removed", bench.work / "output-moved"
    process = bench.start(out, CASE_SECONDS="0.5")
    bench.wait_for_results(out, 2, process)
    out.rename(moved)
    bench.expect_end(out, process.wait(120), 5, "output.folder")
    expect(not out.exists(), "the folder was created again")
    bench.expect_whole(moved)


def output_read_only(bench: Bench) -> None:
    """The output folder can't be written: environment error at once."""
    out = bench.work / "output-read-only"
    out.mkdir()
    out.chmod(0o555)
    bench.expect_end(out, bench.run(out, before=tuple(WITHOUT_ROOT)), 5, "output.folder")
    out.chmod(0o755)
    bench.expect_whole(out)


def output_becomes_read_only(bench: Bench) -> None:
    """The drive of the results becomes read-only, as Linux does after errors: environment error."""
    with drive(bench.work / "failing", 64) as place:
        out = place / "becomes-read-only"
        process = bench.start(out, CASE_SECONDS="0.5")
        bench.wait_for_results(out, 2, process)
        # open files forbid a read-only remount of the file system, but not of a bind mount above it
        subprocess.run(["mount", "--bind", place, place], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", place], check=True)
        bench.expect_end(out, process.wait(120), 5, "output.folder")
        subprocess.run(["umount", "-l", place], check=True)
        bench.expect_whole(out)


def unreadable_input(bench: Bench) -> None:
    """A scan can't be read: it fails, the others are done; the next run tries it again."""
    out, path = bench.work / "unreadable-input", bench.scans / "scan_002.nii.gz"
    path.chmod(0)
    try:
        bench.expect_end(out, bench.run(out, before=tuple(WITHOUT_ROOT)), 3, "file.unreadable")
    finally:
        path.chmod(0o644)
    bench.expect_whole(out, redone=1)


def inputs_gone(bench: Bench) -> None:
    """The drive of the scans is taken away: environment error after three scans, which the next run tries again."""
    out, away = bench.work / "inputs-gone", bench.work / "scans_away"
    process = bench.start(out, CASE_SECONDS="0.5")
    bench.wait_for_results(out, 2, process)
    bench.scans.rename(away)
    try:
        bench.expect_end(out, process.wait(120), 5, "cohort.inputs_gone")
        bench.expect_end(out, bench.run(out), 2, "input.missing")
    finally:
        away.rename(bench.scans)
    bench.expect_whole(out)


# processes and memory


def worker_once(bench: Bench, fault: str) -> None:
    """A worker dies once: its case is tried again, and the run is complete."""
    out = bench.work / f"worker-{fault}"
    status = bench.run(out, FAULT=fault, FAULT_MARK=str(bench.work / f"{fault}.mark"))
    bench.expect_end(out, status, 0)
    attempts = {name: case["attempts"] for name, case in cases_of(out).items()}
    expect(attempts.pop("scan_003") == 2, "the case was not tried again")
    expect(set(attempts.values()) == {1}, f"other cases were tried again: {attempts}")
    bench.expect_whole(out, redone=0)


def worker_always(bench: Bench, fault: str, code: str, *before: str) -> None:
    """A scan kills each worker: it fails after two tries, the others are done."""
    out = bench.work / f"worker-always-{fault}"
    bench.expect_end(out, bench.run(out, FAULT=fault, before=before), 3, code)
    states = {name: (case["state"], case["attempts"]) for name, case in cases_of(out).items()}
    expect(states.pop("scan_003") == ("failed", 2), f"the case was not tried twice: {states}")
    expect(set(states.values()) == {("done", 1)}, f"other cases suffered: {states}")
    bench.expect_whole(out, redone=1)


def timeout(bench: Bench) -> None:
    """A scan takes longer than --timeout: it fails."""
    out = bench.work / "timeout"
    status = bench.run(out, "--timeout", "10s", FAULT="SIGSTOP")
    bench.expect_end(out, status, 3, "cohort.timeout")
    bench.expect_whole(out, redone=1)


def coordinator_killed(bench: Bench) -> None:
    """The run is killed: the next one goes on; see also `kill_cohorts.py`."""
    out = bench.work / "coordinator-killed"
    process = bench.start(out, CASE_SECONDS="0.5")
    bench.wait_for_results(out, 2, process)
    workers = workers_of(process.pid)
    process.kill()
    process.wait()
    bench.expect_whole(out)
    expect(not psutil.wait_procs(workers, timeout=5)[1], "workers live on")


# signals and closed outputs


def signal_once(bench: Bench, name: str) -> None:
    """A signal: the running case is finished, and the rest follows in the next run."""
    out = bench.work / f"once-{name}"
    process = bench.start(out, CASE_SECONDS="1.5")
    bench.wait_for_results(out, 1, process)
    time.sleep(0.5)
    process.send_signal(getattr(signal, name))
    bench.expect_end(out, process.wait(60), 130)
    states = [case["state"] for case in cases_of(out).values()]
    expect(states.count("done") == 2, f"the running case was not finished, or others were begun: {states}")
    expect(states.count("waiting") == CASES - 2, f"cases do not wait: {states}")
    bench.expect_whole(out, redone=CASES - 2)


def signal_twice(bench: Bench) -> None:
    """Ctrl-C twice: the run ends at once."""
    out = bench.work / "twice"
    process = bench.start(out, CASE_SECONDS="60")
    while process.poll() is None and not running(out):
        time.sleep(0.05)
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    expect(process.poll() is None, "the first signal ended the run at once")
    process.send_signal(signal.SIGINT)
    bench.expect_end(out, process.wait(5), 130)
    bench.expect_whole(out, redone=CASES)


def running(out: Path) -> bool:
    """Return whether a case of a run has begun."""
    with suppress(sqlite3.Error):
        return any(case["state"] == "running" and case["stage"] for case in cases_of(out).values())
    return False


def stdout_closed(bench: Bench) -> None:
    """The reader of --json-lines goes away: the run ends; the rest follows."""
    out = bench.work / "stdout-closed"
    words = " ".join(bench.command(out, "--json-lines"))
    done = subprocess.run(
        ["bash", "-c", f"{words} | head -1; exit ${{PIPESTATUS[0]}}"], capture_output=True, text=True, check=False
    )
    log_of(out).write_text(done.stderr)
    bench.expect_end(out, done.returncode, 141)
    expect(json.loads(done.stdout)["status"] == "done", done.stdout)
    bench.expect_whole(out)


def stderr_closed(bench: Bench, where: str) -> None:
    """Nobody reads the progress any more, or its disk is full: the run goes on to its end."""
    out = bench.work / f"stderr-{where.rpartition('/')[2]}"
    words = " ".join(bench.command(out))
    tail = "2>/dev/full" if where == "/dev/full" else "2> >(head -c 1 >/dev/null)"
    done = subprocess.run(["bash", "-c", f"{words} {tail}"], capture_output=True, text=True, check=False)
    log_of(out).write_text(done.stdout)
    bench.expect_end(out, done.returncode, 0)
    bench.expect_whole(out, redone=0)


def stdout_full(bench: Bench) -> None:
    """The table can't be written: environment error, but all results are there."""
    out = bench.work / "stdout-full"
    words = " ".join(bench.command(out))
    done = subprocess.run(["bash", "-c", f"{words} >/dev/full"], capture_output=True, text=True, check=False)
    log_of(out).write_text(done.stderr)
    bench.expect_end(out, done.returncode, 5, "output.not_written")
    bench.expect_whole(out, redone=0)


# the manifest, the clock, and other runs


def two_runs(bench: Bench) -> None:
    """A second run in the folder is refused, and says who works there; the first is not disturbed."""
    out = bench.work / "two-runs"
    first = bench.start(out, CASE_SECONDS="2")
    bench.wait_for_results(out, 1, first)
    second = subprocess.run(bench.command(out), capture_output=True, text=True, check=False)
    expect(second.returncode == 5, f"the second run ended with {second.returncode}: {second.stderr}")
    expect("cohort.locked:" in second.stderr, second.stderr)
    expect(f"process {first.pid} on" in second.stderr, second.stderr)
    bench.expect_end(out, first.wait(120), 0)
    bench.expect_whole(out, redone=0)


def manifest_locked(bench: Bench) -> None:
    """Another program locks the manifest for longer than half a minute: environment error."""
    out = bench.work / "manifest-locked"
    process = bench.start(out, CASE_SECONDS="0.5")
    bench.wait_for_results(out, 2, process)
    with closing(sqlite3.connect(out / "manifest.sqlite", timeout=30, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        status = process.wait(200)
        other.execute("ROLLBACK")
    bench.expect_end(out, status, 5, "cohort.manifest_locked")
    bench.expect_whole(out)


def manifest_locked_shortly(bench: Bench) -> None:
    """Another program locks the manifest for a few seconds: the run waits."""
    out = bench.work / "manifest-locked-shortly"
    process = bench.start(out, CASE_SECONDS="0.5")
    bench.wait_for_results(out, 2, process)
    with closing(sqlite3.connect(out / "manifest.sqlite", timeout=30, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        time.sleep(8)
        other.execute("ROLLBACK")
    bench.expect_end(out, process.wait(100), 0)
    bench.expect_whole(out, redone=0)


def manifest_damaged(bench: Bench, what: str) -> None:
    """The manifest is damaged: nothing is run or replaced until it is moved away."""
    out = bench.work / f"manifest-{what}"
    shutil.copytree(bench.whole, out)
    path = out / "manifest.sqlite"
    content = path.read_bytes()
    damaged = {
        "cut-off": content[: len(content) // 2],
        "garbage": os.urandom(len(content)),
        "text": b"no database\n" * 99,
    }
    path.write_bytes(damaged[what])
    results = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in out.glob("*_seg.*")}
    bench.expect_end(out, bench.run(out), 5, "cohort.manifest")
    expect(path.read_bytes() == damaged[what], "the damaged file was changed")
    expect(all((p.read_bytes(), p.stat().st_mtime_ns) == old for p, old in results.items()), "results were changed")
    path.unlink()
    bench.expect_end(out, bench.run(out), 4, "output.exists")
    expect(all((p.read_bytes(), p.stat().st_mtime_ns) == old for p, old in results.items()), "results were changed")
    bench.expect_end(out, bench.run(out, "--overwrite"), 0)
    bench.expect_whole(out, redone=0)


def manifest_empty(bench: Bench) -> None:
    """The manifest is an empty file, or is gone: results that are there are not replaced."""
    out = bench.work / "manifest-empty"
    shutil.copytree(bench.whole, out)
    (out / "manifest.sqlite").write_bytes(b"")
    results = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in out.glob("*_seg.*")}
    bench.expect_end(out, bench.run(out), 4, "output.exists")
    expect(all((p.read_bytes(), p.stat().st_mtime_ns) == old for p, old in results.items()), "results were changed")
    bench.expect_end(out, bench.run(out, "--overwrite"), 0)
    bench.expect_whole(out, redone=0)


CLOCK = """
import os, time
real, back = time.time, float(os.environ.get("CLOCK_BACK", "0"))
began = time.monotonic()
time.time = lambda: real() - (back if time.monotonic() - began > 1 else 0)
"""
"""Further code of `sitecustomize`: the clock is set back a second after the start of each process."""


def clock_back(bench: Bench) -> None:
    """The clock is set back by a day while a run goes on, which is then killed: the next run goes on as usual."""
    out = bench.work / "clock-back"
    process = bench.start(out, CASE_SECONDS="3", CLOCK_BACK="86400")
    bench.wait_for_results(out, 2, process)
    second = subprocess.run(bench.command(out), capture_output=True, text=True, check=False)
    expect(second.returncode == 5, f"a second run was not refused: {second.stderr}")
    expect("cohort.locked:" in second.stderr, second.stderr)
    process.kill()
    process.wait()
    bench.expect_whole(out)


FAULTS: dict[str, Callable[[Bench], Any]] = {
    "disk-full": disk_full,
    "drive-gone": drive_gone,
    "output-removed": output_removed,
    "output-read-only": output_read_only,
    "output-becomes-read-only": output_becomes_read_only,
    "unreadable-input": unreadable_input,
    "inputs-gone": inputs_gone,
    "worker-sigsegv": lambda bench: worker_once(bench, "SIGSEGV"),
    "worker-sigkill": lambda bench: worker_once(bench, "SIGKILL"),
    "always-sigsegv": lambda bench: worker_always(bench, "SIGSEGV", "environment.ended"),
    "always-sigkill": lambda bench: worker_always(bench, "SIGKILL", "environment.memory"),
    "memory": lambda bench: worker_always(bench, "memory", "environment.memory", "prlimit", "--as=6000000000"),
    "timeout": timeout,
    "coordinator-killed": coordinator_killed,
    "sigint": lambda bench: signal_once(bench, "SIGINT"),
    "sigterm": lambda bench: signal_once(bench, "SIGTERM"),
    "sighup": lambda bench: signal_once(bench, "SIGHUP"),
    "sigint-twice": signal_twice,
    "stdout-closed": stdout_closed,
    "stdout-full": stdout_full,
    "stderr-closed": lambda bench: stderr_closed(bench, "pipe"),
    "stderr-full": lambda bench: stderr_closed(bench, "/dev/full"),
    "two-runs": two_runs,
    "manifest-locked": manifest_locked,
    "manifest-locked-shortly": manifest_locked_shortly,
    "manifest-cut-off": lambda bench: manifest_damaged(bench, "cut-off"),
    "manifest-garbage": lambda bench: manifest_damaged(bench, "garbage"),
    "manifest-text": lambda bench: manifest_damaged(bench, "text"),
    "manifest-empty": manifest_empty,
    "clock-back": clock_back,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for inputs and results; emptied first")
    parser.add_argument("--only", nargs="+", choices=FAULTS, default=list(FAULTS), metavar="FAULT")
    arguments = parser.parse_args()

    work = arguments.work.resolve()
    shutil.rmtree(work, ignore_errors=True)
    (work / "scans").mkdir(parents=True)
    (work / "kept").mkdir()
    bench = Bench(work, work / "scans", work / "whole")
    for number in range(CASES):
        write_synthetic(bench.scans / f"scan_{number:03}.nii.gz", number, peak=9000 if number == 3 else 0)
    subprocess.run(
        [sys.executable, "-c", f"import kill_cohorts as k; k.write_network(k.Path({str(work / 'network')!r}))"],
        check=True,
        cwd=Path(__file__).parent,
    )
    customise(work / "customised", REPLACE + CLOCK)
    expect(bench.run(bench.whole) == 0, bench.said(bench.whole))
    wrong = 0
    for name in arguments.only:
        began = time.monotonic()
        try:
            FAULTS[name](bench)
            text = "as the table says"
        except (Wrong, subprocess.SubprocessError, OSError) as error:
            text, wrong = f"WRONG: {re.sub(chr(10), chr(10) + ' ' * 8, str(error))}", wrong + 1
        print(f"{name:<24} {time.monotonic() - began:5.0f} s  {text}", flush=True)
    print(f"{len(arguments.only)} faults, {wrong} do not end as the table says")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
