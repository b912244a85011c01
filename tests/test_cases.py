"""Every small input that once failed is right; the modules of each format make the same kinds themselves."""

from __future__ import annotations

import shutil
import zlib
from collections import Counter
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from napari_seg.cli.main import main
from napari_seg.errors import InputError
from napari_seg.evaluation.pairs import Pair, compare_pair
from napari_seg.formats.find import find_scans
from napari_seg.formats.label_maps import read_label_map
from napari_seg.formats.read import read
from napari_seg.formats.verdict import verdicts
from napari_seg.training.segnets_modules import with_segnets

# DICOM series


@pytest.mark.parametrize("folder", ["dynamic_series/pet_bogus_number", "enhanced_4d_mixed/4d_mixed"])
def test_slices_of_different_times_are_not_mixed(cases: Path, folder: str) -> None:
    truth = np.load((cases / folder).parent / "truth.npy")
    (scan,) = find_scans(cases / folder)
    for time, expected in enumerate(truth):
        assert np.array_equal(scan.read(volume=time).array[0], expected)


def test_slices_of_nuclear_medicine_are_stacked_by_their_signed_spacing(cases: Path) -> None:
    (scan,) = find_scans(cases / "multiframe_nm")
    volume = scan.read()
    assert volume.grid.shape == (35, 51, 16)
    # the first slice lies at z = 50, the others below it; its place in LPS is (-70, -100, 50)
    assert np.allclose(volume.grid.to_world((0, 0, 15)), (70, 100, 50))
    assert np.allclose(volume.grid.to_world((0, 0, 0)), (70, 100, 50 - 15 * 4))


@pytest.mark.parametrize(
    ("folder", "skipped"),
    [("cd_export", "skip skip.not_an_image"), ("philips_raw_object", "skip skip.not_intensities")],
)
def test_what_is_no_image_leaves_the_series_as_it_is(cases: Path, folder: str, skipped: str) -> None:
    found = Counter(f"{one.verdict} {one.code}".strip() for one in verdicts(cases / folder))
    assert found == {"process": 1, skipped: 1}


# segmentations and contours


@pytest.mark.parametrize("name", ["rs_of_A.dcm", "segA.dcm"])
def test_a_segmentation_of_another_scan(name: str, cases: Path, tmp_path: Path) -> None:
    folder = cases / "rtstruct_other_scan"
    words = ["convert", str(folder / name), str(tmp_path / "out.nii.gz"), "--scan"]
    assert main([*words, str(folder / "scanB")]) == 4
    assert main([*words, str(folder / "scanA")]) == 0


def test_the_geometry_of_segmentations(cases: Path) -> None:
    folder = cases / "seg_geometry"
    scan = read(folder / "ct")
    whole, one = folder / "no_SliceThickness.dcm", folder / "one_frame_nospacing.dcm"
    assert read_label_map(whole).volumes_ml()[1] == pytest.approx(15.2064)
    assert read_label_map(one).volumes_ml()[1] == pytest.approx(2.56)
    assert read_label_map(whole, scan.grid, images=scan.source.files).volumes_ml()[1] == pytest.approx(15.2064)
    found = read_label_map(one, scan.grid, images=scan.source.files)
    assert np.unique(np.nonzero(found.array)[2]).tolist() == [4]


def test_label_maps_with_labels_above_255(cases: Path) -> None:
    found = read_label_map(cases / "dicom_labelmap_16bit" / "other_labelmap16.dcm")
    assert found.voxel_counts() == {17: 1624, 1035: 1324}


def test_a_segmentation_without_preamble(cases: Path) -> None:
    assert read_label_map(cases / "no_preamble" / "seg_nometa.dcm").voxel_counts() == {1: 300}


def test_contours_stored_twice_and_contours_that_overlap(cases: Path) -> None:
    folder = cases / "rtstruct_overlap"
    scan = read(folder / "ct")
    twin, overlap = (
        read_label_map(folder / f"{n}.dcm", scan.grid, images=scan.source.files) for n in ("twin", "overlap")
    )
    assert twin.voxel_counts() == {1: 130}  # 13 x 10 mm, pixels of 1 mm
    assert overlap.voxel_counts() == {1: 200}
    assert (len(twin.notices), [notice.code for notice in overlap.notices]) == (0, ["labels.contours_overlap"])


def test_contours_outside_of_the_scan(cases: Path) -> None:
    scan = read(cases / "rtstruct_planes" / "ct_crop")
    path = cases / "rtstruct_planes" / "rs_crop.dcm"
    with pytest.raises(InputError, match=r"not_on_slices: .*BODY has contours on slices 12 to 13 .*--segments 'Organ'"):
        read_label_map(path, scan.grid, images=scan.source.files)
    assert read_label_map(path, scan.grid, ["Organ"], images=scan.source.files).voxel_counts() == {2: 300}


def test_contours_without_preamble(cases: Path) -> None:
    scan = read(cases / "no_preamble" / "ct")
    found = read_label_map(cases / "no_preamble" / "rs_nometa.dcm", scan.grid, images=scan.source.files)
    assert found.voxel_counts() == {1: 300}


