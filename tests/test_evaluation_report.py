"""The three files of an evaluation: what they hold, that they need nothing else, and what is left out of a mean."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from math import isnan, nan
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from napari_seg.errors import InputError, OutputError
from napari_seg.evaluation.metrics import DEFINITIONS, Scores
from napari_seg.evaluation.overlay import PANEL_PIXELS, draw_comparison
from napari_seg.evaluation.page import page
from napari_seg.evaluation.pairs import CaseScores, compare_pair, find_pairs
from napari_seg.evaluation.report import (
    differences,
    one_sided,
    pooled_confusion_ml,
    summaries,
    summary,
    values,
    write_report,
)
from napari_seg.formats.nifti import write_nifti
from napari_seg.geometry import Grid
from napari_seg.volume import Segment, Segmentation, Volume

RED, BLUE = Segment(1, "x", (255, 0, 0)), Segment(2, "y", (0, 0, 255))


def case(name: str, **dice: float) -> CaseScores:
    return CaseScores(name, None, (RED, BLUE), {n: Scores(dice=d) for n, d in dice.items()})


def test_a_mean_leaves_out_what_nobody_holds_and_what_failed() -> None:
    results = [case("a", x=0.5, y=nan), case("b", x=1.0, y=0.2), CaseScores("c", code="file.unreadable")]
    table = summaries(results)
    assert list(table) == ["x", "y", "mean"]
    assert (table["x"]["dice"].mean, table["x"]["dice"].count) == (0.75, 2)
    assert (table["y"]["dice"].mean, table["y"]["dice"].count, table["y"]["dice"].missing) == (0.2, 1, 1)
    assert values(results, "mean", "dice") == {"a": 0.5, "b": pytest.approx(0.6)}
    assert isnan(values([case("a", x=nan)], "mean", "dice")["a"])


def test_the_page_shows_structures_that_occur() -> None:
    results = [case("a", x=0.5, y=nan)]
    text = page(results, summary(results, 1.0), figures=False)
    overview = text.partition("Distribution")[0]
    assert "<td class=text>x</td>" in overview
    assert ">y<" not in overview
    assert "1 structure more, in no label map of either side." in overview


def test_structures_of_one_side_are_counted() -> None:
    missed, extra = Scores(volume_ml=0, reference_ml=2, dice=0), Scores(volume_ml=2, reference_ml=0, dice=0)
    absent = Scores(volume_ml=0, reference_ml=0)
    results = [
        CaseScores("a", scores={"A": missed, "B": extra, "C": absent}),
        CaseScores("b", scores={"A": missed, "B": missed}),
        CaseScores("c", code="input.unpaired"),
    ]
    assert one_sided(results) == ({"A": 2, "B": 1}, {"B": 1})


def test_a_false_positive_costs_a_model_something_in_a_comparison() -> None:
    """Two of four scans have no lesion, and one model finds one there; its labels have no names."""
    good = [CaseScores(n, None, (RED,), {"x": Scores(dice=1.0, hd95_mm=0)}) for n in "ab"]
    good += [CaseScores("c"), CaseScores("d", None, (RED,), {"x": Scores()})]
    bad = [
        replace(result, scores={"x": Scores(dice=0, hd95_mm=50)}) if result.name in "cd" else result for result in good
    ]
    table, _ = differences(good, bad)
    for name in ("x", "mean"):
        dice, hd95 = table[name]["dice"], table[name]["hd95_mm"]
        assert (dice.count, dice.mean, dice.one_empty) == (4, 0.5, 2)
        assert (hd95.count, hd95.mean) == (4, -25)
    both = (RED, Segment(2, "label 2", (1, 1, 1)))
    more = [CaseScores(n, None, both, {"x": Scores(), "label 2": Scores(dice=0)}) for n in "abcd"]
    assert differences(good, more)[0]["label 2"]["dice"].mean == 1


def test_models_without_a_common_name_are_not_compared() -> None:
    """One structure of the references, which have no names, is called "x" by a model and has no name in another."""
    good = [CaseScores(n, None, (RED,), {"x": Scores(dice=1.0, reference_ml=1)}) for n in "ab"]
    unnamed = [
        CaseScores(n, None, (Segment(1, "label 1", (1, 1, 1)),), {"label 1": Scores(1, reference_ml=1)}) for n in "ab"
    ]
    other = [CaseScores(n, None, (BLUE,), {"y": Scores(dice=0.5, reference_ml=1)}) for n in "ab"]
    failed = [CaseScores(n, code="labels.none_common") for n in "ab"]
    for results in (unnamed, other, failed, [good[0], unnamed[1]]):
        for pair in ((good, results), (results, good)):
            with pytest.raises(InputError, match=r"evaluation\.versus"):
                differences(*pair)
    assert differences(unnamed, unnamed)[0]["label 1"]["dice"].mean == 0


def test_structures_are_compared_by_any_spelling_and_the_others_are_reported() -> None:
    """Model A is perfect; B is worse in the kidney, which it spells otherwise, and knows another structure."""

    def of(names: dict[str, float]) -> list[CaseScores]:
        segments = tuple(Segment(n, name, (1, 1, 1)) for n, name in enumerate(names, 1))
        return [CaseScores(c, None, segments, {n: Scores(d, reference_ml=1) for n, d in names.items()}) for c in "abc"]

    a, b = of({"liver": 1, "kidney_left": 1}), of({"liver": 1, "Left kidney": 0.2, "spleen": 1})
    table, notices = differences(a, b)
    assert {name: (row["dice"].count, row["dice"].mean) for name, row in table.items()} == {
        "liver": (3, 0),
        "kidney_left": (3, pytest.approx(0.8)),
        "mean": (3, pytest.approx(0.4)),
    }
    assert [notice.message for notice in notices] == ["only in the results to compare with: spleen; not compared"]
    known, unknown = of({"liver": 1, "kidney": 1}), of({"liver": 1, "kidney": 1})[:2] + of({"liver": 1})[2:]
    assert differences(known, unknown)[0]["kidney"]["dice"].count == 2  # in the last one it has no name


def test_confusion_is_added_up_in_ml() -> None:
    a = CaseScores("a", confusion_ml={"x": {"x": 1.0, "y": 0.5}})
    b = CaseScores("b", confusion_ml={"x": {"x": 2.0}, "y": {"y": 4.0}})
    assert pooled_confusion_ml([a, b]) == {"x": {"x": 3.0, "y": 0.5}, "y": {"y": 4.0}}


@pytest.fixture
def results(tmp_path: Path) -> list[CaseScores]:
    """Seven cases of growing error, one that can't be read, and one whose name is HTML."""
    grid = Grid((12, 10, 8), np.diag([1.0, 1.0, 2.0, 1.0]))
    for n, name in enumerate(["a", "b", "c", "d", "e", "f", "<b>&"]):
        for folder, first in (("found", n), ("expected", 0)):
            (tmp_path / folder).mkdir(exist_ok=True)
            array = np.zeros(grid.shape, np.uint8)
            array[first : first + 6, 2:7, 2:6] = 1
            write_nifti(Segmentation(array, grid, ()), tmp_path / folder / f"{name}.nii.gz")
    for folder in ("found", "expected"):
        (tmp_path / folder / "broken.nii.gz").write_text("not an image")
    pairs, _ = find_pairs(tmp_path / "found", tmp_path / "expected")
    return [compare_pair(pair) for pair in pairs]


