"""Accepted cases: what the set holds afterwards, and what it never holds."""

from __future__ import annotations

import gzip
import json
import multiprocessing
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import phantoms
import pytest

from napari_seg.errors import InputError, NapariSegError, TrainingError
from napari_seg.formats.read import read
from napari_seg.geometry import Grid, resample
from napari_seg.learning.accept import accept, discard
from napari_seg.learning.scans import scan_of
from napari_seg.learning.training_set import INDEX, AcceptedCase, Provenance, moved_to_training, read_training_set
from napari_seg.training.gather.gather import gather
from napari_seg.training.gather.referenced import VARIABLE
from napari_seg.training.segnets_modules import with_segnets
from napari_seg.volume import Segment, Segmentation, Source, Volume

GRID = Grid((7, 6, 5), np.array([[-2.0, 0, 0, 3], [0, 1, 0, 4], [0, 0, 1.5, -5], [0, 0, 0, 1]]))
PRIVATE = ("Canary", "CAN4711", "Birdhouse", "Quimby", "study")
"""Words of the headers and paths of the phantoms, which the set must not hold."""


def scan(seed: int = 0, **values: Any) -> Volume:
    array = np.random.default_rng(seed).integers(-900, 900, (1, *GRID.shape)).astype(np.int16)
    return Volume(array, GRID, **values)


def labels(*names: str, grid: Grid = GRID, size: int = 2) -> Segmentation:
    """Return a map with a block of each structure along the first axis."""
    array = np.zeros(grid.shape, np.uint8)
    for value, _ in enumerate(names, 1):
        array[2 * value - 2 : 2 * value, :size, :2] = value
    return Segmentation(array, grid, tuple(Segment(n, name, (9, 9, n)) for n, name in enumerate(names, 1)))


def put(folder: Path, seed: int = 0, names: tuple[str, ...] = ("Liver", "Spleen"), **options: Any) -> Any:
    return accept(labels(*names), scan(seed), folder, Provenance("Ada"), **options)


def index(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / INDEX).read_text())
    return content


