"""Workers of this machine: what they load before the first case."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from napari_seg.bundles.read import read_bundle
from napari_seg.cohort import workers
from napari_seg.cohort.cohort import Cohort
from napari_seg.cohort.discover import case_of
from napari_seg.cohort.settings import RunSettings
from napari_seg.formats.scan import Scan
from napari_seg.worker import WorkerDied


class _Recorder:
    """Stands for a worker process, and keeps what it is asked to run."""

    calls: list[tuple[Callable[..., Any], tuple[Any, ...]]]

    def run(self, function: Callable[..., Any], *args: Any, **options: Any) -> None:
        self.calls.append((function, args))

    def close(self) -> None:
        pass


def test_a_timeout_says_what_the_first_scan_waits_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object, **__: object) -> None:
        raise WorkerDied("environment.too_slow", "it took too long")

    worker = workers.CaseWorker()
    monkeypatch.setattr(worker._process, "run", run)
    case = case_of(Scan("a", "nifti", (tmp_path / "a.nii",)))
    failed = worker.run(workers.Work(1, case, read_bundle(None), "", tmp_path, RunSettings(timeout_seconds=9)))
    assert isinstance(failed, workers.Failed)
    assert failed.error.code == "cohort.timeout"
    assert "a took more than 9.0 s" in failed.error.message
    assert "first scan with a model" in failed.error.message


def test_workers_load_the_libraries_of_the_models_before_the_first_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Recorder, "calls", [], raising=False)
    monkeypatch.setattr(workers, "WorkerProcess", _Recorder)
    (tmp_path / "a.nii").write_bytes(b"x")
    cohort = Cohort(tmp_path, tmp_path / "out", workers=1)
    cohort.use([case_of(Scan("a", "nifti", (tmp_path / "a.nii",)))])
    pool = cohort._local_pool(cohort.cases)
    pool.close(now=False)
    assert read_bundle(None).kind == "monai"
    assert _Recorder.calls[0] == (workers._warm_up, (None, ["monai"]))
