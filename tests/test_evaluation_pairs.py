"""Pairing by name, one bad pair among good ones, and the command."""

from __future__ import annotations

import json
import os
import shutil
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from napari_seg.cli.main import main
from napari_seg.errors import InputError
from napari_seg.evaluation.data_set import ReferenceCase, References
from napari_seg.evaluation.declared import Declared, as_planned
from napari_seg.evaluation.labels import Meaning, read_classes
from napari_seg.evaluation.matching import match
from napari_seg.evaluation.overlay import draw_comparison_2d
from napari_seg.evaluation.pairs import (
    CaseScores,
    Pair,
    compare_pair,
    compare_pairs,
    compare_with,
    find_pairs,
    read_label_map,
)
from napari_seg.formats.image2d import read_image2d
from napari_seg.formats.nifti import write_nifti
from napari_seg.geometry import Grid, resample
from napari_seg.training.identity import identity_of
from napari_seg.training.part import found_data_set, label_values
from napari_seg.training.segnets_modules import with_segnets
from napari_seg.volume import Segment, Segmentation

GRID = Grid((6, 5, 4), np.diag([1.0, 2.0, 3.0, 1.0]))


def label_map(fill: dict[int, slice], grid: Grid = GRID) -> Segmentation:
    array = np.zeros(grid.shape, np.uint8)
    for label, rows in fill.items():
        array[rows] = label
    return Segmentation(array, grid, ())


