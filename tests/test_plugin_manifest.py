"""The manifest that napari reads at its start, preferences, keys, and rules for the imports of the plugin."""

from __future__ import annotations

import ast
import configparser
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

npe2 = pytest.importorskip("npe2", reason="the plugin's tests need napari: pip install napari-seg[napari]")

ROOT = Path(__file__).parents[1]
MANIFEST = ROOT / "napari_seg" / "plugin" / "napari.yaml"


def test_the_manifest_is_valid_and_every_command_can_be_imported() -> None:
    manifest = npe2.PluginManifest.from_file(MANIFEST)
    manifest.validate_imports()
    named = {command.id for command in manifest.contributions.commands}
    in_menus = {item.command for items in manifest.contributions.menus.values() for item in items}
    assert in_menus <= named


def test_package_indexes_show_the_icon_the_contact_and_the_pictures() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    metadata, package_data = setup["metadata"], setup["options.package_data"]
    package, icon = npe2.PluginManifest.from_file(MANIFEST).icon.split(":")
    assert files(package).joinpath(icon).is_file()
    assert icon in package_data[package].split()
    assert metadata["author_email"]
    assert metadata["keywords"]
    assert {"Source", "Documentation", "Issues"} <= {
        line.split(" = ")[0] for line in metadata["project_urls"].strip().splitlines()
    }
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    raw = metadata["url"].replace("github.com", "raw.githubusercontent.com") + "/main/"
    images = re.findall(r"!\[[^]]*\]\(([^)]+)\)", readme)
    assert images
    for image in images:  # an index shows only absolute addresses
        assert image.startswith(raw), image
        assert (ROOT / image.removeprefix(raw)).is_file()


def test_commands_are_greyed_where_they_can_not_apply() -> None:
    from napari._app_model.context import LayerListContextKeys, LayerListSelectionContextKeys

    manifest = npe2.PluginManifest.from_file(MANIFEST)
    known = {name for keys in (LayerListContextKeys, LayerListSelectionContextKeys) for name in keys.__members__}
    enabled = {command.id: command.enablement for command in manifest.contributions.commands if command.enablement}
    assert enabled["napari-seg.export_nifti"] == "num_selected_labels_layers == 1"
    for expression in enabled.values():
        assert expression.split()[0] in known  # a key that napari does not know greys a command for ever


