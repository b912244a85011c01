"""Write data sets of empty files, and return the codes of errors."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from napari_seg.bundles.read import shipped_root

sys.path.insert(0, str(shipped_root()))

from segnets.data import find_dataset
from segnets.errors import TrainingError


def touch(root: Path, *names: str) -> Path:
    """Create empty files, which suffice because no scan is opened."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def code_of(*arguments: object, call: object = find_dataset, **options: object) -> str:
    with pytest.raises(TrainingError) as caught:
        call(*arguments, **options)
    assert str(caught.value) == f"{caught.value.code}: {caught.value.message}"
    return caught.value.code


def names(cases: object) -> list[str]:
    return [case["name"] for case in cases]


def decathlon(root: Path, count: int) -> Path:
    listing = [{"image": f"./imagesTr/c{n}.nii.gz", "label": f"./labelsTr/c{n}.nii.gz"} for n in range(count)]
    touch(root, *(path for pair in listing for path in pair.values()))
    description = {
        "training": listing,
        "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
        "modality": {"0": "MRI"},
    }
    (root / "dataset.json").write_text(json.dumps(description))
    return root
