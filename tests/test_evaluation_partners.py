"""References of results in folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_evaluation_pairs import ONE, cases_of, label_map, write

from napari_seg.cli.main import main
from napari_seg.evaluation.partners import find_partners, find_scans


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


@pytest.mark.parametrize(
    ("results", "references", "pairs", "alone"),
    [
        # as `predict --layout mirror` writes them
        (["a/x_seg", "b/x_0000_seg"], ["a/x", "b/x"], ["a/x", "b/x"], []),
        (["a/x_seg", "y_seg"], ["a/x", "y"], ["a/x", "y"], []),  # some scans lie in the folder itself
        (["a/x_seg", "c/x_seg"], ["a/x", "b/x"], ["a/x"], ["c/x", "b/x"]),
        (["a/b/x_seg"], ["a/x"], [], ["a/b/x", "a/x"]),  # another scan
        (["a/x_seg"], ["b/x"], [], ["a/x", "b/x"]),
        # one side in one folder, named after folders and file as `predict` does
        (["a_b_x_seg", "x_seg"], ["a/b/x", "b/x"], ["a/b/x"], ["x", "b/x"]),
        (["a/b/x_seg", "c/x_seg"], ["a_b_x", "x"], ["a_b_x"], ["c/x", "x"]),
        (["a_b_x_seg"], ["a/b_x", "a_b/x"], [], ["a_b_x", "a/b_x", "a_b/x"]),
        # in one folder, as ever: those below do not count
        (["x_seg", "y_seg", "old/z_seg"], ["x", "other/z"], ["x"], ["y"]),
        (["sub-01_dseg"], ["sub-01_desc-manual_dseg"], [], ["sub-01_dseg", "sub-01_desc-manual_dseg"]),
    ],
)
def test_references_in_folders(
    tmp_path: Path, results: list[str], references: list[str], pairs: list[str], alone: list[str]
) -> None:
    found, left = find_partners(touch(tmp_path / "found", *results), touch(tmp_path / "truth", *references))
    assert [pair.case for pair in found] == pairs
    assert all(pair.reference == tmp_path / "truth" / f"{pair.case}.nii.gz" for pair in found)
    assert [case for case, _ in left] == alone


def test_a_single_file_has_no_partner_of_another_folder(tmp_path: Path) -> None:
    touch(tmp_path, "found/a/x_seg", "truth/b/x")
    assert find_partners(tmp_path / "found" / "a" / "x_seg.nii.gz", tmp_path / "truth")[0] == []
    assert find_partners(tmp_path / "found", tmp_path / "truth" / "b" / "x.nii.gz")[0] == []


def test_scans_in_folders(tmp_path: Path) -> None:
    touch(tmp_path, "found/a/x_seg", "truth/a/x", "scans/a/x_0000", "scans/b/x_0000", "flat/a_x_0000")
    pairs, _ = find_partners(tmp_path / "found", tmp_path / "truth")
    for scan in (tmp_path / "scans" / "a" / "x_0000.nii.gz", tmp_path / "flat" / "a_x_0000.nii.gz"):
        assert find_scans(tmp_path / scan.relative_to(tmp_path).parts[0], pairs) == {pairs[0].result: scan}


def test_a_case_has_one_name_whatever_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a reference that is missing, and with one that can't be read."""
    for name in ("p_0", "p_1"):
        write(label_map({1: ONE}), tmp_path / "found" / f"{name}_0000_seg.nii.gz")
        write(label_map({1: ONE}), tmp_path / "truth" / f"{name}.nii.gz")
    (tmp_path / "truth" / "p_1.nii.gz").write_text("no label map")
    words = ["evaluate", str(tmp_path / "found"), str(tmp_path / "truth"), "--json"]
    assert main(words) == 3
    unreadable = json.loads(capsys.readouterr().out)["failed"][0]
    (tmp_path / "truth" / "p_1.nii.gz").unlink()
    assert main(words) == 3
    (missing,) = json.loads(capsys.readouterr().out)["failed"]
    assert unreadable["code"] != missing["code"]
    assert unreadable["name"] == missing["name"] == "p_1"


def test_one_file_has_the_only_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("x", "y"):
        write(label_map({1: ONE}), tmp_path / "found" / f"{name}_seg.nii.gz")
        write(label_map({1: ONE}), tmp_path / "truth" / f"{name}.nii.gz")
    for words in (
        [tmp_path / "found" / "x_seg.nii.gz", tmp_path / "truth"],
        [tmp_path / "found", tmp_path / "truth" / "x.nii.gz"],
    ):
        assert [case["name"] for case in cases_of(words, capsys)] == ["x"]
    write(label_map({1: ONE}), tmp_path / "truth" / "x.nii")
    assert main(["evaluate", *map(str, [tmp_path / "found" / "x_seg.nii.gz", tmp_path / "truth"])]) == 2
