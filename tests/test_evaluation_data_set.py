"""References of results in a data set that training reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from test_evaluation_pairs import cases_of, label_map, write

from napari_seg.cli.main import main
from napari_seg.evaluation.data_set import ReferenceCase, References, partners_in
from napari_seg.training.part import found_data_set

NAMES = ("sub-01", "sub-02", "sub-03")


def result(path: Path, source: str | None = None, rows: slice = slice(0, 2)) -> None:
    """Write a label map, and its record if it has a source."""
    write(label_map({1: rows}), path)
    if source is not None:
        record = path.with_name(path.name.replace(".nii.gz", ".json"))
        record.write_text(json.dumps({"program": "napari-seg 0.1.0", "source": source}))


@pytest.fixture
def bids(tmp_path: Path) -> Path:
    """A data set of three subjects, the references of which lie in folders of their own."""
    root = tmp_path / "bids"
    for n, name in enumerate(NAMES):
        write(label_map({1: slice(0, 2)}), root / name / "anat" / f"{name}_T1w.nii.gz")
        write(label_map({1: slice(0, n + 1)}), root / "derivatives" / "manual" / name / "anat" / f"{name}_dseg.nii.gz")
    (root / "dataset_description.json").write_text('{"Name": "three", "BIDSVersion": "1.8.0"}')
    return root


@pytest.mark.parametrize(
    "layout",
    [
        "{0}_T1w_seg.nii.gz",
        "{0}/anat/{0}_T1w_seg.nii.gz",
        "derivatives/napari-seg/{0}/anat/{0}_seg-liver_desc-T1w_dseg.nii.gz",
        "{0}_seg.nii.gz",
    ],
)
def test_results_in_any_layout_have_their_references(
    bids: Path, tmp_path: Path, layout: str, capsys: pytest.CaptureFixture
) -> None:
    results = tmp_path / "results"
    for n, name in enumerate(NAMES):
        result(results / layout.format(name), f"{name}/anat/{name}_T1w.nii.gz", slice(0, n + 1))
    cases = cases_of([results, bids, "-o", tmp_path / "report"], capsys)
    assert [(case["name"], case["mean_dice"]) for case in cases] == [(name, 1) for name in NAMES]
    assert (tmp_path / "report" / "report.html").read_text().count("<img") == 3  # on the scans of the data set
    parts = {
        part: [case["name"] for case in cases_of([results, bids, "--part", part], capsys)]
        for part in ("training", "validation")
    }
    assert sorted(name for names in parts.values() for name in names) == [*NAMES]


def test_no_other_result_takes_the_place_of_a_missing_one(bids: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    result(results / "sub-01_T1w_seg.nii.gz", "sub-02/anat/sub-02_T1w.nii.gz")  # the record counts, not the name
    result(results / "sub-03_T2w_seg.nii.gz", "sub-03/anat/sub-03_T2w.nii.gz")
    result(results / "new_seg.nii.gz", "new.nii.gz")
    data = found_data_set(bids)
    assert data is not None
    pairs, alone = partners_in(data, results)
    assert [(pair.case, pair.result.name) for pair in pairs] == [("sub-02", "sub-01_T1w_seg.nii.gz")]
    assert [case for case, _ in alone] == ["new", "sub-03_T2w", "sub-01", "sub-03"]
    result(results / "again_seg.nii.gz", "sub-02/anat/sub-02_T1w.nii.gz")
    pairs, alone = partners_in(data, results)
    assert pairs == []
    assert "again_seg.nii.gz and sub-01_T1w_seg.nii.gz are results of one scan" in dict(alone)["sub-02"]


@pytest.mark.parametrize(
    ("source", "name", "case"),
    [
        ("a/t1.nii.gz", "a_t1_seg", "case_1"),
        ("data/a/t1.nii.gz", "a_t1_seg", "case_1"),  # of a run of several folders
        ("t1.nii.gz", "t1_seg", None),  # of each of them
        ("c/t1.nii.gz", "t1_seg", None),
        (None, "t1_seg", None),
        (None, "case_1_0000_seg", "case_1"),
        (None, "lesion_2", "case_2"),
        ("a", "case_1_seg", "case_1"),  # a DICOM series that was converted
        ("", "case_1_seg", "case_1"),
    ],
)
def test_the_scan_of_a_result_is_that_of_its_record(
    tmp_path: Path, source: str | None, name: str, case: str | None
) -> None:
    root = tmp_path / "data"
    data = References(
        root,
        tuple(
            ReferenceCase(f"case_{n}", root / "labels" / f"lesion_{n}.nii.gz", (root / folder / "t1.nii.gz",))
            for n, folder in ((1, "a"), (2, "b"))
        ),
    )
    result(tmp_path / "results" / f"{name}.nii.gz", source)
    found = data.case_of(tmp_path / "results" / f"{name}.nii.gz", tmp_path / "results")
    assert (found and found.name) == case


def test_folders_of_references_are_no_data_set(bids: Path, tmp_path: Path) -> None:
    assert found_data_set(bids / "derivatives" / "manual") is None
    assert found_data_set(bids / "derivatives" / "manual" / "sub-01" / "anat") is None
    shutil.copytree(bids / "derivatives" / "manual", tmp_path / "mirror")
    assert found_data_set(tmp_path / "mirror") is None


def test_results_of_other_scans_are_refused(bids: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    result(tmp_path / "results" / "x_seg.nii.gz", "x.nii.gz")
    for words in ([], ["--part", "training"]):
        assert main(["evaluate", str(tmp_path / "results"), str(bids), *words]) == 2
        assert f"none of them of {'the training part' if words else '3 cases'} of {bids}" in capsys.readouterr().err