def test_cropped_segmentations_and_segments_in_layers(cases: Path) -> None:
    folder = cases / "seg_nrrd"
    whole = folder / "full_label.nii.gz"
    for pair in (
        Pair("x", folder / "cropped.seg.nrrd", whole),
        Pair("x", whole, folder / "cropped.seg.nrrd"),
        Pair("x", folder / "layers.seg.nrrd", whole),
    ):
        result = compare_pair(pair)
        assert [scores.dice for scores in result.scores.values()] == [1, 1], result.message


def test_a_label_map_that_made_a_decoder_crash(cases: Path, tmp_path: Path) -> None:
    path = str(cases / "hostile" / "label_map_that_crashes_itk.nrrd")
    assert main(["convert", path, str(tmp_path / "x.nii.gz")]) == 4
    assert main(["evaluate", path, str(shutil.copy(path, tmp_path))]) == 4


def test_masks_of_single_bits(cases: Path) -> None:
    """Training reads 0 and 1; what it makes is compared with the same values."""
    for path in sorted((cases / "images_2d" / "mask_bilevel" / "labels").iterdir()):
        assert np.unique(read_label_map(path).array).tolist() == [0, 1]


# NIfTI, MetaImage, NRRD and images


@pytest.mark.parametrize(
    ("name", "codes"),
    [("qfac_zero_sform_ok", []), ("quat_noise_4e-7_sform", []), ("vinci", ["geometry.pixdim_conflict"])],
)
def test_a_good_sform_counts_whatever_lies_beside_it(cases: Path, name: str, codes: list[str]) -> None:
    path = cases / "nifti_geometry" / f"{name}.nii"
    volume = read(path)
    assert np.allclose(volume.grid.affine, nibabel.Nifti1Header.from_fileobj(path.open("rb"), check=False).get_sform())
    assert [notice.code for notice in volume.notices] == codes


def test_a_header_that_names_pixels_of_another_name(cases: Path) -> None:
    folder = cases / "metaimage" / "renamed"
    pixels = np.fromfile(folder / "orig.raw", "<i2").reshape((140, 204, 35), order="F")
    assert np.array_equal(read(folder / "case_0001.mhd").array[0], pixels)


def test_a_compressed_metaimage_without_the_size_of_its_stream(cases: Path) -> None:
    path = cases / "hostile" / "mha_without_compressed_size.mha"
    stream = path.read_bytes().partition(b"ElementDataFile = LOCAL\n")[2]
    pixels = np.frombuffer(zlib.decompress(stream), "<i2").reshape((36, 48, 40), order="F")
    assert np.array_equal(read(path).array[0], pixels)


def test_photographs_lie_as_their_masks_do(cases: Path) -> None:
    folder = cases / "images_2d" / "exif_square"
    for path in sorted((folder / "images").iterdir()):
        mask = read_label_map(folder / "labels" / f"{path.stem}.png").array[..., 0] > 0
        photograph = read(path).array[0, ..., 0].astype(float)
        assert abs(np.corrcoef(photograph.ravel(), mask.ravel())[0, 1]) > 0.9


# training and evaluation


# plugin


def test_labels_of_another_scan_in_the_plugin(cases: Path) -> None:
    pytest.importorskip("napari")
    from napari_seg.plugin.study.label_files import read_labels

    folder = cases / "rtstruct_other_scan"
    own, other = read(folder / "scanA"), read(folder / "scanB")
    assert read_labels(folder / "segA.dcm", [other]).scan is None
    with pytest.raises(InputError, match="another frame of reference"):
        read_labels(folder / "rs_of_A.dcm", [other])
    for name in ("segA.dcm", "rs_of_A.dcm"):
        assert read_labels(folder / name, [other, own]).scan is own


def test_a_label_map_that_crashes_its_decoder_in_the_plugin(cases: Path) -> None:
    pytest.importorskip("napari")
    from napari_seg.plugin.study.label_files import read_labels

    with pytest.raises(InputError):
        read_labels(cases / "hostile" / "label_map_that_crashes_itk.nrrd", [])


@pytest.mark.parametrize("name", ["msd_backslash", "unicode"])
def test_a_data_set_whose_names_come_from_another_system_is_paired(cases: Path, name: str) -> None:
    with with_segnets():
        from segnets.data import find_dataset

        dataset = find_dataset(cases / "train_layouts" / name)
    assert (len(dataset.cases), dataset.unpaired) == (10, ())


def test_2d_images_and_masks_in_training(cases: Path) -> None:
    """A mask of one bit is 1; an image is turned as its EXIF orientation says, onto its mask."""
    folder = cases / "images_2d"
    with with_segnets():
        from segnets.data import convert_image, convert_label_map

        with Image.open(folder / "mask_bilevel" / "labels" / "im00.png") as mask:
            assert np.unique(convert_label_map(mask)).tolist() == [0, 1]
        for path in sorted((folder / "exif_square" / "images").iterdir()):
            with Image.open(path) as opened, Image.open(folder / "exif_square" / "labels" / f"{path.stem}.png") as mask:
                image, inside = np.asarray(convert_image(opened, 1)), np.asarray(convert_label_map(mask)) > 0
            assert image[inside].mean() > image[~inside].mean() + 90
