"""The Learn tab in Qt: it needs a screen, or Xvfb."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import nan
from pathlib import Path
from typing import Any

import pytest
from bundles import write_plain_bundle

pytest.importorskip("napari", reason="the plugin's tests need napari: pip install napari-seg[napari]")

from cohorts import InlineProcess
from labelled import labels_of, measure, viewer_with_labels
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QFileDialog, QPushButton
from test_inference_totalsegmentator_task import task

from napari_seg.bundles.read import read_bundle
from napari_seg.bundles.totalsegmentator.task import ImprovedPart
from napari_seg.learning.compare import MEAN, ComparedStructure
from napari_seg.learning.improve import Improvement
from napari_seg.learning.training_set import read_training_set
from napari_seg.plugin import commands
from napari_seg.plugin.autosave import FOLDER_VARIABLE
from napari_seg.plugin.batch.model import BatchModel
from napari_seg.plugin.job import SAVING_WORKER, Job, JobProgress
from napari_seg.plugin.learn import accepting
from napari_seg.plugin.learn.accept_section import AcceptButton
from napari_seg.plugin.learn.model import LearnModel
from napari_seg.plugin.learn.ranking import QueuedCase
from napari_seg.plugin.learn.tab import LearnTab
from napari_seg.plugin.preferences import Preferences
from napari_seg.plugin.segment.model import SegmentModel
from napari_seg.plugin.session import Session
from napari_seg.plugin.structures.model import StructuresModel
from napari_seg.plugin.study.model import StudyModel
from napari_seg.training.gather.referenced import VARIABLE
from napari_seg.volume import Volume

pytestmark = pytest.mark.window

ROWS = (
    ComparedStructure("front", 4, 0.7, 0.8, 0.05, 0.15),
    ComparedStructure("back", 4, nan, 0.5),
    ComparedStructure(MEAN, 4, 0.7, 0.8, 0.05, 0.15),
)
CASES = [
    QueuedCase("a", 1, 0.9, "disagreement", "disagreement on front (0.90)", Path("/scans/a.nii.gz")),
    QueuedCase(
        "b", 2, 0.1, "disagreement", "disagreement on front (0.10), distance 1.40 to a", Path("/scans/b.nii.gz")
    ),
    QueuedCase("c", None, None, "disagreement", "found no scan (queue.no_scan)", None),
]


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "known"))
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "unsaved"))
    monkeypatch.setattr(accepting, "preferences", Preferences)
    monkeypatch.setattr(accepting, "remember_training_set", lambda folder: None)
    monkeypatch.setattr("napari_seg.plugin.preferences.remember_bundle", lambda folder: None)
    monkeypatch.setattr(SegmentModel, "start_estimate", lambda self: None)
    monkeypatch.setattr(QFileDialog, "getExistingDirectory", lambda *_: str(tmp_path / "set"))

    def run_here(work: Any, *args: Any, on_start: Any = None, is_stopping: Any = None, **options: Any) -> Any:
        on_start()
        return InlineProcess().run(work, *args, **options)

    monkeypatch.setattr(SAVING_WORKER, "run", run_here)


@pytest.fixture
def tab(qtbot: Any, head: Volume) -> Iterator[LearnTab]:
    session = Session(viewer := viewer_with_labels(head))
    segmenting, structures = SegmentModel(session), StructuresModel(session)
    tab = LearnTab(LearnModel(session, structures, segmenting, BatchModel(session), StudyModel(session)))
    qtbot.addWidget(tab)
    tab.resize(290, 900)
    tab.show()
    session.jobs.wait()
    yield tab
    session.close()
    assert labels_of(viewer) is not None


def wait(tab: LearnTab) -> str:
    """Wait for all jobs and return the messages."""
    tab.model.session.jobs.wait()
    return "\n".join(message.text for message in tab.model.session.messages)


def test_the_first_accept_asks_for_the_folder_and_the_second_whether_to_replace(tab: LearnTab, tmp_path: Path) -> None:
    section = tab.accept_section
    assert section._subject.text() == "“found” on “head”"
    assert section._folder.text() == "no set chosen"
    section.accept_button.click()
    assert "Accepted as case0001" in wait(tab)
    assert section._summary.text() == "1 case"
    assert section._folder.text() == str(tmp_path / "set")
    assert not section._question.isVisible()
    section.accept_button.click()
    assert "case0001 has the same labels: nothing has changed." in wait(tab)
    tab.model.accepting.check("nose", False)
    section.accept_button.click()
    wait(tab)
    assert section._question.isVisible()
    section._keep_button.click()
    assert not section._question.isVisible()
    section.accept_button.click()
    wait(tab)
    section._replace_button.click()
    assert "for the second time" in wait(tab)
    assert not section._question.isVisible()


def test_without_a_folder_nothing_is_accepted(tab: LearnTab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(QFileDialog, "getExistingDirectory", lambda *_: "")
    tab.accept_section.accept_button.click()
    assert wait(tab) == ""
    assert tab.model.accepting.folder is None


def test_structures_are_unchecked_in_a_list(tab: LearnTab, tmp_path: Path) -> None:
    section = tab.accept_section
    assert not section._list.isVisible()
    measure(tab.model.accepting.structures)
    section._partly.click()
    assert [section._list.item(n).text() for n in range(section._list.count())] == ["left ball", "nose", "tail"]
    assert section._list.item(2).checkState() == Qt.CheckState.Unchecked, "nobody has looked for it"
    section._list.item(1).setCheckState(Qt.CheckState.Unchecked)
    section._list.item(2).setCheckState(Qt.CheckState.Checked)
    section.accept_button.click()
    assert "Accepted" in wait(tab)
    assert read_training_set(tmp_path / "set").cases[0].annotated == ("left ball", "tail")
    section._partly.click()
    assert [is_checked for _, is_checked in tab.model.accepting.rows] == [True, True, False]
    assert not section._list.isVisible()


def test_the_queue_is_a_list_that_opens_cases(tab: LearnTab, monkeypatch: pytest.MonkeyPatch, qtbot: Any) -> None:
    section, model = tab.which_next_section, tab.model.which_next
    assert not section._rank_button.isEnabled()
    assert "results of a batch" in section._rank_button.toolTip()
    assert not section._details.isVisible()
    opened: list[str] = []
    monkeypatch.setattr(model, "open", lambda case: opened.append(case.name))
    model.cases = CASES
    model.changed.emit()
    table = section._table
    texts = [[table.item(r, c).text() for c in range(3)] for r in range(table.rowCount())]
    assert texts == [["1", "a", "0.90"], ["2", "b", "0.10"], ["✕", "c", ""]]
    assert "disagreement on front (0.90)" in section._details.text()
    table.selectRow(2)
    assert "queue.no_scan" in section._details.text()
    table.itemDoubleClicked.emit(table.item(1, 1))
    table.selectRow(0)
    qtbot.keyClick(table, Qt.Key.Key_Return)
    assert opened == ["b", "a"]

    model.accepting.accepted.emit((Path("/scans/a.nii.gz"),))
    assert table.rowCount() == 2
    assert section._accepted_box.text() == "Show accepted (1)"
    section._accepted_box.click()
    assert [table.item(r, 0).text() for r in range(3)] == ["✓", "2", "✕"]


def test_the_new_model_is_offered_and_chosen_by_a_button_only(tab: LearnTab, tmp_path: Path) -> None:
    section, model = tab.improve_section, tab.model.improving
    assert not section._offer.isVisible()
    assert not section._start_button.isEnabled()
    assert "Accept cases first" in section._start_button.toolTip()
    assert section._output.text().endswith("hippocampus_round1")
    bundle = read_bundle(write_plain_bundle(tmp_path / "new"))
    model.result = Improvement(bundle.root, "old", 1, 4, ROWS, 20.0)
    model.changed.emit()
    assert section._offer.isVisible()
    table = section._table
    texts = [[table.item(r, c).text() for c in range(4)] for r in range(table.rowCount())]
    assert texts == [
        ["front", "4", "0.700", "0.800"],
        ["back", "4", "–", "0.500"],
        ["mean of all", "4", "0.700", "0.800"],
    ]
    tab.resize(290, 900)
    assert table.horizontalHeader().length() <= table.viewport().width()
    assert "0.700 before, 0.800 after" in section._verdict.text()
    before = model.segmenting.bundle
    section._keep_button.click()
    assert model.segmenting.bundle is before
    assert not section._offer.isVisible()
    model.result = Improvement(bundle.root, "old", 1, 4, ROWS, 20.0)
    part = ImprovedPart(**vars(first := task((1, 1)).parts[0]), bundle=bundle, replaced=first)
    model.whole = replace(task((1, 1)), parts=(part,))
    model.changed.emit()
    assert section._task_button.isVisible()
    assert section._task_button.text() == "Use it in TotalSegmentator task"
    assert "3 structures" in section._task_button.toolTip()
    assert section._use_button.text() == "Use it alone"
    model.whole = None
    model.changed.emit()
    assert not section._task_button.isVisible()
    assert section._use_button.text() == "Use the new model"
    section._use_button.click()
    assert model.segmenting.bundle is not None
    assert model.segmenting.bundle.root == bundle.root


def test_progress_is_shown_with_a_stop(tab: LearnTab) -> None:
    section, model = tab.improve_section, tab.model.improving
    job = model.job = Job(None)  # type: ignore[arg-type]
    job.progress = JobProgress("Comparing on the validation cases", 1, 4)
    model.changed.emit()
    assert section._progress_bar.isVisible()
    assert section._progress_bar.value() == 250
    assert section._status.text() == "Comparing on the validation cases: 1 of 4"
    assert not section._minutes.isEnabled()
    section._stop_button.click()
    assert job.is_stopping
    assert section._status.text() == "Saving after this step …"
    assert not section._stop_button.isEnabled()
    model.job = None
    model.is_begun = True
    model.changed.emit()
    assert section._start_button.text() == "Resume"


def test_accept_is_in_three_tabs_and_a_question_shows_the_learn_tab(
    make_napari_viewer: Any, head: Volume, qtbot: Any, tmp_path: Path
) -> None:
    viewer = make_napari_viewer(show=True)
    for layer in viewer_with_labels(head).layers:
        viewer.add_layer(layer)
    panel = commands.panel()
    for tab in (panel.structures_tab, panel.edit_tab):
        assert tab.findChild(AcceptButton).isEnabled()
    titles = [work.title for work in panel.guard._long_works]
    assert "Stop the improvement?" in titles
    panel.show_tab(panel.edit_tab)
    button: QPushButton = panel.edit_tab.findChild(AcceptButton)
    button.click()
    qtbot.waitUntil(lambda: "Accepted as case0001" in panel._message.text(), timeout=20_000)
    assert panel._tabs.currentWidget() is panel.edit_tab
    panel.learn_tab.model.accepting.check("nose", False)
    button.click()
    qtbot.waitUntil(lambda: panel._tabs.currentWidget() is panel.learn_tab, timeout=20_000)
    qtbot.waitUntil(lambda: panel.learn_tab.accept_section._question.isVisible(), timeout=5_000)