def everything(folder: Path) -> str:
    """Return names and unpacked contents of all files of a folder."""
    found = ""
    for path in (path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        found += f"{path.relative_to(folder)} {gzip.decompress(content) if path.suffix == '.gz' else content!r}"
    return found


@pytest.fixture(autouse=True)
def known_scans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's own folder with the places of accepted scans."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "known"))
    return tmp_path / "known"


@pytest.fixture
def series(tmp_path: Path) -> Volume:
    """A DICOM series of a patient, as it was read."""
    return phantom_series(tmp_path / "study" / "Quimby^Ann")


def phantom_series(folder: Path, patient: str = "CAN4711") -> Volume:
    def edit(k: int, dataset: Any) -> None:
        dataset.PatientID = patient

    volume = phantoms.head()
    changed = replace(volume, array=volume.array + len(str(folder)) % 7)
    phantoms.write_series(changed, folder, edit=edit)
    return read(folder)


def test_an_accepted_case_is_read_by_a_training_as_it_is(tmp_path: Path) -> None:
    case = put(tmp_path / "set")
    put(tmp_path / "set", 1)
    with with_segnets():
        from segnets.data import Split, find_dataset

        dataset = find_dataset(tmp_path / "set")
        assert gather(tmp_path / "set", tmp_path / "out" / "data", {}) is None
        assert [one["name"] for one in Split(dataset)("validation")] == ["case0002"]
    assert dataset.layout == "decathlon"
    assert dataset.labels == {"Liver": (1,), "Spleen": (2,)}
    assert [one["name"] for one in dataset.cases] == ["case0001", "case0002"]
    assert dataset.patients == {"case0001": "patient 1", "case0002": "patient 2"}
    assert not dataset.labelled
    image, label = read(tmp_path / "set" / case.image), read(tmp_path / "set" / case.labels)
    assert np.array_equal(image.array, scan().array)
    assert image.array.dtype == np.int16
    assert np.array_equal(label.array[0], labels("Liver", "Spleen").array)
    assert image.grid.matches(GRID)


def test_the_record_says_who_changed_what(tmp_path: Path) -> None:
    before, after = labels("Liver", "Spleen"), labels("Liver", "Spleen", size=3)
    given = Provenance("Ada", model=("liver_ct", "0.3"), model_digest="ab", actions=("grow from a click", "smooth"))
    accept(after, scan(), tmp_path, given, before=before)
    (case,) = read_training_set(tmp_path).cases
    record = case.provenance
    assert (record.reader, record.model, record.model_digest) == ("Ada", ("liver_ct", "0.3"), "ab")
    assert record.actions == ("grow from a click", "smooth")
    assert record.time.endswith("+00:00")
    change = record.changes["Liver"]
    assert (change.voxels_before, change.voxels, change.added, change.removed) == (8, 12, 4, 0)
    assert change.ml == pytest.approx(12 * 3e-3)  # voxels of 2 x 1 x 1.5 mm
    assert change.ml_before == pytest.approx(8 * 3e-3)


def test_a_case_accepted_again_replaces_its_labels_only(tmp_path: Path) -> None:
    first, other = put(tmp_path), put(tmp_path, 1)
    again = accept(labels("Spleen", "Liver"), scan(), tmp_path, Provenance("Bob"))
    assert (again.name, again.image, again.part, again.revision) == ("case0001", first.image, first.part, 2)
    assert [case.name for case in read_training_set(tmp_path).cases] == ["case0001", "case0002"]
    assert sorted(path.name for path in (tmp_path / "labelsTr").iterdir()) == [
        "case0001_r2.nii.gz",
        "case0002_r1.nii.gz",
    ]
    array = read(tmp_path / again.labels).array[0]
    assert array[0, 0, 0] == 2, "Spleen has the value that it has in the other cases"
    assert array[2, 0, 0] == 1
    assert other.revision == 1


def test_structures_have_one_value_in_all_cases(tmp_path: Path) -> None:
    put(tmp_path)
    put(tmp_path, 1, ("Tumour", "liver"))
    assert index(tmp_path)["labels"] == {"background": 0, "Liver": 1, "Spleen": 2, "Tumour": 3}
    array = read(tmp_path / "labelsTr" / "case0002_r1.nii.gz").array[0]
    assert (array[0, 0, 0], array[2, 0, 0]) == (3, 1)
    first, second = index(tmp_path)["training"]
    assert first["labelled"] == ["Liver", "Spleen"]
    assert second["labelled"] == ["Liver", "Tumour"]


def test_only_what_was_checked_is_learned(tmp_path: Path) -> None:
    put(tmp_path)
    case = put(tmp_path, 1, annotated=["spleen"])
    assert index(tmp_path)["training"][1]["labelled"] == ["Spleen"]
    assert np.unique(read(tmp_path / case.labels).array).tolist() == [0, 2]
    with with_segnets():
        from segnets.data import find_dataset

        assert find_dataset(tmp_path).labelled == {"case0002": (2,)}
    # looked for, and not there
    put(tmp_path, 2, ("Spleen",), annotated=["Liver", "Spleen"])
    assert "labelled" not in index(tmp_path)["training"][2]
    with pytest.raises(InputError, match=r"labels\.names"):
        put(tmp_path, 3, annotated=["Kidney"])


@pytest.mark.parametrize(
    ("found", "code"),
    [
        (lambda: labels("Liver", grid=Grid((7, 6, 4), GRID.affine)), "accept.grid"),
        (lambda: replace(labels("Liver"), array=np.zeros(GRID.shape, np.uint8)), "accept.empty"),
        (lambda: replace(labels("Liver", "Spleen"), segments=labels("Liver").segments), "accept.unnamed"),
        (lambda: labels("Liver", "label 2"), "accept.unnamed"),
        (lambda: labels("Background"), "accept.unnamed"),
        (lambda: labels("liver", "Liver"), "accept.same_name"),
        (lambda: labels("$import os"), "bundle.name"),
    ],
)
def test_what_can_not_be_accepted_changes_nothing(tmp_path: Path, found: Any, code: str) -> None:
    put(tmp_path, 5)
    content = everything(tmp_path)
    with pytest.raises(NapariSegError) as refusal:
        accept(found(), scan(), tmp_path, Provenance())
    assert refusal.value.code == code
    assert everything(tmp_path) == content


def test_a_label_without_a_name_may_be_left_out(tmp_path: Path) -> None:
    case = put(tmp_path, 0, ("Liver", "label 2"), annotated=["Liver"])
    assert case.annotated == ("Liver",)
    assert index(tmp_path)["labels"] == {"background": 0, "Liver": 1}


def test_earlier_labels_are_replaced_only_if_that_is_allowed(tmp_path: Path) -> None:
    put(tmp_path)
    content = everything(tmp_path)
    with pytest.raises(InputError) as refusal:
        accept(labels("Spleen"), scan(), tmp_path, Provenance("Bob"), may_replace=False)
    assert refusal.value.code == "accept.again"
    assert "case0001 by Ada" in refusal.value.message
    assert "Liver would be lost" in refusal.value.message
    assert everything(tmp_path) == content
    assert accept(labels("Spleen"), scan(), tmp_path, Provenance("Bob")).revision == 2
    assert accept(labels("Spleen"), scan(1), tmp_path, Provenance(), may_replace=False).revision == 1


def test_the_same_labels_change_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    first = put(folder)
    before = index(folder)
    assert put(folder) == first
    assert accept(labels("Liver", "Spleen"), scan(), folder, Provenance("Eve"), may_replace=False) == first
    assert index(folder) == before
    assert put(folder, annotated=["Liver"]).revision == 2, "of other structures nothing is learned any more"
    again = accept(labels("Liver", "Spleen"), scan(), folder, Provenance("Eve"), annotated=["Liver"])
    assert (again.revision, again.provenance.reader) == (3, "Eve")
    (folder / again.labels).write_text("damaged")
    assert put(folder, annotated=["Liver"]).revision == 4


def test_labels_on_the_same_voxels_in_another_order_are_turned(tmp_path: Path) -> None:
    turned = GRID.reoriented("RAS")
    given = labels("Liver", grid=turned)
    case = accept(given, scan(), tmp_path, Provenance())
    array = read(tmp_path / case.labels).array[0]
    assert array[-1, 0, 0] == 1
    assert array[0, 0, 0] == 0


def test_scans_with_other_channels_are_refused(tmp_path: Path) -> None:
    accept(labels("Liver"), scan(modality="MR"), tmp_path, Provenance())
    accept(labels("Liver"), scan(1), tmp_path, Provenance())  # NIfTI does not say
    for other in (scan(2, modality="CT"), replace(scan(3), array=np.repeat(scan(3).array, 2, axis=0))):
        with pytest.raises(InputError, match=r"accept\.channels"):
            accept(labels("Liver"), other, tmp_path, Provenance())
    assert index(tmp_path)["modality"] == {"0": "MR"}


def test_the_part_of_a_patient_is_chosen_once(tmp_path: Path) -> None:
    parts = [put(tmp_path, seed).part[0] for seed in range(12)]
    assert "".join(parts) == "tvttttvttttv"
    assert [put(tmp_path, seed).part[0] for seed in range(12)] == parts
    assert put(tmp_path, 20, patient="4711", part="validation").part == "validation"
    assert put(tmp_path, 21, patient="4711", part="training").part == "validation", "a scan of the same patient"
    assert len({case.patient for case in read_training_set(tmp_path).cases}) == 13
    discard(tmp_path, "case0002")
    assert put(tmp_path, 30).name == "case0015", "numbers are not used twice"


def test_a_case_that_was_discarded_comes_back_into_its_part(tmp_path: Path) -> None:
    parts = [put(tmp_path, seed, patient=str(seed)).part for seed in range(3)]
    for number in (1, 2):
        discard(tmp_path, f"case{number:04d}")
    assert sorted(path.name for path in (tmp_path / "imagesTr").iterdir()) == ["case0003.nii.gz"]
    assert [put(tmp_path, seed).part for seed in (1, 0)] == parts[1::-1]
    assert put(tmp_path, 9, patient="1").part == "validation", "another scan of the patient"
    assert "Ada" not in json.dumps(index(tmp_path)["napari_seg"])


def test_patients_are_known_on_every_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "set", 0, patient="4711")
    put(tmp_path / "set", 1, patient="4712")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "another account"))
    assert put(tmp_path / "set", 2, patient="4712").part == "validation"
    assert '"4712"' not in (tmp_path / "set" / INDEX).read_text()


