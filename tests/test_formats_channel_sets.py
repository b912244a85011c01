"""Scans of a folder are grouped into cases of several channels, and nothing is guessed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import phantoms
import pytest
from PIL import Image
from pydicom.dataset import Dataset

from napari_seg.cohort.discover import find_cases
from napari_seg.errors import InputError
from napari_seg.formats.channels import ChannelSet
from napari_seg.formats.nifti import write_volume
from napari_seg.volume import Volume

BRATS = ("T1c", "T1", "T2", "FLAIR")


def write(head: Volume, *paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        phantoms.write_nifti(head, path)


def cases(folder: Path, names: tuple[str, ...] = BRATS) -> dict[str, dict[str, str]]:
    """Case -> channel -> path of its first file in the folder."""
    found = {}
    for case in find_cases([folder], names)[0]:
        channels = case.scan.channels if isinstance(case.scan, ChannelSet) else (("", case.scan),)
        found[case.name] = {name: scan.files[0].relative_to(folder).as_posix() for name, scan in channels}
    return found


def problem(folder: Path, names: tuple[str, ...] = BRATS) -> InputError:
    (case,) = find_cases([folder], names)[0]
    with pytest.raises(InputError) as caught:
        case.scan.read()
    return caught.value


def test_numbered_files_of_nnunet(tmp_path: Path, head: Volume) -> None:
    folder = tmp_path / "imagesTs"
    write(head, *(folder / f"{case}_{n:04d}.nii.gz" for case in ("liver_1", "liver_2") for n in range(4)))
    found = cases(folder)
    assert list(found) == ["liver_1", "liver_2"]
    assert found["liver_2"] == {name: f"liver_2_{n:04d}.nii.gz" for n, name in enumerate(BRATS)}


def test_names_of_bids(tmp_path: Path, head: Volume) -> None:
    for subject in ("sub-01", "sub-02"):
        for suffix in ("T1w", "ce-gd_T1w", "T2w", "FLAIR"):
            write(head, tmp_path / subject / "anat" / f"{subject}_{suffix}.nii.gz")
    found = cases(tmp_path)
    assert list(found) == ["sub-01", "sub-02"]
    assert found["sub-02"] == {
        "T1c": "sub-02/anat/sub-02_ce-gd_T1w.nii.gz",
        "T1": "sub-02/anat/sub-02_T1w.nii.gz",
        "T2": "sub-02/anat/sub-02_T2w.nii.gz",
        "FLAIR": "sub-02/anat/sub-02_FLAIR.nii.gz",
    }


def test_names_of_brats_and_a_folder_for_each_case(tmp_path: Path, head: Volume) -> None:
    for case in ("BraTS-GLI-00001-000", "BraTS-GLI-00002-000"):
        folder = tmp_path / "brats" / case
        write(head, *(folder / f"{case}-{end}.nii.gz" for end in ("t1c", "t1n", "t2w", "t2f", "seg")))
    write(head, *(tmp_path / "plain" / "p1" / f"{name}.nii.gz" for name in ("T1ce", "T1", "T2", "flair")))
    assert list(cases(tmp_path / "brats")) == ["BraTS-GLI-00001-000", "BraTS-GLI-00002-000"]
    assert cases(tmp_path / "plain")["p1"]["T1c"] == "p1/T1ce.nii.gz"
    assert list(cases(tmp_path / "plain" / "p1")) == ["p1"]


def test_every_image_is_in_one_case(tmp_path: Path, head: Volume) -> None:
    write(head, *(tmp_path / f"{case}_{name}.nii" for case in ("a", "b") for name in ("t1c", "t1", "t2", "flair")))
    write(head, tmp_path / "BRATS_007.nii.gz")  # may hold four volumes
    found = cases(tmp_path)
    assert list(found) == ["BRATS_007", "a", "b"]
    assert found["BRATS_007"] == {"": "BRATS_007.nii.gz"}


def test_a_model_with_one_channel_takes_each_scan_alone(tmp_path: Path, head: Volume) -> None:
    write(head, tmp_path / "a_T1.nii", tmp_path / "a_T2.nii")
    assert list(cases(tmp_path, ("T1",))) == ["a_T1", "a_T2"]
    assert list(cases(tmp_path, ())) == ["a_T1", "a_T2"]


def test_numbers_of_cases_are_no_channels(tmp_path: Path, head: Volume) -> None:
    write(head, *(tmp_path / f"case_{n:04d}.nii.gz" for n in (0, 1, 2, 3, 7)), tmp_path / "other_0000.nii.gz")
    assert len(cases(tmp_path)) == 6


def test_numbered_files_with_several_volumes_are_cases(tmp_path: Path, head: Volume) -> None:
    four = replace(head, array=np.concatenate([head.array] * 4))
    for number in range(4):
        write_volume(four, tmp_path / f"case_{number:04d}.nii.gz")
    assert list(cases(tmp_path)) == [f"case_{number:04d}" for number in range(4)]


def test_a_missing_channel_is_refused_with_what_was_found(tmp_path: Path, head: Volume) -> None:
    write(head, tmp_path / "a_t1.nii", tmp_path / "a_flair.nii")
    error = problem(tmp_path)
    assert error.code == "channels.missing"
    assert "no image for T1c, T2; found T1, FLAIR; the model expects T1c, T1, T2, FLAIR" in error.message


def test_two_images_of_one_channel_are_refused_with_both(tmp_path: Path, head: Volume) -> None:
    write(head, *(tmp_path / f"sub-1_{name}.nii" for name in ("run-1_T1w", "run-2_T1w", "ce-gd_T1w", "T2w", "FLAIR")))
    error = problem(tmp_path)
    assert error.code == "channels.ambiguous"
    assert "T1: sub-1_run-1_T1w, sub-1_run-2_T1w" in error.message


@pytest.mark.parametrize(
    ("files", "candidates"),
    [
        (("T1", "T1c", "T2", "T2_b", "FLAIR"), "(T2: T2, T2_b)"),
        (("T1", "T1c", "ax_T2", "cor_T2", "FLAIR"), "(T2: ax_T2, cor_T2)"),
        (("ax_T1", "ax_T1c", "ax_T2", "cor_T2", "ax_FLAIR"), "(T2: ax_T2, cor_T2)"),
        (("x_ax_T1_pre", "x_ax_T1_post", "x_ax_T2", "x_cor_T2", "x_FLAIR"), "(T2: x_ax_T2, x_cor_T2)"),
        (("x_T1", "x_T1c", "x_T2", "x_FLAIR", "x_FLAIR_old"), "(FLAIR: x_FLAIR, x_FLAIR_old)"),
        (("x_T1", "x_T1c", "x_T2", "T2", "x_FLAIR"), "(T2: T2, x_T2)"),
        (("T2", "T2_b"), "(T2: T2, T2_b)"),
        (("a_T1", "a_T1c", "b_T2", "c_T2", "a_FLAIR"), "(T2: b_T2, c_T2)"),
    ],
)
def test_a_second_image_of_a_channel_is_no_case_of_its_own(
    tmp_path: Path, head: Volume, files: tuple[str, ...], candidates: str
) -> None:
    write(head, *(tmp_path / "p" / f"{name}.nii" for name in files))
    error = problem(tmp_path)
    assert error.code == "channels.ambiguous"
    assert candidates in error.message


def test_images_without_a_common_name_are_refused(tmp_path: Path, head: Volume) -> None:
    write(head, *(tmp_path / f"{name}.nii" for name in ("a_T1", "b_T1c", "a_T2", "b_FLAIR")))
    error = problem(tmp_path)
    assert error.code == "channels.ambiguous"
    assert "the names of the images (a_T1, a_T2, b_FLAIR, b_T1c) do not say that they are of one case" in error.message


def test_a_case_with_all_channels_does_not_suffer_from_another_one(tmp_path: Path, head: Volume) -> None:
    names = ("t1c", "t1", "t2", "flair")
    write(head, *(tmp_path / f"BraTS_{n}_{name}.nii" for n in ("001", "002") for name in names))
    write(head, *(tmp_path / f"BraTS_003_{name}.nii" for name in names[:3]), tmp_path / "BraTS_002_t2_old.nii")
    found = {case.name: case.scan.problem for case in find_cases([tmp_path], BRATS)[0]}
    codes = {name: error.code if error else "" for name, error in found.items()}
    assert codes == {"BraTS_001": "", "BraTS_002": "channels.ambiguous", "BraTS_003": "channels.missing"}


def test_sessions_of_bids_in_one_folder_are_cases(tmp_path: Path, head: Volume) -> None:
    ends = ("ce-gd_T1w", "T1w", "T2w", "FLAIR")
    write(head, *(tmp_path / f"sub-01_{end}.nii" for end in ends), tmp_path / "sub-01_ses-2_T2w.nii")
    found = find_cases([tmp_path], BRATS)[0]
    assert [(case.name, case.scan.problem and case.scan.problem.code) for case in found] == [
        ("sub-01", None),
        ("sub-01_ses-2", "channels.missing"),
    ]


def test_incomplete_cases_of_one_folder_stay_apart(tmp_path: Path, head: Volume) -> None:
    write(head, *(tmp_path / f"{case}_{name}.nii" for case in "ab" for name in ("t1", "t2")))
    assert list(cases(tmp_path)) == ["a", "b"]


def test_2d_images_are_no_channels_unless_they_are_numbered(tmp_path: Path) -> None:
    for name in ("p1", "p2_0000", "x_0000", "x_0001", "x_0002"):
        Image.new("L", (9, 7)).save(tmp_path / f"{name}.png")
    found = cases(tmp_path, ("R", "G", "B"))
    assert list(found) == ["p1", "p2_0000", "x"]
    assert find_cases([tmp_path], ("R", "G", "B"))[0][2].scan.read().array.shape == (3, 9, 7, 1)


def study(study_uid: str, agent: str = "") -> Callable[[int, Dataset], None]:
    def edit(k: int, dataset: Dataset) -> None:
        dataset.StudyInstanceUID, dataset.FrameOfReferenceUID = study_uid, f"{study_uid}.1"
        dataset.PatientID, dataset.PatientName = "secret", "Secret^Name"
        dataset.ContrastBolusAgent = agent

    return edit


def test_series_of_a_study_are_chosen_by_their_descriptions(tmp_path: Path, head: Volume) -> None:
    for number, text in enumerate(("t1_se_tra", "t1 mprage", "AX T2", "T2 FLAIR", "DWI"), start=1):
        edit = study("1.2.3", agent="Gadovist" if text == "t1 mprage" else "")
        phantoms.write_series(head, tmp_path / "p" / text, edit=edit, description=text, number=number)
    found = cases(tmp_path)
    assert list(found) == ["p"]
    assert [path.split("/")[1] for path in found["p"].values()] == ["t1 mprage", "t1_se_tra", "AX T2", "T2 FLAIR"]


def test_two_series_of_one_kind_are_refused_without_a_name_of_the_patient(tmp_path: Path, head: Volume) -> None:
    for number, text in enumerate(("AX T1", "SAG T1 secret", "T1 POST", "T2", "FLAIR"), start=1):
        phantoms.write_series(head, tmp_path / "p" / text, edit=study("1.2.3"), description=text, number=number)
    error = problem(tmp_path)
    assert error.code == "channels.ambiguous"
    assert "T1: MR_AX_T1_001, MR_SAG_T1_002" in error.message
    assert "secret" not in error.message.casefold()


def test_a_study_without_any_channel_is_one_refused_case(tmp_path: Path, head: Volume) -> None:
    for number, text in enumerate(("DWI", "ADC"), start=1):
        phantoms.write_series(head, tmp_path / "p" / text, edit=study("1.2.3"), description=text, number=number)
    error = problem(tmp_path)
    assert error.code == "channels.missing"
    assert "found none; its other images are MR_ADC_002, MR_DWI_001" in error.message
