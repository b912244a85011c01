"""Manifests of runs that never ran, and workers without processes, for tests."""

from __future__ import annotations

import json
import socket
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from napari_seg.cohort.manifest import Manifest
from napari_seg.cohort.outcome import CaseResult, Outcome, OutputFile
from napari_seg.cohort.rows import Claim
from napari_seg.cohort.runners import machine
from napari_seg.cohort.workers import CaseWorker, Event, PlanLine, Step, Work
from napari_seg.errors import NapariSegError, Notice
from napari_seg.worker import WorkerError

START = 1_800_000_000.0
"""Start of the runs: 2027-01-15T08:00:00Z."""


def output(path: str) -> OutputFile:
    return OutputFile(path, "ab" * 32, 10, 0)


def add_model(manifest: Manifest, name: str = "hippocampus", version: str = "0.2.0") -> int:
    return manifest.add_model(name, version, "monai", "c0ffee" * 10 + "beef")


def add_done(
    manifest: Manifest,
    name: str,
    volumes_ml: Mapping[str, float],
    *,
    model: int | None = None,
    confidence: Mapping[str, float] | None = None,
    notices: tuple[Notice, ...] = (),
    source: str | None = None,
    started: float = START,
    seconds: float = 2.0,
) -> int:
    """Add a finished case, whose files have the usual names."""
    source = f"scans/{name}.nii.gz" if source is None else source
    number = manifest.add_case(name, {"source": source, "state": "running", "model": model, "format": "nifti"})
    outcome = Outcome(
        {
            "labels": output(f"{name}_seg.nii.gz"),
            "overlay": output(f"{name}_seg.png"),
            "record": output(f"{name}_seg.json"),
        },
        dict(volumes_ml),
        dict({structure: 0.9 for structure, ml in volumes_ml.items() if ml} if confidence is None else confidence),
        notices,
        modality="MR",
        input_sha256="12" * 32,
        seconds=seconds,
        read_seconds=seconds / 4,
        network_seconds=seconds / 2,
        write_seconds=seconds / 4,
        peak_bytes=600 * 2**20,
    )
    manifest.change_case(number, {"attempts": 1, "runner": 1})
    claim = Claim(number, 1, 1, {})
    manifest.set_moving(claim, outcome)
    manifest.set_done(claim)
    manifest.change_case(number, {"started": started, "ended": started + seconds})
    return number


def add_failed(
    manifest: Manifest,
    name: str,
    code: str = "file.not_nifti",
    message: str = "found text; expected NIfTI",
    *,
    source: str | None = None,
    model: int | None = None,
    started: float = START,
) -> int:
    """Add a failed case."""
    values: dict[str, Any] = {"source": f"scans/{name}.nii.gz" if source is None else source, "state": "running"}
    number = manifest.add_case(name, values | {"model": model, "attempts": 2, "runner": 1})
    manifest.set_failed(Claim(number, 1, 2, {}), code, message)
    manifest.change_case(number, {"started": started, "ended": started + 0.5, "seconds": 0.5})
    return number


def new_manifest(folder: Path, *, host: str = "reading-room", pid: int = 4242, ended: float | None = None) -> Manifest:
    """Return a new manifest with one runner and settings."""
    folder.mkdir(exist_ok=True)
    manifest = Manifest.open(folder)
    runner = manifest.add_runner(host, pid, "x", False, machine() if host == socket.gethostname() else "another")
    manifest._write("UPDATE runners SET started = ?, ended = ? WHERE id = ?", (START, ended, runner))
    manifest.set_meta("settings", json.dumps({"tta": "none", "also": [], "crop": True}))
    return manifest


def content(folder: Path) -> dict[str, bytes]:
    """Return name -> content of the files of all results."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if "_seg" in path.name}


def statuses(results: list[CaseResult]) -> dict[str, str]:
    """Return name -> status of results, and whether an earlier run made them."""
    return {result.name: result.status + " before" * result.is_earlier for result in results}


def draw_preview(path: Path, seed: int = 0, size: tuple[int, int] = (932, 750)) -> None:
    """Write a preview that looks roughly like one."""
    random = np.random.default_rng(seed)
    rough = random.integers(20, 200, (12, 16, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rough).resize(size, Image.Resampling.BICUBIC).save(path)


class InlineProcess:
    """Stands for a worker process: functions run at once, in this process."""

    def run(
        self,
        function: Callable[..., Any],
        *args: Any,
        callbacks: Mapping[str, Callable[..., None]] | None = None,
        is_stopping: Callable[[], bool] = lambda: False,
        seconds: float = 0,
        **options: Any,
    ) -> Any:
        try:
            return function(*args, **options, **(callbacks or {}))
        except (NapariSegError, MemoryError):
            raise
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            raise WorkerError(type(error).__name__, f"{Path(frames[-1].filename).name}:{frames[-1].lineno}") from None

    def close(self) -> None:
        pass


class InlinePool:
    """A pool without processes: cases run when their events are asked for, so that monkeypatches reach them."""

    def __init__(
        self, size: int = 1, threads: int | None = None, memory_bytes: int | None = None, kinds: object = ()
    ) -> None:
        self.size = 1
        self._worker = CaseWorker()
        self._worker._process = InlineProcess()  # type: ignore[assignment]
        self._works: deque[Work] = deque()
        self._events: deque[Event] = deque()

    def submit(self, work: Work) -> None:
        self._works.append(work)

    def next_event(self, seconds: float) -> Event | None:
        if not self._events and self._works:
            work = self._works.popleft()
            number = work.number
            self._events.append(Step(number, "starting", 0, 1))
            self._events.append(
                self._worker.run(
                    work,
                    on_step=lambda *step: self._events.append(Step(number, *step)),
                    on_plan=lambda text: self._events.append(PlanLine(number, text)),
                )
            )
        return self._events.popleft() if self._events else None

    def take_back(self) -> list[int]:
        return []  # a case counts as begun once it is here

    def close(self, now: bool) -> None:
        pass
