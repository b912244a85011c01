"""Rules files: a small format that is checked before anything runs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from napari_seg.cohort.rules import Rule, read_rules
from napari_seg.errors import InputError
from napari_seg.formats.facts import ScanFacts


def rules(folder: Path, text: str, name: str = "rules.csv") -> tuple[Rule, ...]:
    (folder / name).write_text(text, encoding="utf-8")
    return read_rules(folder / name)


def test_a_table_and_json_state_the_same_rules(tmp_path: Path) -> None:
    table = """
# made for the scanner in room 3
modality;series;body_part;min_slices;max_slices;min_thickness_mm;max_thickness_mm;model;comment
CT|MRI;T1*|*MPRAGE*;CHEST;30;;;2.5;total;lungs
;;;;;;;skip;
"""
    found = rules(tmp_path, table)
    assert found == (
        Rule("line 4", ("total",), ("CT", "MR"), ("T1*", "*MPRAGE*"), ("CHEST",), 30, math.inf, 0, 2.5),
        Rule("line 5", ()),
    )
    same = [
        {
            "modality": ["CT", "MRI"],
            "Series": "T1*|*MPRAGE*",
            "body_part": "CHEST",
            "min_slices": 30,
            "max_thickness_mm": 2.5,
            "model": "total",
        },
        {"model": "skip"},
    ]
    for content in (same, {"rules": same}):
        again = rules(tmp_path, json.dumps(content), "rules.json")
        assert [(one.models, one.modality, one.series, one.max_thickness_mm) for one in again] == [
            (one.models, one.modality, one.series, one.max_thickness_mm) for one in found
        ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("rules.csv", "modalty,model\nCT,a\n", r"line 1: found the column 'modalty'; expected one of modality, series"),
        ("rules.csv", "modality\nCT\n", "line 1: found the columns modality; expected a column model"),
        ("rules.csv", "model,model\na,a\n", "line 1: found the columns model, model; expected each of them once"),
        ("rules.csv", "modality,model\n\nCT\n", "line 3: found 1 cells; expected 2"),
        ("rules.csv", "min_slices,model\nmany,a\n", "line 2: found min_slices 'many'; expected a whole number"),
        ("rules.csv", "max_thickness_mm,model\n-1,a\n", "line 2: found max_thickness_mm '-1'; expected a number of mm"),
        ("rules.csv", "min_slices,max_slices,model\n9,8,a\n", "line 2: found min_slices 9 and max_slices 8"),
        ("rules.csv", "modality,model\nCT,\n", "line 2: found the model ''; expected a model"),
        ("rules.csv", "modality,model\nCT,skip|a\n", "line 2: found the model 'skip | a'"),
        ("rules.csv", 'modality,model\nCT,"a\n', "line 2: found no row of a table"),
        ("rules.csv", "modality,model\n", "found no rule"),
        ("rules.json", "[{]", r"line 1: found no JSON \(JSONDecodeError\); expected a list of rules"),
        ("rules.json", "{}", "found {}; expected a list of rules"),
        ("rules.json", '["a"]', 'rule 1: found "a"; expected an object'),
        ("rules.json", '[{"model": 3}]', "rule 1: found model 3; expected text"),
        ("rules.json", '[{"model": "a", "min_slices": true}]', "rule 1: found min_slices 'True'"),
        ("rules.json", "[" * 100_000, "found no JSON"),
    ],
)
def test_a_fault_is_named_with_its_line_what_was_found_and_what_is_expected(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        rules(tmp_path, text, name)
    assert caught.value.code == "cohort.rules"


def test_a_rule_after_one_without_conditions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cohort\.rules_unreachable.*line 2"):
        rules(tmp_path, "modality,model\n,a\nCT,b\n")


def test_missing_and_huge_files_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(InputError, match=r"cohort\.rules: .*can't be read"):
            read_rules(path)
    with pytest.raises(InputError, match=r"cohort\.rules: .*more than 1 MiB"):
        rules(tmp_path, "modality,model\n" + "CT,a\n" * 300_000)


@pytest.mark.parametrize("model", [r"\\evil.example\share\model", "//evil.example/share/model"])
def test_no_model_on_another_computer_is_opened(tmp_path: Path, model: str) -> None:
    with pytest.raises(InputError, match=r"cohort\.network"):
        rules(tmp_path, f"modality,model\nCT,{model}\n")


def test_what_a_header_does_not_state_meets_no_condition() -> None:
    unknown = ScanFacts("", "", "", (10, 10, 10), math.nan)
    assert Rule("", ("a",)).matches(unknown, ())
    assert Rule("", ("a",), min_slices=10, max_slices=10).matches(unknown, ())
    for rule in (
        Rule("", ("a",), modality=("CT",)),
        Rule("", ("a",), series=("*",)),
        Rule("", ("a",), body_part=("*",)),
        Rule("", ("a",), max_thickness_mm=5),
        Rule("", ("a",), min_thickness_mm=0.1),
        Rule("", ("a",), min_slices=11),
    ):
        assert not rule.matches(unknown, ("",))
