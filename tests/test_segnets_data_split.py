"""Test that the parts of a data set are disjoint and complete, and that each patient is in one part."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest
from empty_sets import code_of, decathlon, names, touch

from napari_seg.bundles.read import shipped_root

sys.path.insert(0, str(shipped_root()))

from segnets.data import Split, find_dataset, spread
from segnets.data.split import unused_parts

HIPPOCAMPUS = Path(__file__).parents[2] / "shared" / "data" / "hippocampus"


def part_of(root: Path, part: str, patient: str | None = None, **options: object) -> list[dict]:
    return Split(find_dataset(root, patient=patient), **options)(part)


@pytest.mark.parametrize(
    ("count", "sizes"),
    [(2, (1, 1, 0)), (5, (4, 1, 0)), (7, (6, 1, 0)), (8, (6, 1, 1)), (10, (8, 1, 1)), (30, (24, 3, 3))],
)
def test_the_parts_are_disjoint_and_complete(tmp_path: Path, count: int, sizes: tuple[int, ...]) -> None:
    decathlon(tmp_path, count)
    parts = [part_of(tmp_path, part) for part in ("training", "validation", "test") if part != "test" or count > 7]
    assert (*map(len, parts), 0)[:3] == sizes
    split = Split(find_dataset(tmp_path))
    assert tuple(split.count(part) for part in ("training", "validation", "test")) == sizes
    if count < 8:
        assert code_of(tmp_path, "test", call=part_of) == "split.empty_part"
    assert sorted(chain(*map(names, parts))) == sorted(names(part_of(tmp_path, "all")))
    assert part_of(tmp_path, "training") == parts[0]


def test_every_case_is_validated_on_in_one_fold(tmp_path: Path) -> None:
    decathlon(tmp_path, 11)
    folds = [part_of(tmp_path, "validation", fold=fold, folds=4) for fold in range(4)]
    assert sorted(map(len, folds)) == [2, 3, 3, 3]
    assert sorted(chain(*map(names, folds))) == sorted(names(part_of(tmp_path, "all")))
    for fold, validation in enumerate(folds):
        training = part_of(tmp_path, "training", fold=fold, folds=4)
        assert len(training) + len(validation) == 11
        assert not set(names(training)) & set(names(validation))
        assert code_of(tmp_path, "test", fold=fold, folds=4, call=part_of) == "split.empty_part"
    assert names(folds[0]) != names(part_of(tmp_path, "validation", fold=0, folds=4, seed=1))


def stated(root: Path, *rows: tuple[str, str, str]) -> Path:
    """Write a list of cases c0, c1, ... of which each has a patient, a part and a fold."""
    touch(root, *(f"c{n}{end}.nii.gz" for n in range(len(rows)) for end in ("", "_seg")))
    lines = [",".join((f"c{n}.nii.gz", f"c{n}_seg.nii.gz", *row)) for n, row in enumerate(rows)]
    (root / "cases.csv").write_text("\n".join(["image,label,patient,split,fold", *lines]))
    return root


def test_stated_parts_are_used(tmp_path: Path) -> None:
    root = stated(tmp_path, *((f"p{n}", part, "") for n, part in enumerate(["train", "val", "test", "train", "test"])))
    parts = {part: names(part_of(root, part)) for part in ("training", "validation", "test")}
    assert parts == {"training": ["c0", "c3"], "validation": ["c1"], "test": ["c2", "c4"]}
    in_folds = [names(part_of(root, "validation", fold=n, folds=3)) for n in range(3)]
    assert sorted(chain(*in_folds)) == ["c0", "c1", "c3"]
    assert names(part_of(root, "test", fold=0, folds=3)) == ["c2", "c4"]
    assert len(part_of(root, "training", fold=0, folds=3)) == 2


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("train val test", ""),
        ("val val", "the stated split has no training part, so it is not used"),
        ("train train", "the stated split has no validation part, so it is not used"),
        ("train test", "the stated split has no validation part, so only its test part is used"),
    ],
)
def test_a_stated_split_without_a_part_is_said_to_be_unused(tmp_path: Path, words: str, text: str) -> None:
    root = stated(tmp_path, *((f"p{n}", part, "") for n, part in enumerate(words.split())))
    assert unused_parts(find_dataset(root)).partition(";")[0] == text


def test_a_stated_test_part_is_never_trained_on(tmp_path: Path) -> None:
    root = stated(tmp_path, *((f"p{n}", "test" if n % 5 == 0 else "train", "") for n in range(25)))
    parts = {part: set(names(part_of(root, part))) for part in ("training", "validation", "test")}
    assert parts["test"] == {f"c{n}" for n in range(0, 25, 5)}
    assert (len(parts["training"]), len(parts["validation"])) == (18, 2)
    assert set().union(*parts.values()) == {f"c{n}" for n in range(25)}


def test_all_cases_train_but_a_stated_test_part(tmp_path: Path) -> None:
    decathlon(tmp_path / "plain", 11)
    every = names(part_of(tmp_path / "plain", "all"))
    assert sorted(names(part_of(tmp_path / "plain", "training", fold="all"))) == sorted(every)
    for part in ("validation", "test"):
        assert code_of(tmp_path / "plain", part, fold="all", call=part_of) == "split.empty_part"
    parts = ("train", "train", "validation", "validation", "test")
    root = stated(tmp_path / "stated", *((f"p{n}", part, "") for n, part in enumerate(parts)))
    assert sorted(names(part_of(root, "training", fold="all"))) == ["c0", "c1", "c2", "c3"]
    assert names(part_of(root, "test", fold="all")) == ["c4"]
    decathlon(tmp_path / "one", 1)
    assert len(part_of(tmp_path / "one", "training", fold="all")) == 1


def test_stated_folds_are_used(tmp_path: Path) -> None:
    root = stated(tmp_path, *((f"p{n}", "", str(fold)) for n, fold in enumerate([10, 2, 10, 7, 2, 7])))
    found = [names(part_of(root, "validation", fold=n, folds=3)) for n in range(3)]
    assert [sorted(of_fold) for of_fold in found] == [["c1", "c4"], ["c3", "c5"], ["c0", "c2"]]
    assert code_of(root, "validation", fold=0, folds=5, call=part_of) == "split.folds"
    assert len(part_of(root, "training")) == 5  # without folds, as always
    root = stated(tmp_path, *((f"p{n}", "", str(fold)) for n, fold in enumerate([1, 2, 1, "", 2, 0])))
    assert code_of(root, "validation", fold=0, folds=3, call=part_of) == "split.folds"  # one is missing


def test_replayed_cases_only_train(tmp_path: Path) -> None:
    dataset = find_dataset(decathlon(tmp_path, 20))
    old = names(dataset.cases)[:10]
    replaying = replace(dataset, replayed=tuple(old))
    alone = replace(dataset, cases=dataset.cases[10:])
    for options in ({}, *({"fold": fold, "folds": 3} for fold in range(3))):
        parts = {part: names(Split(replaying, **options)(part)) for part in ("training", "validation")}
        assert parts["training"] == [*names(Split(alone, **options)("training")), *old]
        assert parts["validation"] == names(Split(alone, **options)("validation"))
    assert not set(names(Split(replaying)("test"))) & set(old)
    # a patient with a replayed scan is an old one
    shared = dict.fromkeys(names(dataset.cases)[9:12], "one patient")
    joined = replace(replaying, patients=dataset.patients | shared)
    assert set(shared) <= set(names(Split(joined)("training")))


def test_a_patient_in_two_stated_parts_is_refused(tmp_path: Path) -> None:
    root = stated(tmp_path, ("p", "train", "0"), ("p", "test", "1"), ("q", "val", "0"))
    assert code_of(root, "training", call=part_of) == "split.patient"
    assert names(part_of(root, "training", patient=".+")) == ["c0"]


def test_a_patient_is_in_one_part(tmp_path: Path) -> None:
    scans = [f"sub-{p:02d}_ses-{s}" for p in range(6) for s in range(3)]
    touch(tmp_path, *(f"{folder}/{scan}.nii" for folder in ("images", "labels") for scan in scans))
    parts = [part_of(tmp_path, part) for part in ("training", "validation")]
    assert tuple(map(len, parts)) == (15, 3)
    assert not {name[:6] for name in names(parts[0])} & {name[:6] for name in names(parts[1])}
    assert len(part_of(tmp_path, "validation", patient=".+")) == 2  # every scan counts as a patient: 14, 2, 2


def test_impossible_splits_are_refused(tmp_path: Path) -> None:
    decathlon(tmp_path, 3)
    assert code_of(tmp_path, "training", fold=0, folds=4, call=part_of) == "split.too_few"
    assert code_of(tmp_path, "training", fold=3, folds=3, call=part_of) == "split.fold"
    assert code_of(tmp_path, "training", fold=0, folds=1, call=part_of) == "split.folds"
    assert code_of(tmp_path, "validation", fractions=(1, 0, 0), call=part_of) == "split.empty_part"
    assert code_of(tmp_path, "training", fractions=(0, 1, 0), call=part_of) == "split.shares"
    assert code_of(tmp_path, "trainign", call=part_of) == "split.part"
    assert len(part_of(tmp_path, "training", fractions=(1, 0, 0))) == 3
    touch(tmp_path / "one", *(f"one/{d}/sub-1_ses-{s}.nii" for d in ("images", "labels") for s in range(4)))
    touch(tmp_path, *(f"one/{d}/sub-1_ses-{s}.nii" for d in ("images", "labels") for s in range(4)))
    assert code_of(tmp_path / "one", "training", call=part_of) == "split.too_few"


@pytest.mark.skipif(not HIPPOCAMPUS.is_dir(), reason="the real cases are no part of the project")
def test_the_split_of_task04_stays_what_it_was() -> None:
    from monai.data import load_decathlon_datalist, partition_dataset

    listed = load_decathlon_datalist(str(HIPPOCAMPUS / "dataset.json"), data_list_key="training")
    training, rest = partition_dataset(listed, ratios=[0.8, 0.2], shuffle=True, seed=0)
    parts = [[case["image"] for case in part_of(HIPPOCAMPUS, part)] for part in ("training", "validation", "test")]
    assert tuple(map(len, parts)) == (166, 21, 21)
    assert parts[0] == [case["image"] for case in training]
    assert parts[1] + parts[2] == [case["image"] for case in rest]


def test_some_cases_are_spread_over_all() -> None:
    cases = [{"name": str(n)} for n in range(10)]
    assert [case["name"] for case in spread(cases, 4)] == ["0", "2", "5", "7"]
    assert spread(cases, None) == spread(cases, 10) == spread(cases, 50) == cases