def test_a_copy_of_a_scan_is_the_same_case(tmp_path: Path, head: Volume) -> None:
    folder = tmp_path / "set"
    grid = Grid(head.grid.shape, head.grid.affine + 1e-9)
    first = accept(labels("Liver", grid=grid), replace(head, grid=grid), folder, Provenance())
    put_again = read(folder / first.image)
    assert accept(labels("Liver", grid=put_again.grid), put_again, folder, Provenance()) == first
    case = accept(labels("Liver", grid=put_again.grid), put_again, folder, Provenance("Eve"))
    assert (case.name, case.revision) == (first.name, 2)
    filtered = replace(put_again, array=put_again.array * 2)  # as a layer that was changed, of the same file
    case = accept(labels("Liver", grid=put_again.grid), filtered, folder, Provenance("Ada"))
    assert (case.name, case.revision, case.scan) == (first.name, 3, first.scan)
    assert len(read_training_set(folder).cases) == 1


def turned(given: Segmentation | Volume, code: str = "LPS") -> Any:
    """Return labels or a scan in another order of axes, as another format holds the same voxels."""
    grid = given.grid.reoriented(code)
    order = 0 if isinstance(given, Segmentation) else 1
    return replace(given, array=resample(given.array, given.grid, grid, order=order), grid=grid)


