"""The catalogue holds facts, can be searched without a network, and says what can't be used."""

from __future__ import annotations

import pytest

from napari_seg.bundles.store.catalogue import REASONS, Entry, counts, entries, entry_of, search
from napari_seg.bundles.store.download import Digest
from napari_seg.bundles.store.sources import parse_source
from napari_seg.bundles.totalsegmentator.table import is_task_name, tasks


def test_the_semantic_segmentation_bundles_of_the_zoo_are_listed() -> None:
    usable = [entry.name for entry in entries() if not entry.refused]
    assert [name for name in usable if not is_task_name(name)] == [
        "brats_mri_segmentation",
        "endoscopic_tool_segmentation",
        "multi_organ_segmentation",
        "pancreas_ct_dints_segmentation",
        "pediatric_abdominal_ct_segmentation",
        "prostate_mri_anatomy",
        "renalStructures_CECT_segmentation",
        "renalStructures_UNEST_segmentation",
        "segmentation_template",
        "spleen_ct_segmentation",
        "spleen_deepedit_annotation",
        "swin_unetr_btcv_segmentation",
        "ventricular_short_axis_3label",
        "wholeBody_ct_segmentation",
        "wholeBrainSeg_Large_UNEST_segmentation",
    ]
    assert all(entry.finds for entry in entries() if not entry.refused)


def of_the_zoo() -> list[Entry]:
    return [entry for entry in entries() if not is_task_name(entry.name)]


def test_the_open_tasks_of_totalsegmentator_are_listed() -> None:
    found = {entry.name: entry for entry in entries() if is_task_name(entry.name)}
    assert {f"totalsegmentator:{name}" for name in ("total", "total_fast", "body", "teeth", "brain_aneurysm")} <= set(
        found
    )
    licensed = {f"totalsegmentator:{name}" for name, task in tasks().items() if task.licence_kind == "licensed"}
    assert {name for name, entry in found.items() if entry.is_licensed} == licensed != set()
    total = found["totalsegmentator:total"]
    assert (total.title, total.modality, total.way, total.needs_consent) == (
        "TotalSegmentator total",
        "CT",
        "engine",
        False,
    )
    assert total.size_bytes == 5 * 234_000_000 + 135_000_000  # its five parts, and the one that finds structures
    assert (total.source, total.archive_url, total.archive_digest) == ("totalsegmentator:total", "", None)
    assert found["totalsegmentator:liver_vessels"].size_bytes is None
    assert found["totalsegmentator:brain_aneurysm"].licence_kind == "non-commercial"
    assert [entry.name for entry in search("TotalSegmentator")] == sorted(found, key=str.lower)  # no model of the zoo
    for entry in found.values():
        texts = (entry.title, entry.note, *entry.topics, *entry.finds)
        assert all(text.isprintable() and len(text) < 120 for text in texts)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("totalsegmentator kidney MR", ["total_mr", "total_mr_fast", "total_mr_fastest"]),
        ("totalsegmentator liver segments", ["liver_segments", "liver_segments_mr"]),
        ("nnu-net teeth", ["craniofacial_structures", "teeth"]),
    ],
)
def test_tasks_are_found_by_their_structures(words: str, expected: list[str]) -> None:
    assert [entry.name for entry in search(words)] == [f"totalsegmentator:{name}" for name in expected]


@pytest.mark.parametrize("entry", of_the_zoo(), ids=lambda entry: entry.name)
def test_each_entry_is_complete(entry) -> None:  # type: ignore[no-untyped-def]
    assert parse_source(entry.source).name == entry.name
    assert entry.licence
    assert entry.licence_kind in ("open", "non-commercial", "research", "unknown")
    assert entry.size_bytes is None
    assert bool(entry.reason) == bool(entry.refused)
    assert not entry.refused or not entry.finds
    assert (entry.way == "refused") == bool(entry.refused)
    assert entry.needs_consent >= (entry.way == "workflow")
    assert entry.archive_url.endswith(f"/{entry.name}_v{entry.version}.zip")
    assert entry.archive_digest is not None
    texts = (entry.title, entry.data, entry.note, *entry.topics, *entry.finds, *entry.channels)
    assert all(text.isprintable() and len(text) < 120 for text in texts)


def test_a_name_is_found_in_any_case() -> None:
    known = entry_of("SPLEEN_ct_segmentation")
    assert known is not None
    assert known.archive_digest == Digest("sha1", "8e99230050906d0d3cec484010598aa138201892")
    assert entry_of("none") is None


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("kidney MR", []),
        ("brain tumour", ["brats_mri_segmentation"]),
        ("Brain tumors MRI", ["brats_mri_segmentation"]),
        ("glioma", ["brats_mri_segmentation", "pancreas_ct_dints_segmentation", "renalStructures_CECT_segmentation"]),
        ("kidney lesion", ["renalStructures_CECT_segmentation"]),
        ("renal cortex", ["renalStructures_UNEST_segmentation"]),
        ("body", ["wholeBody_ct_segmentation"]),
        ("hippocampus", ["wholeBrainSeg_Large_UNEST_segmentation"]),
        ("flair", ["brats_mri_segmentation"]),
        ("spleen ct non-commercial", ["multi_organ_segmentation"]),
        ("prostate zone", ["prostate_mri_anatomy"]),
        ("adrenal_gland right", ["swin_unetr_btcv_segmentation", "wholeBody_ct_segmentation"]),
    ],
)
def test_all_words_have_to_fit(words: str, expected: list[str]) -> None:
    found = [entry.name for entry in search(words) if not entry.refused]
    assert [name for name in found if not is_task_name(name)] == expected


def test_the_models_of_each_word_are_counted() -> None:
    assert counts("flair none") == {"flair": 1, "none": 0}
    assert counts("") == {}


def test_the_way_is_known_before_the_download() -> None:
    ways = {entry.name: (entry.way, entry.needs_consent) for entry in entries()}
    assert ways["brats_mri_segmentation"] == ("engine", False)
    assert ways["wholeBrainSeg_Large_UNEST_segmentation"] == ("engine", True)
    assert ways["spleen_deepedit_annotation"] == ("workflow", True)
    assert ways["vista3d"] == ("refused", False)


def test_what_can_not_be_used_comes_last_with_its_reason() -> None:
    found = search()
    assert found == list(entries())
    assert [bool(entry.refused) for entry in found] == sorted(bool(entry.refused) for entry in found)
    assert {entry.refused for entry in found} - {""} == set(REASONS)
