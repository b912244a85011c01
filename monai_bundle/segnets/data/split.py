"""Split the cases of a data set into training, validation and test part, or into folds."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from itertools import cycle
from typing import Literal, TypeVar

import numpy as np

from segnets.data.layouts import Dataset
from segnets.data.pairing import Case
from segnets.errors import TrainingError

Part = Literal["training", "validation", "test", "all"]
ALL: Literal["all"] = "all"
"""Fold that trains on all cases, as in nnU-Net: a last training, whose length and quality others have measured."""
_Group = TypeVar("_Group", str, int)


class Split:
    """The parts of a data set, computed on first use.

    The split depends only on the names of the cases (or their order in dataset.json) and on the arguments, so training,
    evaluation and inference agree on it. All scans of a patient are in the same part. If the data set states parts or
    folds, these are used: its test part is never trained on. Replayed cases only train, in every fold: they may have
    trained the weights that this training begins from. Where a part is stated for them, they are in that one.

    Args:
        dataset: as `find_dataset` returns.
        fold: 0 to `folds` - 1: this fold is the validation part, the others are the training part, and the test part
            is the one that the data set states. "all": all cases but that test part are the training part, and the
            validation part is empty. None: split by `fractions`, or as the data set states.
        folds: number of folds, from 2 to the number of patients; every case is in validation in exactly one fold.
        fractions: fractions of the patients in training, validation and test. Training and validation get at least one
            patient each, unless their fraction is 0; so with fewer than 8 patients the test part is empty. If the data
            set states a test part but no validation part, the first two divide the others.
        seed: seed of the shuffle before the split.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        fold: int | Literal["all"] | None = None,
        folds: int = 5,
        fractions: Sequence[float] = (0.8, 0.1, 0.1),
        seed: int = 0,
    ) -> None:
        self.dataset = dataset
        self.fold = fold
        self.folds = folds
        self.fractions = fractions
        self.seed = seed

    def __call__(self, part: Part) -> list[Case]:
        """Return the cases of one part, as MONAI's data list.

        Args:
            part: "training", "validation" (chooses the best weights), "test" (never seen) or "all".

        Returns:
            `{"name", "image", "label"}` of each case; at least one.

        Raises:
            TrainingError: "split.part", "split.fold", "split.folds", "split.shares", "split.too_few",
                "split.empty_part", "split.patient".
        """
        if part == "all":
            return list(self.dataset.cases)
        if part not in self._parts:
            raise TrainingError("split.part", f"part is {part!r}; expected training, validation, test or all")
        cases = [case for of_patient in self._parts[part] for case in of_patient]
        if not cases:
            advice = "add patients, or use folds, which validate every patient once"
            advice = "use the validation part, since folds have no test part" if self.fold is not None else advice
            advice = f"use other patients, since all cases are trained on (fold {ALL})" if self.fold == ALL else advice
            counts = {name: len(patients) for name, patients in self._parts.items()}
            raise TrainingError(
                "split.empty_part",
                f"{self.dataset.root} has {sum(counts.values())} patients, {counts['training']} in training, "
                f"{counts['validation']} in validation and {counts['test']} in test, none in {part}; {advice}",
            )
        return cases

    def count(self, part: Literal["training", "validation", "test"]) -> int:
        """Return the number of cases of one part, which may be 0.

        Raises:
            TrainingError: as a call, except "split.part" and "split.empty_part".
        """
        return sum(map(len, self._parts[part]))

    def count_replayed(self) -> int:
        """Return the number of replayed cases in the training part.

        Raises:
            TrainingError: as `count`.
        """
        names = {case["name"] for of_patient in self._parts["training"] for case in of_patient}
        return len(names.intersection(self.dataset.replayed))

    @cached_property
    def _parts(self) -> dict[str, list[list[Case]]]:
        """Part -> the cases of each of its patients."""
        fold, folds = None if self.fold == ALL else self.fold, self.folds
        if fold is not None and folds < 2:
            raise TrainingError(
                "split.folds", f"found --folds {folds}; expected at least 2, since validation is one of them"
            )
        patients: dict[str, list[Case]] = {}
        for case in self.dataset.cases:
            patients.setdefault(self.dataset.patients[case["name"]], []).append(case)
        part_of = self._stated(self.dataset.parts)
        stated = {
            part: [cases for who, cases in patients.items() if part_of.get(who) == part]
            for part in ("training", "validation", "test")
        }
        if self.fold is None and stated["training"] and stated["validation"]:
            return stated
        test = stated["test"]
        of_replayed = {self.dataset.patients[name] for name in self.dataset.replayed}
        replayed = [cases for who, cases in patients.items() if who in of_replayed and part_of.get(who) != "test"]
        patients = {
            who: cases for who, cases in patients.items() if who not in of_replayed and part_of.get(who) != "test"
        }
        least = 1 if self.fold == ALL else 2  # without folds: one to train, and one to validate
        needed = least if fold is None else folds
        if len(patients) < needed:
            raise TrainingError(
                "split.too_few",
                f"found {_counted(sum(map(len, patients.values())), 'case')} of {_counted(len(patients), 'patient')} "
                f"in {self.dataset.root}{f', besides {len(test)} for the test' if test else ''}"
                f"{f' and {len(replayed)} replayed ones, which only train' if replayed else ''}; "
                f"expected at least {needed} patients. If the names are grouped wrongly (all scans of sub-01 count as "
                "one patient), give --patient PATTERN, which matches each patient's name",
            )
        names = list(patients)
        np.random.RandomState(self.seed).shuffle(names)  # as MONAI's partition_dataset, which earlier versions used
        order = [patients[name] for name in names]
        if self.fold == ALL:
            return {"training": [*order, *replayed], "validation": [], "test": test}
        if fold is not None:
            if not 0 <= fold < folds:
                raise TrainingError("split.fold", f"fold is {fold}; expected 0 to {folds - 1} of {folds} folds")
            fold_of = self._stated_folds(names) or dict(zip(names, cycle(range(folds)), strict=False))
            training = [patients[name] for name in names if fold_of[name] != fold]
            return {
                "training": [*training, *replayed],
                "validation": [patients[n] for n in names if fold_of[n] == fold],
                "test": test,
            }
        if test:
            first, _ = _split_points(len(order), (*self.fractions[:2], 0))
            return {"training": [*order[:first], *replayed], "validation": order[first:], "test": test}
        first, second = _split_points(len(order), self.fractions)
        training = [*order[:first], *replayed]
        return {"training": training, "validation": order[first:second], "test": order[second:]}

    def _stated(self, of_cases: Mapping[str, _Group]) -> dict[str, _Group]:
        """Return patient -> part or fold, from that of each case.

        Raises:
            TrainingError: "split.patient".
        """
        found: dict[str, _Group] = {}
        for case in self.dataset.cases:
            patient, group = self.dataset.patients[case["name"]], of_cases.get(case["name"])
            if group is not None and found.setdefault(patient, group) != group:
                raise TrainingError(
                    "split.patient",
                    f"the data set states {found[patient]} and {group} for scans of {patient}; expected the same for "
                    "all scans of a patient. If they are of different patients, give --patient PATTERN, which matches "
                    "each patient's name, such as '.+'",
                )
        return found

    def _stated_folds(self, patients: Collection[str]) -> dict[str, int]:
        """Return patient -> fold; empty if the data set states it for none of some patients.

        Raises:
            TrainingError: "split.patient"; "split.folds", the data set states another number of folds, or those of
                some patients only.
        """
        stated = self._stated(self.dataset.folds)
        known = stated.keys() & set(patients)
        if not known:
            return {}
        if len(known) < len(patients):
            raise TrainingError(
                "split.folds",
                f"the list of cases states the folds of {len(known)} of {len(patients)} patients that are not for the "
                "test; expected those of all of them, or a list without folds",
            )
        present = sorted({stated[who] for who in patients})
        if len(present) != self.folds:
            raise TrainingError(
                "split.folds",
                f"the list of cases states {len(present)} folds; found --folds {self.folds}, expected {len(present)}, "
                "or a list without folds",
            )
        return {who: present.index(stated[who]) for who in patients}


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def unused_parts(dataset: Dataset) -> str:
    """Return in words which parts that a data set states are not used, as it lacks others; "" if all are used."""
    stated = set(dataset.parts.values())
    lacking = [part for part in ("training", "validation") if part not in stated]
    if not stated or not lacking:
        return ""
    used, divided = (
        ("only its test part is used", "the other cases") if "test" in stated else ("it is not used", "the cases")
    )
    return (
        f"the stated split has no {' and no '.join(lacking)} part, so {used}; {divided} are divided as without a split"
    )


def spread(cases: Sequence[Case], count: int | None) -> list[Case]:
    """Return so many of the cases, at even intervals; all if there are no more, or if the count is None."""
    if count is None or count >= len(cases):
        return list(cases)
    return [cases[n * len(cases) // count] for n in range(count)]


def _split_points(count: int, fractions: Sequence[float]) -> tuple[int, int]:
    """Return the indices among `count` patients at which training ends and at which validation ends."""
    if len(fractions) != 3 or min(fractions) < 0 or not fractions[0] > 0:
        raise TrainingError("split.shares", f"fractions are {list(fractions)}; expected three, as [0.8, 0.1, 0.1]")
    training, validation = (int(fraction / sum(fractions) * count + 0.5) for fraction in fractions[:2])
    if fractions[1] > 0:
        training, validation = min(max(training, 1), count - 1), max(validation, 1)
    return training, min(training + validation, count)