def assert_pair(folder: Path, case: AcceptedCase, name: str = "Liver", low: int = -900) -> None:
    """Check that the labels of a case lie on the voxels of its image: they were drawn where it is dark."""
    image, found = scan_of(folder, case), read(folder / case.labels)
    assert found.grid.matches(image.grid)
    value = read_training_set(folder).structures[name]
    assert np.array_equal(found.array[0] == value, image.array[0] == low)
    with with_segnets():
        gather(folder, folder.parent / f"data_{case.revision}", {})


def drawn() -> tuple[Segmentation, Volume]:
    """Return a scan that is dark where its labels are."""
    found, volume = labels("Liver"), scan()
    array = np.where(found.array[None] > 0, -900, np.maximum(volume.array, -800)).astype(np.int16)
    return found, replace(volume, array=array)


@pytest.mark.parametrize("code", ["RAS", "LPS", "SPR", "AIL"])
def test_labels_of_a_scan_in_another_order_lie_on_the_image_that_the_set_has(tmp_path: Path, code: str) -> None:
    found, volume = drawn()
    folder = tmp_path / "set"
    accept(found, volume, folder, Provenance())
    again, other = turned(found, code), turned(volume, code)
    assert not other.grid.matches(volume.grid)
    case = accept(again, other, folder, Provenance("Eve"), before=again)
    assert (case.name, case.revision, case.image) == ("case0001", 2, "./imagesTr/case0001.nii.gz")
    change = case.provenance.changes["Liver"]
    assert (change.added, change.removed, change.voxels) == (0, 0, 8)
    assert_pair(folder, case)


def test_a_series_and_its_conversion_are_one_case_whichever_comes_first(tmp_path: Path, series: Volume) -> None:
    dark = int(series.array.min())
    found = Segmentation((series.array[0] == dark).astype(np.uint8), series.grid, (Segment(1, "Liver", (1, 2, 3)),))
    for number, given in enumerate(((series, turned(series)), (turned(series), series))):
        folder = tmp_path / f"set{number}"
        for one in given:
            own = found if one is series else turned(found)
            source, reader = (one.source, "Ada") if one is series else (Source(), "Eve")
            case = accept(own, replace(one, source=source), folder, Provenance(reader))
            assert_pair(folder, case, low=dark)
        assert (case.name, case.revision) == ("case0001", 2)


