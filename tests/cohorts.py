"""Manifests of runs that never ran, for the tests of what reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from napari_seg.cohort.manifest import Manifest
from napari_seg.cohort.outcome import Outcome, OutputFile
from napari_seg.errors import Notice

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
    manifest.set_moving(number, outcome)
    manifest.set_done(number)
    manifest.change_case(number, {"started": started, "ended": started + seconds, "attempts": 1, "runner": 1})
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
    number = manifest.add_case(name, values | {"model": model})
    manifest.set_failed(number, code, message, 0.5)
    manifest.change_case(number, {"started": started, "ended": started + 0.5, "attempts": 2, "runner": 1})
    return number


def new_manifest(folder: Path, *, host: str = "reading-room", pid: int = 4242, ended: float | None = None) -> Manifest:
    """Return a new manifest with one runner and settings."""
    folder.mkdir(exist_ok=True)
    manifest = Manifest.open(folder)
    runner = manifest.add_runner(host, pid, "x", False)
    manifest._write("UPDATE runners SET started = ?, ended = ? WHERE id = ?", (START, ended, runner))
    manifest.set_meta("settings", json.dumps({"tta": "none", "also": [], "crop": True}))
    return manifest


def draw_preview(path: Path, seed: int = 0, size: tuple[int, int] = (932, 750)) -> None:
    """Write a preview that looks roughly like one."""
    random = np.random.default_rng(seed)
    rough = random.integers(20, 200, (12, 16, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rough).resize(size, Image.Resampling.BICUBIC).save(path)
