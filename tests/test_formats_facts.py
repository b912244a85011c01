"""What headers state, without reading voxels."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import phantoms
import pytest
from PIL import Image

from napari_seg.errors import InputError
from napari_seg.formats.facts import facts_of, modality_code
from napari_seg.formats.find import find_scans


def facts(path: Path) -> Any:
    (scan,) = find_scans(path)
    return facts_of(scan)


def test_a_dicom_series_states_everything(tmp_path: Path) -> None:
    import pydicom

    phantoms.write_series(phantoms.head(), tmp_path / "series")
    for file in (tmp_path / "series").iterdir():
        dataset = pydicom.dcmread(file)
        dataset.BodyPartExamined, dataset.SliceThickness, dataset.SpacingBetweenSlices = "BRAIN", 2.0, 2.5
        dataset.save_as(file)
    found = facts(tmp_path / "series")
    assert (found.modality, found.series, found.body_part) == ("MR", "T1w sagittal", "BRAIN")
    assert (found.shape, found.slices, found.voxels) == ((20, 26, 14), 14, 20 * 26 * 14)
    assert found.thickness_mm == 2.0
    assert "T1w" not in repr(found)  # a description may name a patient


def test_an_enhanced_object_counts_its_frames(tmp_path: Path) -> None:
    found = facts(phantoms.write_enhanced(phantoms.head(), tmp_path / "enhanced.dcm"))
    assert (found.modality, found.shape) == ("MR", (20, 26, 14))


@pytest.mark.parametrize(("name", "modality"), [("case_T1w", "MR"), ("a-ct", "CT"), ("ct_t1", ""), ("contact", "")])
def test_a_nifti_file_states_its_modality_in_its_name(tmp_path: Path, name: str, modality: str) -> None:
    found = facts(phantoms.write_nifti(phantoms.head(), tmp_path / f"{name}.nii.gz"))
    assert (found.modality, found.series, found.body_part) == (modality, "", "")
    assert found.shape == (20, 26, 14)
    assert found.thickness_mm == pytest.approx(2.5)


def test_the_json_of_a_converter_states_more(tmp_path: Path) -> None:
    path = phantoms.write_nifti(phantoms.head(), tmp_path / "ct.nii.gz")
    beside = {"Modality": "MR", "SeriesDescription": "T1 mprage", "BodyPartExamined": "Brain"}
    (tmp_path / "ct.json").write_text(json.dumps(beside))
    found = facts(path)
    assert (found.modality, found.series, found.body_part) == ("MR", "T1 mprage", "BRAIN")
    for broken in ("[" * 100_000, "[]", "\udcff{", "{"):
        (tmp_path / "ct.json").write_text(broken, errors="surrogateescape")
        assert facts(path).modality == "CT"


def test_nrrd_metaimage_and_2d_images_state_their_size(tmp_path: Path) -> None:
    import SimpleITK

    image = SimpleITK.Image(4, 5, 6, SimpleITK.sitkInt16)
    image.SetSpacing((1.0, 2.0, 3.0))
    colour = SimpleITK.Image([4, 5, 6], SimpleITK.sitkVectorUInt8, 3)
    colour.SetSpacing((1.0, 2.0, 3.0))
    for number, one in enumerate((image, colour)):
        for ending in ("nrrd", "mha"):
            SimpleITK.WriteImage(one, str(tmp_path / f"{number}.{ending}"))
            found = facts(tmp_path / f"{number}.{ending}")
            assert (found.shape, found.thickness_mm) == ((4, 5, 6), 3.0)
    Image.new("L", (7, 8)).save(tmp_path / "a.png")
    found = facts(tmp_path / "a.png")
    assert found.shape == (7, 8, 1)
    assert math.isnan(found.thickness_mm)


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii", "a.nrrd", "a.mha", "a.png", "a.dcm"])
def test_a_damaged_header_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"no scan" * 100)
    with pytest.raises(InputError):
        facts(tmp_path / name)


def test_a_modality_has_one_code() -> None:
    assert [modality_code(word) for word in ("mri", "PET", " ct ", "US")] == ["MR", "PT", "CT", "US"]
