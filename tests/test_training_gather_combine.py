"""Several data sets become one: common classes, values, patients and names; what does not fit together is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK
from PIL import Image

from napari_seg.errors import OutputError, TrainingError
from napari_seg.training.choices import Choices
from napari_seg.training.describe import plan_rows
from napari_seg.training.gather.combine import combine
from napari_seg.training.prepare import plan_bundle
from napari_seg.training.segnets_modules import with_segnets

AFFINE = np.diag([-2.0, 1.0, 1.5, 1.0])


def write(root: Path, labels: dict[str, Any], *, cases: Sequence[str] = ("p1", "p2"), **description: Any) -> Path:
    """Write a data set in the Decathlon's layout; its label maps hold all its values, in the order of `labels`."""
    values = [value for of_name in labels.values() for value in (of_name if isinstance(of_name, list) else [of_name])]
    rng = np.random.default_rng(list(root.name.encode()))
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    for name in cases:
        array = np.zeros((12, 10, 9), np.uint8)
        for number, value in enumerate(values):
            array[number] = value
        image = rng.normal(size=array.shape).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(image, AFFINE), root / "imagesTr" / f"{name}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(array, AFFINE), root / "labelsTr" / f"{name}.nii.gz")
    listing = [{"image": f"imagesTr/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz"} for name in cases]
    description = {"labels": labels, "training": listing} | description
    (root / "dataset.json").write_text(json.dumps(description))
    return root


def combined(into: Path, *roots: Path, labels: dict[str, Any] | None = None, **reading: Any) -> dict[str, Any]:
    """Return the dataset.json of the combined data set."""
    with with_segnets():
        combine(roots, into, reading, labels or {})
    content: dict[str, Any] = json.loads((into / "dataset.json").read_text())
    return content


def refused(into: Path, *roots: Path, code: str, labels: dict[str, Any] | None = None) -> str:
    with pytest.raises(TrainingError) as caught:
        combined(into, *roots, labels=labels)
    assert caught.value.code == code
    return caught.value.message


def planes(into: Path, entry: dict[str, Any]) -> list[int]:
    """Return the values in the first planes of a label map."""
    image = nibabel.load(into / entry["label"])
    assert np.allclose(image.affine, AFFINE)
    return np.asarray(image.dataobj)[:5, 4, 4].tolist()


def test_classes_get_one_value_and_cases_list_what_they_know(tmp_path: Path) -> None:
    first = write(tmp_path / "a", {"Liver": 2, "cyst": 5}, modality={"0": "CT"})
    second = write(tmp_path / "b", {"background": 0, "liver": 1, "spleen": 2}, cases=("p2", "p3"))
    into = tmp_path / "out" / "data"
    description = combined(into, first, second)
    assert description["labels"] == {"background": 0, "Liver": [2], "cyst": [5], "spleen": [1]}
    assert description["modality"] == {"0": "CT"}
    entries = {entry["name"]: entry for entry in description["training"]}
    assert list(entries) == ["p1", "set1_p2", "set2_p2", "p3"]
    assert planes(into, entries["p1"]) == [2, 5, 0, 0, 0]
    assert planes(into, entries["p3"]) == [0, 2, 1, 0, 0]
    assert entries["p1"]["labelled"] == [2, 5]
    assert entries["p3"]["labelled"] == [1, 2]
    assert entries["p1"]["image"] == (first / "imagesTr" / "p1.nii.gz").as_posix()
    assert [entry["patient"] for entry in entries.values()] == [f"patient {number}" for number in (1, 2, 3, 4)]
    assert not list(into.rglob("imagesTr"))  # images are not copied
    bytes_of = [(root / "labelsTr" / "p1.nii.gz").read_bytes() for root in (first, into)]
    assert bytes_of[0] == bytes_of[1]  # nor are label maps written again if their values stay


