"""What a run consists of: filters, rules and several models, decided from headers, and nothing left out silently."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import phantoms
import pytest

from napari_seg.bundles.read import read_bundle
from napari_seg.bundles.spec import Bundle
from napari_seg.cohort.rules import read_rules
from napari_seg.cohort.select import SelectedCases, Selection, select_cases
from napari_seg.errors import BundleError


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DICOM series of 14 slices of 2.5 mm, a T1 of 14 slices with the same lengths, a CT, and a damaged file."""
    root = tmp_path_factory.mktemp("scans")
    head = phantoms.head()
    for folder in ("a", "b", "sub-02"):
        (root / folder).mkdir()
    phantoms.write_nifti(head, root / "a" / "T1.nii.gz")
    phantoms.write_nifti(head, root / "b" / "thorax_ct.nii.gz")
    (root / "b" / "broken.nii.gz").write_bytes(b"no scan")
    phantoms.write_series(head, root / "sub-02" / "dicom")
    return root


def select(*inputs: Path, **asked: Any) -> SelectedCases:
    return select_cases(Selection(inputs, **asked), lambda reference, is_of_user: bundle_named(reference))


def bundle_named(reference: str) -> Bundle:
    two = {"channel_names": ("T1", "FLAIR"), "in_channels": 2} if reference == "two" else {}
    return replace(read_bundle(), **two)


def keys(found: SelectedCases) -> list[str]:
    return [case.key for case in found.cases]


def codes(found: SelectedCases) -> dict[str, str]:
    return {one.key: one.code for one in (*found.skipped, *found.refused)}


ALL = ["MR_T1w_sagittal_003", "a_T1", "b_broken", "b_thorax_ct"]


