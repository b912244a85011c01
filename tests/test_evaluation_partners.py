"""References of results in folders: by path, by name, and by the entities of BIDS."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_evaluation_pairs import ONE, TWO, cases_of, dice_of, label_map, record, write

from napari_seg.cli.main import main
from napari_seg.errors import InputError
from napari_seg.evaluation import bids
from napari_seg.evaluation.partners import find_partners, find_scans
from napari_seg.training.segnets_modules import with_segnets

BIDS = "sub-01/anat/sub-01"


def partners(root: Path, results: list[str], references: list[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Return case and reference of each result, and the cases without a partner, of empty files of these names."""
    for folder, names in (("found", results), ("truth", references)):
        for name in names:
            path = root / folder / f"{name}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    pairs, alone = find_partners(root / "found", root / "truth")
    return [(pair.case, pair.name) for pair in pairs], [case for case, _ in alone]


@pytest.mark.parametrize(
    ("results", "references", "pairs", "alone"),
    [
        # as `predict --layout mirror` writes them
        (["a/x_seg", "b/x_0000_seg"], ["a/x", "b/x"], {"a/x": "a/x", "b/x": "b/x"}, []),
        (["a/x_seg", "y_seg"], ["a/x", "y"], {"a/x": "a/x", "y": "y"}, []),  # some scans lie in the folder itself
        (["a/x_seg", "c/x_seg"], ["a/x", "b/x"], {"a/x": "a/x"}, ["c/x", "b/x"]),
        # one side in one folder, or with other folders in between
        (["x_seg", "y_seg"], ["x/seg/x", "z/y"], {"x/seg/x": "x/seg/x", "z/y": "z/y"}, []),
        (["a/x_seg", "b/y_seg"], ["x", "z"], {"x": "x"}, ["b/y", "z"]),
        (["a/x_seg"], ["labels/a/x", "labels/x"], {"labels/a/x": "labels/a/x"}, ["labels/x"]),
        (["a/x_seg", "b/x_seg"], ["a/manual/x", "b/manual/x"], {f"{n}/manual/x": f"{n}/manual/x" for n in "ab"}, []),
        # a data set
        (["x_seg"], ["imagesTr/x", "labelsTr/x", "imagesTs/y"], {"labelsTr/x": "labelsTr/x"}, []),
        (["x_0000_seg"], ["imagesTr/x_0000", "labelsTr/x"], {"labelsTr/x": "labelsTr/x"}, []),
        (["x_seg"], ["images/x"], {"images/x": "images/x"}, []),
        # in one folder, as ever: those below do not count
        (["x_seg", "y_seg", "old/z_seg"], ["x", "other/z"], {"x": "x"}, ["y"]),
        (["sub-01_dseg"], ["sub-01_desc-manual_dseg"], {}, ["sub-01_dseg", "sub-01_desc-manual_dseg"]),
        # BIDS
        ([f"{BIDS}_seg-m_desc-T1w_dseg"], [f"{BIDS}_dseg", f"{BIDS}_T1w"], {"sub-01": f"{BIDS}_dseg"}, []),
        (
            [f"{BIDS}_seg-m_desc-T1w_dseg"],
            [f"{BIDS}_T1w"],
            {},
            [f"{BIDS}_seg-m_desc-T1w_dseg", f"{BIDS}_T1w"],
        ),  # a scan
        ([f"{BIDS}_T1w_seg"], [f"{BIDS}_T1w"], {"sub-01": f"{BIDS}_T1w"}, []),
        ([f"{BIDS}_T1w_seg"], [f"{BIDS}_label-lesion_mask"], {"sub-01": f"{BIDS}_label-lesion_mask"}, []),
        (["sub-01_T1w_seg"], [f"{BIDS}_label-lesion_seg"], {"sub-01": f"{BIDS}_label-lesion_seg"}, []),
        (
            [f"{BIDS}_acq-{n}_seg-m_desc-T1w_dseg" for n in "ab"],
            [f"{BIDS}_acq-{n}_dseg" for n in "bc"],
            {"sub-01_acq-b": f"{BIDS}_acq-b_dseg"},
            ["sub-01_acq-a", "sub-01_acq-c"],
        ),
        (
            [f"{BIDS}_seg-m_desc-{n}_dseg" for n in ("T1w", "FLAIR")],
            [f"{BIDS}_{n}_label-x_mask" for n in ("T1w", "FLAIR")],
            {f"{BIDS}_{n}_label-x_mask": f"{BIDS}_{n}_label-x_mask" for n in ("T1w", "FLAIR")},
            [],
        ),
        (
            [f"derivatives/napari-seg/{BIDS}_seg-m_desc-T1w_dseg"],
            [f"derivatives/{n}/{BIDS}{end}_dseg" for n, end in (("manual", ""), ("napari-seg", "_seg-m_desc-T1w"))],
            {"sub-01": f"derivatives/manual/{BIDS}_dseg"},
            [],
        ),
    ],
)
def test_references_in_folders(
    tmp_path: Path, results: list[str], references: list[str], pairs: dict[str, str], alone: list[str]
) -> None:
    found, left = partners(tmp_path, results, references)
    assert (dict(found), left) == (pairs, alone)


