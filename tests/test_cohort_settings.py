"""What a cohort's settings are compared by when it goes on."""

from __future__ import annotations

import pytest

from napari_seg.cohort import resume
from napari_seg.cohort.resume import settings_content
from napari_seg.cohort.settings import RunSettings, differences


def test_a_release_goes_on_with_a_cohort_of_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    now = settings_content(RunSettings())
    before = {key: value for key, value in now.items() if key != "version of results"} | {"version": "0.0.9"}
    assert differences(before, now) == []
    monkeypatch.setattr(resume, "RESULTS", 2)
    assert differences(before, settings_content(RunSettings())) == ["version of results was 1 and is 2"]
