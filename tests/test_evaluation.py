"""Pairing by name, one bad pair among good ones, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from napari_seg.cli import main
from napari_seg.errors import InputError
from napari_seg.evaluation.pairs import Pair, compare_pair, find_pairs, read_label_map
from napari_seg.formats.nifti import write_nifti
from napari_seg.geometry import Grid
from napari_seg.volume import Segmentation

GRID = Grid((6, 5, 4), np.diag([1.0, 2.0, 3.0, 1.0]))


def label_map(fill: dict[int, slice], grid: Grid = GRID) -> Segmentation:
    array = np.zeros(grid.shape, np.uint8)
    for label, rows in fill.items():
        array[rows] = label
    return Segmentation(array, grid, ())


def write(segmentation: Segmentation, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_nifti(segmentation, path)
    return path


def record(path: Path, names: dict[int, str]) -> None:
    entries = [{"label": label, "name": name, "color": [255, 0, 0]} for label, name in names.items()]
    path.write_text(json.dumps({"segments": entries}))


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Case a is right, b is twice too large: Dice 1 and 2 * 2 / 6."""
    found, expected = tmp_path / "found", tmp_path / "expected"
    write(label_map({1: slice(0, 2)}), found / "a_seg.nii.gz")
    write(label_map({1: slice(0, 2)}), expected / "a.nii.gz")
    write(label_map({1: slice(0, 4)}), found / "b.nii.gz")
    write(label_map({1: slice(0, 2)}), expected / "b.nii.gz")
    return found, expected


def test_folders_are_paired_by_name(folders: tuple[Path, Path], tmp_path: Path) -> None:
    found, expected = folders
    write(label_map({}), found / "lonely.nii.gz")
    write(label_map({}), expected / "missed.nii.gz")
    write(label_map({}), found / "a.nii.gz")
    write(label_map({}), tmp_path / "scans" / "b_0000.nii.gz")
    pairs, lonely = find_pairs(found, expected, tmp_path / "scans")
    assert [(pair.name, pair.prediction.name, pair.scan and pair.scan.name) for pair in pairs] == [
        ("a", "a.nii.gz", None),
        ("b", "b.nii.gz", "b_0000.nii.gz"),
    ]
    assert [(result.name, result.code) for result in lonely] == [
        ("a_seg", "input.unpaired"),
        ("lonely", "input.unpaired"),
        ("missed", "input.unpaired"),
    ]
    with pytest.raises(InputError, match=r"input\.missing"):
        find_pairs(found, expected, tmp_path / "nowhere")


def test_names_come_from_the_record_beside_either(folders: tuple[Path, Path]) -> None:
    found, expected = folders
    pair = find_pairs(found, expected)[0][1]
    assert list(compare_pair(pair).scores) == ["label 1"]
    record(expected / "b.json", {1: "liver"})
    result = compare_pair(pair)
    assert result.scores["liver"].dice == pytest.approx(2 * 2 / 6)
    assert result.mean_dice == pytest.approx(2 * 2 / 6)
    plane_ml = 20 * 6 / 1000
    assert result.confusion_ml == {
        "background": {"background": pytest.approx(2 * plane_ml), "liver": pytest.approx(2 * plane_ml)},
        "liver": {"liver": pytest.approx(2 * plane_ml)},
    }


@pytest.mark.parametrize("names", [{1: "liver", 2: "liver"}, {1: "background"}, {1: "mean"}])
def test_names_that_mix_two_things_up_are_refused(folders: tuple[Path, Path], names: dict[int, str]) -> None:
    found, expected = folders
    record(expected / "b.json", names)
    assert compare_pair(Pair("b", found / "b.nii.gz", expected / "b.nii.gz")).code == "labels.names"


def test_the_command_tells_all_that_went_wrong_and_goes_on(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    found, expected = folders
    assert main(["evaluate", str(found), str(expected)]) == 0
    output = capsys.readouterr().out
    assert "0.8333" in output  # mean of 1 and 2 * 2 / 6
    assert "b 0.6667, a 1.0000" in output
    (expected / "b.nii.gz").write_text("no longer an image")
    write(label_map({1: slice(0, 2)}, GRID.box((0, 0, 0), (5, 5, 4))), found / "c.nii.gz")
    write(label_map({1: slice(0, 2)}), expected / "c.nii.gz")
    assert main(["evaluate", str(found), str(expected)]) == 3
    output = capsys.readouterr().out
    assert "file.not_nifti" in output
    assert "geometry.mismatch" in output
    assert "1.0000" in output
    assert main(["evaluate", str(found / "b.nii.gz"), str(expected / "b.nii.gz")]) == 4
    assert main(["evaluate", str(write(label_map({}), tmp_path / "lonely.nii.gz")), str(expected)]) == 2
    assert main(["evaluate", str(tmp_path / "nowhere"), str(expected)]) == 2
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", str(found), str(expected), "--tolerance-mm", "-1"])
    assert stop.value.code == 1


def test_json_holds_the_cases_and_the_paired_difference(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    found, expected = folders
    write(label_map({1: slice(0, 4)}), tmp_path / "other" / "a.nii.gz")
    write(label_map({1: slice(0, 4)}), tmp_path / "other" / "b.nii.gz")
    write(label_map({1: slice(0, 2)}), found / "c.nii.gz")
    write(label_map({1: slice(0, 2)}), expected / "c.nii.gz")
    (tmp_path / "other" / "c.nii.gz").write_text("no image")
    assert main(["evaluate", str(found), str(expected), "--json", "--versus", str(tmp_path / "other")]) == 0
    output = capsys.readouterr()
    answer = json.loads(output.out)
    assert "other/c: file.not_nifti" in output.err
    assert answer["segments"]["mean"]["dice"]["mean"] == pytest.approx((1 + 2 / 3 + 1) / 3)
    assert [case["segments"]["label 1"]["dice"] for case in answer["cases"]] == [1.0, pytest.approx(2 / 3), 1.0]
    assert answer["versus"]["label 1"]["dice"]["count"] == 2
    assert answer["versus"]["label 1"]["dice"]["mean"] == pytest.approx((1 / 3 + 0) / 2)


def test_an_image_is_no_label_map(tmp_path: Path) -> None:
    import nibabel

    array = np.linspace(0, 1, 60).reshape(5, 4, 3).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / "image.nii.gz")
    with pytest.raises(InputError, match=r"labels\.type"):
        read_label_map(tmp_path / "image.nii.gz")


def test_our_own_mistake_costs_one_pair_only(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("napari_seg.evaluation.pairs.compare_label_maps", fail)
    assert [compare_pair(pair).code for pair in find_pairs(*folders)[0]] == ["internal.error"] * 2
