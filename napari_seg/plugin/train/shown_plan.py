"""Content of a plan as the Train tab shows it, without Qt."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from napari_seg.plugin.messages import as_gui_text
from napari_seg.plugin.train.choices import TrainChoices
from napari_seg.training.choices import IGNORE
from napari_seg.training.describe import network_rows, plan_rows, size_costs, time_rows

_ODD = ("left", "note")
_ELSEWHERE = ("value", "labels", "options", *_ODD)
"""Headings of `plan_rows` that are shown elsewhere than in the text of the plan."""


@dataclass(frozen=True)
class LabelRow:
    """One value in the label maps of a data set.

    Attributes:
        value: the value.
        classes: class that it belongs to, several with " + " between them.
        cases: number of cases with it.
        voxels: number of its voxels in all cases.
        fraction: that number as a fraction of all labelled voxels.
        remarks: what is odd about it.
    """

    value: int
    classes: str
    cases: int
    voxels: int
    fraction: float
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class ShownPlan:
    """A plan, as the tab shows it.

    Attributes:
        rows: headings and sentences.
        odd: what a person should know about the data set before the training.
        table: the label values.
        labels: class -> its values.
        sizes: size of the network -> its cost in words.
        cases: number of cases.
        choices: choices that were made.
    """

    rows: list[tuple[str, str]] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)
    table: list[LabelRow] = field(default_factory=list)
    labels: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, str] = field(default_factory=dict)
    cases: int = 0
    choices: TrainChoices = field(default_factory=TrainChoices)

    @classmethod
    def of(cls, plan: dict[str, Any], limits: dict[str, float], output: Path) -> ShownPlan:
        """Return what is shown of a plan.

        Args:
            plan: content of plan.json.
            limits: max_minutes of this start, if given.
            output: folder of the bundle.
        """
        described = [*time_rows(plan, limits), *plan_rows(plan), *network_rows(plan)]
        described = [(head, as_gui_text(text)) for head, text in described]
        table = _table(plan)
        odd = [f"{row.value} {row.classes}: {remark}" for row in table for remark in row.remarks]
        odd += [text for head, text in described if head in _ODD]
        return cls(
            rows=[
                (head, text) for head, text in described if head not in _ELSEWHERE or (not table and head == "labels")
            ],
            odd=odd,
            table=table,
            labels=dict(plan["labels"]),
            sizes=size_costs(plan),
            cases=plan["fingerprint"]["cases"],
            choices=TrainChoices.of_plan(plan["choices"], output),
        )


def _table(plan: dict[str, Any]) -> list[LabelRow]:
    counted = plan.get("label table", [])
    total = sum(row["voxels"] for row in counted) or 1
    return [
        LabelRow(
            row["value"],
            IGNORE if row["name"] == "ignored" else row["name"],
            row["cases"],
            row["voxels"],
            row["voxels"] / total,
            tuple(map(as_gui_text, row["remarks"])),
        )
        for row in counted
    ]
