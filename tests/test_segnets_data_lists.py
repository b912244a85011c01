"""Test the lists of cases with paths and files that are not as expected."""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path

import pytest
from empty_sets import code_of, names, touch
from segnets.data import check, find_dataset
from segnets.errors import TrainingError


@pytest.mark.parametrize("row", ["a" * 200_000 + ",b.nii", '"' + "x" * 140_000 + '",b.nii'])
def test_a_table_that_csv_can_not_parse_is_refused(tmp_path: Path, row: str) -> None:
    (tmp_path / "cases.csv").write_text(f"image,label\n{row}\n")
    assert code_of(tmp_path / "cases.csv") == "dataset.bad_table"


@pytest.mark.parametrize(
    "image", ["https://example.org/a.nii.gz", "x" * 400 + ".nii", "a\0.nii", ".", "=1+1", "\ud800"]
)
def test_a_path_without_a_file_is_a_case_without_an_image(tmp_path: Path, image: str) -> None:
    touch(tmp_path, "b.nii", "b_l.nii")
    listing = [{"image": image, "label": "b_l.nii"}, {"image": "b.nii", "label": "b_l.nii"}]
    (tmp_path / "cases.json").write_text(json.dumps({"training": listing}))
    dataset = find_dataset(tmp_path / "cases.json")
    assert (names(dataset.cases), len(dataset.unpaired)) == (["b"], 1)


def test_a_list_without_any_file_says_so(tmp_path: Path) -> None:
    (tmp_path / "cases.csv").write_text("image,label\ns3://x/a.nii,s3://x/b.nii\n")
    with pytest.raises(TrainingError, match="of which 1 label maps and 1 images do not exist; restore them"):
        find_dataset(tmp_path / "cases.csv")


def test_unused_columns_of_a_table_are_named(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii", "b.nii", "l.nii")
    rows = ["img,seg,Who,patient,phase,,notes", "a.nii,l.nii,P1,1,venous,0,", "b.nii,l.nii,P1,2,late,1,"]
    (tmp_path / "cases.csv").write_text("\n".join(rows))
    assert find_dataset(tmp_path / "cases.csv").unused[-1] == "columns not used: who, phase, one without a title"
    (tmp_path / "cases.csv").write_text("image,label,subject,split\na.nii,l.nii,P1,train\nb.nii,l.nii,P1,train\n")
    assert not any("columns" in text for text in find_dataset(tmp_path / "cases.csv").unused)


def test_a_missing_file_of_a_list_is_reported_with_the_list_and_its_path(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii", "b.nii", "a_l.nii")
    rows = ["image,label", "a.nii,a_l.nii", "nope.nii,sub/nope_l.nii", "b.nii,b_l.nii"]
    (tmp_path / "list.csv").write_text("\n".join(rows))
    with pytest.raises(TrainingError) as caught:
        check(find_dataset(tmp_path / "list.csv"))
    text = str(caught.value)
    assert re.search(
        r"partner\.no_image +nope +list\.csv lists nope\.nii and sub/nope_l\.nii, which do not exist;", text
    )
    assert re.search(r"partner\.no_label +b +list\.csv lists b_l\.nii, which does not exist;", text)
    assert "dataset.json" not in text


def test_each_folder_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, *(unicodedata.normalize("NFD", f"x/é{n}.nii") for n in range(6)))
    rows = [unicodedata.normalize("NFC", f"x/é{n}.nii,x/é{n}.nii") for n in range(6)]
    (tmp_path / "cases.csv").write_text("\n".join(["image,label", *rows]), encoding="utf-8")
    calls = []
    iterdir = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda folder: (calls.append(folder), iterdir(folder))[1])
    assert len(find_dataset(tmp_path / "cases.csv").cases) == 6
    assert calls == [tmp_path / "x"]


@pytest.mark.parametrize("name", ["../x", "a\nb", "a\\b", "", "\ud800", "x" * 201, 7, ["a"], None])
def test_a_stated_name_that_no_file_may_have_is_not_used(tmp_path: Path, name: object) -> None:
    touch(tmp_path, "a.nii", "b.nii", "l.nii")
    listing = [{"image": f"{n}.nii", "label": "l.nii", "name": name if n == "a" else "other"} for n in "ab"]
    listing[0]["labelled"] = [1]
    (tmp_path / "dataset.json").write_text(json.dumps({"training": listing, "labels": {"1": "liver"}}))
    assert names(find_dataset(tmp_path).cases) == ["a", "b"]


def test_a_patient_may_be_numbered_0(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{name}.nii" for name in "abcl"))
    listing = [
        {"image": f"{name}.nii", "label": "l.nii", "patient": who}
        for name, who in zip("abc", (0, 0, None), strict=True)
    ]
    (tmp_path / "cases.json").write_text(json.dumps({"training": listing}))
    assert find_dataset(tmp_path / "cases.json").patients == {"a": "0", "b": "0", "c": "c"}


@pytest.mark.parametrize("words", [("development", "heldout"), ("dev", "dev"), (0, 1), ("trn", "tst")])
@pytest.mark.parametrize("kind", ["csv", "json"])
def test_a_split_in_other_words_is_refused_before_a_training(tmp_path: Path, kind: str, words: tuple) -> None:
    touch(tmp_path, "a.nii", "b.nii", "l.nii")
    cases = list(zip("ab", words, strict=True))
    if kind == "csv":
        rows = [f"{name}.nii,l.nii,{word}" for name, word in cases]
        (tmp_path / "cases.csv").write_text("\n".join(["image,label,split", *rows]))
    else:
        listing = [{"image": f"{name}.nii", "label": "l.nii", "split": word} for name, word in cases]
        (tmp_path / "cases.json").write_text(json.dumps(listing))
    dataset = find_dataset(tmp_path / f"cases.{kind}")  # so a training of an earlier version goes on
    assert dataset.parts == {}
    with pytest.raises(TrainingError, match=rf"dataset\.stated +all +its split has words such as '{words[0]}'"):
        check(dataset, facts={case[key]: {"error": ["x", "y"]} for case in dataset.cases for key in ("image", "label")})


def test_labelled_cases_of_other_sections_are_said_to_be_unused(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{name}.nii" for name in "abcl"))
    entries = [{"image": f"{name}.nii", "label": "l.nii"} for name in "abc"]
    listing = {"training": entries[:1], "validation": entries[1:2], "test": ["c.nii"], "testing": entries[2:]}
    (tmp_path / "dataset.json").write_text(json.dumps(listing))
    by_folder, by_file = find_dataset(tmp_path), find_dataset(tmp_path / "dataset.json")
    assert names(by_folder.cases) == ["a"]
    assert [text.partition(" are")[0] for text in by_folder.unused] == [
        'labelled cases under "validation" (1)',
        'labelled cases under "testing" (1)',
    ]
    assert names(by_file.cases) == ["a", "b"]
    assert len(by_file.unused) == 1
