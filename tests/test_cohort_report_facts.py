"""Test the facts of a run as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cohorts import START, add_done, add_failed, add_model, new_manifest

from napari_seg.cohort.manifest import Manifest
from napari_seg.cohort.report.facts import gather
from napari_seg.errors import Notice


@pytest.fixture
def manifest(tmp_path: Path) -> Iterator[Manifest]:
    with new_manifest(tmp_path / "out", ended=START + 100) as manifest:
        yield manifest


def test_cases_are_counted_and_grouped(manifest: Manifest) -> None:
    notices = (Notice("result.islands", "a", "front"), Notice("result.islands", "b", "back"))
    add_done(manifest, "a", {"front": 1.0}, notices=notices)
    add_failed(manifest, "b", "file.empty")
    add_failed(manifest, "c", "file.empty")
    manifest.add_case("d", {"state": "skipped", "code": "select.modality", "message": "CT only"})
    manifest.add_case("e", {"state": "waiting"})
    facts = gather(manifest)
    assert facts.total == 5
    assert facts.counts == {"waiting": 1, "running": 0, "moving": 0, "done": 1, "failed": 2, "skipped": 1}
    assert [case.name for case in facts.failed["file.empty"]] == ["b", "c"]
    assert [case.message for case in facts.skipped["select.modality"]] == ["CT only"]
    assert facts.notices == {"result.islands": 1}  # counted once a case


def test_times_of_several_runs_add_up_without_the_pause(manifest: Manifest) -> None:
    second = manifest.add_runner("a", 1, "y", True)
    third = manifest.add_runner("b", 2, "z", True)
    back = manifest.add_runner("c", 3, "z", True)
    set_times = "UPDATE runners SET started = ?, ended = ? WHERE id = ?"
    manifest._write(set_times, (START + 1000, START + 1100, second))
    manifest._write(set_times, (START + 1050, START + 1200, third))
    manifest._write(set_times, (START + 5000, START + 10, back))  # its clock was set back
    for n in range(10):
        add_done(manifest, f"case_{n}", {}, started=START + n, seconds=4.0)
    facts = gather(manifest)
    assert facts.busy_seconds == 300
    assert facts.per_minute == 2
    assert (facts.case_seconds, facts.part_seconds) == (4.0, (10.0, 20.0, 10.0))
    assert (facts.started, facts.ended) == (START, START + 13)
    assert facts.at_once == 4


def test_a_killed_runner_counts_until_its_last_case(manifest: Manifest) -> None:
    manifest._write("UPDATE runners SET ended = NULL", ())
    add_done(manifest, "a", {}, started=START + 5, seconds=5.0)
    assert gather(manifest).busy_seconds == 10


def test_models_are_judged_apart(manifest: Manifest) -> None:
    small, large = add_model(manifest, "small"), add_model(manifest, "large")
    for n in range(10):
        add_done(manifest, f"small_{n}", {"a": 1.0 + n / 100}, model=small)
        add_done(manifest, f"large_{n}", {"a": 100.0 + n}, model=large)
    facts = gather(manifest)
    assert facts.unusual_count == 0
    assert [known["a"].count for known in facts.volumes.values()] == [10, 10]
    add_done(manifest, "mixed", {"a": 100.0}, model=small)
    facts = gather(manifest)
    assert [(one.name, one.structure, one.volume_ml) for one in facts.unusual] == [("mixed", "a", 100.0)]
    assert facts.unusual[0].median_ml == pytest.approx(1.05)


def test_the_most_unusual_volumes_are_listed_first(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("napari_seg.cohort.report.facts.MAX_UNUSUAL", 2)
    for n in range(30):
        add_done(manifest, f"case_{n}", {"a": 1.0 + n / 100})
    for name, volume_ml in (("double", 2.8), ("tiny", 0.01), ("absent", 0.0)):
        add_done(manifest, name, {"a": volume_ml})
    facts = gather(manifest)
    assert [one.name for one in facts.unusual] == ["absent", "tiny"]
    assert facts.unusual_count == 3


def test_a_new_manifest_has_no_facts(manifest: Manifest) -> None:
    facts = gather(manifest)
    assert facts.total == 0
    assert (facts.per_minute, facts.at_once, facts.started) == (None, 0, None)


def test_refused_cases_have_no_rate(manifest: Manifest) -> None:
    manifest.add_case("a", {"state": "failed", "ended": START + 1})
    manifest._write("UPDATE runners SET ended = ?", (START + 2,))
    facts = gather(manifest)
    assert (facts.counts["failed"], facts.per_minute) == (1, None)