def write(segmentation: Segmentation, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_nifti(segmentation, path)
    return path


def record(path: Path, names: dict[int, str]) -> None:
    entries = [{"label": label, "name": name, "color": [255, 0, 0]} for label, name in names.items()]
    path.write_text(json.dumps({"segments": entries}))


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Case a is right, b is twice too large: Dice 1 and 2 * 2 / 6."""
    found, expected = tmp_path / "found", tmp_path / "expected"
    write(label_map({1: slice(0, 2)}), found / "a_seg.nii.gz")
    write(label_map({1: slice(0, 2)}), expected / "a.nii.gz")
    write(label_map({1: slice(0, 4)}), found / "b.nii.gz")
    write(label_map({1: slice(0, 2)}), expected / "b.nii.gz")
    return found, expected


def test_folders_are_paired_by_name(folders: tuple[Path, Path], tmp_path: Path) -> None:
    found, expected = folders
    write(label_map({}), found / "unpaired.nii.gz")
    write(label_map({}), expected / "missed.nii.gz")
    write(label_map({}), found / "a.nii.gz")
    write(label_map({}), tmp_path / "scans" / "b_0000.nii.gz")
    pairs, unpaired = find_pairs(found, expected, tmp_path / "scans")
    assert [(pair.name, pair.prediction.name, pair.scan and pair.scan.name) for pair in pairs] == [
        ("a", "a.nii.gz", None),
        ("b", "b.nii.gz", "b_0000.nii.gz"),
    ]
    assert [(result.name, result.code) for result in unpaired] == [
        ("a_seg", "input.unpaired"),
        ("unpaired", "input.unpaired"),
        ("missed", "input.unpaired"),
    ]
    with pytest.raises(InputError, match=r"input\.missing"):
        find_pairs(found, expected, tmp_path / "nowhere")


def test_two_references_of_one_name_are_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    found, expected = folders
    write(label_map({1: slice(0, 2)}), expected / "b.nii")
    pairs, unpaired = find_pairs(found, expected)
    assert [pair.name for pair in pairs] == ["a"]
    assert [(result.name, result.code) for result in unpaired] == [("b", "input.unpaired")]
    assert "b.nii and b.nii.gz are references of the same name" in unpaired[0].message
    for name in ("a_0000.nii.gz", "a.nii.gz"):
        write(label_map({}), tmp_path / "scans" / name)
    with pytest.raises(InputError, match=r"input\.unpaired: .*a\.nii\.gz and a_0000\.nii\.gz are scans"):
        find_pairs(found, expected, tmp_path / "scans")


def test_names_come_from_the_record_beside_either(folders: tuple[Path, Path]) -> None:
    found, expected = folders
    pair = find_pairs(found, expected)[0][1]
    assert list(compare_pair(pair).scores) == ["label 1"]
    record(expected / "b.json", {1: "liver"})
    result = compare_pair(pair)
    assert result.scores["liver"].dice == pytest.approx(2 * 2 / 6)
    assert result.mean_dice == pytest.approx(2 * 2 / 6)
    plane_ml = 20 * 6 / 1000
    assert result.confusion_ml == {
        "background": {"background": pytest.approx(2 * plane_ml), "liver": pytest.approx(2 * plane_ml)},
        "liver": {"liver": pytest.approx(2 * plane_ml)},
    }


@pytest.mark.parametrize("names", [{1: "liver", 2: "liver"}, {1: "background"}, {1: "mean"}])
def test_names_that_mix_two_things_up_are_refused(folders: tuple[Path, Path], names: dict[int, str]) -> None:
    found, expected = folders
    record(expected / "b.json", names)
    assert compare_pair(Pair("b", found / "b.nii.gz", expected / "b.nii.gz")).code == "labels.names"


def test_the_command_tells_all_that_went_wrong_and_goes_on(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    found, expected = folders
    assert main(["evaluate", str(found), str(expected)]) == 0
    output = capsys.readouterr().out
    assert "0.8333" in output  # mean of 1 and 2 * 2 / 6
    assert "b 0.6667, a 1.0000" in output
    (expected / "b.nii.gz").write_text("no longer an image")
    write(label_map({1: slice(0, 2)}, GRID.box((0, 0, 0), (5, 5, 4))), found / "c.nii.gz")
    write(label_map({1: slice(0, 2)}), expected / "c.nii.gz")
    assert main(["evaluate", str(found), str(expected)]) == 3
    output = capsys.readouterr().out
    assert "file.not_nifti" in output
    assert "geometry.mismatch" in output
    assert "1.0000" in output
    assert main(["evaluate", str(found / "b.nii.gz"), str(expected / "b.nii.gz")]) == 4
    assert main(["evaluate", str(write(label_map({}), tmp_path / "unpaired.nii.gz")), str(expected)]) == 2
    assert main(["evaluate", str(tmp_path / "nowhere"), str(expected)]) == 2
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", str(found), str(expected), "--tolerance-mm", "-1"])
    assert stop.value.code == 1


def test_json_holds_the_cases_and_the_paired_difference(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    found, expected = folders
    write(label_map({1: slice(0, 4)}), tmp_path / "other" / "a.nii.gz")
    write(label_map({1: slice(0, 4)}), tmp_path / "other" / "b.nii.gz")
    write(label_map({1: slice(0, 2)}), found / "c.nii.gz")
    write(label_map({1: slice(0, 2)}), expected / "c.nii.gz")
    (tmp_path / "other" / "c.nii.gz").write_text("no image")
    assert main(["evaluate", str(found), str(expected), "--json", "--versus", str(tmp_path / "other")]) == 0
    output = capsys.readouterr()
    answer = json.loads(output.out)
    assert "other/c: file.not_nifti" in output.err
    assert answer["segments"]["mean"]["dice"]["mean"] == pytest.approx((1 + 2 / 3 + 1) / 3)
    assert [case["segments"]["label 1"]["dice"] for case in answer["cases"]] == [1.0, pytest.approx(2 / 3), 1.0]
    assert answer["versus"]["label 1"]["dice"]["count"] == 2
    assert answer["versus"]["label 1"]["dice"]["mean"] == pytest.approx((1 / 3 + 0) / 2)


def test_an_image_is_no_label_map(tmp_path: Path) -> None:
    import nibabel

    array = np.linspace(0, 1, 60).reshape(5, 4, 3).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / "image.nii.gz")
    with pytest.raises(InputError, match=r"labels\.type"):
        read_label_map(tmp_path / "image.nii.gz")


def test_our_own_mistake_costs_one_pair_only(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("napari_seg.evaluation.pairs.compare_label_maps", fail)
    assert [compare_pair(pair).code for pair in find_pairs(*folders)[0]] == ["internal.error"] * 2


def test_what_a_bundle_writes_finds_its_reference(folders: tuple[Path, Path]) -> None:
    found, expected = folders
    (found / "a_seg.nii.gz").rename(found / "a_0000_seg.nii.gz")
    (found / "b.nii.gz").rename(found / "b_0000.nii.gz")
    pairs, unpaired = find_pairs(found, expected)
    assert [(pair.name, pair.prediction.name) for pair in pairs] == [("a", "a_0000_seg.nii.gz"), ("b", "b_0000.nii.gz")]
    assert unpaired == []


def test_names_are_paired_whether_accents_are_composed_or_not(tmp_path: Path) -> None:
    for folder, form in (("found", "NFC"), ("expected", "NFD")):
        write(label_map({1: slice(0, 2)}), tmp_path / folder / unicodedata.normalize(form, "Gr\u00f6\u00dfe_01.nii.gz"))
    pairs, unpaired = find_pairs(tmp_path / "found", tmp_path / "expected")
    assert [pair.name for pair in pairs] == ["Gr\u00f6\u00dfe_01"]
    assert unpaired == []


def test_names_that_are_not_utf_8_are_read_as_latin_1(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """As an old archive or share stores them."""
    found, expected = folders
    for folder in folders:
        try:
            shutil.copy(expected / "a.nii.gz", folder / os.fsdecode(b"m\xfcller_01.nii.gz"))
        except OSError:
            pytest.skip("the file system takes names in Unicode only")
    shutil.copy(expected / "a.nii.gz", found / os.fsdecode(b"\xfc.nii.gz"))
    assert main(["evaluate", str(found), str(expected), "-o", str(tmp_path / "out"), "--no-figures"]) == 3
    lines = (tmp_path / "out" / "cases.csv").read_text(encoding="utf-8").splitlines()
    assert [line.split(",")[0] for line in lines] == ["case", "a", "b", "müller_01", "ü"]
    for name in ("images", "labels"):
        shutil.copytree(expected, tmp_path / "data" / name)
    data = found_data_set(tmp_path / "data")
    assert "müller_01" in [pair.name for pair in find_pairs(found, tmp_path / "data", data=data)[0]]


def test_values_of_references_are_what_the_model_calls_them(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture
) -> None:
    found, expected = folders
    (found / "a_seg.nii.gz").unlink()
    (expected / "a.nii.gz").unlink()
    # b: the result holds 1 in planes 0 to 3; the reference 5 in plane 0, and 2 and 13 in planes 1 to 3
    write(label_map({5: slice(0, 1), 2: slice(1, 2), 13: slice(2, 4)}), expected / "b.nii.gz")
    words = ["evaluate", str(found), str(expected), "--json", "--labels", "liver=2,10-19"]
    assert main([*words, "background=5"]) == 0
    case = json.loads(capsys.readouterr().out)["cases"][0]
    assert case["segments"]["liver"]["dice"] == pytest.approx(2 * 3 / 7)
    assert case["confusion_ml"]["background"] == {"background": pytest.approx(0.24), "liver": pytest.approx(0.12)}
    record(found / "b.json", {1: "liver", 2: "vessel"})  # names decide where there are some, not their order
    assert main([*words[:-1], "vessel=5", "liver=2,13"]) == 0
    case = json.loads(capsys.readouterr().out)["cases"][0]
    assert (case["segments"]["liver"]["dice"], case["segments"]["vessel"]["dice"]) == (pytest.approx(2 * 3 / 7), 0)
    assert main(words) == 4
    assert "labels.unknown" in capsys.readouterr().out


def test_labels_that_mean_nothing_or_two_things() -> None:
    reference, result = (
        label_map({3: slice(0, 2)}),
        Segmentation(label_map({}).array, GRID, (Segment(1, "x", (1, 1, 1)),)),
    )
    for wrong in ("one", "2-1", "1,", "-3"):
        with pytest.raises(InputError, match=r"labels\.bad_value"):
            read_classes([("x", wrong)])
    for words, code in (([("x", "1-3"), ("background", "3")], "overlap"), ([("x", "1")], "unknown")):
        with pytest.raises(InputError, match=rf"labels\.{code}"):
            match(result, reference, Meaning(read_classes(words), is_given=True))
    doubts = match(result, reference, Meaning(read_classes([("y", "3")]), is_given=True)).doubts
    assert [error.code for error in doubts.values()] == ["labels.names"]


def picture(columns: slice, value: int, path: Path) -> None:
    """12 x 10 pixels, four rows of them labelled."""
    array = np.zeros((10, 12), np.uint8)
    array[3:7, columns] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def test_pictures_are_compared_in_pixels(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    found, expected, out = tmp_path / "found", tmp_path / "expected", tmp_path / "out"
    picture(slice(5, 11), 1, found / "p_seg.png")
    picture(slice(2, 8), 255, expected / "p.tif")
    picture(slice(0, 0), 1, found / "q_seg.png")
    picture(slice(2, 8), 255, expected / "q.tif")
    picture(slice(0, 12), 200, tmp_path / "scans" / "p.jpg")
    words = ["evaluate", str(found), str(expected), "--labels", "axon=255", "--scans", str(tmp_path / "scans")]
    assert main([*words, "-o", str(out)]) == 0
    assert "HD95 pixels" in capsys.readouterr().out
    assert main([*words, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["unit"] == "pixels"
    p, q = (case["segments"]["axon"] for case in answer["cases"])
    # 3 of 6 columns are shared; a quarter of each border lies furthest off, 3 pixels
    numbers = {
        "dice": 24 / 48,
        "iou": 12 / 36,
        "precision": 12 / 24,
        "recall": 12 / 24,
        "accuracy": 96 / 120,
        "hd95_mm": 3,
    }
    assert {name: p[name] for name in numbers} == pytest.approx(numbers)
    assert q["dice"] == 0
    assert q["hd95_mm"] == pytest.approx(np.hypot(12, 10))
    assert answer["confusion_ml"]["axon"] == pytest.approx({"background": 0.036, "axon": 0.012})
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") == 2
    assert "HD95 pixels" in page
    assert "patient's right" not in page


def test_a_picture_of_a_result_is_upright(tmp_path: Path) -> None:
    picture(slice(0, 3), 1, tmp_path / "label.png")
    labels = replace(read_label_map(tmp_path / "label.png"), segments=(Segment(1, "x", (255, 0, 0)),))
    nothing = replace(labels, array=np.zeros_like(labels.array))
    sheet = draw_comparison_2d(read_image2d(tmp_path / "label.png"), labels, nothing)
    width, height = sheet.size
    assert width * 10 == pytest.approx(height * 12, rel=0.01)
    pixels = np.asarray(sheet).astype(int)
    assert pixels[height // 2, width // 8, 0] > pixels[height // 2, width // 8, 1]  # tinted: row 5, column 1
    for row, column in ((1, 1), (8, 1), (5, 8)):
        assert pixels[row * height // 10, column * width // 12].tolist() == [0, 0, 0]
    Image.new("L", (5, 5)).save(tmp_path / "scan.png")
    with pytest.raises(InputError, match=r"geometry\.mismatch: .*5 x 5 and 12 x 10 pixels"):
        draw_comparison_2d(read_image2d(tmp_path / "scan.png"), labels, nothing)


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda path: path.write_bytes(b"no picture"), "file.not_picture"),
        (lambda path: Image.new("RGB", (4, 4), (1, 2, 3)).save(path), "labels.colour"),
        (
            lambda path: Image.new("L", (4, 4)).save(path, save_all=True, append_images=[Image.new("L", (4, 4))]),
            "file.pages",
        ),
    ],
)
def test_a_bad_picture_is_told(make: object, code: str, tmp_path: Path) -> None:
    make(tmp_path / "x.tif")  # type: ignore[operator]
    with pytest.raises(InputError, match=code):
        read_label_map(tmp_path / "x.tif")


def test_labels_of_any_kind_of_picture(tmp_path: Path) -> None:
    values = np.array([[0, 1, 2], [2, 0, 1]], np.uint8)
    palette = Image.fromarray(values)
    palette = palette.convert("P") if palette.mode != "P" else palette
    palette.putdata(values.ravel().tolist())
    palette.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    kinds = {
        "palette.png": palette,
        "grey.png": Image.fromarray(values),
        "deep.png": Image.fromarray(values.astype(np.uint16)),
        "float.tif": Image.fromarray(values.astype(np.float32)),
        "rgb.png": Image.fromarray(np.stack([values] * 3, axis=-1)),
    }
    for name, image in kinds.items():
        image.save(tmp_path / name)
        assert read_label_map(tmp_path / name).array[:, :, 0].T.tolist() == values.tolist(), name


def grey(values: list[int], path: Path) -> None:
    """A column of 10 pixels for each value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.repeat(np.array([values], np.uint8), 10, axis=0)).save(path)


