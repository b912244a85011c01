"""Which case next: a finished run of a small model, ranked with its scans and without."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import write_plain_bundle, write_threshold_bundle
from cohorts import InlinePool, add_done, add_model, new_manifest
from phantoms import write_nifti

from napari_seg.bundles.read import read_bundle
from napari_seg.cohort.cohort import Cohort
from napari_seg.errors import Cancelled, NapariSegError
from napari_seg.formats.read import read
from napari_seg.geometry import Grid
from napari_seg.inference.options import SegmentOptions
from napari_seg.inference.second_look import second_look
from napari_seg.learning import finished_run
from napari_seg.learning.accept import accept
from napari_seg.learning.queue import rank
from napari_seg.learning.training_set import Provenance, read_training_set
from napari_seg.training.gather.referenced import write_reference
from napari_seg.volume import Segment, Segmentation, Volume

OPTIONS = SegmentOptions(device="cpu", backend="torch")
NAMES = ("a", "b", "c", "d")


def scan_of(seed: int) -> Volume:
    array = (100 * np.random.default_rng(seed).normal(size=(1, 20, 18, 16))).astype(np.int16)
    return Volume(array, Grid((20, 18, 16), np.diag([1.0, 1.0, 2.0, 1.0])), "scan", "")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scans, the model, and the folder of a finished run."""
    root = tmp_path_factory.mktemp("queue")
    (root / "scans").mkdir()
    for seed, name in enumerate(NAMES):
        write_nifti(scan_of(seed), root / "scans" / f"{name}.nii.gz")
    bundle = read_bundle(write_plain_bundle(root / "plain"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("napari_seg.cohort.cohort.LocalPool", InlinePool)
        assert [one.status for one in Cohort(root / "scans", root / "out", bundle, device="cpu")] == ["done"] * 4
    return root


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "made")


def queue(root: Path, **options: Any) -> list:
    values = {"scans": root / "scans", "model": root / "plain", "options": OPTIONS, **options}
    return rank(root / "out", **values)


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The scans that are looked at, by the sum of their voxels."""
    seen = []

    def look(volume: Volume, *args: Any, **options: Any) -> Any:
        seen.append(float(volume.array.sum()))
        return second_look(volume, *args, **options)

    monkeypatch.setattr(finished_run, "second_look", look)
    return seen


def code_of(action: Callable[[], Any]) -> str:
    with pytest.raises(NapariSegError) as caught:
        action()
    return caught.value.code


def test_all_cases_have_a_rank(run: Path) -> None:
    found = queue(run)
    assert sorted(case.name for case in found) == list(NAMES)
    assert [case.rank for case in found] == [1, 2, 3, 4]
    for case in found:
        assert case.basis == "disagreement"
        look = second_look(scan_of(NAMES.index(case.name)), run / "plain", OPTIONS)
        assert look.disagreement is not None
        assert case.structures == pytest.approx(dict(look.disagreement.structures))
        assert case.uncertainty == pytest.approx(look.disagreement.overall)
        assert case.scan == run / "scans" / f"{case.name}.nii.gz"
        assert case.labels is not None
        assert case.labels.is_file()
    by_uncertainty = [case.uncertainty for case in queue(run, strategy="uncertain")]
    assert by_uncertainty == sorted((case.uncertainty for case in found), reverse=True)
    assert found[0].distance is None
    assert f"nearest of the accepted and earlier cases: {found[0].name}, distance" in found[1].why
    assert found[0].why.startswith("most uncertain: ")
    assert "its predictions overlap with Dice" in found[0].why
    assert queue(run) == found


def test_a_duplicate_of_an_accepted_case_is_last(run: Path, looked: list) -> None:
    first = queue(run)[0].name
    (run / "accepted" / "imagesTr").mkdir(parents=True)
    # the same voxels, not the same file
    write_nifti(scan_of(NAMES.index(first)), run / "accepted" / "imagesTr" / "x.nii.gz", np.float32)
    found = queue(run, accepted=run / "accepted")
    assert found[-1].name == first
    assert found[-1].distance == pytest.approx(0, abs=1e-3)
    assert "accepted x" in found[-1].why
    assert not found[-1].is_accepted
    assert len(looked) == 5  # each once


@pytest.mark.parametrize("strategy", ["uncertain-diverse", "uncertain", "random"])
def test_an_accepted_scan_is_behind_all_others(run: Path, strategy: Any) -> None:
    (run / "accepted").mkdir()
    shutil.copy(run / "scans" / "b.nii.gz", run / "accepted" / "case_1.nii.gz")
    found = queue(run, accepted=run / "accepted", strategy=strategy)
    assert [case.rank for case in found] == [1, 2, 3, 4]
    assert found[-1].name == "b"
    assert found[-1].is_accepted
    assert "case_1" in found[-1].why
    assert [case.name for case in queue(run, accepted=run / "accepted", strategy=strategy, count=2)] == [
        *(case.name for case in found[:2]),
        "b",
    ], "accepted cases do not count"


@pytest.mark.parametrize("strategy", ["uncertain-diverse", "random"])
def test_cases_of_a_training_set_are_known_by_their_voxels(run: Path, looked: list, strategy: Any) -> None:
    queue(run)
    correct(run, "c")
    found = queue(run, accepted=run / "set", strategy=strategy)
    assert [case.rank for case in found] == [1, 2, 3, 4]
    assert (found[-1].name, found[-1].is_accepted) == ("c", True)
    assert found[-1].why == "already accepted as case0001"
    if strategy != "random":
        assert len(looked) == 5
        assert {case.name: case.distance for case in found}["a"] is not None


def test_cases_of_a_training_set_are_known_by_their_files_without_the_scans(run: Path, looked: list) -> None:
    correct(run, "c")
    found = rank(run / "out", accepted=run / "set")
    assert [(case.name, case.is_accepted) for case in found[-1:]] == [("c", True)]
    assert not any(case.is_accepted for case in found[:3])
    assert looked == []


def correct(run: Path, name: str, part: Any = None) -> None:
    scan = read(run / "scans" / f"{name}.nii.gz")
    labels = np.zeros(scan.grid.shape, np.uint8)
    labels[2:4] = 1
    accept(
        Segmentation(labels, scan.grid, (Segment(1, "one", (200, 0, 0)),)), scan, run / "set", Provenance(), part=part
    )


def test_random_knows_accepted_cases_in_a_fresh_folder(run: Path, looked: list) -> None:
    correct(run, "a")
    correct(run, "b")
    found = queue(run, accepted=run / "set", strategy="random")
    assert [case.name for case in found[2:]] == ["a", "b"]
    assert [case.is_accepted for case in found] == [False, False, True, True]
    assert looked == []


def test_a_scan_that_was_looked_at_as_accepted_is_compared_like_all_others(run: Path, tmp_path: Path) -> None:
    (run / "accepted").mkdir()
    shutil.copy2(run / "scans" / "a.nii.gz", run / "accepted")
    shutil.move(run / "scans" / "a.nii.gz", tmp_path / "a.nii.gz")
    queue(run, accepted=run / "accepted")
    found = queue(run, scans=None)
    assert [(case.name, case.code) for case in found if case.code] == [("a", "queue.no_look")]
    shutil.move(tmp_path / "a.nii.gz", run / "scans" / "a.nii.gz")
    found = queue(run)
    assert {case.basis for case in found} == {"disagreement"}
    assert [case.rank for case in found] == [1, 2, 3, 4]


def test_scans_without_features_are_compared_by_their_intensities(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without(volume: Volume, *args: Any, **options: Any) -> Any:
        look = second_look(volume, *args, **options)
        return replace(look, embedding=None) if np.array_equal(volume.array, scan_of(2).array) else look

    monkeypatch.setattr(finished_run, "second_look", without)
    found = queue(run)
    distances = [case.distance for case in found if case.distance is not None]
    assert max(distances) < 2 * min(distances)


def test_the_validation_part_does_not_stand_for_its_like(run: Path, looked: list) -> None:
    correct(run, "c", "validation")
    found = queue(run, accepted=run / "set")
    assert (found[-1].name, found[-1].is_accepted) == ("c", True)
    assert found[0].distance is None
    assert len(looked) == 4


def test_a_damaged_set_is_refused(run: Path) -> None:
    correct(run, "c")
    index = run / "set" / "dataset.json"
    index.write_text(index.read_text()[:-20])
    assert code_of(lambda: queue(run, accepted=run / "set")) == "accept.not_a_set"


def test_an_accepted_series_that_is_away_is_listed(run: Path) -> None:
    scan = read(run / "scans" / "c.nii.gz")
    labels = np.ones(scan.grid.shape, np.uint8)
    accept(Segmentation(labels, scan.grid, (Segment(1, "one", (200, 0, 0)),)), scan, run / "set", Provenance())
    index = run / "set" / "dataset.json"
    index.write_text(index.read_text().replace("case0001.nii.gz", "case0001.series.json"))
    write_reference(run / "set" / "imagesTr" / "case0001.series.json", "0" * 32)
    found = queue(run, accepted=run / "set")
    assert [case.rank for case in found] == [1, 2, 3, 4, None]
    assert (found[-1].name, found[-1].code, found[-1].is_accepted) == ("case0001", "series.unknown", True)


@pytest.mark.parametrize("strategy", ["uncertain-diverse", "random"])
def test_an_accepted_case_whose_image_is_away_is_not_offered_again(run: Path, strategy: Any) -> None:
    correct(run, "c")
    queue(run)
    index = run / "set" / "dataset.json"
    index.write_text(index.read_text().replace("case0001.nii.gz", "case0001.series.json"))
    write_reference(run / "set" / "imagesTr" / "case0001.series.json", read_training_set(run / "set").cases[0].scan)
    found = queue(run, accepted=run / "set", strategy=strategy)
    assert [(case.name, case.is_accepted, case.code) for case in found[-2:]] == [
        ("c", True, ""),
        ("case0001", True, "series.unknown"),
    ]
    assert found[-2].why == "already accepted as case0001"
    assert not any(case.is_accepted for case in found[:3])
    assert all(case.distance is None or case.distance > 0 for case in found[:3])


def test_nothing_is_accepted_yet(run: Path) -> None:
    (run / "accepted").mkdir()
    assert len(queue(run, accepted=run / "accepted")) == 4
    assert code_of(lambda: queue(run, accepted=run / "nowhere")) == "input.missing"


def test_random_needs_no_scan_and_depends_on_the_seed(run: Path, looked: list) -> None:
    def order(seed: int) -> list[str]:
        return [case.name for case in rank(run / "out", strategy="random", seed=seed)]

    assert order(3) == order(3)
    assert len({tuple(order(seed)) for seed in range(6)}) > 1
    assert looked == []


def test_a_stopped_queue_goes_on(run: Path, looked: list) -> None:
    steps = []

    def stop(stage: str, done: int, total: int) -> None:
        steps.append((stage, done, total))
        if done == 2:
            raise Cancelled

    assert code_of(lambda: queue(run, progress=stop)) == "run.cancelled"
    assert len(looked) == 2
    assert steps[0] == ("looking", 0, 4)
    assert len(queue(run)) == 4
    assert len(looked) == 4
    queue(run)
    assert len(looked) == 4


def test_what_was_found_is_used_without_the_scans(run: Path, looked: list) -> None:
    found = queue(run)
    shutil.rmtree(run / "scans")
    again = queue(run, scans=None)
    assert [(case.name, case.uncertainty, case.why) for case in again] == [
        (case.name, case.uncertainty, case.why) for case in found
    ]
    assert len(looked) == 4


def test_scans_without_a_look_are_listed_without_the_scans(run: Path) -> None:
    shutil.move(run / "scans" / "c.nii.gz", run / "c.nii.gz")
    found = queue(run)
    assert [case.rank for case in found] == [1, 2, 3, None]
    assert (found[-1].name, found[-1].code) == ("c", "queue.no_scan")
    found = queue(run, scans=None)
    assert (found[-1].name, found[-1].code) == ("c", "queue.no_look")


def test_a_scan_that_changed_or_is_damaged_is_listed(run: Path) -> None:
    write_nifti(scan_of(9), run / "scans" / "a.nii.gz")
    path = run / "scans" / "d.nii.gz"
    content = path.read_bytes()
    times = path.stat()
    path.write_bytes(content[:-300] + bytes(300))  # of the same size and time, and equal in its middle
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    found = queue(run)
    assert [case.rank for case in found] == [1, 2, None, None]
    codes = {case.name: case.code for case in found[2:]}
    assert codes["a"] == "queue.changed"
    assert codes["d"].startswith("file.")


def test_scans_that_moved_are_found_by_their_files(run: Path) -> None:
    (run / "new" / "deep").mkdir(parents=True)
    for number, path in enumerate(sorted((run / "scans").iterdir())):
        shutil.copy2(path, run / "new" / "deep" / f"renamed_{number}.nii.gz")
    found = queue(run, scans=run / "new")
    assert [case.code for case in found] == [""] * 4


def test_confidence_ranks_without_scans_and_looks(tmp_path: Path) -> None:
    with new_manifest(tmp_path / "out") as manifest:
        model = add_model(manifest)
        for name, mean in (("sure", 0.95), ("unsure", 0.6), ("same", 0.6), ("half", 0.8)):
            add_done(manifest, name, {"front": 1.0}, model=model, confidence={"front": mean})
        add_done(manifest, "empty", {"front": 0.0}, model=model)
        for number, name in enumerate(("sure", "unsure", "same", "half", "empty")):
            manifest._write("UPDATE cases SET input_sha256 = ? WHERE name = ?", (f"{number}" * 64, name))
    first = rank(tmp_path / "out", strategy="uncertain")[0]
    assert (first.name, first.why) == ("empty", "the model found no structure")
    found = rank(tmp_path / "out")
    assert {case.basis for case in found} == {"confidence"}
    assert found[-1].name in ("same", "unsure")  # one of two equal cases is enough
    unsure = next(case for case in found if case.name == "unsure")
    assert unsure.uncertainty == pytest.approx(0.4)
    assert "most uncertain: front, mean probability 0.60, median of all cases 0.70" in unsure.why
    assert not any("unrelated" in case.why for case in found)  # the distances are those of volumes


def test_a_model_that_is_unknown_or_changed_must_be_named(run: Path, tmp_path: Path) -> None:
    assert code_of(lambda: queue(run, model=None)) == "queue.model"
    with new_manifest(tmp_path / "two") as manifest:
        for number in range(2):
            add_done(manifest, f"case_{number}", {"front": 1.0}, model=add_model(manifest, f"model {number}"))
    assert code_of(lambda: rank(tmp_path / "two")) == "queue.model"


def test_a_run_without_a_result_has_no_queue(tmp_path: Path) -> None:
    new_manifest(tmp_path / "out").close()
    assert code_of(lambda: rank(tmp_path / "out")) == "queue.empty"
    assert code_of(lambda: rank(tmp_path)) == "cohort.no_manifest"


def test_a_model_without_members_is_ranked_by_confidence_and_intensities(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("napari_seg.inference.second_look.members_of", lambda settings: None)
    found = queue(run)
    assert {case.basis for case in found} == {"confidence"}
    assert found[1].distance is not None


def test_plain_values(run: Path) -> None:
    content = queue(run)[0].as_dict()
    assert content["rank"] == 1
    assert content["scan"].endswith(".nii.gz")
    assert set(content["structures"]) <= {"one", "two"}


def test_a_case_of_an_error_names_no_figures(run: Path) -> None:
    (run / "scans" / "a.nii.gz").unlink()
    case = queue(run)[-1]
    assert case.as_dict()["uncertainty"] is None
    assert "--scans" in case.message


def test_a_series_is_found_again_and_a_damaged_file_is_left_out(
    study: Path, tmp_path: Path, inline_cohorts: None
) -> None:
    bundle = read_bundle(write_threshold_bundle(tmp_path / "threshold"), trust=True)
    results = list(Cohort(study, tmp_path / "out", bundle, device="cpu"))
    done = sorted(one.name for one in results if one.status == "done")
    assert len(done) == 2
    found = rank(tmp_path / "out", scans=study, model=bundle, options=OPTIONS)
    assert sorted(case.name for case in found) == done
    assert [case.rank for case in found] == [1, 2]
    assert {case.uncertainty for case in found} != {None}