def test_napari_starts_without_anything_heavy() -> None:
    code = (
        "import sys\n"
        "from npe2 import PluginManager\n"
        "manager = PluginManager()\n"
        "manager.discover()\n"
        "assert 'napari-seg' in {manifest.name for manifest in manager.iter_manifests()}\n"
        "import napari_seg.plugin.commands\n"
        "print('loaded:', *({'torch', 'monai', 'nibabel', 'SimpleITK', 'pydicom', 'scipy'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip().splitlines()[-1].strip() == "loaded:"


def test_preferences_are_read_from_napari(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    import napari.settings

    from napari_seg.inference.options import SegmentOptions
    from napari_seg.plugin.preferences import Preferences, preferences, remember_training_set

    assert preferences() == Preferences()
    stored = SimpleNamespace(
        segmenting=SimpleNamespace(device="cpu", memory_gib=2.5, precision="bfloat16", bundle_folders="/a/b; /c"),
        safety=SimpleNamespace(keep_seconds=0),
        learning=SimpleNamespace(reader=" Ada  Lovelace ", training_set="/corrected"),
    )
    monkeypatch.setattr(napari.settings, "get_plugin_settings", lambda name: stored)
    options = SegmentOptions(device="cpu", memory_bytes=int(2.5 * 2**30), precision="bfloat16")
    assert preferences() == Preferences(options, (Path("/a/b"), Path("/c")), 0, "Ada Lovelace", Path("/corrected"))
    remember_training_set(Path("/other"))
    assert preferences().training_set == Path("/other")


def test_preferences_offer_what_a_run_accepts() -> None:
    from napari_seg.inference.options import option_fields

    options = {option.name: option for option in option_fields()}
    segmenting = npe2.PluginManifest.from_file(MANIFEST).contributions.configurations["segmenting"]
    for name in ("device", "precision"):
        offered = segmenting.properties[name]
        assert offered.default == options[name].default
        assert set(offered.enum) <= {*(options[name].metadata["choices"] or offered.enum)}


def test_keys_can_be_changed_in_preferences(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from napari.components import ViewerModel
    from napari.settings import get_settings
    from napari.utils.action_manager import action_manager
    from napari.utils.key_bindings import KeymapHandler

    from napari_seg.plugin import shortcuts

    steps: list[int] = []
    viewer = ViewerModel()

    class Model:
        session = SimpleNamespace(is_closed=False, viewer=viewer)

        def step(self, by: int) -> None:
            steps.append(by)

    model, keys = Model(), KeymapHandler()
    keys.keymap_providers = [viewer]
    shortcuts.connect(model)  # type: ignore[arg-type]
    try:
        assert all(keys.press_key(key) for key in (".", ","))
        assert steps == [1, -1]
        # what Preferences > Shortcuts does
        action_manager.unbind_shortcut("napari-seg:next_structure")
        action_manager.bind_shortcut("napari-seg:next_structure", "K")
        get_settings().shortcuts.shortcuts = {
            **get_settings().shortcuts.shortcuts,
            "napari-seg:next_structure": ["K"],
        }
        shortcuts.connect(model)  # type: ignore[arg-type]
        assert not keys.press_key(".")
        assert keys.press_key("K")
        assert steps == [1, -1, 1]
        model.session.is_closed = True
        keys.press_key("K")
        assert steps == [1, -1, 1]
    finally:
        for name in ("napari-seg:next_structure", "napari-seg:previous_structure"):
            action_manager.unbind_shortcut(name)
        get_settings().reset()


def test_an_added_model_is_there_at_the_next_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    import napari.settings
    from bundles import write_threshold_bundle
    from napari.components import ViewerModel

    from napari_seg.plugin.preferences import preferences
    from napari_seg.plugin.segment.model import SegmentModel
    from napari_seg.plugin.session import Session

    stored = SimpleNamespace(
        segmenting=SimpleNamespace(device="cpu", memory_gib=0, precision="auto", bundle_folders="/elsewhere"),
        safety=SimpleNamespace(keep_seconds=0),
        learning=SimpleNamespace(reader="", training_set=""),
    )
    monkeypatch.setattr(napari.settings, "get_plugin_settings", lambda name: stored)
    folder = write_threshold_bundle(tmp_path / "mine")
    for _ in range(2):
        SegmentModel(Session(ViewerModel())).add_bundle(folder)
    assert preferences().bundle_folders == (Path("/elsewhere"), folder)
    started = SegmentModel(Session(ViewerModel()), preferences().bundle_folders)
    assert folder in [bundle.root for bundle in started.bundles]


PLUGIN = MANIFEST.parent


def test_private_names_of_napari_stand_in_one_module() -> None:
    """Names that begin with an underscore of objects that are not the plugin's own."""
    private = re.compile(r"_(qt|undo|redo|canvas|dock|layer|mouse|quit|brush|overlays|window|new_labels)")
    found = []
    for path in PLUGIN.rglob("*.py"):
        if path.name == "napari_private.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if isinstance(node, ast.Attribute) and private.match(node.attr):
                is_own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
                found += [] if is_own else [f"{path.name}: {node.attr}"]
            found += [f"{path.name}: {name}" for name in modules if name.startswith("napari._")]
    assert found == []


def test_an_unsupported_napari_gives_an_error_that_names_the_supported_one() -> None:
    from types import SimpleNamespace

    from napari_seg.errors import EnvironmentFault
    from napari_seg.plugin.napari_private import brush_circle, history_lengths

    layer, viewer = SimpleNamespace(), SimpleNamespace(canvas=SimpleNamespace(overlays={}))
    for find, owner, missing in (
        (history_lengths, layer, "_undo_history"),
        (brush_circle, viewer, "BrushCircleOverlay"),
    ):
        with pytest.raises(EnvironmentFault, match=rf"{missing}.*pip install") as caught:
            find(owner)  # type: ignore[arg-type]
        assert caught.value.code == "environment.napari"


def test_models_import_no_qt() -> None:
    """Neither the models nor what they import from the plugin, at any level of a function."""
    queue = [*PLUGIN.glob("*/model.py"), PLUGIN / "job.py"]
    seen: set[Path] = set()
    while queue:
        path = queue.pop()
        if path in seen:
            continue
        seen.add(path)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                is_qt = name.partition(".")[0] in ("qtpy", "superqt", "vispy") or name.startswith("napari.qt")
                assert not is_qt or path.name == "napari_private.py", f"{path.name} imports {name}"
                if name.startswith("napari_seg.plugin."):
                    queue.append(ROOT.joinpath(*name.split(".")).with_suffix(".py"))
    assert len(seen) > 15
