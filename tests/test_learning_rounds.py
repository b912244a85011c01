"""The list of a round: what a training of a new model reads."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import phantoms
import pytest
from PIL import Image
from test_learning_training_set import case

from napari_seg.bundles.read import read_bundle
from napari_seg.errors import Cancelled, InputError, LocaliseError, TrainingError
from napari_seg.formats.channels import joined
from napari_seg.formats.nifti import write_map, write_volume
from napari_seg.formats.read import read
from napari_seg.geometry import Grid
from napari_seg.learning import improve
from napari_seg.learning import rounds as module
from napari_seg.learning.accept import accept
from napari_seg.learning.crops import Crops
from napari_seg.learning.rounds import (
    accepted_since,
    check_replayed,
    content_of_round,
    corrected_of,
    left_out_of,
    open_round,
)
from napari_seg.learning.training_set import (
    Provenance,
    StructureChange,
    TrainingSet,
    read_training_set,
    remove_rounds,
    write_training_set,
)
from napari_seg.training.gather.referenced import VARIABLE
from napari_seg.volume import Segment, Segmentation, Volume

GRID = Grid((6, 5, 4), np.diag([-1.0, 1.0, 2.0, 1.0]))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A set of two cases without files."""
    monkeypatch.setattr(module, "unreadable", lambda *_: {})
    for name in ("imagesTr", "labelsTr"):
        (tmp_path / name).mkdir()
    cases = (case(1), case(2, part="validation", annotated=("Liver", "Anterior Hippocampus")))
    write_training_set(tmp_path, TrainingSet({"Liver": 1, "Anterior Hippocampus": 5}, (), 1, cases, 3))
    return tmp_path


def test_a_planned_round_keeps_the_structures_that_were_corrected(folder: Path) -> None:
    out = folder / "new"
    open_round(folder, replace(read_bundle(None), localiser=None), out)
    content = read_training_set(folder)
    changed = Provenance("Ada", changes={"Liver": StructureChange(8, 1.0, 8, 1.0, 1, 0)})
    write_training_set(folder, replace(content, cases=tuple(replace(one, provenance=changed) for one in content.cases)))
    assert corrected_of(folder, out) == ("Liver",)
    out.mkdir()
    (out / "plan.json").touch()
    assert corrected_of(folder, out) == content.corrected == ("Liver", "Anterior Hippocampus")


