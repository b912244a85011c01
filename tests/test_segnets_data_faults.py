"""Test the check before training: all faults in one report, each file read once, and damaged files."""

from __future__ import annotations

import gzip
import json
import logging
import os
import re
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from napari_seg.bundles.read import shipped_root

sys.path.insert(0, str(shipped_root()))

from segnets.data import ClassValues, Split, check, convert_image, file_facts, find_dataset
from segnets.errors import TrainingError

CLASSES = {"0": "background", "1": "front", "2": "back"}
AFFINE = np.array([[0, -1.25, 0, 8], [1.5, 0, 0, -21], [0, 0, 2.5, 33], [0, 0, 0, 1]])


def save(path: Path, array: NDArray, affine: NDArray = AFFINE) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return path


def image(shape: tuple[int, ...] = (6, 8, 5), first: int = 0) -> NDArray[np.int16]:
    return ((np.arange(np.prod(shape)) + first) % 97).reshape(shape).astype(np.int16)


def label(shape: tuple[int, ...] = (6, 8, 5)) -> NDArray[np.uint8]:
    values = np.zeros(shape, np.uint8)
    values[1:3, 2:5, 1:3] = 1
    values[4, 5:7, 2:4] = 2
    return values


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write eight cases without a fault."""
    root = tmp_path / "set"
    for n in range(8):
        save(root / "images" / f"c{n}.nii.gz", image(first=n))
        save(root / "labels" / f"c{n}.nii.gz", label())
    return root


def check_folder(
    root: Path, labels: dict | None = None, *, layout: str = "auto", patient: str | None = None, **options: object
) -> dict[str, str]:
    dataset = find_dataset(root, layout, patient=patient)
    return check(dataset, ClassValues(dataset, CLASSES, labels), **options)


def report(root: Path, **options: object) -> dict[tuple[str, str], str]:
    """Return (code, case) -> text of the reported faults."""
    with pytest.raises(TrainingError) as caught:
        check_folder(root, **options)
    assert caught.value.code == "data.faults"
    first, *lines = caught.value.message.splitlines()
    found = [re.split(r"\s{2,}", line.strip(), maxsplit=2) for line in lines]
    counts = (int(case.split()[0]) if re.fullmatch(r"\d+ cases", case) else 1 for _, case, _ in found)
    assert first.startswith(f"{sum(counts)} fault")
    return {(code, case): text for code, case, text in found}


def test_a_sound_data_set_gives_one_line(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        check_folder(folder)
    (record,) = caplog.records
    assert re.fullmatch(r"8 cases of 8 patients checked in \d+ s \(folders\): no fault", record.message)


def test_one_image_of_several_patients_is_reported(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for n in (2, 5):
        save(folder / "images" / f"c{n}.nii", image(first=7))  # not gzipped: another file with the image of c7
        (folder / "images" / f"c{n}.nii.gz").unlink()
    check_folder(folder)
    assert "the same image is in several cases that count as different patients" in caplog.text
    assert "(1 images): c2 and c5 and c7" in caplog.text
    caplog.clear()
    check_folder(folder, patient="^c")
    assert "the same image" not in caplog.text


@pytest.mark.parametrize(
    ("cases", "patients", "warns"),
    [
        (["rat1_a", "rat1_b", "rat2_a", "rat2_b"], 4, True),
        (["P001_slice3", "P001_slice4", "P002_slice1"], 3, True),
        (["s01a", "s01b", "s02a"], 3, True),
        (["hippocampus_001", "hippocampus_003", "hippocampus_004"], 3, False),
        (["BRATS2018_1", "BRATS2018_2", "BRATS2018_3"], 3, False),
        (["sub-01_ses-1", "sub-01_ses-2", "sub-02_ses-1"], 2, False),
    ],
)
def test_cases_that_may_belong_to_one_patient_are_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, cases: list[str], patients: int, warns: bool
) -> None:
    for name in cases:
        save(tmp_path / "images" / f"{name}.nii", image())
        save(tmp_path / "labels" / f"{name}.nii", label())
    with caplog.at_level(logging.INFO):
        check_folder(tmp_path)
    assert f"{len(cases)} cases of {patients} patients" in caplog.text
    assert ("--patient" in caplog.text) is warns
    caplog.clear()
    check_folder(tmp_path, patient=r"^[^_\d]+\d+")
    assert "a pattern" not in caplog.text


def test_six_planted_faults_give_one_report_that_names_all_six(folder: Path) -> None:
    (folder / "labels" / "c0.nii.gz").unlink()
    save(folder / "labels" / "c1.nii.gz", label((6, 8, 6)))
    strange = label()
    strange[0, 0, :3] = 7
    save(folder / "labels" / "c2.nii.gz", strange)
    holed = image().astype(np.float32)
    holed[0, 0, 0], holed[3, 3, 3] = np.nan, np.inf
    save(folder / "images" / "c3.nii.gz", holed)
    save(folder / "labels" / "c4.nii.gz", np.zeros((6, 8, 5), np.uint8))
    cut = folder / "images" / "c5.nii.gz"
    cut.write_bytes(cut.read_bytes()[:-20])
    found = report(folder)
    assert set(found) == {
        ("partner.no_label", "c0"),
        ("geometry.shape", "c1"),
        ("label.values", "c2"),
        ("values.not_finite", "c3"),
        ("label.empty", "c4"),
        ("file.truncated", "c5"),
    }
    assert "6 x 8 x 6 voxels, the image 6 x 8 x 5" in found["geometry.shape", "c1"]
    assert found["label.values", "c2"].startswith("values 7 (3 voxels); expected 0, 1, 2;")
    assert "2 voxels" in found["values.not_finite", "c3"]


def test_the_same_fault_of_several_cases_has_one_line(folder: Path) -> None:
    for n, voxels in ((2, 1), (4, 3), (7, 1)):
        array = label()
        array[5, 5, :voxels] = 7
        save(folder / "labels" / f"c{n}.nii.gz", array)
    with pytest.raises(TrainingError) as caught:
        check_folder(folder)
    first, line = caught.value.message.splitlines()
    assert first.startswith("3 faults in ")
    assert line.split()[:3] == ["label.values", "3", "cases"]
    assert line.endswith(": c2, c4, c7")
    assert "values 7; expected 0, 1, 2; correct them, leave them out with background=7 or ignore=7 in --labels" in line


@pytest.mark.parametrize(
    ("values", "way"),
    [
        ((7, 8, 9, 12), "leave them out with background=7-9,12 or ignore=7-9,12 in --labels, or name"),
        (tuple(range(10, 40, 3)), "expected 0, 1, 2; correct them, or name every class in --labels"),
        ((1 << 25,), "correct them"),
    ],
)
def test_the_way_out_of_unknown_values_names_all_of_them(folder: Path, values: tuple[int, ...], way: str) -> None:
    array = label().astype(np.int32)
    array.flat[: len(values)] = values
    save(folder / "labels" / "c2.nii.gz", array)
    text = report(folder)["label.values", "c2"]
    assert way in text
    assert text.endswith("in --labels" if max(values) < 1 << 24 else "; correct them")


def test_unpaired_images_and_label_maps_are_reported(folder: Path) -> None:
    (folder / "labels" / "c0.nii.gz").unlink()
    (folder / "images" / "c1.nii.gz").unlink()
    assert set(report(folder)) == {("partner.no_label", "c0"), ("partner.no_image", "c1")}


def test_the_distance_of_a_shifted_label_map_is_reported(folder: Path) -> None:
    moved, jittered = AFFINE.copy(), AFFINE.copy()
    moved[:3, 3] += (3, 0, 4)
    jittered[0, 3] += 0.1  # less than a tenth of the smallest spacing, 1.25 mm
    save(folder / "labels" / "c0.nii.gz", label(), moved)
    save(folder / "labels" / "c1.nii.gz", label(), jittered)
    save(folder / "labels" / "c2.nii.gz", label(), AFFINE @ np.diag([-1, 1, 1, 1]))
    found = report(folder)
    assert set(found) == {("geometry.affine", "c0"), ("geometry.affine", "c2")}
    assert "up to 5 mm" in found["geometry.affine", "c0"]
    assert "up to 15 mm" in found["geometry.affine", "c2"]  # the last of six voxels of 1.5 mm, twice 7.5 mm


def test_channels_share_a_grid_and_are_as_many_everywhere(tmp_path: Path) -> None:
    for n in range(4):
        for channel in range(2):
            save(tmp_path / "imagesTr" / f"c{n}_000{channel}.nii.gz", image())
        save(tmp_path / "labelsTr" / f"c{n}.nii.gz", label())
    check_folder(tmp_path)
    with pytest.raises(TrainingError, match="2 channels; expected 3"):
        check_folder(tmp_path, num_channels=3)
    (tmp_path / "imagesTr" / "c0_0001.nii.gz").unlink()
    save(tmp_path / "imagesTr" / "c1_0001.nii.gz", image((6, 8, 4)))
    shifted = AFFINE.copy()
    shifted[1, 3] += 0.01
    save(tmp_path / "imagesTr" / "c2_0001.nii.gz", image(), shifted)
    found = report(tmp_path)
    assert set(found) == {("image.channels", "c0"), ("geometry.shape", "c1"), ("geometry.affine", "c2")}
    assert found["image.channels", "c0"].startswith("1 channel; expected 2, as most images have")


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda path: path.write_bytes(b""), "file.unreadable"),
        (lambda path: path.write_bytes(b"not a gzip file at all"), "file.damaged"),
        (lambda path: path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-7])), "file.truncated"),
        (lambda path: path.write_bytes(path.read_bytes()[:-8] + b"\0" * 8), "file.damaged"),
        (lambda path: save(path, np.zeros((6, 8, 5), [("R", "u1"), ("G", "u1"), ("B", "u1")])), "file.unreadable"),
        (lambda path: path.write_bytes(gzip.compress(b"no NIfTI header at all" * 40)), "file.unreadable"),
        (lambda path: save(path, np.full((6, 8, 5), 3, np.int16)), "image.constant"),
        (lambda path: save(path, image().astype(np.float32) * np.nan), "values.not_finite"),
    ],
)
def test_a_bad_image_is_a_fault_and_no_crash(folder: Path, spoil: object, code: str) -> None:
    spoil(folder / "images" / "c3.nii.gz")
    assert (code, "c3") in report(folder)


def test_a_nifti_2_file_is_read(folder: Path) -> None:
    nibabel.save(nibabel.Nifti2Image(image(), AFFINE), folder / "images" / "c3.nii.gz")
    check_folder(folder)


def test_an_uncompressed_file_cut_short_is_noticed(folder: Path) -> None:
    cut = save(folder / "images" / "c9.nii", image())
    save(folder / "labels" / "c9.nii.gz", label())
    cut.write_bytes(cut.read_bytes()[:-1])
    found = report(folder)
    assert found["file.truncated", "c9"].startswith("c9.nii: 831 of 832 bytes")  # 352 before the voxels, 240 x 2


def test_labels_that_were_interpolated_or_are_none(folder: Path) -> None:
    save(folder / "labels" / "c0.nii.gz", label().astype(np.float32) * 1.0001)  # rounding of a scaled file: no fault
    save(folder / "labels" / "c1.nii.gz", label().astype(np.float32) * 0.7)
    save(folder / "labels" / "c2.nii.gz", np.stack([label()] * 3, axis=-1))
    found = report(folder)
    assert set(found) == {("label.fractional", "c1"), ("label.channels", "c2")}
    assert found["label.fractional", "c1"].startswith("16 voxels")  # 2 x 3 x 2 of 0.7, 2 x 2 of 1.4
    assert "napari-seg: --option soft" in found["label.fractional", "c1"]


def test_a_class_made_of_several_values_and_an_empty_case_that_is_allowed(folder: Path) -> None:
    nine = label() * 9
    save(folder / "labels" / "c0.nii.gz", nine)
    save(folder / "labels" / "c1.nii.gz", label() * 0)
    check_folder(folder, {"front": [1, "5-9"], "back": [2, 18]}, allow_empty=True)
    found = report(folder)
    assert set(found) == {("label.values", "c0"), ("label.empty", "c1")}
    assert "leave the case out, or give --allow_empty true" in found["label.empty", "c1"]


def test_classes_that_match_nothing_are_a_line_of_the_report(folder: Path) -> None:
    (folder / "dataset.json").write_text('{"labels": {"background": 0, "liver": 1, "spleen": 2, "lung": 9}}')
    (folder / "labels" / "c0.nii.gz").unlink()
    found = report(folder, layout="folders")
    assert set(found) == {("labels.unmatched", "all"), ("partner.no_label", "c0")}
    assert "liver = 1, spleen = 2, lung = 9" in found["labels.unmatched", "all"]


def test_two_cases_of_one_name(folder: Path) -> None:
    save(folder / "images" / "c0.nii", image())
    assert set(report(folder)) == {("name.twice", "c0")}


def test_2d_images_in_grey_and_colours(tmp_path: Path) -> None:
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    values = np.zeros((9, 7), np.uint8)
    values[2:5, 3:6] = 1
    values[6:8, 1:3] = 2
    grey = np.arange(63, dtype=np.uint8).reshape(9, 7)
    for n, mode in enumerate(["L", "LA", "RGB", "RGBA", "P"]):
        Image.fromarray(grey).convert(mode).save(tmp_path / "images" / f"p{n}.png")
        Image.fromarray(values).convert("LA" if n == 0 else "RGB" if n == 1 else "L").save(
            tmp_path / "labels" / f"p{n}.png"
        )
    check_folder(tmp_path, num_channels=1)
    check_folder(tmp_path, num_channels=3)
    Image.fromarray(np.stack([values, values * 2, values], -1)).save(tmp_path / "labels" / "p2.png")
    Image.fromarray(values[:, :-1]).save(tmp_path / "labels" / "p3.png")
    cut = tmp_path / "images" / "p4.png"
    cut.write_bytes(cut.read_bytes()[:-40])
    found = report(tmp_path, num_channels=1)
    assert set(found) == {("label.colour", "p2"), ("geometry.shape", "p3"), ("file.unreadable", "p4")}
    assert "6 x 9 voxels, the image 7 x 9" in found["geometry.shape", "p3"]


def test_grey_of_16_bits_is_no_colour(tmp_path: Path) -> None:
    """PIL has no colours of 16 bits, so MONAI's collate would receive (1, W, H) among (3, W, H)."""
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    grey = np.arange(63, dtype=np.uint16).reshape(9, 7)
    for n in range(4):
        Image.fromarray(grey.astype(np.uint8)).convert("L" if n == 3 else "RGB").save(tmp_path / "images" / f"p{n}.png")
        Image.fromarray((grey % 3).astype(np.uint8)).save(tmp_path / "labels" / f"p{n}.png")
    check_folder(tmp_path)  # 8 bits are made RGB
    Image.fromarray(grey * 1000).save(tmp_path / "images" / "p2.png")
    for options in ({"num_channels": 3}, {}):  # as set, or as most images have
        found = report(tmp_path, **options)
        assert set(found) == {("image.mode", "p2")}
        assert found["image.mode", "p2"].startswith("grey of more than 8 bits (mode I;16)")
    check_folder(tmp_path, num_channels=1)
    with Image.open(tmp_path / "images" / "p2.png") as deep:
        assert convert_image(deep, 1) is convert_image(deep) is deep
        with pytest.raises(TrainingError, match=r"image\.mode"):
            convert_image(deep, 3)


