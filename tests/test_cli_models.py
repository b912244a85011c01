"""`napari-seg models` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bundles import write_threshold_bundle

from napari_seg.bundles.places import store_root
from napari_seg.cli.main import main


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    root = write_threshold_bundle(tmp_path / "from" / "threshold")
    (root / "LICENSE").write_text("MIT License\n\nCopyright")
    return root


def printed(capsys: pytest.CaptureFixture, *arguments: str | Path, status: int = 0) -> str:
    assert main(["models", *map(str, arguments)]) == status
    return capsys.readouterr().out


def test_a_model_is_added_listed_shown_verified_and_removed(bundle: Path, capsys: pytest.CaptureFixture) -> None:
    assert "use it with --bundle threshold" in printed(capsys, "add", bundle)
    for command in ([], ["list"]):
        listed = printed(capsys, *command)
        assert "threshold  1.0   MR   not trusted" in listed
        assert "installed models take" in listed
    shown = printed(capsys, "show", "threshold")
    assert "licence: MIT" in shown
    assert f"source: {bundle}" in shown
    assert "size: 0.0 MB" in shown
    assert "as installed" in printed(capsys, "verify", "threshold")
    (store_root() / "threshold" / "models" / "model.pt").unlink()
    assert "missing  models/model.pt" in printed(capsys, "verify", "threshold", status=4)
    assert "removed threshold" in printed(capsys, "remove", "threshold")
    assert "threshold" not in printed(capsys)


def test_everything_is_printed_as_json_too(bundle: Path, capsys: pytest.CaptureFixture) -> None:
    added = json.loads(printed(capsys, "add", bundle, "--json"))
    assert added["folder"] == str(store_root() / "threshold")
    assert added["size_bytes"] > 0
    for command in (["--json"], ["list", "--json"], ["--json", "list"]):
        assert [entry["name"] for entry in json.loads(printed(capsys, *command))][1:] == ["threshold"]
    card = json.loads(printed(capsys, "show", "threshold", "--json"))
    assert (card["licence_kind"], card["channels"], card["source"]) == ("open", 1, str(bundle))
    assert json.loads(printed(capsys, "verify", "threshold", "--json")) == []
    assert json.loads(printed(capsys, "remove", "threshold", "--json"))["removed"] == "threshold"
    assert json.loads(printed(capsys, "remove", "threshold", "--json", status=1))["code"] == "store.unknown"


def test_the_old_name_of_the_command_lists_and_shows(bundle: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["bundles"]) == 0
    assert main(["bundles", "show", str(bundle)]) == 0
    assert "threshold  1.0" in capsys.readouterr().out


def test_mistakes_are_explained(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["models", "add", str(tmp_path / "missing.zip")]) == 1
    assert "store.source" in capsys.readouterr().err
    assert main(["models", "add", str(bundle)]) == 0
    assert main(["models", "add", str(bundle)]) == 1
    assert "--replace" in capsys.readouterr().err
    assert main(["models", "add", str(bundle), "--replace"]) == 0
    assert main(["models", "add", str(bundle), "--name", "again"]) == 0
    assert (store_root() / "again").is_dir()