def test_what_other_models_of_a_task_find_is_background(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = replace(read_bundle(None), localiser=None)
    monkeypatch.setattr(module, "others_of", lambda _: frozenset({"liver", "spleen"}))
    with pytest.raises(InputError, match=r"improve\.too_few.*case0001: improve\.no_structure"):
        open_round(folder, bundle, folder.parent / "new")  # the first case has the liver only
    cases = tuple(replace(one, annotated=("Anterior Hippocampus", "Liver")) for one in read_training_set(folder).cases)
    write_training_set(folder, replace(read_training_set(folder), cases=cases))
    array = np.zeros(GRID.shape, np.uint8)
    array[0], array[1] = 1, 5
    for one in cases:
        write_map(array, GRID, folder / one.labels)
        write_volume(Volume(array[None], GRID), folder / one.image)
    path = open_round(folder, bundle, folder.parent / "new")
    content = json.loads(path.read_text())
    assert content["labels"] == {"background": 0, "Anterior Hippocampus": 5, "posterior hippocampus": 6}
    assert [entry["labelled"] for entry in content["training"]] == [["Anterior Hippocampus"]] * 2
    for entry in content["training"]:
        assert np.array_equal(read(path.parent / entry["label"]).array[0], np.where(array == 5, 5, 0))
    module.close_round(path)
    assert not list(path.parent.iterdir())


def test_a_list_has_the_classes_of_the_model_first(folder: Path) -> None:
    bundle = replace(read_bundle(None), localiser=None)
    path = open_round(folder, bundle, folder.parent / "new")
    content = json.loads(path.read_text())
    names = [one.name for one in bundle.network_segments]
    assert len(names) == 2
    assert [name.casefold() for name in content["labels"]] == ["background", *names, "liver"]
    assert content["labels"]["Anterior Hippocampus"] == 5
    assert sorted(content["labels"].values()) == [0, 1, 5, 6]
    assert [entry["labelled"] for entry in content["training"]] == [["Liver"], ["Anterior Hippocampus", "Liver"]]
    assert content["training"][0]["image"] == "../imagesTr/case0001.nii.gz"
    assert (path.parent / content["training"][0]["image"]).resolve() == (folder / "imagesTr/case0001.nii.gz").resolve()


def test_a_list_stays_as_it_was(folder: Path) -> None:
    bundle = replace(read_bundle(None), localiser=None)
    out = folder / "new"
    path = open_round(folder, bundle, out)
    begun = content_of_round(path)
    assert begun == read_training_set(folder)
    # not before a training was planned
    again = (case(1, labels="./labelsTr/case0001_r2.nii.gz", annotated=("Liver", "Spleen")), *begun.cases[1:])
    write_training_set(folder, replace(begun, structures={**begun.structures, "Spleen": 9}, cases=again))
    assert accepted_since(folder, path) == 1
    assert open_round(folder, bundle, out) == path
    planned = content_of_round(path)
    assert planned == read_training_set(folder)
    out.mkdir()
    (out / "plan.json").touch()
    write_training_set(folder, TrainingSet({"Liver": 1}, (), 1, (case(1),), 3))
    open_round(folder, bundle, out)
    assert content_of_round(path) == planned
    path.write_text("half")
    with pytest.raises(InputError, match=r"accept\.not_a_set"):
        content_of_round(path)
    with pytest.raises(InputError, match=r"improve\.too_few"):
        open_round(folder, bundle, folder.parent / "other")


def test_only_one_process_improves_a_model_into_a_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, refused = replace(read_bundle(None), localiser=None), []

    def evaluate_and_begin_again(*_: object) -> None:
        (path,) = (folder / "rounds").glob("*.json")
        written = path.stat()
        with pytest.raises(TrainingError, match="another process improves") as caught:
            improve.improve(folder, bundle, folder / "new", max_minutes=1)
        refused.append(caught.value.code)
        assert path.stat() == written
        raise Cancelled

    monkeypatch.setattr(improve, "evaluate", evaluate_and_begin_again)
    for _ in range(2):  # nothing stays locked
        with pytest.raises(Cancelled):
            improve.improve(folder, bundle, folder / "new", max_minutes=1)
    assert refused == ["run.in_use"] * 2
    assert not list((folder / "rounds").iterdir())


def test_a_model_for_other_channels_is_refused(folder: Path) -> None:
    bundle = replace(read_bundle(None), localiser=None, in_channels=2)
    with pytest.raises(InputError, match=r"improve\.channels"):
        open_round(folder, bundle, folder.parent / "new")


def test_a_validation_case_is_not_replayed(tmp_path: Path, head: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "known"))
    folder, data = tmp_path / "set", tmp_path / "data"
    array = np.zeros(head.grid.shape, np.uint8)
    array[2:5, 2:5, 2:5] = 1
    found = Segmentation(array, head.grid, (Segment(1, "ball", (1, 1, 1)),))
    accept(found, head, folder, Provenance(), part="validation")
    data.mkdir()
    write_volume(replace(head, array=head.array + 1), data / "other.nii.gz")
    write_volume(head, data / "copy.nii.gz")
    entries = [{"image": "other.nii.gz", "replay": True}, {"image": str(data / "copy.nii.gz")}]
    write_volume(replace(head, array=head.array[:, ::-1]), data / "mirrored.nii.gz")
    (data / "dataset.json").write_text(json.dumps({"training": entries}))
    check_replayed(folder, read_training_set(folder), data)
    mirrored = [*entries, {"image": "mirrored.nii.gz", "replay": True}]
    (data / "dataset.json").write_text(json.dumps({"training": mirrored}))
    with pytest.raises(InputError, match=r"improve\.seen"):
        check_replayed(folder, read_training_set(folder), data)
    entries[1]["replay"] = True
    (data / "dataset.json").write_text(json.dumps({"training": entries}))
    with pytest.raises(InputError, match=r"improve\.seen"):
        check_replayed(folder, read_training_set(folder), data)


