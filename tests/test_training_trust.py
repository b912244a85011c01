"""Test which code of a bundle is taken for the shipped one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from napari_seg.bundles.read import shipped_root
from napari_seg.errors import BundleError
from napari_seg.training.choices import Choices
from napari_seg.training.segnets_modules import with_segnets
from napari_seg.training.trust import check_code


def test_lines_may_end_as_on_windows_and_a_changed_module_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "bundle"
    for folder in ("configs", "segnets"):
        shutil.copytree(shipped_root() / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for path in root.rglob("*.*"):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    with with_segnets():
        check_code(root, Choices())
        with (root / "segnets" / "losses.py").open("ab") as module:
            module.write(b"\nprint(1)")
        with pytest.raises(BundleError, match=r"bundle\.untrusted: segnets/losses\.py"):
            check_code(root, Choices())
