"""Tables of `napari-seg evaluate`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import phantoms
import pytest

from napari_seg.cli.main import main
from napari_seg.formats.nifti import write_map
from napari_seg.geometry import Grid


def test_what_would_be_ignored_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder, name in (("found", "a"), ("truth", "a"), ("truth", "b"), ("other", "b")):
        write_labels(tmp_path / folder / f"{name}.nii.gz", 9)
    found, truth, other = (str(tmp_path / folder) for folder in ("found", "truth", "other"))
    with pytest.raises(SystemExit):
        main(["evaluate", found, truth, "--trained", str(tmp_path / "no")])
    assert "--trained without --part" in capsys.readouterr().err
    assert main(["evaluate", found, truth, "--versus", other]) == 2
    assert "expected the same names as in" in capsys.readouterr().err
    write_labels(tmp_path / "found" / "b.nii.gz", 9)
    assert main(["evaluate", found, truth, "--versus", other]) == 0
    assert "has 1 of 2 cases; the others are not compared" in capsys.readouterr().err
    (tmp_path / "found" / "cases.csv").write_text("name,state,code,message,source")
    assert main(["evaluate", found, truth, "-o", found]) == 1
    assert "output.exists" in capsys.readouterr().err


def test_an_interval_that_is_unknown_is_a_dash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("found", "truth"):
        write_labels(tmp_path / folder / "a.nii.gz", 9)
    assert main(["evaluate", str(tmp_path / "found"), str(tmp_path / "truth")]) == 0
    printed = capsys.readouterr().out
    assert "│ –    │ 1.0000 " in printed
    assert "nan" not in printed


def test_scans_are_not_scored_as_label_maps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, truth = tmp_path / "found", tmp_path / "truth"
    values = np.arange(30**3).reshape(30, 30, 30)
    found.mkdir()
    for name, array in (("mr", values % 300), ("ct", values % 300 - 100), ("map", (values % 300) / 300)):
        write_map(array.astype(np.float32), Grid(array.shape, np.eye(4)), found / f"{name}.nii.gz")
        write_labels(truth / f"{name}.nii.gz", 9)
    assert main(["evaluate", str(found), str(truth)]) == 4
    printed = capsys.readouterr().out
    assert "mr: labels.intensities: mr.nii.gz holds 299 values without names" in printed
    assert "ct: labels.type: ct.nii.gz holds values from -100 to 199, as a scan" in printed
    assert "map: labels.type: map.nii.gz holds fractional values such as 0.003333" in printed
    assert "worst" not in printed
    assert "Dice" not in printed


def test_failed_cases_of_a_kind_share_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, truth, out = (str(tmp_path / folder) for folder in ("found", "truth", "out"))
    write_labels(Path(found) / "x.nii.gz", 9)
    for n in range(1, 8):
        write_labels(Path(truth) / f"{n:02}.nii.gz", 9)
    for n in (1, 2):  # scans
        array = np.arange(-n, 1000 - n, dtype=np.float32).reshape(10, 10, 10)
        write_map(array, Grid(array.shape, np.eye(4)), Path(found) / f"{n:02}.nii.gz")
    assert main(["evaluate", found, truth, "-o", out, "--no-figures"]) == 4
    printed = [line.partition(".nii.gz ") for line in capsys.readouterr().out.splitlines()]
    assert [(start, end[:30]) for start, _, end in printed[:3]] == [
        ("failed   01, 02: labels.type: for example 01", "holds values from -1 to 998, a"),
        ("failed   x: input.unpaired: x", "has no reference with the same"),
        ("failed   5 cases (03, 04, 05 and 2 more): input.unpaired: for example 03", "has no label map with the same"),
    ]
    assert [end.endswith("(others: other numbers)") for _, _, end in printed[:3]] == [True, False, False]
    assert "cases.csv of -o, list each failed case" in printed[3][0]
    assert (tmp_path / "out" / "cases.csv").read_text().count("input.unpaired") == 6


def test_what_is_compared_with_itself_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_labels(tmp_path / "a" / "a.nii.gz", 9)
    for both in (path, str(tmp_path / "a")):
        assert main(["evaluate", both, both]) == 1
        output = capsys.readouterr()
        assert "input.same_file: found" in output.err
        assert not output.out
    other = write_labels(tmp_path / "c" / "a.nii.gz", 9) and str(tmp_path / "c")
    assert main(["evaluate", other, str(tmp_path / "a"), "--versus", str(tmp_path / "a")]) == 1
    assert "for --versus and as references" in capsys.readouterr().err
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "a.nii.gz").hardlink_to(path)
    assert main(["evaluate", str(tmp_path / "b"), str(tmp_path / "a")]) == 0
    assert "input.same_file: a.nii.gz is compared with itself" in capsys.readouterr().err


def test_swapped_folders_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_labels(tmp_path / "found" / "a_seg.nii.gz", 9)
    write_labels(tmp_path / "truth" / "a.nii.gz", 9)
    assert main(["evaluate", str(tmp_path / "truth"), str(tmp_path / "found")]) == 2
    text = f"results are given first: if they are in {tmp_path / 'found'}, swap the two"
    assert text in capsys.readouterr().err


def test_cases_in_folders_have_names_with_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in "ab":
        write_labels(tmp_path / "found" / folder / "x_seg.nii.gz", 9)
        write_labels(tmp_path / "truth" / folder / "x.nii.gz", 9)
        write_labels(tmp_path / "other" / folder / "x_seg.nii.gz", 9)
    write_labels(tmp_path / "truth" / "c" / "x.nii.gz", 9)
    found, truth, other, out = (str(tmp_path / folder) for folder in ("found", "truth", "other", "out"))
    assert main(["evaluate", found, truth, "--versus", other, "-o", out, "--scans", truth]) == 3
    printed = capsys.readouterr().out
    assert "worst    a/x 1.0000, b/x 1.0000" in printed
    assert "versus   A, 2 cases: dice +0.0000" in printed
    assert "failed   c/x: input.unpaired: c/x.nii.gz has no label map with the same name" in printed
    lines = (tmp_path / "out" / "cases.csv").read_text().splitlines()
    assert [*dict.fromkeys(line.split(",")[0] for line in lines)] == ["case", "a/x", "b/x", "c/x"]
    assert "<b>a/x</b>" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    for folder in "ab":
        (tmp_path / "found" / folder / "x_seg.nii.gz").write_text("no label map")
    assert main(["evaluate", found, truth]) == 4
    assert "failed   a/x, b/x: file.not_nifti: for example x_seg.nii.gz" in capsys.readouterr().out
    (tmp_path / "truth" / "a").rename(tmp_path / "truth" / "d")
    (tmp_path / "truth" / "b").rename(tmp_path / "truth" / "e")
    assert main(["evaluate", found, truth]) == 2
    assert "2 label maps in" in (text := capsys.readouterr().err)
    assert "(a/x_seg.nii.gz, b/x_seg.nii.gz), and as references 3 label maps in" in text
    assert main(["evaluate", str(tmp_path / "found" / "a" / "x_seg.nii.gz"), truth]) == 2
    assert "to compare two files of other names, give the paths of both" in capsys.readouterr().err


def write_labels(path: Path, *voxels: int) -> str:
    """Write a label map with so many voxels of each of four labels, which a record names."""
    array = np.repeat(np.arange(len(voxels) + 1), [1000 - sum(voxels), *voxels]).reshape(10, 10, 10).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_map(array, Grid(array.shape, np.eye(4)), path)
    table = [{"label": n, "name": name, "color": [1, n, 1]} for n, name in enumerate("ABCD", 1)]
    path.with_name(path.name.removesuffix(".nii.gz") + ".json").write_text(json.dumps({"segments": table}))
    return str(path)


def test_structures_on_neither_side_and_on_one_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = write_labels(tmp_path / "found.nii.gz", 0, 8, 9, 0)
    truth = write_labels(tmp_path / "truth.nii.gz", 7, 8, 0, 0)
    other = write_labels(tmp_path / "other.nii.gz", 7, 8, 0, 0)
    assert main(["evaluate", found, truth, "--versus", other, "-o", str(tmp_path / "out"), "--no-figures"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    printed = [" ".join(words) for words in lines]
    assert [words[1] for words in lines if words[0] == "│"] == ["A", "B", "C", "mean"]
    assert "absent D occurs on neither side in any case" in printed
    assert "missed only in the references: A (1 case); Dice 0, and HD95 the diagonal of the field of view" in printed
    assert "extra only in the results: C (1 case); Dice 0, and HD95 the diagonal of the field of view" in printed
    assert [text[:16] for text in printed if text.startswith("versus")][1:] == [
        "versus A, 1 case",
        "versus B, 1 case",
        "versus C, 1 case",
        "versus mean, 1 c",
        "versus D occurs ",
    ]
    assert ",D," in (tmp_path / "out" / "cases.csv").read_text()


def test_files_without_a_common_name_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = write_labels(tmp_path / "found.nii.gz", 1)
    for name in ("x", "y"):
        write_labels(tmp_path / "truth" / f"{name}.nii.gz", 1)
    assert main(["evaluate", found, str(tmp_path / "truth")]) == 2
    assert (
        f"found found.nii.gz, and as references 2 label maps in {tmp_path / 'truth'} (x.nii.gz, y.nii.gz), none of the "
        "same name"
    ) in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["evaluate", found, str(tmp_path / "empty"), "-o", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()
    assert f"no NIfTI file or 2D image in {tmp_path / 'empty'}" in capsys.readouterr().err


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    """Results, references without names, and results of the same with another name."""
    labels = replace(phantoms.head(), array=(phantoms.head().array > 300).astype(np.uint8))
    for folder, name in (("found", "x"), ("truth", ""), ("other", "y")):
        (tmp_path / folder).mkdir()
        phantoms.write_nifti(labels, tmp_path / folder / "a.nii.gz")
        if name:
            table = [{"label": 1, "name": name, "color": [1, 1, 1]}]
            (tmp_path / folder / "a.json").write_text(json.dumps({"segments": table}))
    return [str(tmp_path / folder) for folder in ("found", "truth", "other")]


def test_other_results_are_found_before_the_comparison(
    folders: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found, truth, other = folders
    monkeypatch.setattr("napari_seg.evaluation.pairs.compare_pairs", lambda *_: pytest.fail("compared"))
    (Path(other) / "a.nii.gz").rename(Path(other) / "b.nii.gz")
    for versus, code in ((found + "x", "input.missing"), (other, "input.none")):
        assert main(["evaluate", found, truth, "--versus", versus]) == 2
        assert code in capsys.readouterr().err


def test_what_was_compared_is_printed_before_an_error(
    folders: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found, truth, other = folders
    assert main(["evaluate", found, truth, "--versus", other, "--json"]) == 2
    answer = json.loads(capsys.readouterr().out)
    assert (answer["code"], answer["segments"]["mean"]["dice"]["mean"]) == ("evaluation.versus", 1)

    def fail(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("napari_seg.evaluation.report.atomic_write", fail)  # as for a table that Excel has open
    assert main(["evaluate", found, truth, "-o", str(tmp_path / "out")]) == 5
    output = capsys.readouterr()
    assert "1.0000" in output.out
    assert "output.not_written" in output.err