@pytest.mark.parametrize("kind", ["files", "2d"])
def test_a_validation_case_of_several_files_or_a_2d_image_is_not_replayed(tmp_path: Path, kind: str) -> None:
    folder, data = tmp_path / "set", tmp_path / "data"
    data.mkdir()
    rng = np.random.default_rng(0)
    if kind == "files":
        volumes = {str(n): Volume(rng.integers(0, 99, (1, 6, 5, 4)).astype(np.int16), GRID) for n in range(2)}
        for name, volume in volumes.items():
            write_volume(volume, data / f"a_000{name}.nii.gz")
        scan, image = joined(volumes), ["a_0001.nii.gz", "a_0000.nii.gz"]  # sorted as another data set has them
    else:
        Image.fromarray(rng.integers(0, 255, (6, 5, 3)).astype(np.uint8)).save(data / "a.png")
        scan, image = read(data / "a.png"), "a.png"
    found = Segmentation(np.ones(scan.grid.shape, np.uint8), scan.grid, (Segment(1, "ball", (1, 1, 1)),))
    accept(found, scan, folder, Provenance(), part="validation")
    (data / "dataset.json").write_text(json.dumps({"training": [{"image": image, "replay": True}]}))
    with pytest.raises(InputError, match=r"improve\.seen"):
        check_replayed(folder, read_training_set(folder), data)


@pytest.mark.parametrize("gone", ["labelsTr", "imagesTr"])
def test_a_validation_case_that_is_left_out_is_not_replayed_either(
    tmp_path: Path, head: Volume, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "known"))
    folder, data = tmp_path / "set", tmp_path / "data"
    found = Segmentation(np.ones(head.grid.shape, np.uint8), head.grid, (Segment(1, "ball", (1, 1, 1)),))
    for number, part in enumerate(("training", "validation", "validation")):
        accept(found, replace(head, array=head.array + number), folder, Provenance(), part=part)
    (file,) = (folder / gone).glob("case0002*")
    file.unlink()
    path = open_round(folder, replace(read_bundle(None), localiser=None, in_channels=1), tmp_path / "new")
    assert [*left_out_of(path)] == ["case0002"]
    data.mkdir()
    write_volume(replace(head, array=head.array + 1), data / "copy.nii.gz")
    (data / "dataset.json").write_text(json.dumps({"training": [{"image": "copy.nii.gz", "replay": True}]}))
    check_replayed(folder, content_of_round(path), data)
    with pytest.raises(InputError, match=r"improve\.seen"):
        check_replayed(folder, content_of_round(path, with_left_out=True), data)


def test_crops_of_a_discarded_case_do_not_stay(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, out = read_bundle(None), folder.parent / "new"
    content = read_training_set(folder)

    def cut(folder: Path, content: TrainingSet, bundle: object, into: Path, *_: object) -> Crops:
        (into / "imagesTr").mkdir(parents=True, exist_ok=True)
        for one in content.cases:
            (into / "imagesTr" / f"{one.name}_box1.nii.gz").touch()
        if any(one.name == "case0003" for one in content.cases):
            raise Cancelled
        return Crops(tuple(of_case(one.name, one.part) for one in content.cases), {})

    monkeypatch.setattr(module, "write_crops", cut)
    write_training_set(folder, replace(content, cases=(*content.cases, case(3)), next_number=4))
    with pytest.raises(Cancelled):
        open_round(folder, bundle, out)
    write_training_set(folder, replace(content, next_number=4))  # without case0003
    path = open_round(folder, bundle, out)
    crops = path.with_suffix("") / "imagesTr"
    assert sorted(one.name for one in crops.iterdir()) == ["case0001_box1.nii.gz", "case0002_box1.nii.gz"]
    # what an earlier version has left, whose list does not name the case
    (crops / "case0003_box1.nii.gz").touch()
    remove_rounds(folder, "case0003")
    assert not path.exists()
    assert not crops.exists()
    # and without any list
    crops.mkdir(parents=True)
    (crops / "case0002_box0.nii.gz").touch()
    remove_rounds(folder, "case0009")
    assert crops.exists()
    remove_rounds(folder, "case0002")
    assert not crops.exists()


def test_cases_that_can_not_be_read_are_left_out(tmp_path: Path, head: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "known"))
    folder, out = tmp_path / "set", tmp_path / "new"
    bundle = replace(read_bundle(None), localiser=None)
    array = np.zeros(head.grid.shape, np.uint8)
    array[2:5, 2:5, 2:5] = 1
    found = Segmentation(array, head.grid, (Segment(1, "ball", (1, 1, 1)),))
    for number in range(6):
        accept(found, replace(head, array=head.array + number), folder, Provenance())
    phantoms.write_series(replace(head, array=head.array + 6), tmp_path / "series")
    series = read(tmp_path / "series")
    accept(replace(found, array=array.copy(), grid=series.grid), series, folder, Provenance())
    before = read_training_set(folder)
    broken = folder / before.cases[2].image
    broken.write_bytes(broken.read_bytes()[:-100])
    (folder / before.cases[3].image).unlink()
    (folder / before.cases[4].labels).write_text("no labels")
    next((tmp_path / "series").iterdir()).unlink()
    told: list[str] = []
    path = open_round(folder, bundle, out, told.append)
    names = [entry["name"] for entry in json.loads(path.read_text())["training"]]
    assert names == ["case0001", "case0002", "case0006"] == [one.name for one in content_of_round(path).cases]
    assert [line.partition(": ")[0] for line in told] == [f"left out case000{n}" for n in (3, 4, 5, 7)]
    assert "series.moved" in told[3]
    assert [*left_out_of(path)] == ["case0003", "case0004", "case0005", "case0007"]
    assert read_training_set(folder) == before

    # the only case for validation is one too many, and no list is left
    (folder / before.cases[1].image).write_text("no scan")
    with pytest.raises(InputError, match=r"improve\.too_few.*validation.*case0002: "):
        open_round(folder, bundle, out)
    assert not list((folder / "rounds").iterdir())