def test_what_is_written_stays_until_its_source_changes(tmp_path: Path) -> None:
    roots = write(tmp_path / "a", {"liver": 1}), write(tmp_path / "b", {"spleen": 1})
    into = tmp_path / "data"
    combined(into, *roots)
    files = sorted((into / "labelsTr").iterdir())
    before = [path.stat().st_mtime_ns for path in files]
    combined(into, *roots)
    assert [path.stat().st_mtime_ns for path in files] == before
    source = roots[1] / "labelsTr" / "p2.nii.gz"
    array = np.full((12, 10, 9), 1, np.uint8)
    nibabel.save(nibabel.Nifti1Image(array, AFFINE), source)
    combined(into, *roots)
    after = {path.name: path.stat().st_mtime_ns for path in files}
    assert [name for name, path in zip(after, before, strict=True) if after[name] != path] == ["set2_p2.nii.gz"]
    (roots[1] / "dataset.json").write_text(json.dumps({"labels": {"spleen": 1}, "training": [
        {"image": "imagesTr/p1.nii.gz", "label": "labelsTr/p1.nii.gz"}]}))  # fmt: skip
    combined(into, *roots)
    assert [path.name for path in sorted((into / "labelsTr").iterdir())] == [
        "p2.nii.gz", "set1_p1.nii.gz", "set2_p1.nii.gz"]  # fmt: skip


def test_classes_that_overlap_must_be_the_same(tmp_path: Path) -> None:
    brain = {"whole": [1, 2], "core": 2}
    first, second = write(tmp_path / "a", brain), write(tmp_path / "b", {"core": 1, "whole": [1, 3]})
    into = tmp_path / "data"
    description = combined(into, first, second)
    assert description["labels"] == {"background": 0, "whole": [1, 2], "core": [2]}
    assert planes(into, description["training"][-1]) == [2, 2, 1, 0, 0]
    assert "labelled" not in description["training"][0]
    other = write(tmp_path / "c", {"core": 1})
    assert "data set 3 core" in refused(tmp_path / "other", first, second, other, code="dataset.combined")


def test_ignored_values_and_unknown_values(tmp_path: Path) -> None:
    first = write(tmp_path / "a", {"liver": 1, "ignore": 3})
    second = write(tmp_path / "b", {"spleen": 1, "ignore": 255, "liver": 4})
    description = combined(tmp_path / "data", first, second)
    assert description["labels"] == {"background": 0, "liver": [1], "spleen": [2], "ignore": [255]}
    assert planes(tmp_path / "data", description["training"][0])[:2] == [1, 255]
    assert planes(tmp_path / "data", description["training"][-1])[:3] == [2, 255, 1]
    third = write(tmp_path / "c", {"spleen": 1, "cyst": 7})
    path = third / "dataset.json"
    path.write_text(path.read_text().replace('"cyst": 7', '"cyst": 6'))
    message = refused(tmp_path / "other", first, third, code="data.faults")
    assert "label.values  set2_p1  values 7; expected 0, 1, 6, which data set 2 names" in message


def test_a_class_of_several_names_is_known_by_its_own_name_or_by_all_others(tmp_path: Path) -> None:
    whole = write(tmp_path / "a", {"kidney": 1})
    sides = write(tmp_path / "b", {"left kidney": 1, "right kidney": 2})
    left = write(tmp_path / "c", {"left kidney": 1, "liver": 2})
    labels = {"kidney": ["kidney", "left kidney", "right kidney"], "liver": ["liver"]}
    description = combined(tmp_path / "data", whole, sides, left, labels=labels)
    assert description["labels"] == {
        "background": 0, "kidney": [1], "left kidney": [2], "right kidney": [3], "liver": [4]}  # fmt: skip
    assert [entry["labelled"] for entry in description["training"][::2]] == [[1, 2, 3], [1, 2, 3], [2, 4]]
    plan = plan_bundle(whole, tmp_path / "out", Choices(labels=labels), more=[sides, left], dry_run=True)
    assert plan["labels"] == {"kidney": [1, 2, 3], "liver": [4]}
    message = refused(tmp_path / "other", whole, sides, code="labels.unknown", labels={"kidney": [1]})
    assert "found --labels kidney=1 for several data sets" in message


