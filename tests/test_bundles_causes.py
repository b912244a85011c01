"""The cause of a library's error is one line: a missing package, or the innermost error."""

from __future__ import annotations

from pathlib import Path

import pytest

from napari_seg.bundles.causes import cause_of
from napari_seg.bundles.config.resolve import ResolveError


def raised(*errors: Exception) -> Exception:
    """The last error, raised from those before it."""
    for outer, inner in zip(errors[1:], errors, strict=False):
        outer.__cause__ = inner
    return errors[-1]


@pytest.mark.parametrize(
    ("errors", "cause"),
    [
        (
            [ModuleNotFoundError("No module named 'cv2'"), RuntimeError("Failed")],
            "(pip install opencv-python-headless)",
        ),
        ([ImportError("required package `einops` is not installed")], "the package einops is not installed"),
        ([ModuleNotFoundError("No module named 'a.b'"), ResolveError("net: x")], "the package a is not installed"),
        ([ValueError("inner\n\x1b[2Ktext"), RuntimeError("outer")], "ValueError: inner [2Ktext"),
        ([ValueError("inner"), ResolveError("net: ValueError: inner")], "net: ValueError: inner"),
        ([KeyError()], "KeyError"),
    ],
)
def test_the_cause_is_found(tmp_path: Path, errors: list[Exception], cause: str) -> None:
    text = cause_of(raised(*errors), tmp_path)
    assert cause in text
    assert text.isprintable()


def test_modules_of_the_bundle_are_no_packages(tmp_path: Path) -> None:
    (tmp_path / "scripts/own").mkdir(parents=True)
    assert "not installed" not in cause_of(ModuleNotFoundError("No module named 'own'"), tmp_path)