def cases_of(words: list[object], capsys: pytest.CaptureFixture) -> list[dict]:
    capsys.readouterr()
    assert main(["evaluate", *(str(word) for word in words), "--json"]) == 0
    cases: list[dict] = json.loads(capsys.readouterr().out)["cases"]
    return cases


def test_borders_of_no_class_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    found, expected = tmp_path / "found", tmp_path / "expected"
    grey([0, 1, 1, 2, 2, 0], found / "p_seg.png")
    grey([0, 1, 255, 2, 255, 0], expected / "p.png")
    grey([0, 1, 0, 0, 0, 0], found / "q_seg.png")
    grey([0, 255, 0, 0, 0, 0], expected / "q.png")  # only the other file shows what 255 is
    p, q = cases_of([found, expected], capsys)
    assert {name: numbers["dice"] for name, numbers in p["segments"].items()} == {"label 1": 1, "label 2": 1}
    assert q["segments"] == {}
    assert [notice["code"] for notice in p["notices"]] == ["labels.ignored", "labels.void"]
    p, q = cases_of([found, expected, "--labels", "one=1", "two=2", "edge=255"], capsys)
    assert set(p["segments"]) == {"one", "two", "edge"}  # named, it is a structure
    grey([0, 1, 255, 2, 2, 0], found / "p_seg.png")
    p, q = cases_of([found, expected], capsys)
    assert p["segments"]["label 255"]["dice"] == pytest.approx(2 / 3)  # a result holds it


