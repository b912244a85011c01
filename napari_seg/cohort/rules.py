"""Read a file of rules that says which model segments which series, and apply it: the first rule that matches wins.

A rule has conditions and a model, or `skip`. An empty condition accepts everything; a condition on something that a
scan's header does not state does not match. The file is a table (CSV, TSV) with a first line of titles, or JSON: a list
of objects with the same keys, alone or as "rules" of an object.

    modality,series,body_part,min_slices,max_slices,min_thickness_mm,max_thickness_mm,model
    CT,*scout*,,,,,,skip
    CT,,CHEST|ABDOMEN,30,,,3,totalsegmentator:total
    MR,T1*|*MPRAGE*,,,,,,hippocampus
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from napari_seg.cohort.lists import TABLE_ENDINGS, model_in, table_rows
from napari_seg.errors import InputError, one_line
from napari_seg.formats.endings import has_ending
from napari_seg.formats.facts import ScanFacts, modality_code

MAX_RULES_BYTES = 1 << 20

SKIP = "skip"
"""Model of a rule whose scans are left out."""

_COMMENT = "comment"


@dataclass(frozen=True)
class Rule:
    """Conditions that a scan must meet, and the models that then segment it.

    Attributes:
        place: where the rule stands, such as "line 3".
        models: the models; empty: the scan is left out.
        modality: codes of modalities in DICOM; empty: any.
        series: patterns such as "T1*" for the description of the series; empty: any.
        body_part: patterns for the part of the body; empty: any.
        min_slices: lowest number of slices.
        max_slices: highest number of slices.
        min_thickness_mm: lowest thickness of a slice.
        max_thickness_mm: highest thickness of a slice.
    """

    place: str
    models: tuple[str, ...]
    modality: tuple[str, ...] = ()
    series: tuple[str, ...] = ()
    body_part: tuple[str, ...] = ()
    min_slices: float = 0
    max_slices: float = math.inf
    min_thickness_mm: float = 0
    max_thickness_mm: float = math.inf

    @property
    def accepts_all(self) -> bool:
        """Whether the rule has no condition."""
        return self == Rule(self.place, self.models)

    def matches(self, facts: ScanFacts, names: tuple[str, ...]) -> bool:
        """Return whether a scan meets all conditions.

        Args:
            facts: what the header of the scan states.
            names: texts of which one must match a pattern for the series.
        """
        has_thickness_limit = self.min_thickness_mm > 0 or self.max_thickness_mm < math.inf
        return (
            (not self.modality or facts.modality in self.modality)
            and (not self.series or matches_any(names, self.series))
            and (not self.body_part or matches_any((facts.body_part,), self.body_part))
            and self.min_slices <= facts.slices <= self.max_slices
            and (not has_thickness_limit or self.min_thickness_mm <= facts.thickness_mm <= self.max_thickness_mm)
        )


_CONDITIONS = tuple(one.name for one in fields(Rule) if one.name not in ("place", "models"))
_KEYS = (*_CONDITIONS, "model", _COMMENT)


def matches_any(texts: tuple[str, ...], patterns: tuple[str, ...]) -> bool:
    """Return whether a text matches a pattern with the wildcards *, ? and [...], in upper or lower case."""
    return any(fnmatchcase(text.casefold(), pattern.casefold()) for text in texts if text for pattern in patterns)


def read_rules(path: Path) -> tuple[Rule, ...]:
    """Return the rules of a file in their order.

    Raises:
        InputError: `cohort.rules`, the file breaks the format, which the message says with the line, what was found and
            what is expected; `cohort.rules_unreachable`, a rule follows one without conditions; `cohort.network`, a
            rule names a model on another computer.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_RULES_BYTES + 1)
    except OSError as error:
        raise _fault(
            path, "", f"that it can't be read ({error.strerror})", "a table or a JSON file of rules"
        ) from error
    if len(content) > MAX_RULES_BYTES:
        raise _fault(path, "", "more than 1 MiB", "some lines of rules")
    entries = _of_table(path, content) if has_ending(path, TABLE_ENDINGS) else _of_json(path, content)
    rules = tuple(_rule(path, place, entry) for place, entry in entries)
    if not rules:
        raise _fault(path, "", "no rule", "one in each line")
    for rule in rules[:-1]:
        if rule.accepts_all:
            text = f"{path.name}, {rule.place}: the rule accepts every scan, so that those after it never match"
            raise InputError("cohort.rules_unreachable", f"{text}; give it a condition, or make it the last one")
    return rules


