"""Test metrics of missing structures by hand: the rule is that of napari_seg.evaluation."""

from __future__ import annotations

import errno
import json
import math
import sys
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor

from napari_seg.bundles.read import shipped_root

sys.path.insert(0, str(shipped_root()))

from segnets.errors import TrainingError
from segnets.metrics import CaseMetric, Dice, HausdorffDistance, Summary, SurfaceDice
from segnets.training.preview import case_dice

SPACING = (3.0, 1.0, 2.0)
DIAGONAL = math.hypot(8 * 3, 10 * 1, 6 * 2)


def label_map(*places: tuple[int, int, int]) -> MetaTensor:
    """Return one-hot labels of 8 x 10 x 6 voxels: class n + 1 in the voxel of the n-th place, if it has one."""
    label = torch.zeros(8, 10, 6, dtype=torch.long)
    for number, place in enumerate(places, start=1):
        if place:
            label[place] = number
    affine = torch.diag(torch.tensor([*SPACING, 1.0]))
    return MetaTensor(torch.nn.functional.one_hot(label, 3).movedim(-1, 0).float(), affine=affine)


BOTH = label_map((2, 4, 3), (6, 4, 3))
MOVED = label_map((4, 4, 3), (6, 4, 3))  # class 1 by 6 mm
FIRST = label_map((2, 4, 3))
NONE = label_map()
CASES = {
    # prediction, reference: Dice, HD95 and NSD within 1 mm of each class
    "equal": (BOTH, BOTH, (1, 1), (0, 0), (1, 1)),
    "moved": (MOVED, BOTH, (0, 1), (6, 0), (0, 1)),
    "second missed": (FIRST, BOTH, (1, 0), (0, DIAGONAL), (1, 0)),
    "second found where there is none": (BOTH, FIRST, (1, 0), (0, DIAGONAL), (1, 0)),
    "second rightly not found": (FIRST, FIRST, (1, math.nan), (0, math.nan), (1, math.nan)),
    "all missed": (NONE, BOTH, (0, 0), (DIAGONAL, DIAGONAL), (0, 0)),
    "nothing there": (NONE, NONE, (math.nan, math.nan), (math.nan, math.nan), (math.nan, math.nan)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("error:the (ground truth|prediction) of class")
def test_missing_structures(case: str) -> None:
    prediction, reference, *expected = CASES[case]
    for metric, values in zip((Dice(), HausdorffDistance(percentile=95), SurfaceDice([1, 1])), expected, strict=True):
        CaseMetric(metric).update(([prediction], [reference]))
        assert metric.get_buffer().tolist() == [pytest.approx(list(values), rel=1e-6, nan_ok=True)]


def test_the_rule_is_that_of_napari_seg() -> None:
    import numpy as np

    from napari_seg.evaluation.metrics import compare_label_maps
    from napari_seg.geometry import Grid
    from napari_seg.volume import Segmentation

    grid = Grid((8, 10, 6), np.diag([*SPACING, 1.0]))
    for prediction, reference, *expected in CASES.values():
        maps = (Segmentation(x.argmax(0).numpy().astype(np.uint8), grid, ()) for x in (prediction, reference))
        scores = compare_label_maps(*maps, {1: [1], 2: [2]}).scores
        for name, values in zip(("dice", "hd95_mm", "nsd"), expected, strict=True):
            assert [getattr(scores[n], name) for n in (1, 2)] == pytest.approx(list(values), nan_ok=True)


def test_a_missed_structure_lowers_every_mean_and_a_true_negative_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(lambda e, b: None)
    engine.state.epoch_length, engine.state.metric_details = 3, {}
    for name, metric in (("mean_dice", Dice()), ("hd95_mm", HausdorffDistance(percentile=95))):
        handler = CaseMetric(metric)
        for case in ("equal", "second missed", "second rightly not found"):
            handler.update(([CASES[case][0]], [CASES[case][1]]))
        engine.state.metric_details[name] = metric.get_buffer()
    Summary(tmp_path / "summary.json", {"0": "background", "1": "a", "2": "b"})(engine)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["mean_dice"] == {"mean": 0.75, "a": 1.0, "b": 0.5}
    assert summary["hd95_mm"]["b"] == pytest.approx(DIAGONAL / 2, abs=1e-4)
    engine.state.metric_details = {"mean_dice": torch.full((2, 2), torch.nan)}
    Summary(tmp_path / "summary.json", {"0": "background", "1": "a", "2": "b"})(engine)
    assert json.loads((tmp_path / "summary.json").read_text())["mean_dice"] == {"mean": None, "a": None, "b": None}
    before = (tmp_path / "summary.json").read_text()

    def fill_disk(path: Path, text: str) -> None:
        path.write_bytes(text[:9].encode())
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fill_disk)
    with pytest.raises(TrainingError, match=r"output\.disk_full"):
        Summary(tmp_path / "summary.json", {"0": "background", "1": "a", "2": "b"})(engine)
    assert (tmp_path / "summary.json").read_text() == before


def measured(metric: CaseMetric, *cases: str) -> Engine:
    """Return an engine that has processed some of `CASES`."""
    engine = Engine(lambda engine, case: [{"pred": CASES[case][0], "label": CASES[case][1]}])
    metric.attach(engine, "mean_dice")
    engine.run(list(cases))
    return engine


def test_a_validations_mean_is_the_evaluations(tmp_path: Path) -> None:
    """Average the means of structures; averaging the means of cases would give (1 + 0.5 + 1) / 3."""
    engine = measured(CaseMetric(Dice()), "equal", "second missed", "second rightly not found")
    assert engine.state.metrics == {"mean_dice": 0.75}
    Summary(tmp_path / "summary.json", {"0": "background", "1": "a", "2": "b"})(engine)
    assert json.loads((tmp_path / "summary.json").read_text())["mean_dice"]["mean"] == 0.75


def test_without_counting_cases_the_mean_is_nan() -> None:
    assert math.isnan(measured(CaseMetric(Dice()), "nothing there").state.metrics["mean_dice"])


def test_the_preview_of_cases_follows_the_rule() -> None:
    assert case_dice(BOTH, FIRST) == 0.5
    assert case_dice(NONE, NONE) == 1


def test_the_table_of_results_weighs_by_the_cases_that_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "scripts"))
    import results

    rows = {"validation": ["a,0.8,0.4,0.6", "b,0.6,nan,0.6"], "test": ["c,0.7,nan,0.7"]}
    for part, lines in rows.items():
        (tmp_path / part).mkdir()
        text = "\n".join(["filename,class0,class1,mean", *lines])
        (tmp_path / part / "mean_dice_raw.csv").write_text(text)
    assert results.means(results.scores([tmp_path / part for part in rows], "mean_dice")) == pytest.approx([0.7, 0.4])
    assert math.isnan(results.means(results.scores([tmp_path / "test"], "mean_dice"))[1])