def test_the_files_of_a_conversion_are_not_taken_for_those_of_the_series(tmp_path: Path, series: Volume) -> None:
    folder = tmp_path / "set"
    accept(labels("Liver", grid=series.grid), series, folder, Provenance())
    source = Source("nifti", (tmp_path / "converted.nii.gz",))
    source.files[0].touch()
    case = accept(labels("Liver", grid=series.grid), replace(series, source=source), folder, Provenance())
    assert scan_of(folder, case).source.files == series.source.files


@pytest.mark.parametrize("is_reference", [False, True])
def test_a_scan_whose_place_was_corrected_gets_a_new_image(tmp_path: Path, series: Volume, is_reference: bool) -> None:
    folder = tmp_path / "set"
    volume = series if is_reference else replace(series, source=Source())
    dark = int(series.array.min())
    found = Segmentation((series.array[0] == dark).astype(np.uint8), series.grid, (Segment(1, "Liver", (1, 2, 3)),))
    first = accept(found, volume, folder, Provenance())
    affine = series.grid.affine @ np.diag([1, 1, 1.25, 1])
    moved = Grid(series.grid.shape, affine)
    case = accept(replace(found, grid=moved), replace(volume, grid=moved), folder, Provenance())
    assert (case.name, case.revision, case.image) == (
        "case0001",
        2,
        f"./imagesTr/case0001{'' if is_reference else '_r2'}.nii.gz",
    )
    assert scan_of(folder, case).grid.matches(moved)
    assert_pair(folder, case, low=dark)
    assert first.image != case.image
    if is_reference:
        assert read(series.source.files[0].parent).grid.matches(series.grid)


def test_a_patient_who_becomes_known_later_is_in_one_part(tmp_path: Path) -> None:
    put(tmp_path, 1)  # of P1, whom nobody named
    put(tmp_path, 2, patient="P1")
    put(tmp_path, 3, patient="P2")
    put(tmp_path, 5, patient="P1")
    assert [case.part[0] for case in read_training_set(tmp_path).cases] == ["t", "v", "t", "v"]
    discard(tmp_path, "case0004")
    before = read_training_set(tmp_path)
    again = put(tmp_path, 1, patient="P1")
    content = read_training_set(tmp_path)
    assert moved_to_training(before, content) == ["case0002"]
    of_p1 = [case for case in (*content.cases, *content.removed) if case.who == again.who]
    assert {case.name for case in of_p1} == {"case0001", "case0002", "case0004"}
    assert {(case.patient, case.part) for case in of_p1} == {("patient 1", "training")}, "nothing trained on validates"
    assert [case.part for case in content.cases if case.who != again.who] == ["training"]
    assert put(tmp_path, 6, patient="P1").part == "training"


def test_a_validation_case_of_a_patient_in_training_is_trained_on(tmp_path: Path) -> None:
    put(tmp_path, 1, patient="P1")
    assert put(tmp_path, 2).part == "validation"
    assert put(tmp_path, 2, patient="P1").part == "training"
    # two parts that are the same already only get one number
    put(tmp_path, 3)
    put(tmp_path, 3, patient="P1")
    assert {case.patient for case in read_training_set(tmp_path).cases} == {"patient 1"}


def test_what_a_model_found_wrongly_is_accepted_as_empty(tmp_path: Path) -> None:
    nothing = replace(labels("Liver"), array=np.zeros(GRID.shape, np.uint8))
    case = accept(nothing, scan(), tmp_path, Provenance(), before=labels("Liver"), annotated=["Liver"])
    assert case.annotated == ("Liver",)
    assert case.provenance.changes["Liver"].removed == 8


