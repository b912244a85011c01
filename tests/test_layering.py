"""Who may import whom, held to by reading the imports; and what a first import may cost."""

from __future__ import annotations

import configparser
import subprocess
import sys
from pathlib import Path

import pytest
from structure import circles, floors, import_graph, imported_names, read_modules

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "napari_seg"

# floor by floor, the ground first: a room may import from its own floor or from below
FLOORS = [
    {"error_codes", "errors", "structure_names", "version"},
    {"geometry", "memory", "progress", "worker"},
    {"volume"},
    {"formats", "evaluation"},
    {"bundles"},
    {"localise"},
    {"inference", "editing"},
    {"cohort", "training"},
    {"learning"},
    {"cli", "plugin"},
]
OWNERS = {
    "pydicom": {"formats/dicom"},
    "highdicom": {"formats/dicom"},
    "gdcm": {"formats/dicom"},
    "nibabel": {"formats"},
    "torch": {"bundles", "inference", "training"},
    "dynamic_network_architectures": {"bundles"},
    "safetensors": {"bundles"},
    "openvino": {"inference"},
    "psutil": {"worker", "cohort", "memory", "plugin"},
    "monai": {"bundles", "inference", "training"},
    "dask": {"cohort", "plugin"},
    "distributed": {"cohort"},
    "segnets": {"training"},
    "SimpleITK": {"formats", "localise", "editing"},
    "numba": {"editing"},
    "napari": {"plugin"},
    "qtpy": {"plugin"},
    "superqt": {"plugin"},
    "vispy": {"plugin"},
}


# tests of more than one module, by what they test
ACROSS = {
    "cases": "small files that failed once",
    "corpus": "real files that break readers",
    "docs": "the pages and their site",
    "formats_fuzz": "random damage to files of all formats",
    "formats_real": "real scans",
    "layering": "who imports whom",
    "no_network": "all commands",
    "plugin_layout": "widgets in a real window",
    "plugin_manifest": "napari.yaml",
    "scripts": "programs of the repository",
    "segnets_networks": "all networks",
}


def module_files() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem[:2] != "__")


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def inner_room(path: Path) -> str:
    """Return the folder of a module, such as "formats/dicom"."""
    return path.relative_to(PACKAGE).parent.as_posix()


def floor(name: str) -> int:
    return next(n for n, rooms in enumerate(FLOORS) if name in rooms)


@pytest.mark.parametrize("path", module_files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down_and_libraries_stay_in_their_rooms(path: Path) -> None:
    for name in imported_names(path):
        parts = name.split(".")
        if parts[0] == "napari_seg" and len(parts) > 1:
            assert floor(parts[1]) <= floor(room(path)), f"{room(path)} imports {name} from a floor above"
        if parts[0] in OWNERS:
            assert OWNERS[parts[0]] & {room(path), inner_room(path)}, f"{room(path)} imports {parts[0]}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circles(import_graph(read_modules(ROOT))) == []


def test_the_inference_room_has_at_most_nine_floors() -> None:
    # the upper three: any request, several models, one model
    assert floors(import_graph(read_modules(ROOT)), "napari_seg.inference") <= 9


def test_circles_and_floors_are_found() -> None:
    graph = {"p": {"p.a"}, "p.a": {"p.b"}, "p.b": {"p.c", "q"}, "p.c": {"p.b"}, "q": {"p.d"}, "p.d": set()}
    assert circles(graph) == [["p.b", "p.c"]]
    # the circle counts once, and `q` belongs to another room
    assert floors(graph, "p") == 3


def test_every_test_file_is_named_after_what_it_tests() -> None:
    tested = {name.removeprefix("napari_seg.").replace(".", "_") for name in read_modules(ROOT)}
    for path in [*(ROOT / "monai_bundle").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")]:
        below = path.relative_to(ROOT).with_suffix("").parts[1:]
        tested.add("_".join(below).removesuffix("___init__"))
    tested |= {"configs", "monai_bundle"}
    rooms = {path.parent.relative_to(PACKAGE).parts[0] for path in PACKAGE.glob("*/__init__.py")}
    for path in (ROOT / "tests").glob("test_*.py"):
        name = path.stem.removeprefix("test_")
        if name in ACROSS or name in tested:
            continue
        # an aspect of a module may follow its name, such as formats_dicom_kinds; a room alone is too little
        assert any(name.startswith(f"{one}_") for one in tested - rooms), f"{path.name} names no module"


def test_the_wheel_forgets_no_room() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    packed = set(setup["options"]["packages"].split())
    rooms = {".".join(path.parent.relative_to(ROOT).parts) for path in PACKAGE.rglob("__init__.py")}
    networks = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "monai_bundle").rglob("__init__.py")}
    assert packed == rooms | {"napari_seg.monai_bundle"} | {f"napari_seg.{name}" for name in networks}


def test_the_bundle_works_on_its_own() -> None:
    for path in (ROOT / "monai_bundle").rglob("*.py"):
        assert not any(name.startswith("napari_seg") for name in imported_names(path)), path


@pytest.mark.parametrize(
    "statement",
    [
        "import napari_seg",
        "import napari_seg.formats",
        "from napari_seg.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: pass",
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(statement: str) -> None:
    heavy = "{'torch', 'monai', 'napari', 'qtpy', 'nibabel', 'SimpleITK', 'pydicom', 'scipy', 'rich', 'distributed'}"
    code = f"import sys\n{statement}\nprint('loaded:', *({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert result.stdout.splitlines()[-1].strip() == "loaded:"
