"""Results of earlier runs whose scans a run leaves out, refuses, or has under other names."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import phantoms
from cohorts import statuses

from napari_seg.cohort.cohort import Cohort
from napari_seg.cohort.manifest import Manifest
from napari_seg.cohort.rows import RENAMED
from napari_seg.cohort.select import Selection


def test_the_result_of_a_scan_that_is_left_out_counts_no_longer(
    scans: Path, tmp_path: Path, no_network: list[str]
) -> None:
    out = tmp_path / "out"
    list(Cohort(scans, out))

    def counted_cases(**selected: Any) -> tuple[list[str], int]:
        cohort = Cohort(scans, out, selection=Selection(**selected))
        assert cohort.plan(with_time=False).results_left_out == len(selected)
        list(cohort)
        assert len(list(out.glob("*_seg.nii.gz"))) == 3
        rows = (out / "volumes_wide.csv").read_text().splitlines()[1:]
        assert list(cohort.volumes()["name"]) == [row.split(",")[0] for row in rows]
        assert cohort.results_left_out == len(selected)
        return list(cohort.volumes()["name"]), cohort.other_results

    for _ in range(2):
        assert counted_cases(exclude=("a*",)) == (["b", "c"], 0)
    with Manifest.open(out, read_only=True) as manifest:
        assert {row.name: (row.state, row.code) for row in manifest.rows() if row.name == "a"} == {
            "a": ("skipped", "cohort.excluded")
        }
        assert sum(manifest.counts().values()) == 3
    assert counted_cases() == (["a", "b", "c"], 0)
    assert len(no_network) == 3  # it is not made again
    away = (scans / "c.nii.gz").rename(tmp_path / "c.nii.gz")
    assert counted_cases() == (["a", "b", "c"], 1)
    (scans / "list.json").write_text(json.dumps(["a.nii.gz", "c.nii.gz"]))
    assert statuses(list(Cohort(scans / "list.json", out))) == {"c": "failed", "a": "done before"}
    with Manifest.open(out, read_only=True) as manifest:
        assert {row.name: row.code for row in manifest.rows()} == {"a": "", "b": "", "c": "input.missing"}
    away.rename(scans / "c.nii.gz")
    assert counted_cases() == (["a", "b", "c"], 0)


def test_results_of_a_moved_data_set_are_left_out_too(scans: Path, tmp_path: Path, no_network: list[str]) -> None:
    out = tmp_path / "out"
    list(Cohort(scans, out))
    moved = scans.rename(tmp_path / "moved")
    (moved / "a.nii.gz").touch()
    list(cohort := Cohort(moved, out, selection=Selection(exclude=("a*",))))
    assert set(cohort.volumes()["name"]) == {"b", "c"}


def test_copies_of_a_scan_count_each(scans: Path, tmp_path: Path, no_network: list[str]) -> None:
    out = tmp_path / "out"
    shutil.copy2(scans / "a.nii.gz", scans / "b.nii.gz")
    list(Cohort(scans, out))
    list(cohort := Cohort(scans / "a.nii.gz", out))
    assert set(cohort.volumes()["name"]) == {"a", "b", "c"}


def test_a_scan_that_was_renamed_counts_once(scans: Path, tmp_path: Path, no_network: list[str]) -> None:
    out = tmp_path / "out"
    for name in ("patA", "patB"):
        (tmp_path / "study" / name).mkdir(parents=True)
        head = phantoms.head()
        phantoms.write_nifti(replace(head, array=head.array + ord(name[-1])), tmp_path / "study" / name / "T1.nii.gz")
    list(Cohort(tmp_path / "study", out))
    (tmp_path / "study" / "patA").rename(tmp_path / "study" / "patC")
    cohort = Cohort(tmp_path / "study", out)
    plan = cohort.plan(with_time=False)
    assert (plan.results_left_out, plan.results_renamed) == (0, 1)
    assert statuses(list(cohort)) == {"patC_T1": "done", "patB_T1": "done before"}
    assert (cohort.results_left_out, cohort.results_renamed, cohort.other_results) == (0, 1, 0)
    assert set(cohort.volumes()["name"]) == {"patB_T1", "patC_T1"}
    with Manifest.open(out, read_only=True) as manifest:
        old = manifest.row("patA_T1")
    assert old is not None
    assert (old.state, old.code, old.message) == (
        "skipped",
        RENAMED,
        "the same scan is run under the name patC_T1; the files of this result stay",
    )
    (tmp_path / "study" / "patC").rename(tmp_path / "study" / "patA")
    assert statuses(list(Cohort(tmp_path / "study", out))) == {"patA_T1": "done before", "patB_T1": "done before"}
    assert set(cohort.volumes()["name"]) == {"patA_T1", "patB_T1"}


def test_results_of_scans_that_changed_or_swapped_their_names_count_no_longer(
    scans: Path, tmp_path: Path, no_network: list[str]
) -> None:
    out, table, swapped = tmp_path / "out", tmp_path / "scans.csv", "image,name\na.nii.gz,P2\nb.nii.gz,P1\n"
    head = phantoms.head()
    for number, name in enumerate("abc"):
        phantoms.write_nifti(replace(head, array=head.array + number), tmp_path / f"{name}.nii.gz")
    table.write_text("image,name\na.nii.gz,P1\nb.nii.gz,P2\nc.nii.gz,P3\n")
    list(Cohort(table, out))
    table.write_text(swapped)
    cohort = Cohort(table, out)
    assert cohort.plan(with_time=False).results_left_out == 2
    assert {one.name: one.code for one in cohort} == {"P1": "output.exists", "P2": "output.exists"}
    assert (cohort.results_left_out, cohort.other_results, set(cohort.volumes()["name"])) == (2, 1, {"P3"})
    phantoms.write_nifti(replace(head, array=head.array + 200), tmp_path / "c.nii.gz")
    table.write_text("image,name\na.nii.gz,P1\nb.nii.gz,P2\nc.nii.gz,P3\n")
    cohort = Cohort(table, out)
    assert {one.name: one.code for one in cohort} == {"P1": "", "P2": "", "P3": "output.exists"}
    assert set(cohort.volumes()["name"]) == {"P1", "P2"}
    table.write_text(swapped)
    assert statuses(list(Cohort(table, out, redo="changed"))) == {"P1": "done", "P2": "done"}
