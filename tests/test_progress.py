"""Progress: times in words."""

from __future__ import annotations

from napari_seg.progress import describe_seconds


def test_times_are_told_in_words() -> None:
    assert [describe_seconds(s) for s in (0.04, 9.94, 12.3, 60, 200.4, 3600, 7530)] == [
        "0.0 s",
        "9.9 s",
        "12 s",
        "1 min",
        "3 min 20 s",
        "1 h",
        "2 h 5 min",
    ]