def test_data_sets_without_names(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a", {}), write(tmp_path / "b", {})
    for root in (first, second):
        for path in (root / "labelsTr").iterdir():
            nibabel.save(nibabel.Nifti1Image(np.full((12, 10, 9), 3, np.uint8), AFFINE), path)
    assert "data set 1, 2 does not name" in refused(tmp_path / "data", first, second, code="labels.unnamed")
    description = combined(tmp_path / "data", first, second, labels={"liver": [3]})
    assert description["labels"] == {"background": 0, "liver": [3]}
    (second / "labels.json").write_text('{"3": "liver"}')
    assert "data set 1 does not" in refused(tmp_path / "data", first, second, code="labels.unnamed")


def test_channels_must_agree(tmp_path: Path) -> None:
    def with_channels(name: str, *channels: str) -> Path:
        return write(tmp_path / name, {name: 1}, modality={str(n): one for n, one in enumerate(channels)})

    mr, ct, both, other, turned = (
        with_channels(name, *channels)
        for name, channels in {
            "a": ["T1w"],
            "b": ["CT"],
            "c": ["T1w", "FLAIR"],
            "d": ["MRI"],
            "e": ["FLAIR", "T1w"],
        }.items()
    )
    assert "data set 1 has T1w, data set 2 CT" in refused(tmp_path / "data", mr, ct, code="dataset.combined")
    assert "data set 2 T1w, FLAIR" in refused(tmp_path / "data", mr, both, code="dataset.combined")
    assert "another order" in refused(tmp_path / "data", both, turned, code="dataset.combined")
    assert combined(tmp_path / "data", mr, other)["modality"] == {"0": "T1w"}
    refused(tmp_path / "data", mr, mr, code="dataset.combined")
    for folder in ("images", "labels"):
        (tmp_path / "png" / folder).mkdir(parents=True)
        Image.fromarray(np.eye(9, dtype=np.uint8)).save(tmp_path / "png" / folder / "x.png")
    (tmp_path / "png" / "labels.json").write_text('{"1": "line"}')
    message = refused(tmp_path / "data", mr, tmp_path / "png", code="dataset.combined")
    assert "data set 1 volumes, data set 2 2D images" in message


def test_channels_in_files_of_their_own_are_put_in_order(tmp_path: Path) -> None:
    def write_nnunet(name: str, *channels: str) -> Path:
        root = write(tmp_path / name, {"liver": 1}, cases=(name,))
        (root / "imagesTr" / f"{name}.nii.gz").rename(root / "imagesTr" / f"{name}_0000.nii.gz")
        other = (root / "imagesTr" / f"{name}_0000.nii.gz").read_bytes()
        (root / "imagesTr" / f"{name}_0001.nii.gz").write_bytes(other)
        description = {"channel_names": dict(enumerate(channels)), "labels": {"liver": 1}}
        (root / "dataset.json").write_text(json.dumps(description))
        return root

    roots = write_nnunet("a", "T1", "T2"), write_nnunet("b", "t2", "T1")
    description = combined(tmp_path / "data", *roots)
    names = [[Path(path).name for path in entry["image"]] for entry in description["training"]]
    assert names == [["a_0000.nii.gz", "a_0001.nii.gz"], ["b_0001.nii.gz", "b_0000.nii.gz"]]


def test_one_image_in_two_data_sets_is_one_patient(tmp_path: Path) -> None:
    first = write(tmp_path / "a", {"liver": 1}, cases=("sub-1_x", "sub-1_y", "sub-2"))
    table = "image,label\n" + "".join(f"imagesTr/{name}.nii.gz,labelsTr/{name}.nii.gz\n" for name in ("sub-2",))
    (first / "more.csv").write_text(table)
    (tmp_path / "b").mkdir()
    elsewhere = (first / "imagesTr" / "sub-1_y.nii.gz").as_posix()
    label = (first / "labelsTr" / "sub-1_y.nii.gz").as_posix()
    content = {"labels": {"spleen": 1}, "training": [{"image": elsewhere, "label": label}]}
    (tmp_path / "b" / "list.json").write_text(json.dumps(content))
    description = combined(tmp_path / "data", first, tmp_path / "b" / "list.json")
    assert [entry["patient"] for entry in description["training"]] == [f"patient {n}" for n in (1, 1, 2, 1)]


def test_a_test_part_of_one_data_set_is_kept(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a", {"liver": 1}), write(tmp_path / "b", {"liver": 1}, cases=("q1", "q2"))
    assert "split" not in combined(tmp_path / "x" / "data", first, second)["training"][0]
    listing = json.loads((second / "dataset.json").read_text())
    listing["training"][0]["split"], listing["training"][1]["split"] = "test", "train"
    (second / "dataset.json").write_text(json.dumps(listing))
    listing["training"][0]["fold"] = 0
    (second / "dataset.json").write_text(json.dumps(listing | {"validation": [{"image": "v.nii", "label": "l.nii"}]}))
    description = combined(tmp_path / "y" / "data", first, second)
    with with_segnets():
        unused = combine([first, second], tmp_path / "y" / "data", {}, {}).unused
    assert [text.partition(" are not used")[0] for text in unused] == [
        'data set 2: labelled cases under "validation" (1)',
        "data set 2: its folds",
        "data set 1 states no split: 2 of its cases are for training and validation and 0 for the test",
    ]
    assert [entry["split"] for entry in description["training"]] == ["training", "training", "test", "training"]


def test_a_data_set_without_a_split_is_divided_into_the_parts_of_another(tmp_path: Path) -> None:
    names = [f"q{number}" for number in range(10)]
    first, second = (
        write(tmp_path / "a", {"liver": 1}, cases=("p1", "p2", "p3")),
        write(tmp_path / "b", {"spleen": 1}, cases=names),
    )
    listing = json.loads((first / "dataset.json").read_text())
    copy = second / "imagesTr" / "q0.nii.gz"  # the scan of the test part
    copy.write_bytes((first / "imagesTr" / "p3.nii.gz").read_bytes())

    def parts(name: str, *words: str) -> tuple[dict[str, str], tuple[str, ...]]:
        for entry, word in zip(listing["training"], words, strict=True):
            entry["split"] = word
        (first / "dataset.json").write_text(json.dumps(listing))
        with with_segnets():
            found = combine([first, second], tmp_path / name / "data", {}, {})
        content = json.loads((found.folder / "dataset.json").read_text())
        return {entry["name"]: entry["split"] for entry in content["training"]}, found.unused

    of_all, notes = parts("x", "train", "val", "test")
    assert [of_all[name] for name in ("p1", "p2", "p3", "q0")] == ["training", "validation", "test", "test"]
    counts = {part: list(of_all.values())[4:].count(part) for part in ("training", "validation", "test")}
    assert counts == {"training": 7, "validation": 1, "test": 1}  # 80, 10 and 10 % of nine patients
    assert notes == (
        "data set 2 states no split: 7 of its cases are for the training, 1 for the validation and 2 for the test",
    )
    of_all, _ = parts("y", "train", "val", "val")  # no test is stated, so there is none
    assert set(of_all.values()) == {"training", "validation"}
    with with_segnets():
        found = combine([first, second], tmp_path / "z" / "data", {}, {}, replayed=1)
    content = json.loads((found.folder / "dataset.json").read_text())
    replayed = {entry["name"]: entry["split"] for entry in content["training"] if entry.get("replay")}
    assert replayed == dict.fromkeys(names, "training")  # they may have trained the initial weights
    assert found.unused == ()


def test_patients_of_converted_data_sets_are_those_of_their_files(tmp_path: Path) -> None:
    first = write(tmp_path / "a", {"liver": 1}, cases=("p1", "p2"))
    for name in ("p1", "p2"):
        label = SimpleITK.ReadImage(str(first / "labelsTr" / f"{name}.nii.gz"))
        SimpleITK.WriteImage(label, str(first / f"{name}.nrrd"))

    def write_list(name: str, **patients: str) -> Path:
        listing = [
            {"image": f"imagesTr/{case}.nii.gz", "label": f"{case}.nrrd", "patient": who}
            for case, who in patients.items()
        ]
        (first / name).write_text(json.dumps({"labels": {"spleen": 1}, "training": listing}))
        return first / name

    lists = write_list("one.json", p1="Anna"), write_list("two.json", p2="Ben", p1="Anna")
    description = combined(tmp_path / "data", first, *lists)
    assert (tmp_path / "data" / "set2" / "imagesTr").is_dir()  # was converted: a copy, whose first patient is Anna
    patients = {entry["name"]: entry["patient"] for entry in description["training"]}
    assert len(patients) == 5
    assert patients["set1_p1"] == patients["set2_p1"] == patients["set3_p1"] != patients["set1_p2"]
    assert patients["set1_p2"] == patients["set3_p2"]
    assert "Anna" not in json.dumps(description)


def test_patients_are_found_in_names_of_converted_cases(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a", {"liver": 1}, cases=("p1", "p2")), tmp_path / "b"
    second.mkdir()
    rng = np.random.default_rng(0)
    for name in ("sub-1_ses-1", "sub-1_ses-2", "sub-2_ses-1"):
        image = SimpleITK.GetImageFromArray(rng.integers(0, 99, (5, 6, 7)).astype(np.int16))
        SimpleITK.WriteImage(image, str(second / f"{name}.nrrd"))
        SimpleITK.WriteImage(
            SimpleITK.GetImageFromArray(np.eye(6, 7, dtype=np.uint8)[None] * np.ones((5, 1, 1), np.uint8)),
            str(second / f"{name}_seg.nrrd"),
        )
    (second / "labels.json").write_text('{"1": "spleen"}')
    into = tmp_path / "data"
    description = combined(into, first, second)
    assert [entry["patient"] for entry in description["training"]] == [f"patient {n}" for n in (1, 2, 3, 3, 4)]


def test_a_list_in_another_order_is_not_the_planned_one(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a", {"liver": 1}), write(tmp_path / "b", {"liver": 1}, cases=("q1", "q2"))
    rows = []
    for name in ("p1", "p2"):  # equal names of files: the cases are numbered by their rows
        (first / name).mkdir()
        for folder, file in (("imagesTr", "t1.nii.gz"), ("labelsTr", "seg.nii.gz")):
            (first / folder / f"{name}.nii.gz").rename(first / name / file)
        rows.append(f"{name}/t1.nii.gz,{name}/seg.nii.gz")
    (first / "labels.json").write_text('{"1": "liver"}')
    table, out = first / "cases.csv", tmp_path / "out"
    table.write_text("\n".join(["image,label", *rows]))
    plan = plan_bundle(table, out, Choices(), more=[second])
    assert plan_bundle(table, out, Choices(), more=[second]) == plan
    before = (out / "data" / "dataset.json").read_bytes()
    table.write_text("\n".join(["image,label", *rows[::-1]]))
    with pytest.raises(OutputError, match=r"output\.exists: data set 1 has other cases, .* or another order"):
        plan_bundle(table, out, Choices(), more=[second])
    assert (out / "data" / "dataset.json").read_bytes() == before


def test_cases_without_a_partner_are_faults(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a", {"liver": 1}), write(tmp_path / "b", {"liver": 1}, cases=("q1", "q2"))
    (second / "labelsTr" / "q2.nii.gz").unlink()  # as in a copy that is not complete
    text = refused(tmp_path / "data", first, second, code="data.faults")
    assert "partner.no_label  q2  dataset.json lists labelsTr/q2.nii.gz, which does not exist" in text


def test_the_steps_of_a_plan_count_the_replayed_cases_that_train(tmp_path: Path) -> None:
    names = [f"q{number}" for number in range(10)]
    old, new = write(tmp_path / "a", {"liver": 1}, cases=names), write(tmp_path / "b", {"liver": 1}, cases="wxyz")
    listing = json.loads((old / "dataset.json").read_text())
    for number, entry in enumerate(listing["training"]):
        entry["split"] = "test" if number > 5 else "validation" if number > 2 else "train"
    (old / "dataset.json").write_text(json.dumps(listing))
    plan = plan_bundle(new, tmp_path / "out", Choices(), replay=[old], dry_run=True)
    assert plan["parts"] == {"training": 6, "validation": 4, "test": 4}
    # an epoch shows the 3 new cases that train and as many replayed ones
    assert plan["settings"]["max_epochs"]["why"].startswith("3000 steps at 3 per epoch, not 4000")
    assert plan["settings"]["batch_size"]["value"] == 2


def test_equal_names_of_different_images_are_reported(tmp_path: Path) -> None:
    roots = write(tmp_path / "a", {"liver": 1}), write(tmp_path / "bb", {"spleen": 1})
    said: list[str] = []
    with with_segnets():
        combine(roots, tmp_path / "data", {}, {}, said.append)
    assert any("2 names of cases are in several data sets" in text for text in said)


def test_a_union_of_different_classes_is_known_only_with_all_of_them(tmp_path: Path) -> None:
    lesion, both = write(tmp_path / "a", {"lesion": 1}), write(tmp_path / "b", {"lesion": 1, "oedema": 2})
    oedema = write(tmp_path / "c", {"oedema": 1})
    said: list[str] = []
    labels = {"lesion": ["lesion", "oedema"]}
    with with_segnets():
        combine([lesion, both, oedema], tmp_path / "data", {}, labels, said.append)
    description = json.loads((tmp_path / "data" / "dataset.json").read_text())
    assert [entry.get("labelled") for entry in description["training"][::2]] == [[1], None, [2]]
    assert "lesion (lesion, oedema) is annotated in data set 2" in said


def test_a_class_that_no_data_set_knows_is_refused(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a", {"front": 1}), write(tmp_path / "b", {"head": 1})
    with with_segnets(), pytest.raises(TrainingError, match=r"labels\.nowhere: no data set has all of front, head"):
        combine([first, second], tmp_path / "data", {}, {"front": ["front", "head"]}, print)


def test_values_that_stay_are_checked_too(tmp_path: Path) -> None:
    first, second = (
        write(tmp_path / "a", {"liver": 1, "stray": 255}),
        write(tmp_path / "b", {"spleen": 2, "ignore": 255}),
    )
    (first / "labels.json").write_text('{"1": "liver"}')
    message = refused(tmp_path / "data", first, second, code="data.faults")
    assert "values 255; expected 0, 1, which data set 1 names" in message


def test_pictures(tmp_path: Path) -> None:
    for name, value in (("a", 200), ("b", 100)):
        for folder in ("images", "labels"):
            (tmp_path / name / folder).mkdir(parents=True)
            pixels = np.zeros((9, 7), np.uint8)
            pixels[2:4, 3] = value
            Image.fromarray(pixels).save(tmp_path / name / folder / "x.png")
        (tmp_path / name / "labels.json").write_text(json.dumps({"cell": 200} if name == "a" else {"wall": 100}))
    description = combined(tmp_path / "data", tmp_path / "a", tmp_path / "b")
    assert description["labels"] == {"background": 0, "cell": [200], "wall": [100]}
    (tmp_path / "b" / "labels.json").write_text(json.dumps({"cell": 100}))
    combined(tmp_path / "data", tmp_path / "a", tmp_path / "b")
    pixels = np.asarray(Image.open(tmp_path / "data" / "labelsTr" / "set2_x.png"))
    assert pixels.shape == (9, 7)
    assert pixels[2:4, 3].tolist() == [200, 200]


def test_a_plan_says_where_values_came_from_and_keeps_to_its_data_sets(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a", {"liver": 1}), write(tmp_path / "b", {"spleen": 1, "liver": 2})
    out = tmp_path / "out"
    plan = plan_bundle(first, out, Choices(), more=[second])
    rows = [text for heading, text in plan_rows(plan) if heading in ("", "value")]
    assert "data set 2: 2 cases with liver, spleen" in rows
    assert any(text.startswith("1 liver: was 1 in data set 1 and 2 in data set 2; in 4 of 4 cases") for text in rows)
    assert any("was 1 in data set 2; in 2 of 4 cases" in text and "not in" not in text for text in rows)
    assert str(tmp_path) not in json.dumps(plan)
    assert plan_bundle(first, out, Choices(), more=[second]) == plan
    for others in ([], [second, second]):
        with pytest.raises(OutputError, match="2 data sets, now") as caught:
            plan_bundle(first, out, Choices(), more=others)
        assert caught.value.code == "output.exists"
    with pytest.raises(OutputError, match="planned for data sets with other"):
        plan_bundle(second, out, Choices(), more=[first])


def test_a_data_set_that_is_converted_first(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a", {"liver": 1}), tmp_path / "b"
    for folder, value in (("images", 40), ("labels", 1)):
        (second / folder).mkdir(parents=True)
        array = np.zeros((5, 6, 7), np.uint8)
        array[2:4, 2:5, 3] = value
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), str(second / folder / "q.nrrd"))
    (second / "labels.json").write_text('{"1": "spleen"}')
    into = tmp_path / "out" / "data"
    description = combined(into, first, second)
    assert description["labels"] == {"background": 0, "liver": [1], "spleen": [2]}
    entry = description["training"][-1]
    assert Path(entry["image"]).is_relative_to(into / "set2")
    assert np.unique(nibabel.load(into / entry["label"]).dataobj).tolist() == [0, 2]


def test_replayed_data_sets(tmp_path: Path) -> None:
    parts = {"p1": "training", "p2": "validation"}  # stated, as in a training set of corrections
    entries = [
        {"image": f"imagesTr/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz", "split": part}
        for name, part in parts.items()
    ]
    first = write(tmp_path / "a", {"liver": 1}, training=entries)
    old = write(tmp_path / "b", {"spleen": 1}, cases=list("pqrstuvwxyz"))
    plan = plan_bundle(first, tmp_path / "out", Choices(), replay=[old])
    assert "data set 2 (replayed): 11 cases with spleen" in [text for _, text in plan_rows(plan)]
    assert "at 1 per epoch" in plan["settings"]["max_epochs"]["why"]  # one new case that trains, and as many old ones
    assert plan_bundle(first, tmp_path / "out", Choices(), replay=[old]) == plan
    with pytest.raises(OutputError, match="planned for data sets with other"):
        plan_bundle(first, tmp_path / "out", Choices(), more=[old])
    with with_segnets():
        from segnets.data import find_dataset

        assert find_dataset(tmp_path / "out" / "data", anywhere=True).replayed == tuple("pqrstuvwxyz")


def test_a_plan_of_several_data_sets_keeps_what_was_converted(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a", {"liver": 1}), write(tmp_path / "b", {"spleen": 1})
    other = write(tmp_path / "c", {"spleen": 1}, cases=("p1", "p9"))
    out = tmp_path / "out"
    plan = plan_bundle(first, out, Choices(), more=[second])
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.rglob("*") if path.is_file()}
    with pytest.raises(OutputError) as caught:
        plan_bundle(first, out, Choices(), more=[other])
    assert caught.value.code == "output.exists"
    source = second / "labelsTr" / "p2.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.ones((12, 10, 9), np.uint8), AFFINE), source)
    assert plan_bundle(first, out, Choices(), more=[second], dry_run=True) == plan
    assert before == {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.rglob("*") if path.is_file()}
    plan_bundle(first, out, Choices(), more=[second])
    label_maps = [path for path in before if path.name.endswith(".nii.gz")]
    assert {path: path.read_bytes() for path in label_maps} == {path: before[path][0] for path in label_maps}
