"""Every real file that breaks readers gets the verdict it should; see the corpus's own table for where each is from."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pydicom
import pytest
from bundles import write_threshold_bundle

import napari_seg
from napari_seg.cli.main import main
from napari_seg.errors import InputError
from napari_seg.formats.dicom.seg import read_dicom_seg
from napari_seg.formats.find import find_scans
from napari_seg.formats.label_maps import on_grid, read_label_map
from napari_seg.formats.verdict import verdicts
from napari_seg.geometry import resample

VERDICTS = {
    "dcm_4d": {"refuse series.4d": 1, "skip skip.not_an_image": 1},
    # two hold nothing but names; the others are pictures of 1 x 1 that lie nowhere
    "dcm_charset": {"refuse file.not_dicom": 2, "skip skip.no_geometry": 15, "skip skip.not_an_image": 1},
    "dcm_control_good": {"process": 6},
    "dcm_deidentified": {"process": 1},
    # ten frames without functional groups; three files of two or three slices, which are fewer than four
    "dcm_enhanced_multiframe": {"process": 2, "refuse series.multiframe": 1, "warn geometry.few_slices": 3},
    "dcm_gantry_tilt": {"refuse geometry.shear": 1},
    # two slices of either
    "dcm_mag_phase_in_one_series": {"warn geometry.few_slices": 2},
    "dcm_missing_slice": {"refuse geometry.missing_slice": 1},
    # the one with an empty thickness is a single slice; plans and a dose are no scans, with or without preamble
    "dcm_missing_tags": {
        "refuse file.not_dicom": 3,
        "refuse geometry.single_slice": 1,
        "skip skip.not_intensities": 3,
    },
    "dcm_missing_uids": {"process": 1, "warn fitness.label_map": 1},
    # two planes of two slices each; projections of which each has a direction of its own
    "dcm_mixed_orientation": {"refuse geometry.mixed_orientation": 1, "warn geometry.few_slices": 2},
    "dcm_monochrome1": {"skip skip.no_geometry": 1},
    "dcm_mosaic": {"refuse data.4d": 1, "refuse series.4d": 1},
    "dcm_not_an_image": {"skip skip.not_intensities": 6},
    "dcm_rescale_per_slice": {"process": 2, "refuse geometry.single_slice": 1},
    "dcm_same_position": {"refuse geometry.duplicate_position": 1},
    "dcm_secondary_capture": {"refuse series.colour": 3, "skip skip.no_geometry": 1},
    "dcm_seg_io": {
        "refuse geometry.single_slice": 1,
        "skip skip.not_intensities": 9,
        "warn fitness.label_map": 6,
        "warn geometry.few_slices": 3,
    },
    "dcm_too_few_slices": {"refuse geometry.single_slice": 1, "warn geometry.few_slices": 1},
    # files of pydicom's own tests are single slices
    "dcm_transfer_syntax": {"process": 2, "refuse geometry.single_slice": 2, "skip skip.no_geometry": 1},
    # of what was cut, one holds frames without places and one a picture without: that is found before its end is missed
    "dcm_truncated": {"refuse file.truncated": 1, "refuse series.multiframe": 1, "skip skip.no_geometry": 1},
    "nii_4d": {"refuse data.4d": 2, "warn fitness.label_map": 1},
    "nii_5d": {"refuse data.5d": 2},
    "nii_big_endian": {"process": 3},
    "nii_corrupt": {"refuse file.bad_header": 5, "refuse file.empty": 1, "refuse file.not_nifti": 1},
    "nii_dtypes": {"process": 10},
    "nii_hdr_img": {"process": 2, "refuse file.pair_missing": 2, "warn geometry.no_orientation": 2},
    "nii_left_right_storage": {"process": 2},
    "nii_nan": {"refuse data.nonfinite": 1},
    "nii_nifti2": {"process": 1, "refuse data.4d": 1},
    "nii_no_orientation": {"warn geometry.no_orientation": 2},
    "nii_oblique_anisotropic": {"process": 1},
    "nii_rgb_complex": {"refuse data.not_scalar": 6},
    "nii_sheared_affine": {"refuse geometry.shear": 1},
    "nii_tiny_2d": {"refuse data.2d": 1},
    "nii_wrong_extension": {"skip skip.not_an_image": 1},
}


PRIVATE = (
    "PatientName",
    "PatientID",
    "OtherPatientIDs",
    "AccessionNumber",
    "InstitutionName",
    "InstitutionAddress",
    "ReferringPhysicianName",
    "PerformingPhysicianName",
    "OperatorsName",
)


@pytest.fixture(scope="module")
def private_words(corpus: Path) -> set[str]:
    """Words of the headers that must be seen nowhere, but for those that stand in paths or that the program says."""
    values = []
    for path in corpus.rglob("*"):
        try:
            tags = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=list(PRIVATE))
            values += [str(tags.get(keyword) or "") for keyword in PRIVATE]
        except Exception:
            continue
    words = {word for word in re.split(r"[\W_]+", "\n".join(values).casefold()) if len(word) > 3}
    program = [path.read_text() for path in Path(napari_seg.__file__).parent.rglob("*.py")]
    said = "\n".join([*map(str, corpus.rglob("*")), *program]).casefold()
    return {word for word in words if word not in said}


def test_the_table_names_every_folder(corpus: Path) -> None:
    assert {path.name for path in corpus.iterdir() if path.is_dir()} == set(VERDICTS)


@pytest.mark.parametrize("folder", VERDICTS)
def test_each_file_gets_its_verdict(
    corpus: Path, folder: str, private_words: set[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    found = list(verdicts(corpus / folder))
    assert seen(private_words, f"{found} {caplog.text}") == set()
    assert Counter(f"{v.verdict} {v.code}".strip() for v in found) == VERDICTS[folder]
    assert sum(v.files for v in found) == sum(1 for path in (corpus / folder).rglob("*") if path.is_file())
    assert all(v.message for v in found if v.code)


def seen(words: set[str], text: str) -> set[str]:
    """Those of some words that stand in a text."""
    return words & set(re.split(r"[\W_]+", text.casefold()))


def test_private_words_are_known(private_words: set[str]) -> None:
    assert {"compressedsamples", "ospedali", "lestrade", "moriarty", "rüdiger"} <= private_words
    assert len(private_words) > 40


def test_mosaics_equal_what_another_program_makes_of_them(corpus: Path) -> None:
    (converted,) = (corpus / "dcm_mosaic").rglob("*.nii")
    (scan,) = (scan for scan in find_scans(corpus / "dcm_mosaic") if scan.format == "dicom")
    (reference,) = find_scans(converted)
    for time in range(2):
        expected, found = reference.read(volume=time), scan.read(volume=time)
        assert np.array_equal(resample(found.array, found.grid, expected.grid), expected.array)


def test_a_picture_in_the_clothes_of_a_scan(corpus: Path, tmp_path: Path) -> None:
    (zipped,) = (corpus / "nii_wrong_extension").rglob("zipMR.gz")
    shutil.copy(zipped, tmp_path / "x.nii.gz")
    assert [(v.verdict, v.code) for v in verdicts(tmp_path)] == [("refuse", "file.not_nifti")]


@pytest.mark.slow
def test_as_one_batch_every_other_case_is_done(
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    caplog: pytest.LogCaptureFixture,
    private_words: set[str],
) -> None:
    caplog.set_level("DEBUG")
    bundle, out = write_threshold_bundle(tmp_path / "bundle"), tmp_path / "out"
    words = ["predict", str(corpus), "-o", str(out), "--bundle", str(bundle), "--trust-bundle", "--json"]
    assert main(words) == 3
    printed = capsys.readouterr()
    results = json.loads(printed.out)
    told = list(verdicts(corpus))
    of_another_kind = [r for r in results if r["code"] == "bundle.modality"]  # the bundle is for MR
    done = [r for r in results if r["status"] == "done"]
    assert len(done) + len(of_another_kind) == sum(v.verdict in ("process", "warn") for v in told)
    assert len(results) - len(done) - len(of_another_kind) == sum(v.verdict == "refuse" for v in told)
    assert "internal.error" not in {r["code"] for r in results}
    assert "Traceback" not in printed.err + caplog.text
    reports = [path.read_text() for path in out.glob("*.json")]
    text = "\n".join([printed.out, printed.err, caplog.text, *map(str, out.rglob("*")), *reports])
    assert seen(private_words, text) == set()


def test_segmentations_of_other_programs(corpus: Path) -> None:
    folder = corpus / "dcm_seg_io"
    for name in ("23x38x3", "24x38x3"):  # frames of 874 pixels do not end at a whole byte
        (written,) = (folder / "QIICR+dcmqi/data/segmentations" / name / "seg").iterdir()
        (oracle,) = (folder / "QIICR+dcmqi/data/segmentations" / name / "nrrd").iterdir()
        expected = read_label_map(oracle)
        found = on_grid(read_dicom_seg(written), expected.grid, written)
        assert np.array_equal(found.array, expected.array), name
    own = folder / "ImagingDataCommons+highdicom/data/test_files"
    assert read_dicom_seg(own / "seg_image_ct_binary.dcm").array.any()
    assert read_dicom_seg(own / "seg_image_ct_true_fractional.dcm").notices[0].code == "labels.fractional"
    with pytest.raises(InputError, match=r"labels\.overlap"):
        read_dicom_seg(own / "seg_image_ct_binary_overlap.dcm")
