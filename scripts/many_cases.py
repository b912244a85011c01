"""Run a cohort of many tiny cases with workers that only write tiny files, and print what the client takes.

    python scripts/many_cases.py --cases 10000 --work FOLDER

Prints seconds, processor seconds and resident memory: of the search, of each fifth of the run, of a second run that
finds all cases done, and of what reads the manifest afterwards.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections import deque
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil

from napari_seg.cohort.cohort import Cohort
from napari_seg.cohort.manifest import FILE, Manifest
from napari_seg.cohort.outcome import Outcome
from napari_seg.cohort.outputs import result_paths, staged_file
from napari_seg.cohort.workers import Event, Finished, Step, Work

STAGES = ("starting", "reading", "loading", "segmenting", "writing")


class TinyPool:
    """A pool without processes, whose results are a few bytes."""

    def __init__(self) -> None:
        self.size = 2
        self._events: deque[Event] = deque()

    def submit(self, work: Work) -> None:
        outputs = {}
        for role, target in result_paths(work.case).items():
            if role in ("labels", "overlay", "record"):
                path = work.staging / target.name
                path.write_bytes(b"x" * 50)
                outputs[role] = staged_file(path, target)
        self._events += [Step(work.number, stage, 0, 1) for stage in STAGES]
        names = ("anterior hippocampus", "posterior hippocampus")
        found = Outcome(outputs, dict.fromkeys(names, 1.2), dict.fromkeys(names, 0.9), input_sha256="a" * 64)
        self._events.append(Finished(work.number, found))

    def next_event(self, seconds: float) -> Event | None:
        return self._events.popleft() if self._events else None

    def take_back(self) -> list[int]:
        return []

    def close(self, now: bool) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--work", type=Path, required=True, help="folder for scans and results; results are replaced")
    args = parser.parse_args()
    scans, output = args.work / f"scans_{args.cases}", args.work / "results"
    write_scans(scans, args.cases)
    shutil.rmtree(output, ignore_errors=True)
    clock = [time.perf_counter(), time.process_time()]

    def report(what: str) -> None:
        now = [time.perf_counter(), time.process_time()]
        wall, processor = (end - start for start, end in zip(clock, now, strict=True))
        clock[:] = now
        print(
            f"{what:30} {wall:8.2f} s {processor:8.2f} s {psutil.Process().memory_info().rss >> 20:5} MiB", flush=True
        )

    for start in ("first", "second"):
        cohort = Cohort(scans, output, make_pool=lambda cases: TinyPool())
        assert len(cohort.cases) == args.cases
        report(f"{start} run: search")
        for number, _ in enumerate(cohort, start=1):
            if number == 1 or number % max(1, args.cases // 5) == 0:
                report(f"{start} run: {number} results")
        report(f"{start} run: report, end")
    with Manifest.open(output, read_only=True) as manifest:
        manifest.counts()
        report("open the manifest, count")
        assert sum(1 for _ in manifest.rows()) == args.cases
        report("read all rows")
    cohort.volumes()
    report("table of volumes")
    print(f"manifest: {(output / FILE).stat().st_size / 2**20:.1f} MiB")


def write_scans(folder: Path, count: int) -> None:
    """Write tiny NIfTI files, unless they are there."""
    if folder.is_dir() and sum(1 for _ in folder.iterdir()) == count:
        return
    folder.mkdir(parents=True, exist_ok=True)
    content = nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)).to_bytes()
    for number in range(count):
        (folder / f"case_{number:05d}.nii").write_bytes(content[:-4] + number.to_bytes(4, "little"))


if __name__ == "__main__":
    main()
