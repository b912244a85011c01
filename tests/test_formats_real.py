"""Real files that lie beside a developer's checkout; skipped where they do not."""

from __future__ import annotations

import numpy as np
import pytest

from napari_seg.formats.read import read
from napari_seg.geometry import resample


def test_a_whole_head_agrees_with_simpleitk(t1_dicom):
    import SimpleITK

    volume = read(t1_dicom)
    assert volume.array.dtype == np.int16
    assert volume.array.shape == (1, 274, 384, 384)

    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(t1_dicom)))
    image = reader.Execute()
    lps = np.eye(4)
    lps[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    lps[:3, 3] = image.GetOrigin()
    assert np.allclose(volume.grid.affine, np.diag([-1, -1, 1, 1]) @ lps, rtol=0, atol=1e-4)
    assert np.array_equal(volume.array[0], SimpleITK.GetArrayViewFromImage(image).transpose(2, 1, 0))


GENERIC = "icometrix+dicom2nifti/tests/data/generic"


@pytest.mark.parametrize(
    ("series", "reference"),
    [
        (f"dcm_control_good/{GENERIC}/anatomical/001", "001_ground_truth.nii.gz"),
        ("dcm_control_good/icometrix+dicom2nifti/tests/data/hitachi/anatomical/001", "001_ground_truth.nii.gz"),
        (f"dcm_rescale_per_slice/{GENERIC}/anatomical/002_non_isotropic", "002_non_isotropic_ground_truth.nii.gz"),
        (
            "dcm_enhanced_multiframe/icometrix+dicom2nifti/tests/data/hyperfine/anatomical/001",
            "001_ground_truth.nii.gz",
        ),
        *[
            (f"dcm_transfer_syntax/{GENERIC}/compressed_{syntax}/001", "../compressed/001_ground_truth.nii.gz")
            for syntax in ("j2k", "jpeg", "jpegls", "rle")
        ],
    ],
)
def test_real_series_equal_their_references(corpus, series, reference):
    volume, expected = read(corpus / series), read(corpus / series / ".." / reference)
    assert np.allclose(resample(volume.array, volume.grid, expected.grid), expected.array, rtol=0, atol=1e-5)
