"""Made-up scans: small, lopsided in every axis, and lying askew, so that no flip or swap goes unseen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import permutations, product
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedMRImageStorage, ExplicitVRLittleEndian, generate_uid

from napari_seg.formats.scan import Scan
from napari_seg.geometry import Grid
from napari_seg.volume import Volume

ORIENTATIONS = [
    "".join(axes[n] for n in order) for axes in product("LR", "PA", "IS") for order in permutations(range(3))
]
"""All 48 orders and directions of three axes."""

CANARIES = ("Canary", "Tweety", "CAN4711", "Birdhouse")
"""What stands in the private tags of every DICOM phantom, and must never be seen outside them."""


def rotation(x: float, y: float, z: float) -> NDArray[np.float64]:
    """(3, 3) by degrees about x, then y, then z."""
    a, b, c = np.radians([x, y, z])
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    about_z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def oblique_grid(shape: tuple[int, int, int] = (20, 26, 14), spacing_mm: Sequence[float] = (1.5, 1.25, 2.5)) -> Grid:
    """A grid in axial order (index axes towards L, P, S), turned by 12 degrees about x and then 7 about z."""
    return Grid.around(
        (8.0, -21.0, 33.0), np.array(shape) * spacing_mm, spacing_mm, rotation(12, 0, 7) @ np.diag([-1, -1, 1])
    )


def head(dtype: type = np.int16) -> Volume:
    """An ellipsoid with a nose, a brighter left half and one small bright ball in the right upper back."""
    grid = oblique_grid()
    x, y, z = np.moveaxis(grid.to_world(np.moveaxis(np.indices(grid.shape), 0, -1)) - grid.center_mm, -1, 0)
    array = np.zeros(grid.shape)
    array[(x / 13) ** 2 + (y / 14) ** 2 + (z / 15) ** 2 < 1] = 400
    array[(abs(x) < 2) & (y > 10) & (y < 15) & (abs(z + 2) < 3)] = 300
    array[(array == 400) & (x < 0)] = 550
    array[(x - 6) ** 2 + (y + 5) ** 2 + (z - 7) ** 2 < 12] = 900
    texture = np.arange(array.size).reshape(array.shape) % 37
    return Volume((array + texture).astype(dtype)[None], grid, name="head")


def write_nifti(volume: Volume, path: Path, dtype: type | None = None) -> Path:
    """A NIfTI file of a volume, written by nibabel, with the same affine in sform and qform."""
    image = nibabel.nifti1.Nifti1Image(volume.array[0].astype(dtype or volume.array.dtype), volume.grid.affine)
    image.set_sform(volume.grid.affine, code=1)
    image.set_qform(volume.grid.affine, code=1)
    nibabel.loadsave.save(image, path)
    return path


def write_volumes(volume: Volume, path: Path) -> Scan:
    """The scan in a NIfTI file of two volumes: that of the phantom, and another one on its grid."""
    array = np.stack([volume.array[0], volume.array[0] // 2], axis=-1)
    nibabel.loadsave.save(nibabel.nifti1.Nifti1Image(array, volume.grid.affine), path)
    return Scan(path.name, "nifti", (path,))


def write_series(
    volume: Volume,
    folder: Path,
    *,
    slices: Sequence[int] | None = None,
    rescale: Callable[[int], tuple[float, float]] = lambda k: (1.0, 0.0),
    edit: Callable[[int, Dataset], None] = lambda k, dataset: None,
    description: str = "T1w sagittal",
    number: int = 3,
    file_name: str = "IM-{:04d}",
) -> list[Path]:
    """DICOM files of a volume's slices.

    Args:
        volume: integers; its third index axis must be the cross product of the first two.
        folder: made if it is missing.
        slices: which slices are written, and in which order the files are numbered; a number that stands twice is
            written twice, as the same instance.
        rescale: k -> (slope, intercept) of slice k; stored values are (value - intercept) / slope, rounded.
        edit: called with k and its dataset before it is written.
        description: SeriesDescription.
        number: SeriesNumber.
        file_name: takes the running number of the file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    study, series = generate_uid(), generate_uid()
    instances = [generate_uid() for _ in range(volume.grid.shape[2])]
    paths = []
    for n, k in enumerate(range(volume.grid.shape[2]) if slices is None else slices):
        dataset = _dataset(CTImageStorage, instances[k], study, series, description, number)
        dataset.Modality = "MR"
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "M"]
        dataset.InstanceNumber = k + 1
        slope, intercept = rescale(k)
        dataset.RescaleSlope, dataset.RescaleIntercept = slope, intercept
        position, orientation, pixel_spacing = _geometry(volume.grid, k)
        dataset.ImagePositionPatient = position
        dataset.ImageOrientationPatient = orientation
        dataset.PixelSpacing = pixel_spacing
        _set_pixels(dataset, np.rint((volume.array[0, :, :, k] - intercept) / slope).astype(np.int16).T)
        edit(k, dataset)
        paths.append(folder / file_name.format(n + 1))
        dataset.save_as(paths[-1], enforce_file_format=True)
    return paths


def write_enhanced(volume: Volume, path: Path, order: Sequence[int] | None = None) -> Path:
    """One enhanced MR file of a volume, its frames in the given order."""
    order = range(volume.grid.shape[2]) if order is None else order
    dataset = _dataset(EnhancedMRImageStorage, generate_uid(), generate_uid(), generate_uid(), "enhanced", 7)
    dataset.Modality = "MR"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "T1", "NONE"]
    dataset.NumberOfFrames = len(order)
    _, orientation, pixel_spacing = _geometry(volume.grid, 0)
    shared, measures, plane = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing = pixel_spacing
    plane.ImageOrientationPatient = orientation
    shared.PixelMeasuresSequence = [measures]
    shared.PlaneOrientationSequence = [plane]
    dataset.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for k in order:
        frame, place = Dataset(), Dataset()
        place.ImagePositionPatient = _geometry(volume.grid, k)[0]
        frame.PlanePositionSequence = [place]
        frames.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = frames
    _set_pixels(dataset, np.stack([volume.array[0, :, :, k].T for k in order]))
    dataset.save_as(path, enforce_file_format=True)
    return path


def _dataset(sop_class: str, instance: str, study: str, series: str, description: str, number: int) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = sop_class
    dataset.SOPInstanceUID = instance
    dataset.StudyInstanceUID = study
    dataset.SeriesInstanceUID = series
    dataset.SeriesDescription = description
    dataset.SeriesNumber = number
    dataset.FrameOfReferenceUID = study  # any will do
    dataset.PatientName = "Canary^Tweety"
    dataset.PatientID = "CAN4711"
    dataset.InstitutionName = "Birdhouse"
    return dataset


def _geometry(grid: Grid, k: int) -> tuple[list[float], list[float], list[float]]:
    """ImagePositionPatient, ImageOrientationPatient and PixelSpacing of slice k, rounded as scanners do."""
    to_lps = np.array([-1, -1, 1])
    position = grid.to_world((0, 0, k)) * to_lps
    cosines = (grid.directions[:, :2].T * to_lps).ravel()
    column_mm, row_mm, _ = grid.spacing_mm
    return [round(v, 6) for v in position], [round(v, 9) for v in cosines], [row_mm, column_mm]


def _set_pixels(dataset: Dataset, pixels: NDArray[np.int16]) -> None:
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit = 15
    dataset.PixelRepresentation = 1
    dataset.PixelData = np.ascontiguousarray(pixels, dtype="<i2").tobytes()
