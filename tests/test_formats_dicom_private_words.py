"""Names of files, series and folders without the words that name patients and other people."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
import pytest
from phantoms import CANARIES, write_series
from pydicom.dataset import Dataset

from napari_seg.errors import InputError
from napari_seg.formats.dicom.headers import read_header
from napari_seg.formats.dicom.private_words import label_of, public_name
from napari_seg.formats.dicom.series import series_name
from napari_seg.formats.find import find, find_scans
from napari_seg.volume import Volume

TAGS = {"PatientName": "Canary^Tweety", "PatientID": "CAN4711", "ReferringPhysicianName": "Birdhouse^Anna"}


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("IM-0001", "IM-0001"),
        ("IM-0001.dcm", "IM-0001.dcm"),
        ("CANARY_TWEETY.0001.dcm", "0001.dcm"),
        ("tweety canary T1 7.IMA", "T1_7.IMA"),
        ("can4711-3", "3"),
        ("AnnaBirdhouse_12.dcm", "12.dcm"),
        ("Canary.dcm", "instance 12"),
    ],
)
def test_the_label_of_a_file_has_no_private_words(name: str, label: str) -> None:
    assert label_of(Path(name), TAGS | {"InstanceNumber": 12}) == label


@pytest.mark.parametrize(
    ("tags", "name", "public"),
    [
        ({"PatientName": "Müller^Hans"}, "Mueller_Hans_CT", "CT"),
        ({"PatientName": "MUELLER^HANS"}, "Müller, Hans CT", "CT"),
        ({"PatientName": "MULLER^HANS"}, "Mueller Hans CT", "CT"),
        ({"PatientName": "Sørensen^Åse"}, "Soerensen_Aase_CT", "CT"),
        ({"PatientName": "Sørensen^Åse"}, "Sorensen_Ase_CT", "CT"),
        ({"PatientName": "Michałowski^Jan"}, "Michalowski_Jan_CT", "CT"),
        ({"PatientName": "Strauß^Eva"}, "strauss eva CT", "CT"),
        ({"PatientBirthDate": "19650312"}, "12.03.1965_CT", "CT"),
        ({"PatientBirthDate": "19650312"}, "1965-3-12 CT", "CT"),
        ({"PatientBirthDate": "19650312"}, "CT_7_12_03_65", "CT_7"),
        ({"PatientBirthDate": "19650312"}, "120365-CT", "CT"),
        ({"PatientBirthDate": "19650312"}, "CT_2020-03-12", "CT_2020-03-12"),
        ({"PatientID": "0004711"}, "4711_CT", "CT"),
        ({"PatientID": "4711"}, "0004711_CT", "CT"),
        ({"PatientID": "0007"}, "CT_7", "CT_7"),
        ({"PatientName": "Doe^Jon"}, "JonDoe7 xdoe_CT", "CT"),
        ({"PatientName": "Maas^Jo"}, "breast_mass_masked", "breast_mass_masked"),
        ({"PatientID": "0047"}, "0047001_CT", "CT"),
        ({"PatientBirthDate": "20000102"}, "kernel_B102_IM1024", "kernel_B102_IM1024"),
        ({"PatientName": "Rae^Lu"}, "brain_aorta_lung_CT", "brain_aorta_lung_CT"),
    ],
)
def test_names_and_numbers_are_private_in_every_spelling(tags: dict[str, str], name: str, public: str) -> None:
    assert public_name(name, tags) == public


@pytest.mark.parametrize(
    ("name", "public"),
    [
        ("1.2.840.113619.2.55.3.604688", "uid861be5f3"),
        ("CT.1.2.840.113619.2.55.3.604688 brain", "CT.uid861be5f3 brain"),
        ("1.2.3", "uid"),  # the series of the header
        ("2.10.0", "2.10.0"),
        ("2026.11.29", "2026.11.29"),
        ("T1_0.5mm.1.2.840.12345", "T1_0.5mm.1.2.840.12345"),
    ],
)
def test_identifiers_become_digests(name: str, public: str) -> None:
    found = public_name(name, {"SeriesInstanceUID": "1.2.3"})
    assert found == public or (public == "uid" and re.fullmatch("uid[0-9a-f]{8}", found))


def test_a_file_named_by_an_identifier_is_named_by_its_number() -> None:
    assert label_of(Path("1.2.840.113619.2.55.3.604688.dcm"), {"InstanceNumber": 7}) == "instance 7"


def test_a_description_states_no_date_of_birth() -> None:
    tags = {"Modality": "CT", "SeriesDescription": "Abdomen Mueller geb 12.03.1965", "SeriesNumber": 3}
    assert series_name(tags | {"PatientName": "Müller^Hans", "PatientBirthDate": "19650312"}) == "CT_Abdomen_geb_003"


@pytest.mark.parametrize(
    "keyword",
    [
        "ReferringPhysicianName",
        "RequestingPhysician",
        "PhysiciansOfRecord",
        "NameOfPhysiciansReadingStudy",
        "ReviewerName",
    ],
)
def test_words_of_all_persons_are_private(tmp_path: Path, head: Volume, keyword: str) -> None:
    def name(k: int, dataset: Dataset) -> None:
        setattr(dataset, keyword, "Sparrow^Jack")

    write_series(head, tmp_path, description="T1w for Dr Sparrow", edit=name)
    (scan,) = find_scans(tmp_path)
    assert scan.name == "MR_T1w_for_Dr_003"
    assert public_name("Jack Sparrow 2020", read_header(scan.files[0]).tags) == "2020"


def spoil_nothing(paths: list[Path]) -> None:
    pass


def cut_header(paths: list[Path]) -> None:
    paths[5].write_bytes(paths[5].read_bytes()[:300])


def cut_pixels(paths: list[Path]) -> None:
    paths[5].write_bytes(paths[5].read_bytes()[:-100])


def drop(paths: list[Path]) -> None:
    paths[5].unlink()


def empty(paths: list[Path]) -> None:
    paths[5].write_bytes(b"")


def edit_one(keyword: str, value: Any) -> Callable[[list[Path]], None]:
    def edit(paths: list[Path]) -> None:
        dataset = pydicom.dcmread(paths[5])
        setattr(dataset, keyword, value)
        dataset.save_as(paths[5])

    return edit


@pytest.mark.parametrize(
    "spoil",
    [
        spoil_nothing,
        cut_header,
        cut_pixels,
        drop,
        empty,
        edit_one("Modality", "SR"),
        edit_one("PixelSpacing", [0, 1]),
        edit_one("PhotometricInterpretation", "RGB"),
        edit_one("ImageType", ["DERIVED"]),
        edit_one("ImagePositionPatient", [0, 0, 0]),
        edit_one("Rows", 13),
        edit_one("RescaleSlope", 0),
        edit_one("ModalityLUTSequence", [Dataset()]),
    ],
)
def test_no_message_quotes_a_file_name_that_is_a_patients(
    tmp_path: Path, head: Volume, spoil: Callable[[list[Path]], None], caplog: pytest.LogCaptureFixture
) -> None:
    paths = write_series(head, tmp_path, file_name="Canary^Tweety_CAN4711_{:04d}.dcm")
    spoil(paths)
    found = find(tmp_path)
    texts = [one.message for one in found.skipped]
    for scan in found.scans:
        texts.append(scan.name)
        try:
            volume = scan.read()
            texts += [volume.name, *map(str, volume.notices)]
        except InputError as error:
            texts.append(str(error))
    text = " ".join([*texts, caplog.text]).lower()
    assert not any(canary.lower() in text for canary in CANARIES), text
