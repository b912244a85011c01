"""The section *More* and the table of labels of the Train tab: they need a screen, or Xvfb."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("napari", reason="the plugin's tests need napari: pip install napari-seg[napari]")

from napari.components import ViewerModel
from qtpy.QtCore import Qt

from napari_seg.plugin.segment.model import SegmentModel
from napari_seg.plugin.session import Session
from napari_seg.plugin.train.choices import TrainChoices
from napari_seg.plugin.train.model import TrainModel
from napari_seg.plugin.train.run import Wish
from napari_seg.plugin.train.tab import TrainTab

pytestmark = pytest.mark.window

COST = {"parameters": 5_000_000, "operations per step": 10**12, "bytes": 2**31}
PLAN: dict[str, Any] = {
    "fingerprint": {"cases": 6, "channels": ["T1"], "modality": "MR"},
    "labels": {"front": [1], "back": [2]},
    "label table": [
        {"value": 1, "name": "front", "cases": 6, "voxels": 90, "remarks": []},
        {"value": 2, "name": "back", "cases": 1, "voxels": 10, "remarks": ["in one case only"]},
    ],
    "options": {},
    "settings": {},
    "choices": {"size": "L"},
    "network": {"class": "UNet", "arguments": {}, "why": "", "size": "L", "sizes": {"S": COST, "L": COST}, **COST},
}


@pytest.fixture
def tab(qtbot: Any) -> TrainTab:
    session = Session(ViewerModel())
    tab = TrainTab(TrainModel(session, SegmentModel(session)))
    qtbot.addWidget(tab)
    tab.resize(400, 700)
    tab.show()
    return tab


def test_choices_are_made_below_more(tab: TrainTab) -> None:
    more, model = tab._more, tab.model
    assert not more._form.isVisible()
    assert more._toggle.text() == "More"
    more._toggle.click()
    assert more._form.isVisible()
    for name, value in (("size", "L"), ("dims", 2), ("folds", 5)):
        combo = more._boxes[name]
        combo.setCurrentIndex(combo.findData(value))
        combo.activated.emit(combo.currentIndex())
    more._labels.setText("a=1")
    more._labels.editingFinished.emit()
    assert model.choices == TrainChoices(size="L", dims=2, folds=5, labels="a=1")
    assert more._toggle.text() == "More: L, 2D, 5 folds, labels"
    model.choose(plan="nnunet")
    assert not more._size.isEnabled()
    assert not more._network.isEnabled()


def test_the_plan_says_what_a_size_costs(tab: TrainTab, tmp_path: Path) -> None:
    combo = tab._more._boxes["size"]
    assert "for GPUs of 24 GiB" in combo.itemText(combo.findData("L"))
    tab.model._on_planned(Wish(tmp_path, tmp_path, TrainChoices(), 0), PLAN)
    assert combo.itemText(combo.findData("L")) == "L: 5 M parameters, 2.0 GiB"


def test_a_class_is_renamed_and_what_is_odd_is_marked(tab: TrainTab, tmp_path: Path, qtbot: Any) -> None:
    tab.model._on_planned(Wish(tmp_path, tmp_path, TrainChoices(), 0), PLAN)
    table = tab._labels._table
    assert [table.item(1, column).text() for column in range(4)] == ["⚠ 2", "back", "1 of 6", "10.00%"]
    assert tab._odd.text() == "⚠ 2 back: in one case only"
    qtbot.waitUntil(lambda: not table.verticalScrollBar().isVisible(), timeout=3_000)  # all rows are seen
    table.item(0, 1).setText("anterior")
    qtbot.waitUntil(lambda: tab.model.choices.labels == "anterior=1 back=2", timeout=3_000)
    assert "Choices have changed" in tab._odd.text()
    assert tab._more._labels.text() == "anterior=1 back=2"


def test_a_training_that_has_begun_locks_the_choices(tab: TrainTab, tmp_path: Path, qtbot: Any) -> None:
    (tmp_path / "plan.json").write_text(json.dumps(PLAN))
    tab.model.choose_output(tmp_path)
    tab.model.session.jobs.wait()
    more = tab._more
    more._toggle.click()
    assert more._note.isVisible()
    assert more._toggle.text() == "More: L"
    assert not any(widget.isEnabled() for widget in (*more._boxes.values(), more._labels))
    assert not tab._labels._table.item(0, 1).flags() & Qt.ItemFlag.ItemIsEditable
    assert tab._minutes.isEnabled()  # more time continues it
