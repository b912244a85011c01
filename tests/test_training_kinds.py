"""scripts/training_kinds.py and its modules: data sets of all kinds from synthetic scans are planned or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("psutil")

import training_kinds
from benchmarks import training_runs
from benchmarks.training_sets import CASES, DataSet, Kind, Scans
from training_kinds import KINDS

from napari_seg.cli.values import named_value
from napari_seg.errors import NapariSegError
from napari_seg.training.choices import Choices
from napari_seg.training.prepare import plan_bundle


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Scans:
    """Small scans with the file names and values of the real ones."""
    root, random = tmp_path_factory.mktemp("scans"), np.random.default_rng(3)
    for folder in ("images", "labels"):
        (root / "sem" / folder).mkdir(parents=True)
        (root / "hippocampus" / f"{folder}Tr").mkdir(parents=True)
    (root / "ct_body").mkdir()
    for number in range(CASES + 1):
        image, labels = _two_boxes((18, 22, 12), random)
        name = f"hippocampus_{number:03d}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), root / "hippocampus" / "imagesTr" / name)
        nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), root / "hippocampus" / "labelsTr" / name)
    for number in range(3):
        levels = np.zeros((720, 460), np.uint8)
        levels[100:300, 100:300], levels[150:250, 150:250] = 127, 255
        levels[450:600, 150:300], levels[100, 100] = 255, 130 + number
        image = np.clip(levels // 2 + random.normal(60, 9, levels.shape), 0, 255).astype(np.uint8)
        Image.fromarray(image.T).save(root / "sem" / "images" / f"sub-rat{number}_SEM.png")
        Image.fromarray(levels.T).save(root / "sem" / "labels" / f"sub-rat{number}_SEM.png")
    return Scans(root / "hippocampus", root / "ct_body", root / "sem")


def _two_boxes(shape: tuple[int, ...], random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    labels = np.zeros(shape, np.uint8)
    i, j, k = random.integers(2, 4, 3)
    labels[i : i + 9, j : j + 7, k : k + 6] = 1
    labels[i : i + 9, j + 7 : j + 14, k : k + 6] = 2
    return (labels * 90.0 + random.normal(200, 20, shape)).astype(np.float32), labels


@pytest.mark.parametrize("name", [name for name in KINDS if name not in ("per_structure", "anisotropic")])
def test_each_kind_is_planned_with_the_voxels_of_its_source_or_refused(name: str, scans: Scans, tmp_path: Path) -> None:
    kind = KINDS[name]
    made = kind.write(scans, tmp_path)
    words = [word for word in made.options if not word.startswith("--")]
    given = dict(named_value(word) for word in words)
    labels: dict[str, Any] = {n: [v] for n, v in given.items()} if "--labels" in made.options else {}
    choices = Choices(settings={} if labels else given, labels=labels)
    if kind.refusal:
        with pytest.raises(NapariSegError) as caught:
            plan_bundle(made.path, tmp_path / "out", choices, dry_run=True)
        assert caught.value.code == kind.refusal
        return
    plan = plan_bundle(made.path, tmp_path / "out", choices, dry_run=True)
    assert training_runs.differing_voxels(plan, made) == []
    row = training_runs.describe_plan(plan)
    assert set(row["classes"]) == set(made.names)
    assert row["cases"] >= 4
    assert made.labels is not None
    assert made.scan
    assert all(path.exists() for path in made.scan)


def test_what_differs_from_the_source_is_a_fault(tmp_path: Path) -> None:
    made = DataSet(tmp_path, {"a": 3, "b": 1}, labels=np.array([[[1, 1], [2, 0]]]), names=("a", "b"))
    plan = {"label table": [{"name": "a", "voxels": 2}, {"name": "a", "voxels": 1}, {"name": "c", "voxels": 5}]}
    assert training_runs.differing_voxels(plan, made) == [
        "voxels of b: 0 in the plan, 1 in the source",
        "voxels of c: 5 in the plan, 0 in the source",
    ]
    found = np.array([[[7, 0], [5, 0]]])
    assert training_runs.dice(found, {7: "a", 5: "b", 9: "d"}, made) == {"a": pytest.approx(2 / 3, abs=1e-4), "b": 1.0}
    (tmp_path / "case_seg.json").write_text(json.dumps({"segments": [{"label": 1, "name": "a"}]}))
    nibabel.save(nibabel.Nifti1Image(np.array([[[1, 6]]], np.uint8), np.eye(4)), tmp_path / "case_seg.nii.gz")
    faults: list[str] = []
    training_runs.read_result(tmp_path, made, faults)
    assert [fault.split(";")[0] for fault in faults] == [
        "the label map has (1, 1, 2) voxels, the scan (1, 2, 2)",
        "values [6] without a name in the label map",
        "names ['a']",
    ]


def test_a_refusal_is_compared_with_the_expected_code(tmp_path: Path) -> None:
    text = "napari-seg: data.faults: 2 faults in DATA\n  file.damaged  case  cut off\n"
    kind = Kind("", lambda scans, root: DataSet(root), "data.faults")
    faults: list[str] = []
    row = training_runs._refused(kind, 4, text, faults, tmp_path)
    assert (row["refusal"], row["message"][1], faults) == ("data.faults", "file.damaged  case  cut off", [])
    training_runs._refused(Kind("", kind.write, "split.too_few"), 4, text, faults, tmp_path)
    training_runs._refused(Kind("", kind.write), 4, text, faults, tmp_path)
    training_runs._refused(kind, 0, "", faults, tmp_path)
    assert [fault.split(" with ")[0] for fault in faults] == ["refused", "refused", "trained, although it can't be"]


def test_the_page_lists_trained_and_refused_kinds(tmp_path: Path) -> None:
    about = {
        "cores": 2,
        "gpu": None,
        "processor": "p",
        "memory_gib": 8,
        "system": "Linux",
        "python": "3",
        "versions": {},
    }
    about["load_before"] = 0.1
    row = {"about": "crops", "faults": [], "limits": ["--max-minutes", "1"]}
    trained = {"cases": 9, "channels": 2, "classes": ["a"], "patch": [8, 8], "converted": True, "steps": [3, 90]}
    trained |= {
        "seconds planning": 1,
        "seconds training": 2,
        "seconds prediction": 3,
        "dice": {"a": 0.5, "b": None},
        "labels": {"a": 7},
    }
    training_kinds.write(tmp_path, "coco", row | trained | {"plugin equal": True}, about)
    training_kinds.write(tmp_path, "nothing", row | {"refusal": "dataset.unknown", "message": ["none"]}, about)
    page = (tmp_path / "training_kinds.md").read_text()
    assert "| coco | crops, 2 channels; converted | 9 | 1 | 8 x 8 | 1 minutes | 3 of 90 | 1 / 2 / 3 | 0.50 |" in page
    assert "| nothing | crops | `dataset.unknown` | none | none |" in page