def test_volumes_have_axes_as_the_others(folder: Path) -> None:
    save(folder / "images" / "c0.nii.gz", image((6, 8)))
    save(folder / "labels" / "c0.nii.gz", label()[..., 1])
    save(folder / "images" / "c1.nii.gz", image((6, 8, 5, 1)))  # one channel
    save(folder / "images" / "c2.nii.gz", image((6, 8, 5, 1, 1)))  # four axes, as MONAI reads it
    found = report(folder)
    assert set(found) == {("geometry.axes", "c0"), ("geometry.axes", "c2"), ("geometry.shape", "c2")}
    assert found["geometry.axes", "c0"].startswith("2 spatial axes (6 x 8 voxels); expected 3")


def test_only_the_cases_of_a_part_are_checked(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "labels" / "c0.nii.gz").unlink()
    save(folder / "labels" / "c1.nii.gz", label() * 0)
    part = Split(find_dataset(folder))("all")[1:]
    with caplog.at_level(logging.INFO):
        check_folder(folder, cases=part)
    assert "6 cases of 6 patients checked" in caplog.text
    save(folder / "labels" / "c7.nii.gz", np.moveaxis(label(), 0, -1))
    assert set(report(folder, cases=part)) == {("geometry.shape", "c7")}


def test_a_second_check_reads_what_changed_and_what_failed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    real = file_facts.read_facts
    monkeypatch.setattr(
        file_facts, "read_facts", lambda path, is_label, soft: read.append(Path(path).name) or real(path, is_label)
    )
    cut = folder / "images" / "c5.nii.gz"
    whole = cut.read_bytes()
    cut.write_bytes(whole[:-20])
    for expected in (16, 1):
        read.clear()
        assert set(report(folder, cache_dir=tmp_path / "cache")) == {("file.truncated", "c5")}
        assert len(read) == expected
    cut.write_bytes(whole)
    stat = os.stat(folder / "labels" / "c1.nii.gz")
    os.utime(folder / "labels" / "c1.nii.gz", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))
    read.clear()
    check_folder(folder, cache_dir=tmp_path / "cache")
    assert sorted(read) == ["c1.nii.gz", "c5.nii.gz"]
    (tmp_path / "cache" / "checked_files.json").write_text('{"version"')  # damaged: as if it were not there
    check_folder(folder, cache_dir=tmp_path / "cache")


