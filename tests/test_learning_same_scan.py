"""A scan that changed or was turned after it was accepted is no second case, and stays in its part."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import phantoms
import pytest
from test_learning_accept import labels, put, scan

from napari_seg.cohort.outputs import sha256_of
from napari_seg.errors import InputError
from napari_seg.formats.find import find_scans
from napari_seg.formats.read import read
from napari_seg.geometry import Grid
from napari_seg.learning import same_scan
from napari_seg.learning.accept import accept, discard
from napari_seg.learning.scans import scan_of
from napari_seg.learning.training_set import Provenance, read_training_set, write_training_set
from napari_seg.training.gather.referenced import VARIABLE, value_digest, voxel_digest
from napari_seg.training.segnets_modules import with_segnets
from napari_seg.volume import Volume


@pytest.fixture(autouse=True)
def known_scans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "known"))


def mirrored(volume: Volume, axes: tuple[int, ...] = (0,)) -> Volume:
    """Return a scan as a wrong affine shows it: the same voxels, in the other direction of some axes."""
    affine = volume.grid.affine.copy()
    affine[:, axes] *= -1
    return replace(volume, grid=Grid(volume.grid.shape, affine))


def put_series(folder: Path, series: Volume, names: tuple[str, ...] = ("Liver",), **options: Any) -> Any:
    return accept(labels(*names, grid=series.grid), series, folder, Provenance(), **options)


def written(folder: Path, add: int, patient: str = "", series: str = "1.2.3.4") -> Volume:
    """Write and read a DICOM series, of one study."""

    def edit(_: int, dataset: Any) -> None:
        dataset.PatientID = patient
        dataset.StudyInstanceUID = "1.2.3"
        dataset.SeriesInstanceUID = series

    head = phantoms.head()
    phantoms.write_series(replace(head, array=head.array + add), folder, edit=edit)
    return read(folder)


def test_values_are_the_same_in_every_order_and_as_another_type() -> None:
    volume = scan()
    order = np.random.default_rng(1).permutation(volume.array.size)
    shuffled = volume.array.ravel()[order].reshape(volume.array.shape).astype(np.float64)
    assert value_digest(replace(volume, array=shuffled)) == value_digest(volume)
    assert value_digest(replace(volume, array=volume.array + 1)) != value_digest(volume)
    assert value_digest(replace(volume, array=np.zeros_like(shuffled))) == value_digest(
        replace(volume, array=-np.zeros_like(shuffled))
    )


@pytest.mark.parametrize(
    ("axes", "words"), [((0,), "mirrored left to right"), ((1, 2), "mirrored front to back and head to foot")]
)
def test_a_mirrored_scan_is_refused_with_the_way_out(tmp_path: Path, axes: tuple[int, ...], words: str) -> None:
    folder = tmp_path / "set"
    put(folder)
    put(folder, 1)
    turned = mirrored(scan(1), axes)
    with pytest.raises(InputError, match=rf"accept\.mirrored.*case0002, {words}.*--discard case0002"):
        accept(labels("Liver", grid=turned.grid), turned, folder, Provenance())
    assert len(read_training_set(folder).cases) == 2

    discard(folder, "case0002")  # which was for validation
    case = accept(labels("Liver", grid=turned.grid), turned, folder, Provenance())
    assert (case.name, case.part, case.patient) == ("case0003", "validation", "patient 2")


def test_exchanged_axes_are_found_and_another_scan_of_the_same_values_is_not(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    put(folder)
    affine = scan().grid.affine[:, [1, 0, 2, 3]]
    turned = replace(scan(), grid=Grid(scan().grid.shape, affine))
    with pytest.raises(InputError, match=r"accept\.mirrored.*with exchanged axes"):
        accept(labels("Liver", grid=turned.grid), turned, folder, Provenance())
    other = replace(scan(), array=np.sort(scan().array, axis=None).reshape(scan().array.shape))
    assert accept(labels("Liver"), other, folder, Provenance()).name == "case0002"


def test_a_series_that_changed_takes_the_place_of_its_case(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    put(folder)
    first = put_series(folder, written(tmp_path / "study", 0))
    changed = written(tmp_path / "study", 5)
    with pytest.raises(InputError, match=r"accept\.again.*case0002.*other voxels since then.*--replace"):
        put_series(folder, changed, may_replace=False)
    case = put_series(folder, changed)
    assert (case.name, case.revision, case.part) == (first.name, 2, "validation")
    assert case.scan == voxel_digest(changed) != first.scan
    np.testing.assert_array_equal(scan_of(folder, case).array, changed.array)
    assert put_series(folder, changed) == case, "known by its voxels now"


@pytest.mark.parametrize("place", ["study", "elsewhere"])
def test_a_series_that_changed_stays_in_its_part_whatever_was_removed(tmp_path: Path, place: str) -> None:
    folder = tmp_path / "set"
    put(folder)
    put_series(folder, written(tmp_path / "study", 0))
    discard(folder, "case0002")
    case = put_series(folder, written(tmp_path / place, 5))
    assert (case.name, case.part) == ("case0003", "validation")
    other = put_series(folder, written(tmp_path / "another", 9, "other patient"))
    assert other.patient != case.patient


def test_a_case_of_an_earlier_version_gets_its_series_if_accepted_again(tmp_path: Path) -> None:
    folder, series = tmp_path / "set", written(tmp_path / "study", 0)
    case = put_series(folder, series)
    content = read_training_set(folder)
    write_training_set(folder, replace(content, cases=(replace(case, series=""),)))
    assert put_series(folder, series) == case
    assert read_training_set(folder).cases == (case,)


def test_the_files_of_a_series_have_the_digest_of_a_run_and_a_set_of_an_earlier_version_gets_it(tmp_path: Path) -> None:
    folder, series = tmp_path / "set", written(tmp_path / "study", 0)
    backwards = replace(series, source=replace(series.source, files=series.source.files[::-1]))  # as slices may lie
    (found,) = find_scans(tmp_path / "study")
    case = put_series(folder, backwards)
    assert case.input_sha256 == sha256_of(found.files)
    write_training_set(folder, replace(read_training_set(folder), cases=(replace(case, input_sha256=""),)))
    assert put_series(folder, series) == case
    assert read_training_set(folder).cases == (case,)


def test_a_second_volume_beside_a_readable_series_is_a_case_of_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    series = written(tmp_path / "study", 0)
    put_series(folder, series)
    second = put_series(folder, replace(series, array=series.array + 3))  # as one that was chosen by --volume
    assert (second.name, second.part, second.patient) == ("case0002", "training", "patient 1")


def test_a_series_of_another_patient_in_the_same_place_is_a_case_of_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    put(folder)
    first = put_series(folder, written(tmp_path / "export", 0, "first"))
    second = put_series(folder, written(tmp_path / "export", 5, "second"), may_replace=False)
    assert (second.name, second.part, second.patient) == ("case0003", "training", "patient 3")
    assert first in read_training_set(folder).cases


def test_another_series_in_the_same_place_is_a_case_of_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    put(folder)
    first = put_series(folder, written(tmp_path / "export", 0))
    assert "1.2.3" not in (folder / "dataset.json").read_text()
    second = put_series(folder, written(tmp_path / "export", 5, series="1.2.3.5"), may_replace=False)
    assert (second.name, second.part, second.patient) == ("case0003", first.part, first.patient)
    content = read_training_set(folder)
    assert content.cases[1:] == (first, second)

    # sets of earlier versions state no series
    write_training_set(folder, replace(content, cases=(content.cases[0], replace(first, series=""))))
    with pytest.raises(InputError, match=r"accept\.again.*case0002.*other voxels since then"):
        put_series(folder, written(tmp_path / "export", 5, series="1.2.3.5"), may_replace=False)


def test_a_set_of_an_earlier_version_without_patients_knows_its_labels(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    series = written(tmp_path / "study", 0)
    first = put_series(folder, series)
    content = read_training_set(folder)
    write_training_set(folder, replace(content, cases=(replace(first, who=""),)))
    again = put_series(folder, series, may_replace=False)
    assert again == first, "of the study, which is written"
    assert read_training_set(folder).cases == (first,)


def test_volumes_of_one_file_are_of_one_patient_unless_others_are_stated(tmp_path: Path) -> None:
    scan = phantoms.write_volumes(phantoms.head(), tmp_path / "dce.nii.gz")
    volumes = [scan.read(number) for number in (0, 1)]
    cases = [put_series(tmp_path / "set", one) for one in volumes]
    assert [(case.patient, case.part) for case in cases] == [("patient 1", "training")] * 2
    cases = [put_series(tmp_path / "stated", one, patient=f"sub-{n}") for n, one in enumerate(volumes)]
    assert [(case.patient, case.part) for case in cases] == [("patient 1", "training"), ("patient 2", "validation")]


def test_patients_in_names_are_those_that_a_training_finds() -> None:
    with with_segnets():
        from segnets.data.patients import PATIENT

    assert f"^{same_scan._PATIENT.pattern}" == PATIENT
