"""Who may import whom, held to by reading the imports; and what a first import may cost."""

from __future__ import annotations

import ast
import configparser
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "napari_seg"

# floor by floor, the ground first: a room may import from its own floor or from below
FLOORS = [
    {"errors", "version"},
    {"geometry", "memory", "worker"},
    {"volume"},
    {"formats", "evaluation"},
    {"bundles"},
    {"localise"},
    {"inference"},
    {"cohort", "training"},
    {"cli", "plugin"},
]
OWNERS = {
    "pydicom": {"formats"},
    "highdicom": {"formats"},
    "gdcm": {"formats"},
    "nibabel": {"formats"},
    "torch": {"bundles", "inference", "training"},
    "openvino": {"inference"},
    "psutil": {"worker", "inference", "memory", "plugin"},
    "monai": {"bundles", "inference", "training"},
    "segnets": {"training"},
    "SimpleITK": {"formats", "localise"},
    "napari": {"plugin"},
    "qtpy": {"plugin"},
    "superqt": {"plugin"},
    "vispy": {"plugin"},
}


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem[:2] != "__")


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def floor(name: str) -> int:
    return next(n for n, rooms in enumerate(FLOORS) if name in rooms)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down_and_libraries_stay_in_their_rooms(path: Path) -> None:
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "napari_seg" and len(parts) > 1:
            assert floor(parts[1]) <= floor(room(path)), f"{room(path)} imports {name} from a floor above"
        if parts[0] in OWNERS:
            assert room(path) in OWNERS[parts[0]], f"{room(path)} imports {parts[0]}"


def test_the_wheel_forgets_no_room() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    packed = set(setup["options"]["packages"].split())
    rooms = {".".join(path.parent.relative_to(ROOT).parts) for path in PACKAGE.rglob("__init__.py")}
    networks = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "monai_bundle").rglob("__init__.py")}
    assert packed == rooms | {"napari_seg.monai_bundle"} | {f"napari_seg.{name}" for name in networks}


def test_the_bundle_works_on_its_own() -> None:
    for path in (ROOT / "monai_bundle").rglob("*.py"):
        assert not any(name.startswith("napari_seg") for name in imported(path)), path


@pytest.mark.parametrize(
    "statement",
    [
        "import napari_seg",
        "import napari_seg.formats",
        "from napari_seg.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: pass",
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(statement: str) -> None:
    heavy = "{'torch', 'monai', 'napari', 'qtpy', 'nibabel', 'SimpleITK', 'pydicom', 'scipy', 'rich'}"
    code = f"import sys\n{statement}\nprint('loaded:', *({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert result.stdout.splitlines()[-1].strip() == "loaded:"