def test_without_filters_everything_is_segmented_and_no_header_is_read(scans: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("napari_seg.cohort.select.facts_of", lambda scan: pytest.fail("read a header"))
    found = select(scans)
    assert sorted(keys(found)) == ALL
    assert found.skipped == found.refused == ()
    assert list(found.models) == [read_bundle().name]
    assert all(case.bundle is found.models[read_bundle().name] for case in found.cases)


@pytest.mark.parametrize(
    ("asked", "kept", "left_out"),
    [
        ({"modalities": ("MRI",)}, ["a_T1", "MR_T1w_sagittal_003"], {"b_thorax_ct": "cohort.modality"}),
        ({"modalities": ("ct",)}, ["b_thorax_ct"], dict.fromkeys(["a_T1", "MR_T1w_sagittal_003"], "cohort.modality")),
        ({"min_slices": 14}, ["a_T1", "b_thorax_ct", "MR_T1w_sagittal_003"], {}),
        ({"min_slices": 15}, [], dict.fromkeys(set(ALL) - {"b_broken"}, "cohort.slices")),
    ],
)
def test_filters_read_headers(scans: Path, asked: dict[str, Any], kept: list[str], left_out: dict[str, str]) -> None:
    found = select(scans, **asked)
    assert sorted(keys(found)) == sorted(kept)
    # a header that can't be read leaves nothing out: it is refused
    assert codes(found) == {**left_out, "b_broken": "file.not_nifti"}
    assert [one.key for one in found.refused] == ["b_broken"]


@pytest.mark.parametrize(
    ("asked", "left_out"),
    [
        # of DICOM the description of the series, of any other file the name; in upper or lower case
        ({"series": ("t1*",)}, {"b_thorax_ct": "cohort.series", "b_broken": "cohort.series"}),
        ({"series": ("*SAGITTAL",)}, dict.fromkeys(["a_T1", "b_thorax_ct", "b_broken"], "cohort.series")),
        ({"series": ("*.nii.gz",)}, {"MR_T1w_sagittal_003": "cohort.series"}),
        ({"exclude": ("b",)}, {"b_thorax_ct": "cohort.excluded", "b_broken": "cohort.excluded"}),
        ({"exclude": ("b/thorax*", "*sagittal*")}, dict.fromkeys(["b_thorax_ct", ALL[0]], "cohort.excluded")),
        ({"exclude": ("dicom/*",)}, {"MR_T1w_sagittal_003": "cohort.excluded"}),
        ({"exclude": ("scans*", "tmp", "pytest*")}, {}),  # folders above the input say nothing
    ],
)
def test_patterns_choose_by_names(scans: Path, asked: dict[str, Any], left_out: dict[str, str]) -> None:
    found = select(scans, **asked)
    assert codes(found) == left_out
    assert sorted([*keys(found), *left_out]) == ALL


def test_a_filter_changes_no_name(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        phantoms.write_series(phantoms.head(), tmp_path / folder / "dicom")
    assert keys(select(tmp_path / "a")) == ["MR_T1w_sagittal_003"]
    alone = select(tmp_path, exclude=("a",))
    assert set(keys(alone)) < set(keys(select(tmp_path)))


def test_each_case_is_segmented_once_by_each_model(scans: Path) -> None:
    found = select(scans / "a", scans / "a" / "T1.nii.gz", models=("", "liver:fast", "models/liver", ""))
    assert keys(found) == ["a_T1_hippocampus", "a_T1_fast", "a_T1_liver"]
    assert found.repeated == 1
    assert list(found.models) == [read_bundle().name, "liver:fast", "models/liver"]


def test_models_of_several_channels_get_their_own_cases(tmp_path: Path) -> None:
    for name in ("p1_T1", "p1_FLAIR"):
        phantoms.write_nifti(phantoms.head(), tmp_path / f"{name}.nii.gz")
    assert keys(select(tmp_path, models=("", "two"))) == ["p1_FLAIR_hippocampus", "p1_T1_hippocampus", "p1_two"]


def test_rules_choose_models_and_the_first_that_matches_wins(scans: Path, tmp_path: Path) -> None:
    rules = tmp_path / "rules.csv"
    titles = "modality,series,min_slices,max_thickness_mm,model"
    rules.write_text("\n".join([titles, "MR,,15,,never", "MR,T1,,2.4,never", "MR,*sag*,,,one|three", "CT,,,,skip"]))
    found = select(scans, rules=read_rules(rules))
    name = "MR_T1w_sagittal_003"
    assert keys(found) == [f"{name}_one", f"{name}_three"]
    assert codes(found) == {"a_T1": "cohort.no_rule", "b_thorax_ct": "cohort.rule_skips", "b_broken": "file.not_nifti"}
    messages = {one.key: one.message for one in found.skipped}
    assert messages["b_thorax_ct"] == "the rule in line 5 leaves it out"
    assert messages["a_T1"] == "no rule matches: its modality is MR, and it has 14 slices"


def test_a_list_names_cases_and_models_and_a_missing_file_is_one_failed_case(scans: Path, tmp_path: Path) -> None:
    table = scans / "cases.tsv"
    table.write_text("path\tname\tmodel\na/T1.nii.gz\tfirst\t\nmissing.nii.gz\t\t\nsub-02/dicom\tsecond\tother\n")
    found = select(table)
    table.unlink()
    assert keys(found) == ["first", "second"]
    assert [one.code for one in found.refused] == ["input.missing"]
    assert found.refused[0].key == "missing"
    assert list(found.models) == [read_bundle().name, "other"]


def test_inputs_that_can_not_be_searched_are_told_apart(scans: Path) -> None:
    inputs = tuple(scans / name for name in ("a", "x/images", "y/images"))
    found = select(*inputs)
    assert [(one.key, one.code, one.message) for one in found.faults] == [
        (name, "input.missing", f"{name} does not exist; check the path") for name in ("x/images", "y/images")
    ]
    (alone,) = select(inputs[1]).faults
    assert alone.key == "images"


def test_names_of_inputs_that_can_not_be_searched_give_no_patient_away(tmp_path: Path) -> None:
    patient = tmp_path / "CANARY_Tweety_CAN4711"
    phantoms.write_series(phantoms.head(), patient / "dicom")
    (patient / "Tweety list.csv").write_text("no,column,of,paths\n1,2,3,4\n")
    missing = patient / "Tweety visit" / "images", tmp_path / "Tweety"
    found = select(patient / "dicom", *missing, patient / "Tweety list.csv")
    assert [one.key for one in found.faults] == ["visit/images", "input", "list.csv"]
    assert found.faults[0].message == "visit/images does not exist; check the path"
    assert not [word for word in phantoms.CANARIES if word.lower() in repr(found.faults).lower()]


def test_the_name_of_an_input_replaces_its_path_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (fault,) = select(Path("e")).faults
    assert fault.message == "e does not exist; check the path"
    (tmp_path / "x").mkdir()
    monkeypatch.chdir(tmp_path / "x")
    (fault, _) = select(Path("e"), tmp_path / "gone").faults
    assert fault.message == "x/e does not exist; check the path"


def test_consent_that_a_user_gives_does_not_hold_for_models_that_a_file_names(scans: Path, tmp_path: Path) -> None:
    asked: list[tuple[str, bool]] = []

    def model_of(reference: str, is_of_user: bool) -> Bundle:
        asked.append((reference, is_of_user))
        if reference and not is_of_user:
            raise BundleError("bundle.untrusted", "its code was never trusted")
        return read_bundle()

    (tmp_path / "evil" / "configs").mkdir(parents=True)
    (tmp_path / "cases.csv").write_text(f"path,model\n{scans / 'a' / 'T1.nii.gz'},evil\n")
    (tmp_path / "rules.csv").write_text("modality,model\n,evil\n")
    for selection in (
        Selection((tmp_path / "cases.csv",)),
        Selection((scans,), rules=read_rules(tmp_path / "rules.csv")),
    ):
        with pytest.raises(BundleError, match=r"bundle\.untrusted"):
            select_cases(selection, model_of)
        assert asked[-1] == (str(tmp_path / "evil"), False)
    select_cases(Selection((scans,), models=("mine",)), model_of)
    assert asked[-1] == ("mine", True)


def test_reasons_and_names_give_no_patient_away(tmp_path: Path) -> None:
    patient = tmp_path / "CANARY_Tweety_CAN4711"
    phantoms.write_series(phantoms.head(), patient / "Tweety visit" / "dicom")
    for layout in ("flat", "mirror"):
        for asked in ({}, {"series": ("x",)}, {"exclude": ("*Tweety*",)}, {"min_slices": 99}, {"modalities": ("CT",)}):
            found = select(tmp_path, layout=layout, **asked)
            told = " ".join(
                [*(f"{case.key} {case.source}" for case in found.cases), *map(repr, (*found.skipped, *found.refused))]
            )
            assert not [one for one in phantoms.CANARIES if one.lower() in told.replace("*Tweety*", "").lower()]
