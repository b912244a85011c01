"""The catalogue holds facts, can be searched without a network, and says what can't be used."""

from __future__ import annotations

import pytest

from napari_seg.bundles.store.catalogue import REASONS, counts, entries, entry_of, search
from napari_seg.bundles.store.download import Digest
from napari_seg.bundles.store.sources import parse_source


def test_the_semantic_segmentation_bundles_of_the_zoo_are_listed() -> None:
    usable = [entry.name for entry in entries() if not entry.refused]
    assert usable == [
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


@pytest.mark.parametrize("entry", entries(), ids=lambda entry: entry.name)
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
    assert [entry.name for entry in search(words) if not entry.refused] == expected


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