def _fault(path: Path, place: str, found: str, expected: str) -> InputError:
    where = f"{path.name}, {place}" if place else path.name
    return InputError("cohort.rules", f"{where}: found {one_line(found, 200)}; expected {expected}")


def _of_table(path: Path, content: bytes) -> Iterator[tuple[str, dict[str, str]]]:
    titles: list[str] = []
    for place, cells in table_rows(path, content, "cohort.rules"):
        if cells[0].startswith("#"):
            continue
        if not titles:
            titles = [cell.strip().casefold() for cell in cells]
            _check_keys(path, place, titles, "column")
            if len(set(titles)) < len(titles):
                raise _fault(path, place, f"the columns {', '.join(titles)}", "each of them once")
            if "model" not in titles:
                raise _fault(path, place, f"the columns {', '.join(titles)}", "a column model")
            continue
        if len(cells) != len(titles):
            raise _fault(path, place, f"{len(cells)} cells", f"{len(titles)}, one in each column")
        yield place, {title: cell.strip() for title, cell in zip(titles, cells, strict=True)}


def _of_json(path: Path, content: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    expected = 'a list of rules such as [{"modality": "CT", "model": "totalsegmentator:total"}]'
    try:
        root = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        place = f"line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise _fault(path, place, f"no JSON ({type(error).__name__})", expected) from error
    values = root.get("rules") if isinstance(root, dict) else root
    if not isinstance(values, list):
        raise _fault(path, "", json.dumps(root), expected)
    for number, value in enumerate(values, 1):
        place = f"rule {number}"
        if not isinstance(value, dict):
            raise _fault(path, place, json.dumps(value), "an object with model and conditions")
        entry = {str(key).casefold(): one for key, one in value.items()}
        _check_keys(path, place, list(entry), "key")
        yield place, entry


def _check_keys(path: Path, place: str, keys: list[str], what: str) -> None:
    if unknown := [key for key in keys if key not in _KEYS]:
        raise _fault(path, place, f"the {what} {unknown[0]!r}", f"one of {', '.join(_KEYS)}")


def _rule(path: Path, place: str, entry: Mapping[str, Any]) -> Rule:
    limits = {}
    for key in _CONDITIONS:
        if key.startswith(("min_", "max_")) and entry.get(key) not in (None, ""):
            limits[key] = _number(path, place, key, entry[key])
    for unit in ("slices", "thickness_mm"):
        low, high = limits.get(f"min_{unit}", 0), limits.get(f"max_{unit}", math.inf)
        if low > high:
            raise _fault(path, place, f"min_{unit} {low:g} and max_{unit} {high:g}", "a maximum above the minimum")
    models = _words(path, place, "model", entry.get("model"))
    if not models or (SKIP in models and len(models) > 1):
        raise _fault(path, place, f"the model {' | '.join(models)!r}", f"a model, models separated by |, or {SKIP}")
    return Rule(
        place,
        () if SKIP in models else tuple(model_in(path, model) for model in models),
        tuple(modality_code(word) for word in _words(path, place, "modality", entry.get("modality"))),
        _words(path, place, "series", entry.get("series")),
        _words(path, place, "body_part", entry.get("body_part")),
        **limits,
    )


def _words(path: Path, place: str, key: str, value: Any) -> tuple[str, ...]:
    """Return the alternatives of a condition: separated by | in a text, or the texts of a list."""
    values = value.split("|") if isinstance(value, str) else [] if value is None else value
    if not isinstance(values, list) or not all(isinstance(one, str) for one in values):
        raise _fault(path, place, f"{key} {json.dumps(value)}", "text, alternatives separated by |")
    return tuple(word for one in values if (word := one.strip()))


def _number(path: Path, place: str, key: str, value: Any) -> float:
    text = str(value).strip()
    expected = "a whole number" if key.endswith("slices") else "a number of mm, such as 2.5"
    pattern = r"\d+" if key.endswith("slices") else r"\d*\.?\d+"
    if isinstance(value, bool) or not re.fullmatch(pattern, text):
        raise _fault(path, place, f"{key} {text!r}", expected)
    return float(text)
