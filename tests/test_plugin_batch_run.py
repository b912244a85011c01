"""One run of the Batch tab, in its job."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("napari", reason="the plugin's tests need napari: pip install napari-seg[napari]")

from napari_seg.bundles.read import read_bundle
from napari_seg.cohort.manifest import Manifest
from napari_seg.cohort.outcome import CaseResult
from napari_seg.cohort.outputs import HIDDEN
from napari_seg.cohort.settings import RunSettings
from napari_seg.inference.options import SegmentOptions
from napari_seg.plugin.batch.run import BatchChoices, BatchRun
from napari_seg.plugin.job import Jobs
from napari_seg.volume import Segment, Segmentation, Volume

pytestmark = pytest.mark.usefixtures("inline_cohorts")


@pytest.fixture
def jobs() -> Jobs:
    return Jobs(on_error=lambda error: None)


def new_run(study: Path, on_result: Callable[[CaseResult], None] = lambda result: None) -> BatchRun:
    settings = RunSettings(SegmentOptions(device="cpu"))
    return BatchRun(BatchChoices(study, study.with_name("out"), read_bundle(), settings), on_result)


def start(run: BatchRun, jobs: Jobs, monkeypatch: pytest.MonkeyPatch, during: Callable[[], object]) -> None:
    """Run to the end, and call a function while each scan is segmented."""

    def network(volume: Volume, bundle: Any, options: Any = None, *, progress: Any = None) -> Segmentation:
        during()
        progress("segmenting", 1, 4)
        labels = (volume.array[0] > 800).astype(np.uint8)
        return Segmentation(labels, volume.grid, (Segment(1, "ball", (1, 2, 3)),))

    monkeypatch.setattr("napari_seg.inference.segment.segment", network)
    run.job = jobs.start(run, on_error=partial(setattr, run, "error"))
    jobs.wait()


def test_a_run_counts_its_results_and_those_of_earlier_runs(
    study: Path, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    results: list[CaseResult] = []
    run = new_run(study, results.append)
    start(run, jobs, monkeypatch, lambda: None)
    assert run.error is None
    assert (run.total, run.ended, run.counts, run.earlier) == (3, 3, {"done": 2, "failed": 1, "skipped": 0}, 0)
    assert run.running == {}
    assert len(results) == 3
    assert run.cases is not None
    assert "copy" in [case.key for case in run.cases]
    assert run.report_fault is None
    assert (run.choices.output / "report.html").is_file()
    again = new_run(study)
    start(again, jobs, monkeypatch, lambda: pytest.fail("a finished scan runs again"))
    assert (again.ended, again.earlier) == (3, 2)


@pytest.mark.parametrize("how", ["twice", "closed"])
def test_a_second_stop_and_a_closed_window_end_a_run_at_once(
    how: str, study: Path, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(study)

    def stop() -> None:
        if how == "closed":
            jobs.close()
        else:
            run.request_stop()
            run.request_stop()

    start(run, jobs, monkeypatch, stop)
    assert run.is_stopping
    output = run.choices.output
    with Manifest.open(output, read_only=True) as manifest:
        assert [runner.ended is not None for runner in manifest.runners()] == [True]
        assert {row.state for row in manifest.rows()} == {"failed", "waiting"}
    assert not list(output.glob("*_seg.*"))
    assert not (output / HIDDEN).exists()