def of_case(name: str, part: str) -> dict[str, str]:
    return {"name": f"{name}_box1", "image": "./x", "label": "./y", "patient": name, "split": part}


def test_crops_are_cut_once_from_the_cases_of_the_beginning(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, out = read_bundle(None), folder.parent / "new"
    first = case(1, labels="./labelsTr/case0001_r1.nii.gz")
    begun = replace(read_training_set(folder), cases=(first, case(2, part="validation"), case(3)), next_number=4)
    again = (replace(first, labels="./labelsTr/case0001_r2.nii.gz"), *begun.cases[1:])
    write_training_set(folder, begun)
    (folder / first.labels).touch()
    is_killed = True

    def cut(folder: Path, content: TrainingSet, *_: object) -> Crops:
        assert content == begun
        with module.locked(folder):  # others may accept meanwhile
            write_training_set(folder, replace(begun, cases=again))
        assert (folder / first.labels).is_file()
        if is_killed:
            write_training_set(folder, begun)
            raise Cancelled
        entries = of_case("case0001", "training"), of_case("case0002", "validation")
        return Crops(entries, {"case0003": LocaliseError("localise.outside", "cut off")})

    monkeypatch.setattr(module, "write_crops", cut)
    with pytest.raises(Cancelled):
        open_round(folder, bundle, out)
    is_killed = False
    told: list[str] = []
    path = open_round(folder, bundle, out, told.append)
    assert [entry["name"] for entry in json.loads(path.read_text())["training"]] == ["case0001_box1", "case0002_box1"]
    assert told == ["left out case0003: localise.outside: cut off"]
    assert [one.labels for one in content_of_round(path).cases] == [one.labels for one in begun.cases[:2]]
    assert accepted_since(folder, path) == 1
    # a planned training goes on with them
    out.mkdir()
    (out / "plan.json").touch()
    monkeypatch.setattr(module, "write_crops", None)
    assert open_round(folder, bundle, out, told.append) == path
    assert told[0] == told[1]


def test_a_case_without_a_crop_is_not_compared_and_a_part_without_one_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, out = read_bundle(None), folder.parent / "new"
    cases = (case(1), case(2, part="validation"), case(3, part="validation"))
    write_training_set(folder, TrainingSet({"Liver": 1}, (), 1, cases, 4))
    error = LocaliseError("localise.outside", "cut off")
    entries = of_case("case0001", "training"), of_case("case0003", "validation")
    monkeypatch.setattr(module, "write_crops", lambda *_: Crops(entries[:1], {"case0002": error, "case0003": error}))
    with pytest.raises(InputError, match=r"improve\.too_few.*validation.*case0002: localise\.outside"):
        open_round(folder, bundle, out)
    assert not list((folder / "rounds").iterdir())
    monkeypatch.setattr(module, "write_crops", lambda *_: Crops(entries, {"case0002": error}))
    content = content_of_round(open_round(folder, bundle, out))
    assert [one.name for one in content.cases] == ["case0001", "case0003"]
