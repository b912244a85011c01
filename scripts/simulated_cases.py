"""Run a cohort of simulated cases on a Dask cluster: each only sleeps and writes three small files.

    python scripts/simulated_cases.py 1000 --seconds 0.5 --dask scheduler.json --work FOLDER --output OUT

All but the scan and the network is real: the runner, the manifest, the tasks, the staging folders and the commits. For
measurements and for tests of crashes in which loading networks would take most of the time; the workers need this
folder in PYTHONPATH.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
from sleeping_case import sleep

from napari_seg.bundles.read import read_bundle
from napari_seg.cohort.case import Case
from napari_seg.cohort.cohort import Cohort
from napari_seg.cohort.distributed import DaskPool
from napari_seg.formats.scan import Scan


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=int, help="number of cases")
    parser.add_argument("--seconds", type=float, default=0.5, help="time that each case sleeps")
    parser.add_argument("--dask", required=True, help="as for 'napari-seg predict'")
    parser.add_argument("--work", type=Path, required=True, help="folder for the scan that all cases share")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    run(arguments.count, arguments.seconds, arguments.dask, arguments.work, arguments.output)
    return 0


def run(
    count: int, seconds: float, where: str, work: Path, output: Path, on_result: Callable[[int], None] | None = None
) -> None:
    """Run simulated cases to their end.

    Args:
        count: number of cases.
        seconds: time that each case sleeps.
        where: scheduler, as for `DaskPool`.
        work: folder for the scan that all cases share.
        output: output folder.
        on_result: called with the number of results so far.
    """
    work.mkdir(parents=True, exist_ok=True)
    scan = work / "scan.nii.gz"
    if not scan.exists():
        nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4)), scan)
    cases = [
        Case(f"case{number:05}", scan.name, str(scan), Scan(f"case{number:05}", "nifti", (scan,)))
        for number in range(count)
    ]
    function = partial(sleep, seconds=seconds)
    cohort = Cohort([], output, read_bundle(None), make_pool=lambda left: DaskPool(where, function=function))
    cohort.use(cases)
    for number, result in enumerate(cohort):
        if result.status != "done":
            raise SystemExit(f"{result.name} {result.status}: {result.code}: {result.message}")
        if on_result is not None:
            on_result(number + 1)


if __name__ == "__main__":
    raise SystemExit(main())
