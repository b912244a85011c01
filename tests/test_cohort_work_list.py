"""What a run does with its cases, and what the manifest knows of it before the first one runs."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import phantoms
import pytest
from cohorts import content, statuses

from napari_seg.bundles.digest import earlier_digest, model_digest
from napari_seg.bundles.read import read_bundle, shipped_root
from napari_seg.bundles.spec import Bundle
from napari_seg.cohort.cohort import Cohort
from napari_seg.cohort.manifest import Manifest
from napari_seg.cohort.run import Excluded
from napari_seg.errors import CohortError
from napari_seg.inference.options import SegmentOptions
from napari_seg.volume import Segment, Segmentation, Volume


def test_a_case_that_is_no_input_any_more_is_not_left(scans: Path, tmp_path: Path, no_network: list[str]) -> None:
    out = tmp_path / "out"
    list(Cohort(scans / "a.nii.gz", out))
    with Manifest.open(out) as manifest:
        manifest.add_case("gone", {"state": "waiting", "source": "gone.nii.gz"})
    list(Cohort(scans / "b.nii.gz", out))
    with Manifest.open(out, read_only=True) as manifest:
        assert {row.name: (row.state, row.code) for row in manifest.rows()} == {
            "a": ("done", ""),
            "b": ("done", ""),
            "gone": ("skipped", "cohort.not_planned"),
        }


def test_a_case_of_an_interrupted_run_keeps_its_name(scans: Path, tmp_path: Path, no_network: list[str]) -> None:
    out = tmp_path / "out"
    cohort = Cohort(scans / "a.nii.gz", out)
    cohort.use([replace(case, name="former") for case in cohort.cases])
    assert statuses(list(cohort)) == {"former": "done"}
    with Manifest.open(out) as manifest:
        (row,) = manifest.rows()
        manifest.change_case(row.id, {"state": "waiting"})
    assert statuses(list(Cohort(scans / "a.nii.gz", out))) == {"former": "done"}


def test_other_options_or_weights_do_not_mix(
    scans: Path, tmp_path: Path, no_network: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    list(Cohort(scans / "a.nii.gz", out))
    with pytest.raises(CohortError, match="tta was not set and is shifts") as caught:
        list(Cohort(scans, out, tta="shifts"))
    assert caught.value.code == "cohort.changed"
    list(Cohort(scans, out, memory_bytes=2**33, timeout_seconds=99))  # they change no label
    with monkeypatch.context() as patch:
        patch.setattr("napari_seg.cohort.used_models.model_digest", lambda bundle: "other weights")
        with pytest.raises(CohortError, match="the weights or code of"):
            list(Cohort(scans, out))
    no_network.clear()
    assert statuses(list(Cohort(scans, out, redo="changed", tta="shifts"))) == dict.fromkeys("abc", "done")
    assert no_network == ["a", "b", "c"]
    assert statuses(list(Cohort(scans, out, tta="shifts"))) == dict.fromkeys("abc", "done before")


def test_structures_in_any_spelling_are_the_same_options(
    scans: Path, tmp_path: Path, no_network: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted: list[str] = []
    monkeypatch.setattr(Manifest, "share", lambda self, runner, text: wanted.append(text))
    scan, out = scans / "a.nii.gz", tmp_path / "out"
    list(Cohort(scan, out, structures=["left anterior hippocampus"], join=True))
    with Manifest.open(out) as manifest:
        (row,) = manifest.rows()
        settings = manifest.settings()
        assert settings["structures"] == ["left anterior hippocampus"]
        typed = manifest.add_settings(settings | {"structures": ["LEFT Anterior_hippocampus"]})
        manifest.change_case(row.id, {"settings": typed})  # earlier versions noted structures as they were typed
    cohort = Cohort(scan, out, structures=["Hippocampus_anterior left"], join=True)
    assert [one.is_done for one in cohort.plan(with_time=False).cases] == [True]
    assert statuses(list(cohort)) == {"a": "done before"}
    assert wanted[0] == wanted[1]
    with pytest.raises(CohortError, match="structures was left anterior hippocampus and is left posterior"):
        Cohort(scan, out, structures=["left posterior hippocampus"]).plan(with_time=False)


def test_results_outlive_an_update_that_changes_only_how_models_are_trained(
    scans: Path, tmp_path: Path, no_network: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, root = tmp_path / "out", Path(shutil.copytree(shipped_root(), tmp_path / "bundle"))
    monkeypatch.setattr("napari_seg.bundles.digest.shipped_root", lambda: root)

    def edit(name: str) -> None:
        path = root / "segnets" / name
        path.write_text(f"{path.read_text()}# other\n")

    def cohort() -> Cohort:
        return Cohort(scans, out, read_bundle(root, trust=True))

    with monkeypatch.context() as earlier:
        earlier.setattr("napari_seg.cohort.used_models.model_digest", earlier_digest)
        list(Cohort(scans / "a.nii.gz", out, read_bundle(root, trust=True)))
    for name in ("", "training/trainer.py", "data/labels.py"):
        if name:
            edit(name)
        assert {one.case.key for one in cohort().plan(with_time=False).cases if one.is_done} >= {"a"}
        assert statuses(list(cohort()))["a"] == "done before"
        with Manifest.open(out, read_only=True) as manifest:
            (model,) = manifest.models()
            assert model.digest == model_digest(read_bundle(root))
            assert manifest.meta(f"scans of {model.digest}") == "1"
    edit("unet.py")
    for run in (list, lambda cohort: cohort.plan(with_time=False)):
        with pytest.raises(CohortError, match="the weights or code of"):
            run(cohort())


def test_another_scan_of_the_same_name_replaces_nothing(scans: Path, tmp_path: Path, no_network: list[str]) -> None:
    out = tmp_path / "out"
    list(Cohort(scans / "a.nii.gz", out))
    before = content(out)
    (tmp_path / "moved").mkdir()
    moved = (scans / "a.nii.gz").rename(tmp_path / "moved" / "a.nii.gz")
    assert statuses(list(Cohort(moved, out))) == {"a": "done before"}
    head = phantoms.head()
    other = phantoms.write_nifti(replace(head, array=head.array + 200), scans / "a.nii.gz")
    (result,) = Cohort(other, out)
    assert (result.status, result.code) == ("failed", "output.exists")
    assert "belongs to another scan" in result.message
    assert content(out) == before
    assert statuses(list(Cohort(other, out, redo="changed"))) == {"a": "done"}


def test_scans_that_are_not_run_are_in_the_manifest(scans: Path, tmp_path: Path, no_network: list[str]) -> None:
    cohort = Cohort(scans, tmp_path / "out")
    excluded = [Excluded("d", "cohort.no_rule", "no rule", is_failure=False), Excluded("e", "input.missing", "gone")]
    cohort.use(cohort.cases, excluded)
    assert statuses(list(cohort)) == {"d": "skipped", "e": "failed"} | dict.fromkeys("abc", "done")
    with Manifest.open(tmp_path / "out", read_only=True) as manifest:
        assert [(row.name, row.code) for row in manifest.rows(("skipped", "failed"))] == [
            ("d", "cohort.no_rule"),
            ("e", "input.missing"),
        ]


def test_a_scan_that_was_left_out_is_run_when_it_is_wanted(scans: Path, tmp_path: Path, no_network: list[str]) -> None:
    out = tmp_path / "out"
    first = Cohort(scans, out)
    a, b, c = first.cases
    first.use([a], [Excluded("c", "cohort.no_rule", "no rule", c.source, is_failure=False)])
    assert statuses(list(first)) == {"a": "done", "c": "skipped"}
    second = Cohort(scans, out)
    second.use([b, c])  # b is new, and comes before c
    assert statuses(list(second)) == {"b": "done", "c": "done"}
    assert no_network == ["a", "b", "c"]
    with Manifest.open(out, read_only=True) as manifest:
        found = {row.name: (row.source, row.outputs["labels"].path) for row in manifest.rows(("done",))}
    assert found == {one.key: (one.source, f"{one.key}_seg.nii.gz") for one in (a, b, c)}


def test_later_runs_in_a_folder_count_as_many_scans_as_the_first(
    scans: Path, tmp_path: Path, no_network: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []

    def segment_and_count(volume: Volume, bundle: Bundle, options: SegmentOptions, **others: Any) -> Segmentation:
        counts.append(options.scans)
        return Segmentation((volume.array[0] > 100).astype(np.uint8), volume.grid, (Segment(1, "bright", (255, 0, 0)),))

    monkeypatch.setattr("napari_seg.inference.segment.segment", segment_and_count)
    list(Cohort(scans, tmp_path / "out"))
    shutil.copy(scans / "a.nii.gz", scans / "d.nii.gz")
    list(Cohort(scans, tmp_path / "out"))
    list(Cohort(scans / "a.nii.gz", tmp_path / "out", redo="all"))
    assert counts == [3, 3, 3, 3, 3]
    list(Cohort(scans, tmp_path / "new"))
    assert counts[5:] == [4] * 4


def test_joined_runs_with_other_options_are_refused(scans: Path, tmp_path: Path, no_network: list[str]) -> None:
    out = tmp_path / "out"
    refusals: list[str] = []

    class Second:
        """Starts another run when the first has begun and nothing is done yet."""

        def __getattr__(self, name: str) -> Any:
            return lambda *args: None

        def on_start(self, total: int, done_before: int) -> None:
            try:
                list(Cohort(scans, out, join=True, tta="shifts"))
            except CohortError as error:
                refusals.append(str(error))

    cohort = Cohort(scans, out, join=True)
    cohort.view = Second()
    assert statuses(list(cohort)) == dict.fromkeys("abc", "done")
    assert len(refusals) == 1
    assert "cohort.changed" in refusals[0]
    assert "with other options, models or another version" in refusals[0]