@pytest.mark.parametrize(("fraction", "given"), [(0.8, None), (0.05, None), (0.8, {"background": [3]})])
def test_the_fraction_of_ignored_voxels_is_reported(
    fraction: float, given: dict | None, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = '{"labels": {"background": 0, "front": 1, "back": 2, "ignore": 3}}'
    (folder / "dataset.json").write_text(names)
    for path in (folder / "labels").iterdir():
        values = label()
        empty = np.flatnonzero(values == 0)
        values.ravel()[empty[: round(fraction * values.size)]] = 3
        save(path, values)
    with caplog.at_level(logging.INFO):
        check_folder(folder, given, layout="folders")
    expected = f"{fraction:.1%} of the voxels are ignored (value 3): they are neither trained nor scored"
    assert (expected in caplog.text) is (given is None)


def test_a_label_map_without_an_annotated_voxel_is_refused(folder: Path) -> None:
    (folder / "dataset.json").write_text('{"labels": {"background": 0, "front": 1, "back": 2, "ignore": 3}}')
    save(folder / "labels" / "c3.nii.gz", np.full_like(label(), 3))
    for options in ({}, {"allow_empty": True}):
        assert set(report(folder, layout="folders", **options)) == {("label.ignored", "c3")}


def test_a_case_with_other_classes_than_it_declares_is_refused(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = {"background": 0, "front": 1, "back": 2}
    (folder / "dataset.json").write_text(json.dumps({"labels": names, "labelled": {"c1": ["front"], "c2": ["back"]}}))
    values = label()
    values[values == 2] = 0
    save(folder / "labels" / "c1.nii.gz", values)
    (entry,) = report(folder, layout="folders").items()
    assert entry[0] == ("label.labelled", "c2")
    assert entry[1].startswith("the label map has 1, and dataset.json declares that only 2 is annotated")
    before = check_folder(folder, layout="folders", cases=[])
    save(folder / "labels" / "c2.nii.gz", label() // 2 * 2)
    with caplog.at_level(logging.INFO):
        digests = check_folder(folder, layout="folders")
    assert "2 cases are annotated with some of the classes only" in caplog.text
    (folder / "dataset.json").write_text(json.dumps({"labels": names, "labelled": {"c1": ["front"]}}))
    now = check_folder(folder, layout="folders")
    assert {name for name in now if now[name] != digests[name]} == {"c2"}  # a run does not resume with other meanings
    assert before == {}


def test_overlapping_regions_need_a_bundle_of_regions(folder: Path) -> None:
    (folder / "dataset.json").write_text('{"labels": {"background": 0, "front": [1, 2], "back": 2}}')
    (text,) = report(folder, layout="folders").values()
    assert "regions that overlap (front and back both have 2), and this bundle's classes exclude each other" in text
    check_folder(folder, {"front": 1, "back": 2}, layout="folders")
    dataset = find_dataset(folder, "folders")
    check(dataset, ClassValues(dataset, {"0": "front", "1": "back"}, regions=True))


def test_slices_alone_are_no_volumes(tmp_path: Path) -> None:
    for n in range(3):
        save(tmp_path / "images" / f"c{n}.nii.gz", image((6, 8)))
        save(tmp_path / "labels" / f"c{n}.nii.gz", label()[..., 1])
    found = report(tmp_path)
    (text,) = found.values()
    assert set(found) == {("geometry.axes", "3 cases")}
    assert "expected 3 of a volume; save a single slice as I x J x 1 voxels or as a PNG" in text
    assert text.endswith(": c0, c1, c2")


def test_a_listed_file_in_another_format_is_named(folder: Path) -> None:
    (folder / "images" / "x.nrrd").touch()
    listing = [{"image": f"images/c{n}.nii.gz", "label": f"labels/c{n}.nii.gz"} for n in range(7)]
    listing += [{"image": "images/x.nrrd", "label": "labels/c7.nii.gz"}]
    (folder / "dataset.json").write_text(json.dumps({"training": listing}))
    found = report(folder, layout="decathlon")
    assert set(found) == {("file.format", "x")}
    assert found["file.format", "x"].startswith("x.nrrd: training reads .nii.gz, ")


def test_the_digest_of_a_case_is_of_its_voxels(folder: Path, tmp_path: Path) -> None:
    before = check_folder(folder, cache_dir=tmp_path / "cache")
    assert len(before) == 8
    save(folder / "labels" / "c0.nii.gz", label())  # another time of writing
    assert check_folder(folder, cache_dir=tmp_path / "cache") == before
    swapped = label()
    swapped[swapped > 0] = 3 - swapped[swapped > 0]
    save(folder / "labels" / "c1.nii.gz", swapped)
    after = check_folder(folder, cache_dir=tmp_path / "cache")
    assert {name for name in before if before[name] != after[name]} == {"c1"}


def test_thousands_of_faults_are_counted(folder: Path) -> None:
    cases = ({"name": "c", "image": "a.nii"}, *({"name": f"c{n}", "image": f"a{n}.nii"} for n in range(2000)))
    with pytest.raises(TrainingError) as caught:
        check(replace(find_dataset(folder), unpaired=cases))
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("data.faults: 2001 faults")
    assert lines[-1].split() == ["and", "1001", "more", "of", "partner.no_label"]
    assert len(lines) == 1002


def test_a_value_that_no_label_map_can_hold_is_a_fault(folder: Path) -> None:
    path = folder / "labels" / sorted(path.name for path in (folder / "labels").iterdir())[0]
    image = nibabel.load(path)
    array = np.array(image.dataobj, np.float32)
    array[0, 0, 0] = 1e30
    nibabel.save(nibabel.Nifti1Image(array, image.affine), path)
    with pytest.raises(TrainingError, match=r"label\.values .*expected -16777216 to 16777216"):
        check(find_dataset(folder))


def test_bytes_after_the_voxels_are_not_kept(folder: Path) -> None:
    path = next((folder / "images").iterdir())
    content = gzip.decompress(path.read_bytes())
    with gzip.open(path, "wb", compresslevel=1) as stream:
        stream.write(content)
        for _ in range(24):
            stream.write(bytes(1 << 22))
    tracemalloc.start()
    facts = file_facts.read_facts(str(path), is_label=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "error" not in facts
    assert peak < 70e6


def test_a_header_that_promises_more_than_any_memory_is_truncated(folder: Path) -> None:
    path = next((folder / "images").iterdir())
    header = nibabel.Nifti1Header()
    header.set_data_shape((30000,) * 5)
    with gzip.open(path, "wb") as stream:
        stream.write(header.binaryblock + bytes(1000))
    assert file_facts.read_facts(str(path), is_label=False)["error"][0] == "file.truncated"


def test_fractions_are_checked(folder: Path) -> None:
    two = np.stack([label() == 1, label() == 2], axis=-1).astype(np.float32)
    for path in sorted((folder / "labels").iterdir()):
        save(path, two * 0.9)
    save(folder / "labels" / "c0.nii.gz", two * 0.4)  # nowhere above one half, and not empty
    dataset = find_dataset(folder, soft=True)
    classes = ClassValues(dataset, {"0": "front", "1": "back"}, regions=True)
    check(dataset, classes)
    facts = file_facts.read_facts(dataset.cases[1]["label"], is_label=True, soft=True)
    assert (facts["values"], facts["channels"]) == ({"1": 12, "2": 4}, 2)
    assert facts["volumes"] == pytest.approx({"1": 12 * 0.9, "2": 4 * 0.9})
    save(folder / "labels" / "c0.nii.gz", two * 255)
    save(folder / "labels" / "c1.nii.gz", two[..., 0])
    save(folder / "labels" / "c2.nii.gz", two * 0)
    save(folder / "labels" / "c3.nii.gz", np.concatenate([two, two], axis=-1))
    with pytest.raises(TrainingError) as caught:
        check(dataset, classes)
    found = [line.split()[:2] for line in caught.value.message.splitlines()[1:]]
    assert found == [["label.fractions", "c0"], ["label.channels", "c1"], ["label.empty", "c2"], ["label.values", "c3"]]
    assert "values from 0 to 255; expected fractions from 0 to 1" in caught.value.message
