"""Measure how a cohort scales over the workers of a Dask cluster, with simulated cases that only sleep.

    python scripts/cohort_scaling.py --work FOLDER
    python scripts/cohort_scaling.py --work FOLDER --cases 1000 10000 --workers 1 8 32 --seconds 0.5

Scheduler, workers and client are processes of this machine; each worker process runs up to 8 cases as threads, and has
loaded the program before the run begins. Prints a table in Markdown: the time, the efficiency (ideal time / time), the
overhead of each case (time that a worker is not asleep), the resident memory of the client after 10 % of the cases and
at the end, and how many cores other programs used meanwhile: above 0.3 or so, the row is worth repeating.
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from pathlib import Path

import psutil
import simulated_cases
from dask_processes import DaskProcesses

from napari_seg.cohort.distributed import DaskPool

_THREADS = 8
"""Cases that a worker process runs at once; processes of their own would take 120 MB each."""

_COLUMNS = (
    *("cases", "workers", "s per case", "time (s)", "ideal (s)", "efficiency", "overhead per case (ms)", "client (MB)"),
    "other programs (cores)",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for results; emptied before each run")
    parser.add_argument("--cases", type=int, nargs="+", default=[1000, 10000])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--seconds", type=float, default=0.5, help="time that each case sleeps")
    arguments = parser.parse_args()
    print(f"| {' | '.join(_COLUMNS)} |")
    print("|---" * len(_COLUMNS) + "|")
    for count in arguments.cases:
        for workers in arguments.workers:
            print(measured(count, workers, arguments.seconds, arguments.work), flush=True)
    return 0


def measured(count: int, workers: int, seconds: float, work: Path) -> str:
    """Return the row of one run."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    environment = {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
        # one case waits at each thread, as it does at each worker of one thread by Dask's default
        "DASK_DISTRIBUTED__SCHEDULER__WORKER_SATURATION": "2.0",
    }
    with DaskProcesses(work, environment) as cluster:
        threads = min(workers, _THREADS)
        for _ in range(workers // threads):
            cluster.add_worker(threads, "--preload", "napari_seg.cohort.dask_task")
        _wait_for(cluster, workers)
        memory = {}

        def on_result(number: int) -> None:
            if number in (count // 10, count):
                memory[number] = psutil.Process().memory_info().rss / 1e6

        began, busy = time.monotonic(), _busy_seconds_of_others()
        simulated_cases.run(count, seconds, str(cluster.file), work, work / "out", on_result)
        took = time.monotonic() - began
        others = (_busy_seconds_of_others() - busy) / took
    ideal = count * seconds / workers
    overhead = 1000 * (took * workers / count - seconds)
    sizes = " → ".join(f"{memory[number]:.0f}" for number in sorted(memory))
    cells = [
        count,
        workers,
        f"{seconds:g}",
        f"{took:.1f}",
        f"{ideal:.1f}",
        f"{ideal / took:.3f}",
        f"{overhead:.1f}",
        sizes,
        f"{others:.1f}",
    ]
    return f"| {' | '.join(map(str, cells))} |"


def _busy_seconds_of_others() -> float:
    """Return the processor seconds that programs outside this run have used."""
    whole = psutil.cpu_times()
    here = psutil.Process()
    own = sum(sum(process.cpu_times()[:2]) for process in (here, *here.children(recursive=True)))
    return whole.user + whole.nice + whole.system - own


def _wait_for(cluster: DaskProcesses, workers: int) -> None:
    pool = DaskPool(str(cluster.file))
    while sum(pool._workers.values()) < workers:
        pool.next_event(0.2)
    pool.close(now=True)


if __name__ == "__main__":
    raise SystemExit(main())
