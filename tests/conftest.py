from __future__ import annotations

import gc
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import phantoms
import pytest
from cohorts import InlinePool
from web import Web

from napari_seg.volume import Segment, Segmentation, Volume

# napari reads this when it is imported: the settings of a developer are neither used nor changed
_SETTINGS = tempfile.TemporaryDirectory(prefix="napari-seg-tests-")
os.environ["NAPARI_CONFIG"] = str(Path(_SETTINGS.name, "settings.yaml"))
os.environ["NAPARI_SEG_CACHE"] = str(Path(_SETTINGS.name, "cache"))  # nor are the networks that he compiled

SHARED = Path(__file__).parents[1].parent / "shared"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--half", type=int, choices=(0, 1), help="run every second test only, from the first or the next")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave half of the tests to another process; those of `-m` and `-k` are chosen before."""
    half = config.getoption("half")
    if half is not None:
        config.hook.pytest_deselected(items=items[1 - half :: 2])
        items[:] = items[half::2]


def pytest_collection_finish() -> None:
    """Leave what was imported out of every later search for garbage, which the program and Python start often."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def no_installed_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The models that a developer has installed, and the scans that she accepted, are not part of a test."""
    monkeypatch.setenv("NAPARI_SEG_MODELS", str(tmp_path / "store"))
    monkeypatch.setenv("NAPARI_SEG_SCANS", str(tmp_path / "known_scans"))
    monkeypatch.setenv("TOTALSEG_WEIGHTS_PATH", str(tmp_path / "totalsegmentator"))


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """A web server on this machine; no proxy stands before it."""
    monkeypatch.setenv("no_proxy", "*")
    server = Web()
    yield server
    server.close()


@pytest.fixture
def head() -> Volume:
    return phantoms.head()


@pytest.fixture
def study(head: Volume, tmp_path: Path) -> Path:
    """A series, a NIfTI file, a broken one, a note, and what an earlier run left."""
    root = tmp_path / "study"
    phantoms.write_series(head, root / "series")
    phantoms.write_nifti(head, root / "copy.nii.gz")
    (root / "broken.nii.gz").write_text("no scan")
    (root / "notes.txt").write_text("as it was")
    phantoms.write_nifti(head, root / "copy_seg.nii.gz")
    (root / "copy_seg.json").write_text('{"program": "napari-seg 0.1.0"}')
    return root


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Return a folder with three heads."""
    for name in ("a", "b", "c"):
        (tmp_path / "scans").mkdir(exist_ok=True)
        phantoms.write_nifti(phantoms.head(), tmp_path / "scans" / f"{name}.nii.gz")
    return tmp_path / "scans"


@pytest.fixture
def inline_cohorts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cohorts run in this process, so that monkeypatches reach the cases, and no process has to start."""
    monkeypatch.setattr("napari_seg.cohort.cohort.LocalPool", InlinePool)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, inline_cohorts: None) -> list[str]:
    """Scans are segmented by a threshold, and the previews are some bytes; returns the names of segmented scans."""
    segmented: list[str] = []

    def threshold(volume: Volume, *args: Any, **options: Any) -> Segmentation:
        segmented.append(volume.name)
        labels = (volume.array[0] > 100).astype(np.uint8)
        return Segmentation(labels, volume.grid, (Segment(1, "bright", (255, 0, 0)),), {1: 0.9})

    def draw(volume: Volume, found: Segmentation, path: Path, title: str = "") -> None:
        path.write_bytes(b"a preview")

    monkeypatch.setattr("napari_seg.inference.segment.segment", threshold)
    monkeypatch.setattr("napari_seg.evaluation.overlay.draw_overlay", draw)
    return segmented


@pytest.fixture
def unrendered_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made and not rendered, which takes half of the time of the smallest trainings."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, path, **options: Path(path).touch())


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks run in this process and not in one of their own, so that what stands in for them does."""
    from napari_seg.plugin.job import NETWORK_WORKER

    def run_here(
        work: Any, *args: Any, callbacks: Any = None, on_start: Any = None, is_stopping: Any = None, **options: Any
    ) -> Any:
        on_start()
        return work(*args, **options, **(callbacks or {}))

    monkeypatch.setattr(NETWORK_WORKER, "run", run_here)
    monkeypatch.setattr("napari_seg.cohort.cohort.LocalPool", InlinePool)


@pytest.fixture
def t1_dicom() -> Path:
    """A whole-head T1 series, where it lies beside the checkout."""
    return _real(SHARED / "data" / "t1_dicom")


@pytest.fixture(scope="session")
def corpus() -> Path:
    """Real files that break readers, where they lie beside the checkout."""
    return _real(SHARED / "corpus")


@pytest.fixture(scope="session")
def cases() -> Path:
    """Small inputs that once failed, where they lie beside the checkout."""
    return _real(SHARED / "cases")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six volumes with a ball in front and one behind, as the Decathlon lays them out."""
    root = datasets.write_decathlon(tmp_path_factory.mktemp("data") / "balls", cases=6)
    description = json.loads((root / "dataset.json").read_text())
    description |= {"labels": {"0": "background", "1": "front", "2": "back"}, "modality": {"0": "MRI"}}
    (root / "dataset.json").write_text(json.dumps(description))
    return root


def _real(folder: Path) -> Path:
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here: real scans are no part of the project")
    return folder