def test_the_files_hold_every_case(results: list[CaseScores], tmp_path: Path) -> None:
    write_report(results, tmp_path / "out", 1.0)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"cases.csv", "summary.json", "report.html"}

    rows = list(csv.DictReader((tmp_path / "out" / "cases.csv").open(encoding="utf-8")))
    assert list(rows[0]) == ["case", "segment", *DEFINITIONS, "code", "message"]
    by_name = {row["case"]: row for row in rows}
    assert float(by_name["c"]["dice"]) == pytest.approx(4 / 6)
    assert float(by_name["c"]["hd95_mm"]) == 2
    assert by_name["broken"]["code"] == "file.not_nifti"
    assert by_name["broken"]["dice"] == ""

    facts = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert facts["cases"] == 7
    assert facts["failed"][0]["name"] == "broken"
    assert facts["segments"]["label 1"]["worst"] == ["<b>&", "f", "e", "d", "c"]
    assert facts["segments"]["label 1"]["dice"]["mean"] == pytest.approx(sum(range(7)) / 6 / 7)
    assert facts["confusion_ml"]["label 1"]["label 1"] == pytest.approx(21 * 20 * 2 / 1000)


def test_the_cases_are_written_before_the_statistics(
    results: list[CaseScores], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("napari_seg.evaluation.report.summary", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(results, tmp_path / "out", 1.0)
    assert (tmp_path / "out" / "cases.csv").is_file()


def test_the_page_needs_nothing_else(results: list[CaseScores], tmp_path: Path) -> None:
    write_report(results, tmp_path, 1.0)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in page
    assert not re.search(r"https?://|<link|src=\"(?!data:)", page)
    assert page.count("data:image/jpeg;base64,") == 5
    assert "<b>&</b>" not in page
    assert "&lt;b&gt;&amp;" in page
    assert "file.not_nifti" in page
    write_report(results, tmp_path, 1.0, figures=False)
    assert "data:image/jpeg" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_report_of_nothing_but_perfect_or_failed_cases(results: list[CaseScores], tmp_path: Path) -> None:
    perfect, failed, empty = [r for r in results if r.name == "a"], [r for r in results if r.code], [case("z", x=nan)]
    for some, done, pictures in ((perfect, 1, 1), (failed, 0, 0), (empty, 1, 0)):
        write_report(some, tmp_path, 1.0)
        page = (tmp_path / "report.html").read_text(encoding="utf-8")
        assert f"Evaluation of {done} case" in page
        assert page.count("data:image/jpeg") == pictures


def test_regions_are_drawn_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A result numbers the regions, and its reference has values of its own: both are right."""
    expected = np.zeros((12, 12, 12), np.uint8)
    for value, width in ((2, 0), (1, 2), (4, 4)):
        expected[width : 12 - width, width : 12 - width, width : 12 - width] = value
    grid = Grid(expected.shape, np.eye(4))
    for folder, array in (("found", np.array([0, 2, 1, 0, 3], np.uint8)[expected]), ("expected", expected)):
        (tmp_path / folder).mkdir()
        write_nifti(Segmentation(array, grid, ()), tmp_path / folder / "a.nii.gz")
    names = [{"label": n, "name": name, "color": [1, 1, 1]} for n, name in enumerate(("whole", "core", "hot"), 1)]
    (tmp_path / "found" / "a.json").write_text(json.dumps({"segments": names}))
    regions = {"whole": frozenset([1, 2, 4]), "core": frozenset([1, 4]), "hot": frozenset([4])}
    pairs, _ = find_pairs(tmp_path / "found", tmp_path / "expected", classes=regions)
    drawn = []
    monkeypatch.setattr("napari_seg.evaluation.page._image", lambda sheet, alt: drawn.append(np.asarray(sheet)) or alt)
    write_report([compare_pair(pairs[0])], tmp_path / "out", 1.0)
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert [name for name in regions if f"where {name} of a differs" in page] == ["whole", "core", "hot"]
    for pixels in drawn:  # the tint of voxels that differ is red on a black background
        red, green, blue = np.moveaxis(pixels.astype(int), -1, 0)
        assert not ((red > 80) & (red < 130) & (green < 60) & (blue < 60)).any()


@pytest.mark.parametrize("name", ["cases.csv", "report.html", "summary.json"])
def test_files_of_other_commands_are_not_replaced(name: str, results: list[CaseScores], tmp_path: Path) -> None:
    (tmp_path / name).write_text("name,state,code\n<title>Run of 2 cases</title>")
    with pytest.raises(OutputError, match=r"output\.exists.*not written by an evaluation"):
        write_report(results, tmp_path, 1.0, figures=False)
    assert [path.name for path in tmp_path.glob("*.*") if not path.name.endswith(".gz")] == [name]


def test_a_folder_that_is_a_file_is_told(results: list[CaseScores], tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(OutputError, match=r"output\.not_written"):
        write_report(results, tmp_path / "taken", 1.0, figures=False)


@pytest.mark.parametrize("orientation", ["RAS", "PSL"])
def test_the_picture_shows_the_plane_of_the_error(orientation: str) -> None:
    grid = Grid.around((0, 0, 0), (60, 60, 60), (2, 2, 2))
    x, y, z = np.moveaxis(grid.to_world(np.moveaxis(np.indices(grid.shape), 0, -1)), -1, 0)
    expected = ((abs(x) < 20) & (abs(y) < 20) & (abs(z) < 20)).astype(np.uint8)
    found = expected.copy()
    found[(x > 10) & (z > 0)] = 0  # the upper part of the patient's right was missed
    prediction = Segmentation(found, grid, (RED,))
    turned = grid.reoriented(orientation)
    axes = {"RAS": (expected, grid), "PSL": (np.flip(expected, (0, 1, 2)).transpose(1, 2, 0), turned)}
    sheet = draw_comparison(
        Volume(np.full((1, *grid.shape), 100, np.int16), grid), prediction, Segmentation(*axes[orientation], ())
    )
    assert isinstance(sheet, Image.Image)
    pixels = np.asarray(sheet).astype(int)
    coronal = pixels[:, PANEL_PIXELS + 8 : 2 * PANEL_PIXELS + 8]
    middle, scale = PANEL_PIXELS // 2, PANEL_PIXELS / 60

    def at(right_mm: float, up_mm: float) -> tuple[int, int, int]:
        red, green, blue = coronal[round(middle - up_mm * scale), round(middle - right_mm * scale)]
        return int(red), int(green), int(blue)

    assert at(15, 10)[0] > at(15, 10)[1] + 30  # missed: tinted
    for place in ((-15, 10), (15, -10), (-25, 10)):
        assert len(set(at(*place))) == 1  # right: the scan's grey
    edge = coronal[round(middle - 10 * scale), round(middle - 20 * scale) - 4 : round(middle - 20 * scale) + 5]
    assert (edge == 255).all(axis=1).any()  # the reference's outline