def test_masks_keep_255_as_their_structure(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    found, expected = tmp_path / "found", tmp_path / "expected"
    for name in ("p", "q"):
        grey([0, 255, 255, 255, 0, 0], found / f"{name}.png")
        grey([0, 255, 255, 0, 0, 0], expected / f"{name}.png")
    for case in cases_of([found, expected], capsys):
        assert case["segments"]["label 255"]["dice"] == pytest.approx(4 / 5)
        assert case["notices"] == []
    grey([0, 0, 0, 0, 0, 0], found / "p.png")  # found nothing
    assert cases_of([found, expected], capsys)[0]["segments"]["label 255"]["dice"] == 0


def test_values_that_a_data_set_ignores(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    found, expected = tmp_path / "found", tmp_path / "data" / "labelsTr"
    grey([0, 1, 1, 0, 0, 0], found / "p.png")
    grey([0, 1, 7, 7, 0, 0], expected / "p.png")
    (case,) = cases_of([found, expected, "--ignore", 7], capsys)
    assert {name: numbers["dice"] for name, numbers in case["segments"].items()} == {"label 1": 1}
    assert [notice["code"] for notice in case["notices"]] == ["labels.ignored"]
    assert set(cases_of([found, expected], capsys)[0]["segments"]) == {"label 1", "label 7"}
    for labels in ({"background": 0, "one": 1, "ignore": 7}, {"0": "background", "1": "one", "7": "ignore"}):
        (tmp_path / "data" / "dataset.json").write_text(json.dumps({"labels": labels}))
        assert set(cases_of([found, expected], capsys)[0]["segments"]) == {"one"}
        assert set(cases_of([found, expected, "--labels", "one=1"], capsys)[0]["segments"]) == {"one"}
    (tmp_path / "data" / "dataset.json").write_text("[" * 100_000)
    assert set(cases_of([found, expected], capsys)[0]["segments"]) == {"label 1", "label 7"}


def test_ignored_values_are_found_in_any_order_of_axes(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    found = write(label_map({1: slice(0, 4)}), tmp_path / "found.nii.gz")
    expected = label_map({1: slice(0, 2), 7: slice(2, 4)})
    turned = expected.grid.reoriented("LAS")
    array = resample(expected.array, expected.grid, turned, order=0)
    write(replace(expected, array=array, grid=turned), tmp_path / "expected.nii.gz")
    (case,) = cases_of([found, tmp_path / "expected.nii.gz", "--ignore", 7], capsys)
    assert case["segments"]["label 1"]["dice"] == 1
    other = Grid((5, 6, 4), GRID.affine)
    small = write(Segmentation(np.full(other.shape, 7, np.uint8), other, ()), tmp_path / "small.nii.gz")
    assert main(["evaluate", str(found), str(small), "--ignore", "7", "--json"]) != 0
    (case,) = json.loads(capsys.readouterr().out)["cases"]
    assert case["code"] == "geometry.mismatch"


def dice_of(case: dict) -> dict[str, float]:
    return {name: scores["dice"] for name, scores in case["segments"].items()}


def test_values_can_be_ignored_by_name(folders: tuple[Path, Path], capsys: pytest.CaptureFixture) -> None:
    found, expected = folders
    write(label_map({1: slice(0, 2), 255: slice(2, 4)}), expected / "b.nii.gz")
    write(label_map({1: slice(0, 2), 9: slice(2, 3)}), expected / "a.nii.gz")
    for words in ([], ["liver=1"]):
        a, b = cases_of([found, expected, "--labels", *words, "ignore=255,7-9"], capsys)
        assert list(dice_of(a).values()) == list(dice_of(b).values()) == [1]
        assert "labels.ignored" in [notice["code"] for notice in b["notices"]]
    assert main(["evaluate", str(found), str(expected), "--labels", "ignore=1-99999999"]) == 4


def test_classes_that_overlap_are_compared_one_by_one(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture
) -> None:
    found, expected = folders
    write(label_map({2: slice(0, 1), 1: slice(1, 3), 3: slice(4, 5)}), expected / "b.nii.gz")
    write(label_map({2: slice(0, 2), 1: slice(2, 4)}), found / "b.nii.gz")
    words = [found, expected, "--labels", "whole=1,2", "core=2", "ignore=3"]
    _, b = cases_of(words, capsys)
    assert dice_of(b) == {"whole": pytest.approx(2 * 3 / 7), "core": pytest.approx(2 / 3)}
    labels = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    (expected.parent / "dataset.json").write_text(json.dumps({"labels": labels}))
    assert cases_of([found, expected], capsys)[1]["segments"] == b["segments"]
    labels |= {"other": 4}
    (expected.parent / "dataset.json").write_text(json.dumps({"labels": labels, "labelled": {"b": ["core"]}}))
    assert dice_of(cases_of([found, expected], capsys)[1]) == {"core": pytest.approx(2 / 3)}


def test_classes_that_are_not_annotated_in_a_case_are_not_compared(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture
) -> None:
    found, expected = folders
    for name in ("a_seg", "b"):
        write(label_map({1: slice(0, 2), 2: slice(2, 3)}), found / f"{name}.nii.gz")
    description = {"labels": {"background": 0, "liver": 1, "spleen": 2}, "labelled": {"b": ["liver"]}}
    (expected / "dataset.json").write_text(json.dumps(description))
    for words in ([], ["--labels", "liver=1", "spleen=2"]):
        a, b = cases_of([found, expected, *words], capsys)
        assert dice_of(a) == {"liver": 1, "spleen": 0}
        assert dice_of(b) == {"liver": 1}
    record(found / "b.json", {1: "spleen", 2: "liver"})  # label 2 in one plane, where 1 is in two of the reference
    assert dice_of(cases_of([found, expected], capsys)[1]) == {"liver": 0}


ONE, TWO = slice(0, 2), slice(2, 5)


def case_of(
    folder: Path, found: dict, expected: dict, names: tuple[dict, dict] = ({}, {}), labels: dict | None = None
) -> CaseScores:
    """Compare a result with a reference, both of rows and with names in their records; `labels` as in dataset.json."""
    for one, rows, of_labels in (("found/a_seg", found, names[0]), ("data/labels/a", expected, names[1])):
        write(label_map(rows), folder / f"{one}.nii.gz")
        if of_labels:
            record(folder / f"{one}.json", of_labels)
    if labels:
        (folder / "data" / "dataset.json").write_text(json.dumps({"labels": labels}))
    return compare_pair(find_pairs(folder / "found", folder / "data" / "labels")[0][0])


def test_names_in_headers_are_compared_unless_the_data_set_declares_others(tmp_path: Path) -> None:
    found, expected = tmp_path / "found" / "a_seg.nii.gz", tmp_path / "data" / "labels" / "a.nii.gz"
    for path, names in ((found, ("liver", "spleen")), (expected, ("spleen", "liver"))):
        segments = tuple(Segment(n, name, (n, n, n)) for n, name in enumerate(names, 1))
        write(replace(label_map({1: ONE, 2: TWO}), segments=segments), path)
    (pair,) = find_pairs(found.parent, expected.parent)[0]
    assert {name: scores.dice for name, scores in compare_pair(pair).scores.items()} == {"liver": 0, "spleen": 0}
    (tmp_path / "data" / "dataset.json").write_text(json.dumps({"labels": {"liver": 1, "spleen": 2}}))
    (pair,) = find_pairs(found.parent, expected.parent)[0]
    assert {name: scores.dice for name, scores in compare_pair(pair).scores.items()} == {"liver": 1, "spleen": 1}


@pytest.mark.parametrize(
    ("planned", "found", "names", "dice"),
    [
        ({"liver": [3], "lesion": [7]}, {3: ONE, 7: TWO}, {}, {"liver": 1, "lesion": 1}),  # values of the data set
        ({"liver": [3], "lesion": [7]}, {1: ONE, 2: TWO}, {1: "liver", 2: "lesion"}, {"liver": 1, "lesion": 1}),
        ({"liver": [3], "lesion": [7]}, {5: ONE}, {5: "liver"}, {"liver": 1, "lesion": 0}),  # knows no lesion
        ({"body": ["2-8"]}, {1: slice(0, 5)}, {1: "body"}, {"body": 1}),
        ({"liver": [3], "background": [0, 7]}, {1: ONE}, {1: "liver"}, {"liver": 1}),
        ({"body": [3, 7], "lesion": [7]}, {1: ONE, 2: TWO}, {1: "body", 2: "lesion"}, {"body": 1, "lesion": 1}),
    ],
)
def test_a_plan_names_the_values_of_references(
    tmp_path: Path, planned: dict, found: dict, names: dict, dice: dict
) -> None:
    (tmp_path / "plan.json").write_text(json.dumps({"labels": planned}))
    case_of(tmp_path, found, {3: ONE, 7: TWO}, (names, {}))
    root, declared = tmp_path / "data", as_planned(Declared(classes={"other": frozenset([3])}), label_values(tmp_path))
    data = References(root, (ReferenceCase("a", root / "labels" / "a.nii.gz", (root / "a.nii.gz",)),), declared)
    pairs, _ = find_pairs(tmp_path / "found", root, data=data)
    result = compare_pair(pairs[0])
    assert {name: scores.dice for name, scores in result.scores.items()} == dice, result.message


@pytest.mark.parametrize(
    ("labels", "expected", "found", "names", "dice"),
    [
        ({"liver": 1, "tumour": 2}, {1: ONE, 2: TWO}, {1: TWO}, ({1: "Tumor"}, {}), {"liver": 0, "tumour": 1}),
        ({"liver": 3, "spleen": 7}, {3: ONE, 7: TWO}, {1: ONE, 2: TWO}, ({1: "liver", 2: "spleen"}, {}), None),
        ({"body": [3, 7]}, {3: ONE, 7: TWO}, {1: slice(0, 5)}, ({1: "body"}, {}), {"body": 1}),
        (
            {},
            {1: ONE, 2: TWO},
            {2: ONE, 1: TWO},
            ({1: "spleen", 2: "liver"}, {1: "Liver", 2: "Spleen"}),
            {"Liver": 1, "Spleen": 1},
        ),
        (
            {},
            {1: ONE, 2: TWO},
            {2: ONE, 1: TWO},
            ({1: "right kidney", 2: "x"}, {1: "X", 2: "Kidney_right"}),
            {"X": 1, "Kidney_right": 1},
        ),
        ({"liver": 3, "spleen": 7}, {3: ONE, 7: TWO}, {3: ONE, 7: TWO}, ({}, {}), {"liver": 1, "spleen": 1}),
    ],
)
def test_structures_are_matched_by_name_whatever_their_numbers(
    tmp_path: Path, labels: dict, expected: dict, found: dict, names: tuple[dict, dict], dice: dict | None
) -> None:
    result = case_of(tmp_path, found, expected, names, labels)
    assert {name: scores.dice for name, scores in result.scores.items()} == (
        dice or dict.fromkeys(names[0].values(), 1)
    )
    codes = [notice.code for notice in result.notices]
    assert codes == (["labels.names_differ"] if dice and 0 in dice.values() else [])


def test_label_maps_with_nothing_in_common_are_refused(tmp_path: Path) -> None:
    names = ({1: "linke Niere", 2: "Milz"}, {1: "spleen", 2: "liver"})
    result = case_of(tmp_path / "a", {1: ONE, 2: TWO}, {2: ONE, 1: TWO}, names)
    assert result.code == "labels.none_common"
    assert "1 linke Niere, 2 Milz, and a.nii.gz has 1 spleen, 2 liver" in result.message
    assert "--labels 'linke Niere=VALUE' Milz=VALUE" in result.message
    names = ({1: "front hippocampus", 2: "back hippocampus"}, {3: "Back", 4: "Front"})
    result = case_of(tmp_path / "g", {1: ONE, 2: TWO}, {4: ONE, 3: TWO}, names)
    assert result.message.endswith("--labels 'front hippocampus=4' 'back hippocampus=3'")
    result = case_of(tmp_path / "b", {1: ONE, 2: TWO}, {3: ONE, 7: TWO}, labels={"liver": 3, "spleen": 7})
    assert result.code == "labels.none_common"
    assert "the labels 1, 2 without names, and a.nii.gz has 3 liver, 7 spleen" in result.message
    assert "--labels liver=3 spleen=7" in result.message
    nothing = case_of(tmp_path / "c", {}, {3: ONE, 7: TWO}, labels={"liver": 3, "spleen": 7})
    assert {name: scores.dice for name, scores in nothing.scores.items()} == {"liver": 0, "spleen": 0}
    regions = {"whole": [1, 2, 4], "core": [1, 4], "enhancing": 4}
    nested = case_of(tmp_path / "d", {1: ONE, 3: TWO}, {2: ONE, 4: TWO}, ({1: "WT", 3: "ET"}, {}), regions)
    assert nested.code == "labels.none_common"
    nested = case_of(tmp_path / "e", {1: ONE, 3: TWO}, {2: ONE, 4: TWO}, ({1: "Whole", 3: "Enhancing"}, {}), regions)
    assert {name: scores.dice for name, scores in nested.scores.items()} == {"whole": 1, "core": 1, "enhancing": 1}
    nested = case_of(tmp_path / "f", {2: ONE, 4: TWO}, {2: ONE, 4: TWO}, ({2: "edema", 4: "active"}, {}), regions)
    assert [notice.code for notice in nested.notices] == ["labels.names_differ"]


def test_an_unnamed_value_of_a_reference_keeps_its_number(tmp_path: Path) -> None:
    names = ({1: "liver", 2: "spleen"}, {})
    result = case_of(tmp_path, {1: ONE}, {3: ONE, 2: slice(2, 3), 255: slice(3, 4)}, names, {"liver": 3})
    dice = {name: scores.dice for name, scores in result.scores.items()}
    assert dice == {"liver": 1, "spleen": pytest.approx(float("nan"), nan_ok=True), "label 2": 0, "label 255": 0}


def cases_in(folder: Path, cases: list[tuple[dict, dict, dict]], labels: dict, **options: object) -> list[CaseScores]:
    """Compare cases of (rows of the result, its names, rows of the reference); `labels` as in dataset.json."""
    for n, (found, names, expected) in enumerate(cases):
        write(label_map(found), folder / "found" / f"c{n}.nii.gz")
        write(label_map(expected), folder / "data" / "labels" / f"c{n}.nii.gz")
        if names:
            record(folder / "found" / f"c{n}.json", names)
    (folder / "data" / "dataset.json").write_text(json.dumps({"labels": labels}))
    return compare_pairs(find_pairs(folder / "found", folder / "data" / "labels", **options)[0])


def test_a_case_in_which_a_structure_was_missed_counts(tmp_path: Path) -> None:
    """Labels without names: 1 is the liver, 2 the lesion; in the last case the lesion was missed."""
    found = [({1: ONE, 2: TWO}, {}, {2: TWO}), ({}, {}, {2: TWO}), ({1: ONE}, {}, {2: TWO})]
    results = cases_in(tmp_path / "a", found, {"lesion": 2})
    assert [(result.code, result.scores["lesion"].dice) for result in results] == [("", 1), ("", 0), ("", 0)]
    others = [({1: ONE}, {}, {2: TWO}), ({1: "x"}, {1: "x"}, {2: TWO}), ({}, {}, {2: TWO})]
    others[1] = ({1: ONE}, {1: "Lesion"}, {2: TWO})  # names of one case say nothing about the numbers of another
    results = cases_in(tmp_path / "b", others, {"lesion": 2})
    assert [result.code for result in results] == ["labels.none_common", "", ""]
    found = [({1: ONE}, {1: "liver", 2: "lesion"}, {5: ONE}), ({1: ONE}, {1: "liver"}, {5: ONE, 7: TWO})]
    classes = read_classes([("liver", "5"), ("lesion", "7")])
    results = cases_in(tmp_path / "c", found, {}, classes=classes)  # names only what it found
    assert [(result.code, result.scores["lesion"].dice) for result in results[1:]] == [("", 0)]
    classes = read_classes([("liver", "5"), ("lesions", "7")])
    assert {result.code for result in cases_in(tmp_path / "c", found, {}, classes=classes)} == {"labels.names"}


def test_structures_have_the_spelling_of_the_reference_or_the_first_one(tmp_path: Path) -> None:
    cases = [({1: ONE}, {1: name}, {1: ONE}) for name in ("kidney_left", "Left kidney")]
    assert [list(r.scores) for r in cases_in(tmp_path / "a", cases, {"left Kidney": 1})] == [["left Kidney"]] * 2
    results = cases_in(tmp_path / "b", cases, {})
    assert [(list(r.scores), list(r.confusion_ml), r.segments[0].name) for r in results] == [
        (["kidney_left"], ["background", "kidney_left"], "kidney_left")
    ] * 2


def test_a_void_label_is_found_whatever_names_the_values(tmp_path: Path) -> None:
    cases = [({1: slice(0, 4)}, {}, {1: ONE, 255: slice(2, 4)})]
    classes = read_classes([("liver", "1")])
    (result,) = cases_in(tmp_path / "a", cases, {}, classes=classes)
    assert {name: scores.dice for name, scores in result.scores.items()} == {"liver": 1}
    assert [notice.code for notice in result.notices] == ["labels.ignored", "labels.void"]
    cases = [({1: ONE, 255: TWO}, {}, {1: ONE, 255: slice(2, 4)})]
    (result,) = cases_in(tmp_path / "b", cases, {}, classes=classes)
    assert result.code == "labels.unknown"
    assert "ignore=255" in result.message


def test_a_reference_file_in_the_window_has_the_meaning_of_its_data_set(tmp_path: Path) -> None:
    cases = [({1: ONE, 2: TWO}, {1: "whole", 2: "core"}, {2: ONE, 1: TWO})]
    labels = {"whole": [1, 2], "core": [1]}
    (case,) = cases_in(tmp_path, cases, labels)
    found, reference = read_label_map(tmp_path / "found" / "c0.nii.gz"), tmp_path / "data" / "labels" / "c0.nii.gz"
    scores, _, differing, notices = compare_with(found, reference)
    assert ({label: one.dice for label, one in scores.items()}, np.max(differing), notices) == ({1: 1, 2: 1}, 0, ())
    assert [one.dice for one in case.scores.values()] == [1, 1]
    description = {"labels": {"whole": 2, "core": 1}, "labelled": {"c0": ["whole"]}}
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(description))
    write(label_map({2: ONE}), reference)
    scores, _, differing, _ = compare_with(found, reference)
    assert ({label: one.dice for label, one in scores.items()}, np.max(differing)) == ({1: 1}, 0)


@pytest.mark.parametrize("names", [("lesion", "lesion"), ("mean", "background")])
def test_labels_of_any_name_are_compared_in_the_window(names: tuple[str, str]) -> None:
    segments = tuple(Segment(label, name, (1, 2, 3)) for label, name in enumerate(names, 1))
    found = replace(label_map({1: ONE, 2: TWO}), segments=segments)
    scores, _, _, notices = compare_with(found, replace(label_map({1: ONE, 2: slice(2, 3)}), segments=segments))
    dice = {label: one.dice for label, one in scores.items()}
    assert (dice, notices) == ({1: 1, 2: 0.5}, ())


def test_only_a_structure_that_is_one_label_has_the_score_of_a_label(tmp_path: Path) -> None:
    """Labels without names: the structures of the data set are made up of several."""
    rows = {2: ONE, 3: TWO}
    for labels, others in (
        ({"whole": [2, 3], "core": [3]}, {"whole": 1, "core": 1}),
        ({"tumour": [2, 3]}, {"tumour": 1}),
    ):
        cases_in(tmp_path, [(rows, {}, rows)], labels)
        empty = tuple(Segment(n, f"label {n}", (1, 2, 3)) for n in range(1, 8))
        found = replace(label_map(rows), segments=empty)
        scores, of_structures, _, _ = compare_with(found, tmp_path / "data" / "labels" / "c0.nii.gz")
        assert scores == {}
        assert {name: one.dice for name, one in of_structures.items()} == others
    scores, of_structures, _, _ = compare_with(label_map({1: ONE}), label_map({1: ONE, 5: TWO}))
    assert (list(scores), list(of_structures)) == ([1], ["label 5"])


def test_the_only_value_of_a_mask_is_no_void_label() -> None:
    doubts = match(label_map({1: ONE}), label_map({255: ONE}), Meaning({"a lesion": frozenset([1])}, True)).doubts
    assert "for example 'a lesion'=255" in str(next(iter(doubts.values())))


def test_a_part_of_a_data_set_is_that_of_its_training(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    names = [f"p{n // 2}_{n % 2}" for n in range(20)]
    for name in names:
        write(label_map({1: slice(0, 2)}), tmp_path / "data" / "labels" / f"{name}.nii.gz")
        write(label_map({1: slice(0, 2)}), tmp_path / "data" / "images" / f"{name}.nii.gz")
        write(label_map({1: slice(0, 2)}), tmp_path / "found" / f"{name}_seg.nii.gz")
    parts = {
        part: [case["name"] for case in cases_of([tmp_path / "found", tmp_path / "data", "--part", part], capsys)]
        for part in ("training", "validation", "test")
    }
    assert [len(found) for found in parts.values()] == [16, 2, 2]
    assert sorted(name for found in parts.values() for name in found) == names
    (tmp_path / "out" / "configs").mkdir(parents=True)
    with with_segnets():
        from segnets.data import find_dataset

        planned = identity_of(find_dataset(tmp_path / "data", patient="^[^_]+"))
    (tmp_path / "out" / "plan.json").write_text(json.dumps({"choices": {}, "dataset": planned}))
    config = {"patient": "^[^_]+", "fold": None, "folds": 5, "cases": {"fold": "@fold", "folds": "@folds"}}
    (tmp_path / "out" / "configs" / "train.yaml").write_text(json.dumps(config))
    words = [tmp_path / "found", tmp_path / "data", "--part", "test", "--trained", tmp_path / "out"]
    first, second = sorted(case["name"] for case in cases_of(words, capsys))
    assert first[:2] == second[:2]
    for file in (tmp_path / "found").iterdir():
        record(file.with_name(file.name.replace(".nii.gz", ".json")), {1: "Liver"})
    (tmp_path / "out" / "plan.json").write_text(
        json.dumps({"choices": {}, "dataset": planned, "labels": {"liver": [1]}})
    )
    assert dice_of(cases_of(words, capsys)[0]) == {"liver": 1}
    (tmp_path / "found" / f"{first}_seg.nii.gz").unlink()
    assert main(["evaluate", *map(str, words)]) == 3
    assert f"{first}: input.unpaired" in capsys.readouterr().out
    (tmp_path / "out" / "plan.json").write_text(json.dumps({"choices": {"folds": 5}}))
    assert main(["evaluate", *map(str, words)]) == 4
    assert "evaluation.seen" in capsys.readouterr().err
    assert main(["evaluate", *map(str, words[:-1]), str(tmp_path)]) == 2
