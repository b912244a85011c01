"""Programs of the repository: they start as their docstrings say, and start Python without the current folder."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
SCRIPTS = sorted((CHECKOUT / "scripts").rglob("*.py"))


def test_commands_name_programs_that_start() -> None:
    """A program finds only the modules in its own folder, so one below `benchmarks` can't import `benchmarks`."""
    pages = [*SCRIPTS, *(CHECKOUT / "docs").rglob("*.md"), *CHECKOUT.glob("*.md")]
    texts = [path.read_text(encoding="utf-8") for path in pages if path.name != "nnunet.md"]
    named = {name for text in texts for name in re.findall(r"(?:python|PYTHON) (scripts/[\w/]+\.py)", text)}
    assert "scripts/totalsegmentator_weights.py" in named
    assert sorted(name for name in named if not (CHECKOUT / name).is_file()) == []
    for path in (CHECKOUT / name for name in named):
        is_inner = path.parent.name == "benchmarks"
        assert not (is_inner and re.search(r"^(from|import) benchmarks\b", path.read_text(encoding="utf-8"), re.M)), (
            path
        )


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_napari_seg_is_not_imported_from_the_current_folder(path: Path) -> None:
    """Without -P, `python -m` and `python -c` import from the folder that the user is in first."""
    text = re.sub(r"\s+", " ", path.read_text(encoding="utf-8"))
    starts = re.findall(r'(.{12})"-m", "(?:napari_seg|monai\.bundle)"', text)
    starts += re.findall(r'(.{12})"-c", f?"import napari_seg', text)
    assert [start for start in starts if not start.endswith('"-P", ')] == []
