"""The models of TotalSegmentator's tasks as models of their own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from task_models import write_task
from test_bundles_nnunet_convert import oblique_scan

from napari_seg.bundles.read import read_bundle
from napari_seg.bundles.totalsegmentator.part_model import part_model, part_of_folder, part_with, why_not_part
from napari_seg.bundles.totalsegmentator.task import TaskBundle
from napari_seg.bundles.totalsegmentator.weights import WEIGHTS_VARIABLE
from napari_seg.errors import InputError
from napari_seg.inference.options import SegmentOptions
from napari_seg.inference.segment import segment


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TaskBundle:
    monkeypatch.setenv("NAPARI_SEG_MODELS", str(tmp_path / "store"))
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(tmp_path / "weights"))
    for name in ("total_mr", "total_mr_fast"):
        write_task(tmp_path / "weights", name)
    found = read_bundle("totalsegmentator:total_mr")
    assert isinstance(found, TaskBundle)
    return found


def test_the_part_with_the_corrected_structures_is_chosen(task: TaskBundle) -> None:
    first, second = ([label for _, label in part.labels] for part in task.task.parts)
    name_of = {one.label: one.name for one in task.segments}
    for names, number, own in (({"Liver"}, 0, first), ({name_of[second[2]], "tumour"}, 1, second)):
        part = part_with(task, names)
        assert part.root == task.parts[number].root
        assert [one.name for one in part.segments] == [name_of[label] for label in own]
        assert [one.label for one in part.segments] == list(range(1, len(own) + 1))
        assert {*part.others} == {*name_of.values()} - {name_of[label] for label in own}
        assert part_of_folder(task.parts[number]) == part
        assert part.configuration.is_reoriented
        assert part.licence == "Apache-2.0"
    for names, found in (
        ({"liver", name_of[second[0]]}, rf"2 models.*Dataset850\S*: liver; Dataset851\S*: {name_of[second[0]]}"),
        ({"tumour"}, "0 models.*tumour"),
    ):
        with pytest.raises(InputError, match=rf"improve\.parts.*{found}"):
            part_with(task, names)
    fast = read_bundle("totalsegmentator:total_mr_fast")
    assert isinstance(fast, TaskBundle)
    assert part_with(fast, {"tumour"}).others == ()


def test_a_part_finds_what_its_task_finds_at_its_own_voxels(task: TaskBundle) -> None:
    fast = read_bundle("totalsegmentator:total_mr_fast")
    assert isinstance(fast, TaskBundle)
    volume = oblique_scan()
    part = part_with(fast, ())
    labels_of_task = dict(fast.task.parts[0].labels)
    table = np.array([0, *(labels_of_task[n] for n in range(1, len(part.segments) + 1))])
    expected = segment(volume, fast, SegmentOptions()).array
    found = table[segment(volume, part, SegmentOptions()).array]
    assert len(np.unique(expected)) > 3
    # TotalSegmentator decides on voxels of 3 mm; this random network has borders everywhere
    assert (found == expected).mean() > 0.8


def test_other_parts_are_refused(task: TaskBundle) -> None:
    model, part = task.parts[0], task.task.parts[0]
    assert why_not_part(task.task, model) == ""
    for changes, found in (
        ({"body": True}, "further steps"),
        ({"auxiliary": (3,)}, "further steps"),
        ({"spacing_mm": (3.0, 3.0, 3.0)}, "once more"),
    ):
        assert found in why_not_part(replace(task.task, **changes), model)
    flat = replace(model, configuration=replace(model.configuration, region_labels=(1,)))
    assert "overlap" in why_not_part(task.task, flat)
    assert part_model(task.task, part, model).name.startswith("TotalSegmentator total_mr, Dataset850_")
