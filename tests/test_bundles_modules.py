"""A bundle's own modules: found by its own names at any time, and by nobody else."""

from __future__ import annotations

import gc
import importlib
import importlib.util
import os
import py_compile
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
import torch
from bundles import write_threshold_bundle

from napari_seg.bundles import monai
from napari_seg.bundles.load import load_model
from napari_seg.bundles.modules import BundleModules, shipped_modules
from napari_seg.bundles.read import read_bundle
from napari_seg.errors import BundleError

WINDOW = torch.zeros(1, 1, 2, 2, 2)
LATE = """
import torch


class Late(torch.nn.Module):
    def __init__(self, halves=False):
        super().__init__()

    def forward(self, image):
        import json
        import scripts.deep.numbers
        import scripts.deep.numbers as aliased
        from scripts.deep import numbers
        from scripts.deep.numbers import VALUE
        from .deep.numbers import VALUE as relative
        assert scripts.deep.numbers is aliased is numbers and VALUE == relative == numbers.VALUE
        assert json.dumps(1) == "1"
        return image + VALUE
"""


@pytest.fixture(autouse=True)
def nothing_in_memory() -> Iterator[None]:
    monai._load.cache_clear()
    gc.collect()  # modules of earlier models leave with them
    yield
    monai._load.cache_clear()


def write_late(root: Path, value: int) -> Path:
    """A bundle whose network imports a module of the bundle when it runs."""
    write_threshold_bundle(root)
    (root / "scripts/nets.py").write_text(LATE.replace("Late", "Threshold"))
    (root / "scripts/deep").mkdir()
    (root / "scripts/deep/numbers.py").write_text(f"VALUE = {value}\n")
    return root


def test_modules_imported_late_are_the_bundles_own(tmp_path: Path) -> None:
    before = set(sys.modules), list(sys.path), len(sys.meta_path)
    one, other = (load_model(read_bundle(write_late(tmp_path / str(n), n), trust=True), "cpu") for n in (1, 2))
    for _ in range(2):
        assert float(one.network(WINDOW).mean()) == 1
        assert float(other.network(WINDOW).mean()) == 2
    assert not {name for name in set(sys.modules) - before[0] if name.startswith("scripts")}
    assert list(sys.path) == before[1]
    del one, other
    monai._load.cache_clear()
    gc.collect()
    assert not [name for name in set(sys.modules) - before[0] if "bundle_" in name]
    assert len(sys.meta_path) == before[2]


def test_a_module_of_a_bundle_replaces_no_installed_package(tmp_path: Path) -> None:
    import yaml

    root = write_late(tmp_path / "bundle", 3)
    (root / "yaml.py").write_text("VALUE = 4\n")
    (root / "json").mkdir()  # holds no Python file
    network = (root / "scripts/nets.py").read_text()
    (root / "scripts/nets.py").write_text(network.replace("+ VALUE", "+ VALUE + __import__('yaml').VALUE"))
    assert float(load_model(read_bundle(root, trust=True), "cpu").network(WINDOW).mean()) == 7
    assert sys.modules["yaml"] is yaml
    assert yaml.safe_load("1") == 1


def test_errors_name_modules_as_the_bundle_does(tmp_path: Path) -> None:
    root = write_late(tmp_path / "bundle", 3)
    (root / "scripts/nets.py").write_text("from scripts.deep import nobody\n")
    with pytest.raises(BundleError, match=r"cannot import name 'nobody' from 'scripts\.deep'"):
        load_model(read_bundle(root, trust=True), "cpu")
    (root / "scripts/nets.py").write_text("import scripts.nowhere\n")
    with pytest.raises(BundleError, match=r"No module named 'scripts\.nowhere'"):
        load_model(read_bundle(root, trust=True), "cpu")
    assert not [name for name in sys.modules if name.startswith("_napari_seg_bundle_") and "scripts" in name]