def test_the_patient_in_the_name_of_a_file_counts(tmp_path: Path) -> None:
    for seed, name in enumerate(("sub-01_ses-1_T1w.nii.gz", "sub-02_T1w.nii.gz", "sub-01_ses-2_T1w.nii.gz")):
        source = Source("nifti", (tmp_path / name,))
        source.files[0].touch()
        accept(labels("Liver"), scan(seed, source=source), tmp_path / "set", Provenance())
    assert [case.patient for case in read_training_set(tmp_path / "set").cases] == [
        "patient 1",
        "patient 2",
        "patient 1",
    ]
    assert "sub-0" not in everything(tmp_path / "set")


def test_a_series_stays_where_it_is(tmp_path: Path, series: Volume) -> None:
    folder = tmp_path / "set"
    given = labels("Liver", grid=series.grid)
    case = accept(given, series, folder, Provenance("Ada"))
    accept(labels("Liver", grid=GRID), scan(modality="MR"), folder, Provenance("Ada"))
    assert case.image == "./imagesTr/case0001.series.json"
    found = everything(folder)
    for private in (*PRIVATE, str(tmp_path)):
        assert private not in found
    with with_segnets():
        converted = gather(folder, tmp_path / "out" / "data", {})
    assert converted is not None
    assert np.array_equal(read(converted.folder / "imagesTr" / "case0001.nii.gz").array, series.array)
    description = json.loads((converted.folder / "dataset.json").read_text())
    assert [entry["split"] for entry in description["training"]] == ["training", "validation"]
    assert description["labels"] == {"background": 0, "Liver": [1]}


def test_scans_of_one_patient_of_dicom_are_in_one_part(tmp_path: Path, series: Volume) -> None:
    later, other = phantom_series(tmp_path / "later"), phantom_series(tmp_path / "other1", "ZAPPA1")
    cases = [
        accept(labels("Liver", grid=one.grid), one, tmp_path / "set", Provenance()) for one in (series, later, other)
    ]
    assert [case.patient for case in cases] == ["patient 1", "patient 1", "patient 2"]
    assert [case.part for case in cases] == ["training", "training", "validation"]


@pytest.mark.parametrize("format_", ["dicom", "nifti"])
def test_a_scan_whose_files_are_away_is_refused(tmp_path: Path, series: Volume, format_: Any) -> None:
    accept(labels("Liver", grid=series.grid), series, tmp_path / "set", Provenance())
    before = everything(tmp_path / "set")
    second = phantom_series(tmp_path / "study" / "second")
    if format_ == "nifti":
        second = replace(second, source=Source("nifti", (tmp_path / "study" / "sub-01.nii",)))
    (tmp_path / "study").rename(tmp_path / "away")
    with pytest.raises(InputError, match=r"file\.unreadable.*connect their drive"):
        accept(labels("Liver", grid=second.grid), second, tmp_path / "set", Provenance())
    assert everything(tmp_path / "set") == before


def test_a_series_that_changed_is_not_trained_on(tmp_path: Path, series: Volume) -> None:
    accept(labels("Liver", grid=series.grid), series, tmp_path / "set", Provenance())
    put_beside = phantom_series(tmp_path / "study" / "x")
    for old, new in zip(series.source.files, put_beside.source.files, strict=True):
        old.write_bytes(new.read_bytes())
    assert refused(tmp_path) == "series.changed"
    (tmp_path / "study").rename(tmp_path / "away")
    assert refused(tmp_path) == "series.moved"
    (tmp_path / "away").rename(tmp_path / "study")
    accept(labels("Liver", grid=series.grid), series, tmp_path / "set", Provenance(), copy_series=True)
    (tmp_path / "study").rename(tmp_path / "away")  # a copy needs none of them
    with with_segnets():
        assert gather(tmp_path / "set", tmp_path / "out" / "data", {}) is None
    assert [path.name for path in (tmp_path / "set" / "imagesTr").iterdir()] == ["case0001.nii.gz"]


def refused(tmp_path: Path) -> str:
    with pytest.raises(TrainingError) as refusal, with_segnets():
        gather(tmp_path / "set", tmp_path / "out" / "data", {})
    assert refusal.value.code == "data.faults"
    return next(word for word in refusal.value.message.split() if word.startswith("series."))


