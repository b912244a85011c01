"""`napari-seg models` for the tasks of TotalSegmentator."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from task_models import serve_task
from web import Web

from napari_seg.bundles.places import store_root
from napari_seg.cli.main import main


@pytest.fixture
def web(web: Web, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Web:
    serve_task(web, "total_fastest", tmp_path / "release", monkeypatch)
    return web


def printed(capsys: pytest.CaptureFixture, *arguments: str, status: int = 0) -> str:
    assert main(["models", *arguments]) == status
    return capsys.readouterr().out


def test_a_task_is_shown_before_it_is_installed(capsys: pytest.CaptureFixture) -> None:
    shown = printed(capsys, "show", "totalsegmentator:liver_vessels")
    assert "TotalSegmentator liver_vessels  2.18.0   CT   not installed" in shown
    assert "looks at: liver, found by total_fastest" in shown
    assert "model 8: Dataset008_HepaticVessel (size unknown); nnUNetTrainer, nnUNetPlans\n    missing" in shown
    assert "model 298: Dataset298_TotalSegmentator_total_6mm_1559subj (135 MB)" in shown
    assert str(store_root() / "totalsegmentator") in shown
    assert "'napari-seg models add totalsegmentator:liver_vessels' fetches what is missing" in shown
    licensed = printed(capsys, "show", "totalsegmentator:tissue_types")
    assert "need a licence" in licensed
    assert "'totalseg_set_license -l NUMBER' and 'totalseg_download_weights -t tissue_types'" in licensed
    assert "models add" not in licensed
    card = json.loads(printed(capsys, "show", "totalsegmentator:total", "--json"))
    assert [model["number"] for model in card["models"]] == [291, 292, 293, 294, 295, 298]
    assert (card["installed"], len(card["segments"])) == (False, 117)
    assert json.loads(printed(capsys, "show", "totalsegmentator:none", "--json", status=1))["code"] == "bundle.unknown"


def test_a_task_is_added_listed_shown_verified_and_removed(web: Web, capsys: pytest.CaptureFixture) -> None:
    name = "totalsegmentator:total_fastest"
    assert main(["models", "add", name]) == 1  # nobody is there to accept the licence
    assert "--accept-licence" in capsys.readouterr().err
    assert web.requests == []
    added = printed(capsys, "add", name, "--accept-licence")
    assert f"installed as {name}" in added
    listed = printed(capsys, "list")
    assert "TotalSegmentator total_fastest  2.18.0   CT   runs at once" in listed
    assert f"  name: {name}\n" in listed
    assert "installed models take" in listed
    assert [one["reference"] for one in json.loads(printed(capsys, "--json"))][1:] == [name]
    found = json.loads(printed(capsys, "search", "totalsegmentator", "total_fastest", "--json"))
    assert [one["installed"] for one in found if one["name"] == name] == [True]
    assert f"use it with --model {name}" in printed(capsys, "show", name)
    assert "0 errors" in printed(capsys, "check", name)
    assert "as installed" in printed(capsys, "verify", name)
    next((store_root() / "totalsegmentator").rglob("checkpoint_final.pth")).write_bytes(b"other")
    assert "changed" in printed(capsys, "verify", name, status=4)
    assert f"removed {name}" in printed(capsys, "remove", name)
    assert "TotalSegmentator" not in printed(capsys, "list")


def test_the_search_says_which_tasks_are_installed_and_which_need_a_licence(
    web: Web, capsys: pytest.CaptureFixture
) -> None:
    printed(capsys, "add", "totalsegmentator:total_fastest", "--accept-licence")
    found = printed(capsys, "search", "totalsegmentator")
    assert "totalsegmentator:total_fastest  2.18.0  CT  installed; runs at once\n" in found
    assert "totalsegmentator:lung_vessels  2.18.0  CT  not installed; runs at once\n" in found
    assert "totalsegmentator:tissue_types  2.18.0  CT  not installed; runs at once; licensed\n" in found
