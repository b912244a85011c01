"""Columns of a table that state patients and parts are used, or what is not used is said."""

from __future__ import annotations

import pytest
from segnets.data.columns import stated_columns


@pytest.mark.parametrize(
    ("titles", "rows", "patient"),
    [
        ("case id,patient id", "c1,P1 c2,P1 c3,P2", 1),
        ("patient id,case id", "P1,c1 P1,c2 P2,c3", 0),
        ("case", "c1 c1 c2", 0),
        ("case", "c1 c2 c3", None),  # then names may say more
        ("age,sex", "1,f 2,m 3,f", None),
        ("patient,subject", "P1,7 P1,7 P2,9", 0),
    ],
)
def test_patients_come_before_cases(titles: str, rows: str, patient: int | None) -> None:
    found = stated_columns(titles.split(","), [row.split(",") for row in rows.split()], range(titles.count(",") + 1))
    assert found.patient == patient
    assert found.unclear == found.unused == ()


@pytest.mark.parametrize(
    ("titles", "rows", "part", "unused"),
    [
        ("phase,split", "venous,train arterial,test", 1, ["phase"]),
        ("split,phase", "train,venous test,arterial", 0, ["phase"]),
        ("set,subset", "A,train B,test", 1, ["set"]),
        ("phase", "arterial venous", None, ["phase"]),
        ("phase", "train test", 0, []),
        ("set,split", "test,train train,test", 1, ["set"]),  # a split is meant by its title
        ("split", "development heldout", 0, []),  # its words are refused with the row
        ("part,split", "liver, spleen,", None, ["part"]),
    ],
)
def test_the_column_of_parts_has_their_words(titles: str, rows: str, part: int | None, unused: list[str]) -> None:
    found = stated_columns(titles.split(","), [row.split(",") for row in rows.split()], range(titles.count(",") + 1))
    assert found.part == part
    assert [text.split()[1] for text in found.unused] == unused
    assert found.unclear == ()


def test_an_empty_column_states_nothing() -> None:
    found = stated_columns(["patient id", "subject"], [["", "7"], ["", "7"]], range(2))
    assert (found.patient, found.unclear) == (1, ())


def test_columns_that_contradict_each_other_are_unclear() -> None:
    patients = stated_columns(["patient id", "subject"], [["P1", "7"], ["P1", "8"]], range(2))
    assert patients.unclear == (
        "the columns patient id and subject group the cases differently; expected one column of patients",
    )
    parts = stated_columns(["set", "subset"], [["train", "test"], ["test", "test"]], range(2))
    assert parts.unclear == ("the columns set and subset state different parts; expected one column split",)