def test_one_side_may_lie_below_the_other(tmp_path: Path) -> None:
    """As the results and the references of a data set in BIDS do."""
    for derivative, end in (("napari-seg", "_seg-m_desc-T1w"), ("manual", "")):
        path = tmp_path / "derivatives" / derivative / f"{BIDS}{end}_dseg.nii.gz"
        path.parent.mkdir(parents=True)
        path.touch()
    (tmp_path / "sub-01").mkdir()
    (tmp_path / "sub-01" / "sub-01_T1w.nii.gz").touch()
    results, references = (tmp_path / "derivatives" / name for name in ("napari-seg", "manual"))
    for sides in ((tmp_path, references), (results, tmp_path), (results, references)):
        pairs, alone = find_partners(*sides)
        assert [pair.case for pair in pairs] == ["sub-01"]
        assert alone == []
    other = results.rename(tmp_path / "derivatives" / "other")
    pairs, alone = find_partners(other, tmp_path)
    assert [pair.reference.name for pair in pairs] == ["sub-01_dseg.nii.gz"]


@pytest.mark.parametrize(
    ("results", "references", "message"),
    [
        (
            ["x_seg"],
            ["labels/x", "others/x"],
            "found the references labels/x.nii.gz, others/x.nii.gz for x_seg.nii.gz, which fit alike; expected "
            "one; give the folder that holds only the references",
        ),
        (["x_0000_seg"], ["a/x", "b/x_0000"], "found the references a/x.nii.gz, b/x_0000.nii.gz for x_0000_seg.nii.gz"),
        (
            ["a/x_seg", "b/x_seg"],
            ["x"],
            "found the results a/x_seg.nii.gz, b/x_seg.nii.gz for the reference x.nii.gz, which fit alike; expected",
        ),
        ([f"{BIDS}_seg-m_desc-{n}_dseg" for n in ("T1w", "T2w")], [f"{BIDS}_dseg"], "found the results sub-01/anat/"),
    ],
)
def test_files_that_fit_alike_are_refused(
    tmp_path: Path, results: list[str], references: list[str], message: str
) -> None:
    with pytest.raises(InputError) as caught:
        partners(tmp_path, results, references)
    assert caught.value.code == "input.unpaired"
    assert caught.value.message.startswith(message)


def test_names_of_bids_are_those_of_training() -> None:
    with with_segnets():
        from segnets.data import bids as training

        assert (bids.LABEL_SUFFIXES, bids.SCAN_ENTITIES) == (training._LABEL_SUFFIXES, training._SCAN_ENTITIES)
        assert bids._DRAWN.pattern == training._DRAWN.pattern
        assert training._NOT_STRUCTURES.search(f"sub-01{bids._NOT_STRUCTURES}")


def test_scans_in_folders(tmp_path: Path) -> None:
    for name in ("found/a/x_seg", "truth/x", "scans/a/x_0000", "scans/b/x_0000"):
        path = tmp_path / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = tmp_path / "found"
    pairs, _ = find_partners(found, tmp_path / "truth")
    assert find_scans(tmp_path / "scans", pairs, found) == {pairs[0].result: tmp_path / "scans" / "a" / "x_0000.nii.gz"}
    for name in (f"{BIDS}_T1w", f"{BIDS}_T2w", f"{BIDS}_dseg"):
        path = tmp_path / "bids" / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    result = tmp_path / "results" / f"{BIDS}_seg-m_desc-T2w_dseg.nii.gz"
    result.parent.mkdir(parents=True)
    result.touch()
    pairs, _ = find_partners(tmp_path / "results", tmp_path / "bids")
    assert [path.name for path in find_scans(tmp_path / "bids", pairs, tmp_path / "results").values()] == [
        "sub-01_T2w.nii.gz"
    ]


def test_the_names_of_references_in_bids_are_in_their_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = write(label_map({1: ONE, 2: TWO}), tmp_path / "found" / f"{BIDS}_seg-m_desc-T1w_dseg.nii.gz")
    record(result.with_name(result.name.replace(".nii.gz", ".json")), {1: "liver", 2: "lesion"})
    manual = tmp_path / "data" / "derivatives" / "manual"
    write(label_map({1: TWO, 2: ONE}), manual / f"{BIDS}_dseg.nii.gz")
    (tmp_path / "data" / "dseg.tsv").write_text("index\tname\n1\tof another derivative\n")
    (manual / "dseg.tsv").write_text("index\tname\n0\tbackground\n1\tlesion\n2\tliver\n")
    (case,) = cases_of([tmp_path / "found", tmp_path / "data"], capsys)
    assert (case["name"], dice_of(case)) == ("sub-01", {"liver": 1, "lesion": 1})
    (manual / "dseg.tsv").write_text("name\nliver\n")
    assert main(["evaluate", str(tmp_path / "found"), str(tmp_path / "data")]) == 4
    assert "dataset.bad_table" in capsys.readouterr().err
    lesion = write(label_map({1: TWO}), tmp_path / "lesions" / f"{BIDS}_label-lesion_mask.nii.gz")
    assert bids.named_classes(lesion) == {"lesion": {1}}
    (case,) = cases_of([tmp_path / "found", tmp_path / "lesions"], capsys)
    assert dice_of(case) == {"liver": 0, "lesion": 1}


def test_a_part_of_a_data_set_in_bids(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for n in range(10):
        name = f"sub-{n:02}/anat/sub-{n:02}"
        write(label_map({1: ONE}), tmp_path / "data" / f"{name}_T1w.nii.gz")
        write(label_map({1: ONE}), tmp_path / "data" / "derivatives" / "manual" / f"{name}_dseg.nii.gz")
        write(label_map({1: ONE}), tmp_path / "found" / f"{name}_seg-m_desc-T1w_dseg.nii.gz")
    counts = [
        len(cases_of([tmp_path / "found", tmp_path / "data", "--part", part], capsys))
        for part in ("training", "validation", "test")
    ]
    assert counts == [8, 1, 1]


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
