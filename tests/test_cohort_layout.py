"""Where results lie: flat, as the inputs, or as BIDS requires; no two cases share a file on any file system."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from napari_seg.bundles.read import read_bundle
from napari_seg.cohort.layout import (
    DERIVATIVES,
    Places,
    files_of_layout,
    files_to_write,
    folder_name,
    short_model_names,
)
from napari_seg.cohort.naming import NamedScan, compared
from napari_seg.errors import CohortError, InputError
from napari_seg.formats.scan import Scan
from napari_seg.version import __version__


def scan(stem: str, *folders: str) -> NamedScan:
    file = Path(*folders, f"{stem}.nii.gz")
    return NamedScan(
        Scan(stem, "nifti", (file,)),
        "_".join([*folders, stem]),
        stem,
        folders,
        file.as_posix(),
        str(file),
    )


def spots(layout: Any, *scans: NamedScan, model: str = "") -> list[str]:
    places = Places(layout)
    found = [places.take(one, model) for one in scans]
    return [f"{(one.folder / one.name).as_posix()}{one.suffix}" for one in found]


def test_flat_puts_all_results_into_one_folder() -> None:
    assert spots("flat", scan("T1", "a"), scan("T1", "b"), model="m") == ["a_T1_seg", "b_T1_seg"]
    spot = Places("flat").take(scan("T1", "a"), "liver", is_one_of_several=True)
    assert (spot.folder, spot.name) == (PurePosixPath(), "a_T1_liver")


def test_mirror_keeps_the_folders_of_the_input() -> None:
    found = spots("mirror", scan("T1", "a", "x"), scan("T1", "b"), scan("t1", "B"), scan("T1"))
    assert found == ["a/x/T1_seg", "b/T1_seg", "B/t1_2_seg", "T1_seg"]


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("site a", "site a"),
        ("1.2.840.113619", "1.2.840.113619"),
        (".napari-seg", "napari-seg"),  # the folder of a run for unfinished files
        ("..", "unnamed"),
        ("a.", "a"),
        ("manifest.sqlite", "manifest_sqlite"),  # files of a run and of its cases
        ("report.html", "report_html"),
        ("a_seg.nii.gz", "a_seg.nii_gz"),
        ("a_seg.png", "a_seg_png"),
        ('a:b"c', "a_b_c"),
    ],
)
def test_a_folder_never_has_the_name_of_a_file_of_the_run(name: str, folder: str) -> None:
    assert folder_name(name) == folder
    assert spots("mirror", scan("T1", name)) == [f"{folder}/T1_seg"]


def test_bids_names_the_results_as_derivatives() -> None:
    found = spots(
        "bids",
        scan("sub-01_ses-1_acq-mprage_run-2_T1w", "sub-01", "ses-1", "anat"),
        scan("sub-01_ses-1_T2w", "sub-01", "ses-1", "anat"),
        scan("T1", "sub-02"),
        scan("MR_T1w_sagittal_003", "sourcedata", "sub-03", "ses-b", "dicom"),
        scan("sub-04_bold", "sub-04", "func"),
        scan("sub-01_ses-1_desc-preproc_T1w", "sub-01", "ses-1", "anat"),
        scan("sub-05_trc-FDG_pet", "sub-05", "pet"),
        model="total-fast",
    )
    assert found == [
        f"derivatives/napari-seg/{name}_dseg"
        for name in (
            "sub-01/ses-1/anat/sub-01_ses-1_acq-mprage_run-2_seg-totalfast_desc-T1w",
            "sub-01/ses-1/anat/sub-01_ses-1_seg-totalfast_desc-T2w",
            "sub-02/anat/sub-02_seg-totalfast_desc-T1",
            "sub-03/ses-b/anat/sub-03_ses-b_seg-totalfast_desc-MRT1wsagittal003",
            "sub-04/func/sub-04_seg-totalfast_desc-bold",
            "sub-01/ses-1/anat/sub-01_ses-1_seg-totalfast_desc-preprocT1w",
            "sub-05/pet/sub-05_trc-FDG_seg-totalfast_desc-pet",
        )
    ]
    entity = r"[a-z]+-[A-Za-z0-9]+"
    for name in found:
        assert re.fullmatch(rf"sub-[A-Za-z0-9]+(_{entity})*_dseg", name.rpartition("/")[2])


def test_two_series_with_one_name_differ_in_their_description() -> None:
    same = [scan("T1", "sub-01", folder) for folder in ("x", "y", "z")]
    assert [one.rpartition("_desc-")[2] for one in spots("bids", *same)] == ["T1_dseg", "T12_dseg", "T13_dseg"]


@pytest.mark.parametrize("folders", [("a",), ("sub-",), ("sub-01 ",), ("sub_01",), ("xsub-01",)])
def test_bids_without_a_subject_is_refused(folders: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match=r"cohort\.not_bids.*sub-01"):
        spots("bids", scan("T1", *folders))


def test_contradictory_subjects_are_refused() -> None:
    for one in (scan("sub-01_T1w", "sub-02", "anat"), scan("sub-01_ses-1_T1w", "sub-01", "ses-2", "anat")):
        with pytest.raises(InputError, match=r"cohort\.not_bids.*in its name and .*in its folders"):
            spots("bids", one)


def test_models_whose_names_differ_by_a_dash_have_tables_of_their_own() -> None:
    bundle = read_bundle()
    names = short_model_names([(one, bundle) for one in ("my-model", "mymodel", "my_model")])
    assert names == ["my-model", "mymodel-2", "my-model-3"]
    assert len(files_of_layout("bids", dict.fromkeys(names, bundle))) == 2 + 3


def test_bids_requires_a_description_and_the_names_of_labels() -> None:
    bundle = read_bundle()
    files = files_of_layout("bids", {"hippo-campus": bundle})
    description = json.loads(files[DERIVATIVES / "dataset_description.json"])
    assert description["DatasetType"] == "derivative"
    assert description["GeneratedBy"][0]["Name"] == "napari-seg"
    assert {"Name", "BIDSVersion"} <= set(description)
    rows = files[DERIVATIVES / "seg-hippocampus_dseg.tsv"].splitlines()
    assert rows[0].split("\t") == ["index", "name", "color"]
    assert [row.split("\t")[:2] for row in rows[1:]] == [[str(s.label), s.name] for s in bundle.segments]
    assert files_of_layout("mirror", {"a": bundle}) == {}


def test_a_table_of_labels_is_replaced_only_if_no_result_needs_it(tmp_path: Path) -> None:
    bundle = read_bundle()
    files = files_of_layout("bids", {"hip": bundle})
    table = DERIVATIVES / "seg-hip_dseg.tsv"
    key = str(DERIVATIVES / "sub-01" / "anat" / "sub-01_seg-hip_desc-T1w")
    assert files_to_write(tmp_path, files, [key]) == files
    (tmp_path / DERIVATIVES).mkdir(parents=True)
    for path, text in files.items():
        (tmp_path / path).write_text(f"{text}99\tmine\t#000000\n")
    assert files_to_write(tmp_path, files, [key]) == {}
    other = files_of_layout("bids", {"hip": replace(bundle, segments=bundle.segments[::-1][:1])})
    assert files_to_write(tmp_path, other, [key]) == {}  # the same names
    named = [replace(one, name=f"other {one.name}") for one in bundle.segments]
    other = files_of_layout("bids", {"hip": replace(bundle, segments=tuple(named))})
    with pytest.raises(CohortError, match=r"cohort\.changed.*1 result other names"):
        files_to_write(tmp_path, other, [key])
    assert files_to_write(tmp_path, other, [key.replace("hip", "hippocampus")]) == {table: other[table]}


def test_a_description_lists_each_version_that_made_results_once(tmp_path: Path) -> None:
    files = files_of_layout("bids", {})
    path = DERIVATIVES / "dataset_description.json"
    (tmp_path / DERIVATIVES).mkdir(parents=True)
    description = json.loads(files[path]) | {
        "Name": "mine",
        "GeneratedBy": [{"Name": "napari-seg", "Version": "0.0.1"}],
    }
    (tmp_path / path).write_text(json.dumps(description))
    assert path not in files_to_write(tmp_path, files, [], has_new=False)
    written = files_to_write(tmp_path, files, [])[path]
    (tmp_path / path).write_text(written)
    found = json.loads(written)
    assert found["Name"] == "mine"
    assert [one["Version"] for one in found["GeneratedBy"]] == ["0.0.1", __version__]
    assert path not in files_to_write(tmp_path, files, [])
    for broken in ("{", "[]", '{"GeneratedBy": "me"}'):
        (tmp_path / path).write_text(broken)
        assert path not in files_to_write(tmp_path, files, [])
    (tmp_path / path).write_bytes(json.dumps(description | {"Name": "Jürgen"}, ensure_ascii=False).encode("latin-1"))
    assert path not in files_to_write(tmp_path, files, [])


def test_short_names_of_models_come_from_what_a_user_gives() -> None:
    bundle = read_bundle()
    given = ["", "totalsegmentator:total", "/models/Liver_v2/", r"C:\models\liver v2", "folder:3d_fullres@0,1"]
    names = short_model_names([(one, bundle) for one in given])
    assert names == ["hippocampus", "total", "liver-v2", "liver-v2-2", "3d-fullres-0-1"]
    with_improved = [("totalsegmentator:total+/models/a+C:\\models\\b", bundle), ("totalsegmentator:total+a", bundle)]
    assert short_model_names(with_improved) == ["total-a-b", "total-a"]


@pytest.mark.parametrize("layout", ["flat", "mirror", "bids"])
def test_no_two_cases_have_a_file_in_common_on_any_file_system(layout: Any) -> None:
    words = ["a", "A", "\u00e9", "e\u0301", "a_seg", "a_2", "a_2_2", "sub-1_a"]
    scans = [scan(stem, "sub-1", folder) for stem in words for folder in (*words, "a_seg.png", "a_seg_png")] * 2
    found = [compared(one) for one in spots(layout, *scans)]
    assert len(set(found)) == len(scans)
    files = {f"{one}{ending}" for one in found for ending in (".nii.gz", ".png", ".json", "_confidence.nii.gz")}
    folders = {str(parent) for one in found for parent in PurePosixPath(one).parents}
    assert not files & folders