def test_public_names_end_with_their_context(tmp_path: Path) -> None:
    (tmp_path / "only_here").mkdir()
    (tmp_path / "only_here/__init__.py").write_text("from only_here.part import VALUE\n")
    (tmp_path / "only_here/part.py").write_text(
        textwrap.dedent("""
        import dataclasses, pickle

        VALUE = 5

        @dataclasses.dataclass
        class Point:
            x: "int"

        def again():
            from only_here import VALUE
            return VALUE, pickle.loads(pickle.dumps(Point(1)))
        """)
    )
    modules = BundleModules(tmp_path)
    with modules.importable():
        import only_here.part  # type: ignore[import-not-found]
    with modules.importable():
        from only_here.part import again
    assert again is only_here.part.again
    assert again() == (5, only_here.part.Point(1))
    assert only_here.part.__spec__.name == only_here.part.__name__ == f"{modules.package}.only_here.part"
    assert "only_here" not in sys.modules
    modules.forget()


def test_the_shipped_modules_are_imported_once() -> None:
    before = sys.modules.get("segnets")
    found = []
    for _ in range(2):
        with shipped_modules().importable():
            from segnets.errors import TrainingError

            found.append(TrainingError)
            with shipped_modules().importable():
                from segnets.errors import TrainingError as Nested
            from segnets.errors import TrainingError as Outer

            found += [Nested, Outer]
    assert len(set(found)) == 1
    assert sys.modules.get("segnets") is before


def test_compiled_modules_are_a_bundles_own(tmp_path: Path) -> None:
    source = tmp_path / "source.txt"
    source.write_text("VALUE = 6\n")
    root = tmp_path / "bundle"
    for path in ("ops.pyc", "layers/__init__.pyc", "deep/inner/part.pyc", "__pycache__/old.cpython-311.pyc"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        py_compile.compile(str(source), str(root / path))
    for path in (".git/hook.py", "training/log.txt", "deep.old/part.py", f"speed{EXTENSION_SUFFIXES[0]}"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    modules = BundleModules(root)
    assert modules.names == {"ops", "layers", "deep", "speed"}
    with modules.importable():
        assert [importlib.import_module(name).VALUE for name in ("ops", "layers", "deep.inner.part")] == [6, 6, 6]
    modules.forget()


def test_an_interrupted_load_leaves_no_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    root = write_late(tmp_path / "bundle", 3)
    monkeypatch.setattr(monai, "load_weights", interrupted)
    before = len(sys.meta_path)
    with pytest.raises(KeyboardInterrupt):
        load_model(read_bundle(root, trust=True), "cpu")
    assert len(sys.meta_path) == before


def test_compiled_code_beside_a_source_file_is_neither_read_nor_written(tmp_path: Path) -> None:
    root = write_threshold_bundle(tmp_path / "bundle")
    source = root / "scripts" / "nets.py"
    evil, stamp = tmp_path / "nets.py", source.stat()
    evil.write_text(f"open({str(tmp_path / 'trap')!r}, 'w')\n".ljust(stamp.st_size))
    os.utime(evil, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    cached = Path(importlib.util.cache_from_source(str(source)))
    py_compile.compile(str(evil), cfile=str(cached), dfile=str(source))
    before = cached.read_bytes()
    load_model(read_bundle(root, trust=True), "cpu")
    assert not (tmp_path / "trap").exists()
    assert cached.read_bytes() == before
    assert [path.name for path in cached.parent.iterdir()] == [cached.name]


def test_a_process_imports_a_bundle_from_source_only(tmp_path: Path) -> None:
    source = tmp_path / "bundle" / "scripts" / "values.py"
    source.parent.mkdir(parents=True)
    source.write_text("LIMIT = 1\n")
    evil, stamp = tmp_path / "values.py", source.stat()
    evil.write_text("LIMIT = 2\n")
    os.utime(evil, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    py_compile.compile(str(evil), cfile=importlib.util.cache_from_source(str(source)), dfile=str(source))
    code = "import sys; sys.path.insert(0, {0!r}); {1}import scripts.values; print(scripts.values.LIMIT)"
    ours = "import pathlib; from napari_seg.bundles import modules; modules.import_from_source(pathlib.Path({0!r})); "
    root = str(tmp_path / "bundle")
    printed = [
        subprocess.run(
            [sys.executable, "-c", code.format(root, extra.format(root))], capture_output=True, text=True, check=True
        ).stdout.strip()
        for extra in ("", ours)
    ]
    assert printed == ["2", "1"]
