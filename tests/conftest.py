from __future__ import annotations

from pathlib import Path

import phantoms
import pytest

from napari_seg.volume import Volume

SHARED = Path(__file__).parents[1].parent / "shared"


@pytest.fixture
def head() -> Volume:
    return phantoms.head()


@pytest.fixture
def t1_dicom() -> Path:
    """A whole-head T1 series, where it lies beside the checkout."""
    return _real(SHARED / "data" / "t1_dicom")


@pytest.fixture
def corpus() -> Path:
    """Real files that break readers, where they lie beside the checkout."""
    return _real(SHARED / "corpus")


def _real(folder: Path) -> Path:
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here: real scans are no part of the project")
    return folder