def test_the_set_of_a_stranger_reads_no_files_elsewhere(
    tmp_path: Path, series: Volume, known_scans: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "set"
    accept(labels("Liver", grid=series.grid), series, folder, Provenance())
    reference = folder / "imagesTr" / "case0001.series.json"
    path = next(known_scans.iterdir())
    for content in (
        {"series": "0" * 32},  # unknown here
        {"series": f"../../{tmp_path.name}/known/{path.stem}"},
        {"series": str(path.with_suffix(""))},
        {"series": ["a"]},
        {"series": None, "files": [str(file) for file in series.source.files]},
    ):
        reference.write_text(json.dumps(content))
        assert refused(tmp_path) == "series.unknown"
    monkeypatch.setenv(VARIABLE, str(tmp_path / "another machine"))
    reference.write_text(json.dumps({"series": path.stem}))
    assert refused(tmp_path) == "series.unknown"


def test_the_set_of_a_stranger_removes_no_files_elsewhere(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    put(folder)
    outside = tmp_path / "mine_r1.nii.gz"
    outside.write_text("mine")
    content = index(folder)
    for file in ("./labelsTr/../../mine_r1.nii.gz", str(outside), "./labelsTr/mine.nii.gz"):
        content["training"][0]["label"] = file
        (folder / INDEX).write_text(json.dumps(content))
        with pytest.raises(InputError, match=r"accept\.not_a_set"):
            put(folder)
    content["training"][0]["label"] = "./labelsTr/case0001_r1.nii.gz"
    (folder / INDEX).write_text(json.dumps(content))
    (folder / "labelsTr").rename(tmp_path / "elsewhere")
    (folder / "labelsTr").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NapariSegError, match=r"output\.exists"):
        put(folder, names=("Liver",))
    assert outside.read_text() == "mine"


def test_other_folders_are_left_alone(tmp_path: Path, dataset: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    before = everything(dataset)
    for folder in (tmp_path, dataset):
        with pytest.raises(InputError, match=r"accept\.not_a_set"):
            put(folder)
    assert [path.name for path in tmp_path.iterdir() if path.is_file() and path.name[0] != "."] == ["notes.txt"]
    assert everything(dataset).replace(".lock b''", "") == before


class _KilledError(BaseException):
    pass


@pytest.mark.parametrize("step", range(6))
def test_what_ends_in_the_middle_leaves_the_former_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    put(tmp_path)
    put(tmp_path, 1)
    before = index(tmp_path)
    kept = {case["label"]: (tmp_path / case["label"]).read_bytes() for case in before["training"]}
    steps = _raising_at(step)
    for name in ("write_map", "write_volume", "write_training_set", "make_folders", "_recorded", "_patient"):
        monkeypatch.setattr(f"napari_seg.learning.accept.{name}", lambda *_, **__: next(steps))
    with pytest.raises((_KilledError, TypeError)):
        put(tmp_path, step % 3, ("Liver",))
    monkeypatch.undo()
    assert index(tmp_path) == before
    assert all((tmp_path / name).read_bytes() == content for name, content in kept.items())
    (tmp_path / "labelsTr" / f".{'0' * 32}.nii.gz").write_text("half")
    put(tmp_path, 2)
    assert not list(tmp_path.rglob(f".{'0' * 32}*"))


def _raising_at(step: int) -> Iterator[None]:
    for _ in range(step):
        yield None
    raise _KilledError


def test_two_processes_at_once_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_put_many, args=(tmp_path / "set", first)) for first in (0, 100)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    found = read_training_set(tmp_path / "set")
    assert [case.name for case in found.cases] == [f"case{n:04d}" for n in range(1, 11)]
    assert len({case.scan for case in found.cases}) == 10
    for case in found.cases:
        assert (tmp_path / "set" / case.image).is_file()
        assert (tmp_path / "set" / case.labels).is_file()


def _put_many(folder: Path, first: int) -> None:
    for seed in range(first, first + 5):
        put(folder, seed)
