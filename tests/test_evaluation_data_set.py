"""References of results in a data set that training reads."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_evaluation_pairs import cases_of, dice_of, label_map, write

from napari_seg.cli.main import main
from napari_seg.evaluation.data_set import ReferenceCase, References, partners_in
from napari_seg.training.part import found_data_set

NAMES = ("sub-01", "sub-02", "sub-03")


def result(path: Path, scan: Path | None = None, source: str | None = None, rows: slice = slice(0, 2)) -> None:
    """Write a label map, and the record of its scan if it has one."""
    write(label_map({1: rows}), path)
    if scan is not None:
        digest = hashlib.sha256(scan.read_bytes()).hexdigest()
        record = {
            "program": "napari-seg 0.1.0",
            "source": scan.name if source is None else source or None,
            "input_sha256": digest,
        }
        path.with_name(path.name.replace(".nii.gz", ".json")).write_text(json.dumps(record))


def scan(path: Path, number: int) -> Path:
    """Write a scan, of another content for each number."""
    return write(label_map({number: slice(0, 2)}), path)


@pytest.fixture
def bids(tmp_path: Path) -> Path:
    """A data set of three subjects, the references of which lie in folders of their own."""
    root = tmp_path / "bids"
    for n, name in enumerate(NAMES, 1):
        scan(root / name / "anat" / f"{name}_T1w.nii.gz", n)
        write(label_map({1: slice(0, n)}), root / "derivatives" / "manual" / name / "anat" / f"{name}_dseg.nii.gz")
    (root / "dataset_description.json").write_text('{"Name": "three", "BIDSVersion": "1.8.0"}')
    return root


@pytest.mark.parametrize(
    "layout",
    [
        "{0}_T1w_seg.nii.gz",
        "{0}/anat/{0}_T1w_seg.nii.gz",
        "derivatives/napari-seg/{0}/anat/{0}_seg-liver_desc-T1w_dseg.nii.gz",
    ],
)
def test_results_in_any_layout_have_their_references(
    bids: Path, tmp_path: Path, layout: str, capsys: pytest.CaptureFixture
) -> None:
    results = tmp_path / "results"
    for n, name in enumerate(NAMES, 1):
        result(results / layout.format(name), bids / name / "anat" / f"{name}_T1w.nii.gz", rows=slice(0, n))
    cases = cases_of([results, bids, "-o", tmp_path / "report"], capsys)
    assert [(case["name"], case["mean_dice"]) for case in cases] == [(name, 1) for name in NAMES]
    assert (tmp_path / "report" / "report.html").read_text().count("<img") == 3  # on the scans of the data set
    parts = {
        part: [case["name"] for case in cases_of([results, bids, "--part", part], capsys)]
        for part in ("training", "validation")
    }
    assert sorted(name for names in parts.values() for name in names) == [*NAMES]


def test_no_other_result_takes_the_place_of_a_missing_one(bids: Path, tmp_path: Path) -> None:
    results, images = tmp_path / "results", [bids / name / "anat" / f"{name}_T1w.nii.gz" for name in NAMES]
    result(results / "sub-01_T1w_seg.nii.gz", images[1])  # the record counts, not the name
    result(results / "below" / "sub-03_T1w_seg.nii.gz", scan(tmp_path / "new" / "sub-03_T1w.nii.gz", 7))
    data = found_data_set(bids)
    assert data is not None
    pairs, alone = partners_in(data, results)
    assert [(pair.case, pair.result.name) for pair in pairs] == [("sub-02", "sub-01_T1w_seg.nii.gz")]
    assert [case for case, _ in alone] == ["below/sub-03_T1w", "sub-01", "sub-03"]
    assert "was made from sub-03_T1w.nii.gz; no scan of" in alone[0][1]
    result(results / "earlier" / "sub-02_T1w_seg.nii.gz", images[1])
    write(label_map({1: slice(0, 2)}), results / "masks" / "sub-02" / "liver.nii.gz")
    assert partners_in(data, results) == (pairs, alone)
    result(results / "again_seg.nii.gz", images[1])
    pairs, alone = partners_in(data, results)
    assert pairs == []
    assert "again_seg.nii.gz and sub-01_T1w_seg.nii.gz are results of one case" in dict(alone)["sub-02"]


def test_a_scan_with_two_references_has_none(bids: Path, tmp_path: Path) -> None:
    image = bids / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    result(tmp_path / "results" / "x_seg.nii.gz", image)
    for names in (("a", "a"), ("a", "b")):
        cases = (*(ReferenceCase(name, bids / f"{n}.nii.gz", (image,)) for n, name in enumerate(names)),)
        pairs, alone = partners_in(References(bids, cases), tmp_path / "results")
        assert pairs == []
        assert [case for case, _ in alone] == ["a"]
        assert f"{bids / '0.nii.gz'} and {bids / '1.nii.gz'}" in alone[0][1]


@pytest.mark.parametrize(
    ("source", "number", "case"),
    [
        ("a/t1.nii.gz", 1, "case_1"),
        ("data/a/t1.nii.gz", 1, "case_1"),  # of a run of several folders
        ("t1.nii.gz", 1, "case_1"),  # of a run of this folder
        ("t1.nii.gz", 3, None),  # and of a folder that is in no list
        ("a/t1.nii.gz", 3, None),
        ("c/t1.nii.gz", 1, "case_1"),  # moved
        ("c/t1.nii.gz", 2, None),  # one of two equal ones
        ("d/t1.nii.gz", 2, "case_4"),
        ("new.nii.gz", 1, None),
        ("", 2, "case_2"),  # by its name
    ],
)
def test_the_scan_of_a_result_is_that_of_its_record(tmp_path: Path, source: str, number: int, case: str | None) -> None:
    root = tmp_path / "data"
    numbers = {"a": 1, "b": 2, "d": 2}
    cases = [
        ReferenceCase(f"case_{n}", root / folder / "label.nii.gz", (scan(root / folder / "t1.nii.gz", number_of),))
        for n, (folder, number_of) in zip((1, 2, 4), numbers.items(), strict=True)
    ]
    result(tmp_path / "results" / "b_t1_seg.nii.gz", scan(tmp_path / "scan.nii.gz", number), source)
    pairs, _ = partners_in(References(root, tuple(cases)), tmp_path / "results")
    assert [pair.case for pair in pairs] == ([case] if case else [])


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("x", "one"),
        ("x_seg", "one"),
        ("x_0000_seg", "two"),
        ("labels/x_seg", "one"),
        ("labels_x_seg", "one"),
        ("images/x_scan", "one"),
        ("x_scan", "one"),
        ("other/x_seg", None),
        ("one", None),  # a name in the data set, which may be the number of a row
    ],
)
def test_a_result_without_a_record_has_the_name_of_its_reference_or_scan(
    tmp_path: Path, name: str, case: str | None
) -> None:
    root = tmp_path / "data"
    cases = tuple(
        ReferenceCase(one, root / "labels" / f"{stem}.nii.gz", (root / "images" / f"{stem}_scan.nii.gz",))
        for one, stem in (("one", "x"), ("two", "x_0000"))
    )
    result(tmp_path / "results" / f"{name}.nii.gz")
    for are_converted in (False, True):
        pairs, _ = partners_in(References(root, cases, are_converted=are_converted), tmp_path / "results")
        assert [pair.case for pair in pairs] == ([case] if case else [])


def test_channels_are_found_by_their_paths(tmp_path: Path) -> None:
    root = tmp_path / "data"
    files = [scan(root / "a" / f"{name}.nii.gz", 1) for name in ("case_0000", "case_0001")]
    data = References(root, (ReferenceCase("case", root / "label.nii.gz", (*files,)),))
    for source, channels, is_found in (
        ("a/case_0000.nii.gz", ["case_0000", "case_0001"], True),
        ("a/case_0002.nii.gz", ["case_0002", "case_0001"], True),  # the data set has other channels, too
        ("b/case_0000.nii.gz", ["case_0000"], False),
    ):
        assert bool(data.of_scan(source, channels, "the digest of all files")) == is_found


def test_other_references_are_no_data_set(bids: Path, tmp_path: Path) -> None:
    manual = bids / "derivatives" / "manual"
    for path in (manual / "sub-01" / "anat", manual / "sub-01" / "anat" / "sub-01_dseg.nii.gz"):
        assert found_data_set(path) is None
    for folder in ("results", "references"):
        shutil.copytree(manual, tmp_path / folder)
    (tmp_path / "references" / "cases.csv").write_text("image,label\nsub-01,sub-02\n")  # as another program may leave
    assert main(["evaluate", str(tmp_path / "results"), str(tmp_path / "references")]) == 0


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_a_list_is_a_data_set(bids: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture) -> None:
    root = tmp_path / "data"
    for n, name in enumerate(NAMES, 1):
        result(tmp_path / "results" / f"{n}_seg.nii.gz", scan(root / name / "t1.nii.gz", n), rows=slice(0, n))
        write(label_map({1: slice(0, n), 9: slice(4, 6)}), root / "labels" / f"{name}.nii.gz")
    rows = [(f"{name}/t1.nii.gz", f"labels/{name}.nii.gz") for name in NAMES]
    path = root / f"cases.{kind}"
    path.write_text(
        json.dumps({"training": [dict(zip(("image", "label"), row, strict=True)) for row in rows]})
        if kind == "json"
        else "\n".join(map(",".join, [("image", "label"), *rows]))
    )
    description = {"labels": {"liver": 1, "spleen": 3, "ignore": 9}, "labelled": {"sub-01": ["spleen"]}}
    (root / "dataset.json").write_text(json.dumps(description))
    cases = cases_of([tmp_path / "results", path], capsys)
    scores = [{name: dice for name, dice in dice_of(case).items() if dice is not None} for case in cases]
    assert scores == [{}, {"liver": 1}, {"liver": 1}]


@pytest.mark.parametrize("words", [[], ["--part", "training"]])
def test_results_of_other_scans_are_refused(
    bids: Path, tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture
) -> None:
    result(tmp_path / "results" / "x_seg.nii.gz", scan(tmp_path / "x.nii.gz", 5))
    assert main(["evaluate", str(tmp_path / "results"), str(bids), *words]) == 2
    what = "the training part" if words else "a case"
    assert f"no result of {what} of {bids}; for example, x_seg.nii.gz was made from" in capsys.readouterr().err


def test_why_a_data_set_is_none_is_said(bids: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    other = bids / "derivatives" / "second" / "sub-01" / "anat" / "sub-01_dseg.nii.gz"
    write(label_map({1: slice(0, 2)}), other)
    result(tmp_path / "results" / "x_seg.nii.gz", bids / "sub-01" / "anat" / "sub-01_T1w.nii.gz")
    assert main(["evaluate", str(tmp_path / "results"), str(bids)]) == 4
    assert "give one derivative as the references" in capsys.readouterr().err
    cases = cases_of([tmp_path / "results" / "x_seg.nii.gz", bids / "derivatives" / "second"], capsys)
    assert [(case["name"], case["mean_dice"]) for case in cases] == [("sub-01", 1)]


def test_folders_of_references_are_compared_without_the_training(tmp_path: Path) -> None:
    for folder in ("results", "references"):
        result(tmp_path / folder / "a" / "x.nii.gz")
    words = ["evaluate", str(tmp_path / "results"), str(tmp_path / "references"), "--no-figures"]
    code = f"import sys; from napari_seg.cli.main import main; main({words!r}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0
