"""Comparison of a cohort's settings with those that it began with."""

from __future__ import annotations

import pytest

from napari_seg.cohort import resume
from napari_seg.cohort.resume import settings_content
from napari_seg.cohort.settings import RunSettings, differences
from napari_seg.inference.options import SegmentOptions


def test_a_release_goes_on_with_a_cohort_of_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    now = settings_content(RunSettings())
    before = {key: value for key, value in now.items() if key != "version of results"} | {"version": "0.0.9"}
    assert differences(before, now) == []
    monkeypatch.setattr(resume, "RESULTS", 2)
    assert differences(before, settings_content(RunSettings())) == ["version of results was 1 and is 2"]


def test_an_option_that_an_update_adds_counts_as_its_default_in_the_cohorts_before() -> None:
    before = {key: value for key, value in settings_content(RunSettings()).items() if key != "crop"}
    assert differences(before, settings_content(RunSettings())) == []
    other = settings_content(RunSettings(options=SegmentOptions(crop=False)))
    assert differences(before, other) == ["crop was True and is False"]
    assert differences({}, other)  # settings that are unknown


def test_settings_of_two_releases_do_not_differ_whichever_was_first() -> None:
    now = settings_content(RunSettings())
    old, older = now | {"version": "0.0.9"}, now | {"version": "0.0.8"}
    assert differences(now, old) == differences(older, old) == []
