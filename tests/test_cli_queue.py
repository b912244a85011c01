"""Test the command that ranks the cases of a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from bundles import write_plain_bundle
from cohorts import InlinePool, add_done, add_model, new_manifest
from phantoms import write_nifti

from napari_seg.bundles.read import read_bundle
from napari_seg.cli.main import main
from napari_seg.cli.queue import print_queue
from napari_seg.cohort.cohort import Cohort
from napari_seg.geometry import Grid
from napari_seg.learning.queue import RankedCase
from napari_seg.volume import Volume


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The folder of a run whose scans are away."""
    with new_manifest(tmp_path / "out") as manifest:
        model = add_model(manifest)
        for number, mean in enumerate((0.9, 0.5, 0.7)):
            name = f"case_{number}"
            add_done(manifest, name, {"front": 1.0 + number}, model=model, confidence={"front": mean})
            manifest._write("UPDATE cases SET input_sha256 = ? WHERE name = ?", (f"{number}" * 64, name))
    return tmp_path / "out"


@pytest.fixture
def real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run with its scans and its model beside it."""
    monkeypatch.setattr("napari_seg.cohort.cohort.LocalPool", InlinePool)
    (tmp_path / "scans").mkdir()
    for seed in range(3):
        array = (100 * np.random.default_rng(seed).normal(size=(1, 18, 18, 16))).astype(np.int16)
        write_nifti(Volume(array, Grid((18, 18, 16), np.eye(4)), "scan", ""), tmp_path / "scans" / f"s{seed}.nii.gz")
    bundle = read_bundle(write_plain_bundle(tmp_path / "plain"))
    assert all(one.status == "done" for one in Cohort(tmp_path / "scans", tmp_path / "real", bundle, device="cpu"))
    return tmp_path


def test_confidence_is_said_to_be_the_basis(out: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["queue", str(out)]) == 0
    text = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:4]] for line in text.splitlines() if "│" in line]
    assert [row for row in rows if row[0]] == [
        ["1", "case_1", "0.500"],
        ["2", "case_2", "0.300"],
        ["3", "case_0", "0.100"],
    ]
    assert "ranked by the confidence of the run" in text


def test_the_model_looks_at_the_scans(real: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["queue", str(real / "real"), "--scans", str(real / "scans"), "--model", str(real / "plain")]
    assert main([*words, "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    assert "1 - mean Dice between the model's predictions" in text
    assert "confidence" not in text
    assert main([*words, "--json", "--count", "2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [case["rank"] for case in found] == [1, 2]
    assert (real / "real" / "looks.sqlite").is_file()
    (real / "scans" / "s1.nii.gz").unlink()
    assert main([*words, "--count", "0"]) == 3
    assert "failed   s1: queue.no_scan: " in capsys.readouterr().out


def test_accepted_cases_drop_out(real: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["queue", str(real / "real"), "--accepted", str(real / "accepted")]
    (real / "accepted").mkdir()
    shutil.copy(real / "scans" / "s1.nii.gz", real / "accepted" / "x.nii.gz")
    assert main([*words, "--count", "1"]) == 0
    text = capsys.readouterr().out
    assert "s1" not in text
    assert "1 accepted case of the run left out" in text
    assert main([*words, "--json"]) == 0
    assert {case["name"] for case in json.loads(capsys.readouterr().out)} == {"s0", "s2"}


def test_a_seed_decides_the_random_order(out: Path, capsys: pytest.CaptureFixture) -> None:
    orders = []
    for seed in (0, 0, 1, 2, 3):
        assert main(["queue", str(out), "--strategy", "random", "--seed", str(seed), "--json"]) == 0
        orders.append([case["name"] for case in json.loads(capsys.readouterr().out)])
    assert orders[0] == orders[1]
    assert len({tuple(order) for order in orders}) > 1


def test_exit_codes_of_what_is_missing(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["queue", str(tmp_path)]) == 2
    new_manifest(tmp_path / "empty").close()
    assert main(["queue", str(tmp_path / "empty")]) == 2
    assert main(["queue", str(out), "--scans", str(tmp_path / "nowhere")]) == 1  # the model is unknown
    assert "queue.model" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main(["queue", str(out), "--count", "-1"])
    assert caught.value.code == 1


def test_long_names_of_cases_are_not_cut(capsys: pytest.CaptureFixture) -> None:
    name = f"{'sub' * 40}-17"
    print_queue([RankedCase(name, 1, 0.5, {"liver": 0.5}, why="why")], [])
    table = capsys.readouterr().out
    assert name in "".join(line.split("│")[2].strip() for line in table.splitlines() if line.count("│") > 3)
