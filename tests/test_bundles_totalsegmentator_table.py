"""The tables of TotalSegmentator's tasks say what TotalSegmentator does, and hang together."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from napari_seg.bundles.totalsegmentator.table import (
    note_of,
    parts_needed,
    structures_of,
    task_of,
    tasks,
    weights_of,
)
from napari_seg.errors import BundleError


def test_the_parts_of_total_overwrite_each_other_in_the_order_of_their_numbers() -> None:
    task = task_of("total")
    assert [part.number for part in task.parts] == [291, 292, 293, 294, 295]
    assert {part.trainer for part in task.parts} == {"nnUNetTrainerNoMirroring"}
    assert {(part.plans, part.configuration, part.folds) for part in task.parts} == {
        ("nnUNetPlans", "3d_fullres", (0,))
    }
    assert task.spacing_mm == (1.5, 1.5, 1.5)
    assert task.overlap == 0.2
    assert [len(part.labels) for part in task.parts] == [24, 26, 18, 23, 26]
    assert sorted(label for part in task.parts for _, label in part.labels) == list(range(1, 118))
    assert task.parts[0].labels[:2] == ((1, 1), (2, 2))
    assert task.parts[1].labels[:2] == ((1, 25), (2, 26))


def test_fast_and_small_forms_are_tasks_of_their_own() -> None:
    assert [part.number for part in task_of("total_fast").parts] == [297]
    assert task_of("total_fastest").spacing_mm == (6.0, 6.0, 6.0)
    assert {part.plans for part in task_of("total_v3_small").parts} == {"nnUNetResEncUNetLPlans_8"}
    assert {part.plans for part in task_of("total_v3").parts} == {"nnUNetPlans"}
    assert structures_of(task_of("total_v3"))[25].name == "vertebrae_L6"
    assert structures_of(task_of("total_fast"))[25].name == "vertebrae_S1"


def test_the_margin_of_a_crop_is_the_one_that_is_used() -> None:
    crop = task_of("liver_vessels").crop
    assert crop is not None
    assert (crop.task, crop.structures, crop.margin_mm) == ("total_fastest", ("liver",), (20.0, 20.0, 20.0))
    margins = {name: task.crop.margin_mm for name, task in tasks().items() if task.crop}
    assert {name for name, margin in margins.items() if margin != (20.0, 20.0, 20.0)} == {"teeth"}
    assert margins["teeth"] == (10.0, 10.0, 10.0)


@pytest.mark.parametrize(
    ("name", "crop"),
    [
        ("lung_vessels", "total_fast"),  # it asks for the more robust one
        ("liver_segments_mr", "total_mr_fast"),
        ("abdominal_muscles", "body_fast"),
        ("teeth", "craniofacial_structures"),
    ],
)
def test_the_task_that_finds_where_another_one_looks(name: str, crop: str) -> None:
    found = task_of(name).crop
    assert found is not None
    assert found.task == crop


def test_the_structures_of_a_crop_are_those_of_its_task() -> None:
    for task in tasks().values():
        if task.crop:
            names = {segment.name for segment in structures_of(task_of(task.crop.task))}
            assert {*task.crop.structures, *task.remove_outside} <= names
        assert task.subset_task in ("", *tasks())


def test_labels_of_parts_are_structures_or_auxiliary() -> None:
    for task in tasks().values():
        labels = {segment.label for segment in structures_of(task)}
        mapped = {label for part in task.parts for _, label in part.labels}
        assert mapped == labels | set(task.auxiliary)
        assert not labels & set(task.auxiliary)


def test_steps_belong_to_few_tasks() -> None:
    assert task_of("kidney_cysts").auxiliary == (3, 4)
    assert {name for name, task in tasks().items() if task.body} == {"body", "body_fast"}
    refined = task_of("vertebrae_pp_refined")
    assert refined.steps == ("vertebrae_pp", "vertebrae_pp_refined")
    assert [(part.number, bool(part.labels)) for part in refined.parts] == [(803, True), (305, False)]
    heart = task_of("heartchambers_highres")
    assert (heart.remove_outside, heart.remove_outside_mm) == (("heart", "aorta", "inferior_vena_cava"), 10.0)
    assert task_of("pleural_pericard_effusion").parts[0].folds == ()


def test_open_weights_have_an_address_and_licensed_ones_have_none() -> None:
    address = "https://github.com/wasserth/TotalSegmentator/releases/download/v2.0.0-weights/"
    assert weights_of(291).url == f"{address}Dataset291_TotalSegmentator_part1_organs_1559subj.zip"
    for task in tasks().values():
        assert {bool(weights_of(part.number).url) for part in task.parts} == {task.licence_kind != "licensed"}
    assert {name for name, task in tasks().items() if task.licence_kind == "non-commercial"} == {"brain_aneurysm"}
    assert note_of(task_of("brain_aneurysm"))


def test_a_task_needs_the_models_that_find_where_it_looks() -> None:
    assert [part.number for part in parts_needed(task_of("teeth"))] == [113, 115, 298]
    assert [part.number for part in parts_needed(task_of("total"))] == [291, 292, 293, 294, 295, 298]
    assert [part.number for part in parts_needed(task_of("total_fastest"))] == [298]


def test_structures_have_codes_and_colours() -> None:
    spleen, kidney = structures_of(task_of("total"))[:2]
    assert (spleen.label, spleen.name, spleen.color) == (1, "spleen", (50, 170, 60))
    assert spleen.kind is not None
    assert (spleen.kind.value, spleen.kind.scheme, spleen.kind.meaning) == ("78961009", "SCT", "Spleen")
    assert kidney.modifier is not None
    assert kidney.modifier.meaning == "Right"
    assert all(segment.kind for segment in structures_of(task_of("total")))
    for task in tasks().values():
        assert all(len(segment.color) == 3 for segment in structures_of(task))


def test_names_of_tasks_are_found_in_any_case_and_others_are_refused() -> None:
    assert task_of("TotalSegmentator:Total_Fast").name == "total_fast"
    with pytest.raises(BundleError) as caught:
        task_of("totalsegmentator:liver")
    assert caught.value.code == "bundle.unknown"


def test_the_script_leaves_out_tasks_without_published_weights() -> None:
    path = Path(__file__).parents[1] / "scripts" / "totalsegmentator_tasks.py"
    script = runpy.run_path(str(path))
    assert not script["LEFT_OUT"] & set(tasks())
    row = {f"SegmentedProperty{one}CodeSequence.{end}": "" for one in ("Category", "Type", "TypeModifier")
           for end in ("CodeValue", "CodingSchemeDesignator", "CodeMeaning")}  # fmt: skip
    assert script["structure_of"](row | {"DicomRGBColor": "1,2,3"}) == {"color": [1, 2, 3]}
