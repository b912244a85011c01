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
from monai.metrics import DiceMetric, HausdorffDistanceMetric, SurfaceDiceMetric
from monai.transforms import AsDiscrete

from napari_seg.bundles.read import shipped_root

sys.path.insert(0, str(shipped_root()))

from segnets.annotation import AsLabelsd
from segnets.errors import TrainingError
from segnets.metrics import CaseMetric, Dice, HausdorffDistance, SoftDice, Summary, SurfaceDice
from segnets.training.preview import case_dice

SPACING = (3.0, 1.0, 2.0)
DIAGONAL = math.hypot(8 * 3, 10 * 1, 6 * 2)


def label_map(*places: tuple[int, int, int]) -> MetaTensor:
    """Return a label map of 8 x 10 x 6 voxels: class n + 1 in the voxel of the n-th place, if it has one."""
    label = torch.zeros(8, 10, 6, dtype=torch.uint8)
    for number, place in enumerate(places, start=1):
        if place:
            label[place] = number
    affine = torch.diag(torch.tensor([*SPACING, 1.0]))
    return MetaTensor(label[None], affine=affine)


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
    for metric, values in zip((Dice(2), HausdorffDistance(2, 95), SurfaceDice([1, 1])), expected, strict=True):
        CaseMetric(metric).update(([prediction], [reference]))
        assert metric.get_buffer().tolist() == [pytest.approx(list(values), rel=1e-6, nan_ok=True)]


PARTS = [[1], [1, 2], [2, 3]]
CONTENTS = {
    # parts, classes that are not annotated, other numbers in the label map
    "plain": (None, (), []),
    "ignored voxels": (None, (), [-1]),
    "partly labelled": (None, [[2]], [-2, -1]),
    "regions": (PARTS, (), []),
    "regions, ignored voxels": (PARTS, (), [-1]),
    "regions, partly labelled": (PARTS, [[1]], [-2, -1]),
}


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.filterwarnings("ignore")
def test_scores_are_those_of_monai_on_masks_of_all_classes(content: str) -> None:
    """Three classes, of which a fourth is only in the result, and the fifth in neither; boxes touch the border."""
    parts, absent, others = CONTENTS[content]
    random = torch.Generator().manual_seed(4)
    logits = torch.nn.functional.interpolate(
        torch.randn(1, 6 if parts is None else 3, 4, 5, 3, generator=random), (12, 15, 9)
    )[0]
    label = torch.nn.functional.interpolate(
        torch.randint(0, 4, (1, 1, 3, 5, 3), generator=random).float(), (12, 15, 9)
    )[0]
    for number in others:
        at = torch.rand(label.shape, generator=random) < 0.1
        label[at & (label <= 0 if number < -1 else label == label)] = number
    if others[:1] == [-2]:
        label[label == 0] = -2
    if parts is None:
        logits[5] = -9
        if absent:
            label[label == 2] = -2
    found = AsLabelsd(parts, absent)({"pred": logits, "label": label})
    masks = [AsDiscrete(argmax=True, to_onehot=6)(logits), AsDiscrete(to_onehot=6)(label.clamp(min=0))]
    if parts is not None:
        inside = torch.stack(
            [torch.isin(label[0], torch.tensor([p for p, of in enumerate(parts, 1) if n in of])) for n in (1, 2, 3)]
        )
        masks = [torch.cat([torch.zeros(1, 12, 15, 9), x.float()]) for x in (logits > 0, inside)]
    for mask in masks:
        mask[:, label[0] == -1] = 0
        mask[[n for classes in absent for n in classes]] = 0
    classes, spacing = len(masks[0]) - 1, (3.0, 1.0, 2.0)
    pairs = [
        (Dice(classes), DiceMetric(include_background=False), {}),
        (HausdorffDistance(classes, 95), HausdorffDistanceMetric(percentile=95), {"spacing": spacing}),
        (SurfaceDice([2.0] * classes), SurfaceDiceMetric([2.0 * (1 + 1e-5)] * classes), {"spacing": spacing}),
    ]
    in_pred, in_label = (mask[1:].flatten(1).any(1) for mask in masks)
    assert (in_pred & in_label).sum() >= 2
    for ours, monai, options in pairs:
        scores = ours(found["pred"][None], found["label"][None], spacing=spacing)[0]
        expected = monai(masks[0][None], masks[1][None], **options)[0]
        assert scores[in_pred & in_label].tolist() == expected[in_pred & in_label].tolist()
        assert scores.isnan().tolist() == (~in_pred & ~in_label).tolist()
        worst = math.hypot(36, 15, 18) if isinstance(ours, HausdorffDistance) else 0
        assert scores[in_pred ^ in_label].tolist() == pytest.approx([worst] * int((in_pred ^ in_label).sum()))


def test_the_rule_is_that_of_napari_seg() -> None:
    import numpy as np

    from napari_seg.evaluation.metrics import compare_label_maps
    from napari_seg.geometry import Grid
    from napari_seg.volume import Segmentation

    grid = Grid((8, 10, 6), np.diag([*SPACING, 1.0]))
    for prediction, reference, *expected in CASES.values():
        maps = (Segmentation(x[0].numpy().astype(np.uint8), grid, ()) for x in (prediction, reference))
        scores = compare_label_maps(*maps, {1: [1], 2: [2]}).scores
        for name, values in zip(("dice", "hd95_mm", "nsd"), expected, strict=True):
            assert [getattr(scores[n], name) for n in (1, 2)] == pytest.approx(list(values), nan_ok=True)


def test_a_missed_structure_lowers_every_mean_and_a_true_negative_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(lambda e, b: None)
    engine.state.epoch_length, engine.state.metric_details = 3, {}
    for name, metric in (("mean_dice", Dice(2)), ("hd95_mm", HausdorffDistance(2, 95))):
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
    engine = measured(CaseMetric(Dice(2)), "equal", "second missed", "second rightly not found")
    assert engine.state.metrics == {"mean_dice": 0.75}
    Summary(tmp_path / "summary.json", {"0": "background", "1": "a", "2": "b"})(engine)
    assert json.loads((tmp_path / "summary.json").read_text())["mean_dice"]["mean"] == 0.75


def test_without_counting_cases_the_mean_is_nan() -> None:
    assert math.isnan(measured(CaseMetric(Dice(2)), "nothing there").state.metrics["mean_dice"])


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


def test_the_dice_of_fractions_is_that_of_masks_for_0_and_1() -> None:
    found = torch.tensor([[[255, 0, 51]], [[255, 255, 0]], [[0, 0, 0]]], dtype=torch.uint8)
    expected = torch.tensor([[[0.5, 0.25, 0.6]], [[1.0, 0, 0]], [[0.0, 0, 0]]])
    scores = SoftDice(3).of_case(found, expected)
    # 2 (0.5 + 0 + 0.2) / (1.2 + 1.35), 2 x 1 / 3
    assert scores.tolist() == pytest.approx([1.4 / 2.55, 2 / 3, torch.nan], nan_ok=True)


def test_fractions_of_a_structure_that_neither_has_do_not_count() -> None:
    found = torch.tensor([[[127, 1, 0]], [[128, 0, 0]], [[127, 0, 0]]], dtype=torch.uint8)
    expected = torch.tensor([[[0.0, 0, 0]], [[0.0, 0, 0]], [[0.1, 0, 0]]])
    # 2 x 0.1 / (127 / 255 + 0.1)
    scores = SoftDice(3).of_case(found, expected)
    assert scores.tolist() == pytest.approx([torch.nan, 0, 0.2 / (127 / 255 + 0.1)], nan_ok=True)
