"""The state of the window Models…, without a window."""

from __future__ import annotations

import json
import os
import threading
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("napari", reason="the plugin's tests need napari: pip install napari-seg[napari]")

from bundles import write_threshold_bundle
from nnunet_models import write_model
from task_models import serve_task, write_task
from web import Web

from napari_seg.bundles.places import store_root
from napari_seg.bundles.read import read_bundle
from napari_seg.bundles.store import installed as store
from napari_seg.bundles.store.licence import Licence
from napari_seg.bundles.trust import is_trusted, remember
from napari_seg.plugin.job import Jobs
from napari_seg.plugin.messages import Message
from napari_seg.plugin.models.model import LicenceQuestion, ModelsModel
from napari_seg.plugin.models.rows import ModelRow

ROWS = [
    ModelRow("spleen_ct", "Spleen", "spleen", "CT", 40_000_000, "Apache-2.0", "open", "catalogue", "hf:spleen"),
    ModelRow("brats", "Brain tumour", "Tumor core, edema", "MR", 0, "", "unknown", "catalogue", "hf:brats"),
    ModelRow("whole_body", "Whole body", "spleen, liver", "CT", 9 * 10**8, "NVIDIA", "non-commercial", "installed"),
]


def raising(error: Exception) -> None:
    raise error


@pytest.fixture
def model() -> ModelsModel:
    return ModelsModel(Jobs(on_error=raising))


def titles(model: ModelsModel) -> list[str]:
    return [row.title for row in model.shown]


def selected(model: ModelsModel, name: str) -> ModelRow:
    row = next(row for row in model.rows if row.name == name)
    model.select(row)
    return row


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ["Whole body", "Brain tumour", "Spleen"]),
        ({"words": "SPLEEN ct"}, ["Whole body", "Spleen"]),
        ({"words": "whole_body"}, ["Whole body"]),
        ({"words": "tumor"}, ["Brain tumour"]),
        ({"words": "kidney"}, []),
        ({"licence_kind": "open"}, ["Spleen"]),
        ({"licence_kind": "non-commercial"}, ["Whole body"]),
        ({"max_bytes": 50_000_000}, ["Brain tumour", "Spleen"]),
        ({"only_here": True}, ["Whole body"]),
        ({"way": "unknown", "words": "mr"}, ["Brain tumour"]),
        ({"way": "refused"}, []),
    ],
)
def test_the_list_is_filtered(model: ModelsModel, changes: dict[str, Any], expected: list[str]) -> None:
    model.rows = list(ROWS)
    model.select(ROWS[1])
    model.filter_by(**changes)
    assert titles(model) == expected
    row = model.selected_row
    assert (row.title if row else None) == (
        "Brain tumour" if "Brain tumour" in expected else next(iter(expected), None)
    )


def test_a_model_is_added_checked_and_removed(model: ModelsModel, tmp_path: Path) -> None:
    reports: list[str | None] = []
    model.installed_changed.connect(reports.append)
    model.filter_by(words="nothing has this name")
    model.add(write_threshold_bundle(tmp_path / "from" / "threshold"))
    assert model.obstacle_to("remove")
    model.jobs.wait()
    root = store_root() / "threshold"
    row = model.selected_row
    assert row is not None
    assert (row.name, row.place, row.way, row.title) == ("threshold", "installed", "after consent", "threshold")
    assert row.size_bytes > 0
    assert model.store_bytes == row.size_bytes
    assert row.finds == "bright, upper"
    assert model.message == Message("info", "threshold is installed.")
    assert reports == [str(root.resolve())]

    model.check()
    model.jobs.wait()
    assert model.message == Message("info", "threshold: all files are as they were installed.")
    bundle = read_bundle(root)
    remember(bundle)
    (root / "scripts" / "nets.py").write_text("import os")
    model.check()
    model.jobs.wait()
    assert model.message is not None
    assert "scripts/nets.py (changed)" in model.message.text

    model.remove()
    model.jobs.wait()
    assert not root.exists()
    assert reports[-1] is None
    assert "threshold" not in titles(model)
    assert "was removed" in model.message.text
    assert json.loads((store_root() / "trust.json").read_text()) == {"trusted": {}}
    assert not is_trusted(bundle)


def test_a_model_of_nnunet_is_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_this_process = SimpleNamespace(run=lambda function, *args, **_: function(*args))
    monkeypatch.setattr("napari_seg.plugin.models.model.NETWORK_WORKER", in_this_process)
    source, out = write_model(tmp_path / "results"), tmp_path / "out"
    model = ModelsModel(Jobs(on_error=raising), lambda: [source, write_threshold_bundle(tmp_path / "threshold")])
    model.refresh()
    model.jobs.wait()
    selected(model, "threshold")
    assert model.obstacle_to("convert")
    row = next(row for row in model.rows if row.bundle is not None and row.bundle.root == source.resolve())
    model.select(row)
    assert not model.obstacle_to("convert")
    model.convert(out)
    model.jobs.wait()
    assert model.message is not None
    assert "is written as a MONAI bundle" in model.message.text
    assert read_bundle(out).kind == "monai"
    model.convert(out)
    model.jobs.wait()
    assert "(store.exists)" in model.message.text


@pytest.mark.parametrize("case", ["no bundle", "twice"])
def test_an_error_is_one_sentence_with_its_code(model: ModelsModel, tmp_path: Path, case: str) -> None:
    source = tmp_path
    if case == "twice":
        source = write_threshold_bundle(tmp_path / "from" / "threshold")
        store.add(source, accept_licence=lambda _: True)
    model.add(source)
    model.jobs.wait()
    assert model.job is None
    assert model.message is not None
    assert model.message.kind == "error"
    assert ("(store.exists)" if case == "twice" else "(store.no_bundle)") in model.message.text
    assert "--" not in model.message.text


def test_a_damaged_model_is_listed_with_its_reason_and_removed(model: ModelsModel) -> None:
    root = store_root() / "damaged" / "configs"
    root.mkdir(parents=True)
    (root / "metadata.json").write_text("{")
    model.refresh()
    model.jobs.wait()
    row = selected(model, "damaged")
    assert row.way == "refused"
    assert "(bundle.metadata)" in row.details
    assert model.obstacle_to("use")
    model.remove()
    model.jobs.wait()
    assert not (store_root() / "damaged").exists()


def test_a_bundle_outside_the_store_is_listed_where_it_is(model: ModelsModel, tmp_path: Path) -> None:
    root = write_threshold_bundle(tmp_path / "mine")
    folders: list[Path] = []
    model = ModelsModel(model.jobs, lambda: folders)
    model.folder_listed.connect(folders.append)
    model.list_folder(tmp_path)
    assert model.message is not None
    assert "(bundle.unknown)" in model.message.text
    model.list_folder(root)
    model.jobs.wait()
    row = model.selected_row
    assert row is not None
    assert (row.name, row.place) == ("mine", "elsewhere")
    assert "outside the store" in model.obstacle_to("remove")
    assert model.obstacle_to("use") == ""


@pytest.mark.parametrize("answer", [True, False, None])
def test_a_download_waits_for_the_answer_to_the_licence(
    model: ModelsModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answer: bool | None
) -> None:
    root = write_threshold_bundle(tmp_path / "threshold")
    downloaded: list[str] = []

    def add(source: str, *, accept_licence: Any, progress: Any, **_: Any) -> Any:
        if not accept_licence(Licence("threshold", "NVIDIA", "non-commercial", "text")):
            raise store.StoreError("store.licence", "the licence was not accepted")
        downloaded.append(source)
        progress("downloading", 5_000_000, 20_000_000)
        texts.append(model.progress_text)
        return read_bundle(root)

    texts: list[str] = []
    questions: list[LicenceQuestion] = []
    monkeypatch.setattr(store, "add", add)
    model.licence_asked.connect(questions.append)
    model.rows = list(ROWS)
    model.select(ROWS[0])
    model.download()
    asked = threading.Event()
    model.licence_asked.connect(lambda _: asked.set())
    while not asked.is_set():
        model.jobs.deliver()
    (question,) = questions
    assert question.licence.kind == "non-commercial"
    assert downloaded == []
    if answer is None:
        model.stop()
    else:
        question.answer(answer)
    model.jobs.wait()
    assert downloaded == (["hf:spleen"] if answer else [])
    assert texts == (["Downloading: 5.0 MB of 20.0 MB"] if answer else [])
    assert model.message is not None
    expected = {True: "is installed", False: "(store.licence)", None: "Stopped."}
    assert expected[answer] in model.message.text


def test_the_catalogue_is_listed_and_searched_without_a_network(model: ModelsModel) -> None:
    model.refresh()
    model.jobs.wait()
    model.filter_by(words="flair tumor")
    assert [row.name for row in model.shown] == ["brats_mri_segmentation"]
    row = model.selected_row
    assert row is not None
    assert (row.place, row.way, row.licence) == ("catalogue", "at once", "Apache-2.0")
    assert model.obstacle_to("download") == ""
    assert model.obstacle_to("remove")
    model.filter_by(words="valve")
    row = model.selected_row
    assert row is not None
    assert (row.way, row.way_title) == ("refused", "Can't be used")
    assert "marks no voxels" in model.obstacle_to("download")


def test_a_download_that_failed_is_repeated_and_asks_for_the_licence_once(
    model: ModelsModel, web: Web, tmp_path: Path
) -> None:
    root = write_threshold_bundle(tmp_path / "from" / "threshold")
    (root / "models" / "large.bin").write_bytes(os.urandom(2_000_000))
    archive = tmp_path / "threshold.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for file in root.rglob("*"):
            packed.write(file, f"threshold/{file.relative_to(root).as_posix()}")
    web.files["/threshold.zip"] = archive.read_bytes()
    questions: list[LicenceQuestion] = []

    def accept(question: LicenceQuestion) -> None:
        assert sum(sent for _, _, sent in web.requests) < 200_000  # no more than the licence before the answer
        questions.append(question)
        web.statuses["/threshold.zip"] = 503
        question.answer(True)

    model.licence_asked.connect(accept)
    model.add(f"{web.url}/threshold.zip")
    model.jobs.wait()
    assert model.message is not None
    assert "(download.server)" in model.message.text
    del web.statuses["/threshold.zip"]
    model.add(f"{web.url}/threshold.zip")
    model.jobs.wait()
    assert model.message == Message("info", "threshold is installed.")
    assert len(questions) == 1


def test_tasks_of_totalsegmentator_are_rows_of_their_own(
    model: ModelsModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOTALSEG_WEIGHTS_PATH", str(tmp_path / "theirs"))
    write_task(tmp_path / "theirs", "body")
    write_task(store_root() / "totalsegmentator", "total_fastest")
    model.refresh()
    model.jobs.wait()
    rows = {row.name: row for row in model.rows if row.name.startswith("totalsegmentator:")}
    assert (rows["totalsegmentator:body"].place, rows["totalsegmentator:body"].title) == (
        "elsewhere",
        "TotalSegmentator body",
    )
    fastest = rows["totalsegmentator:total_fastest"]
    assert (fastest.place, fastest.way, fastest.licence_kind) == ("installed", "at once", "open")
    assert fastest.size_bytes > 0
    assert rows["totalsegmentator:total"].place == "catalogue"
    assert "totalsegmentator" not in {row.name for row in model.rows}  # the folder of their models
    assert len(model.rows) == len({row.key for row in model.rows})
    model.filter_by(words="sternum totalsegmentator")  # the list shows the first structures only
    assert "totalsegmentator:total_fastest" in {row.name for row in model.shown}
    model.select(rows["totalsegmentator:body"])
    model.filter_by(words="")
    assert "outside the store" in model.obstacle_to("remove")


def test_a_task_is_downloaded_checked_and_removed(
    model: ModelsModel, web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_task(web, "total_fastest", tmp_path / "release", monkeypatch)
    reports: list[str | None] = []
    licences: list[Licence] = []

    def accept(question: LicenceQuestion) -> None:
        assert web.requests == []
        licences.append(question.licence)
        question.answer(True)

    model.licence_asked.connect(accept)
    model.installed_changed.connect(reports.append)
    model.refresh()
    model.jobs.wait()
    model.select(next(row for row in model.rows if row.name == "totalsegmentator:total_fastest"))
    model.download()
    model.jobs.wait()
    assert [licence.name for licence in licences] == ["Apache-2.0"]
    assert model.message == Message("info", "TotalSegmentator total_fastest is installed.")
    assert reports == ["totalsegmentator:total_fastest"]
    row = model.selected_row
    assert row is not None
    assert (row.title, row.place) == ("TotalSegmentator total_fastest", "installed")
    assert model.store_bytes > 0
    model.check()
    model.jobs.wait()
    assert model.message == Message("info", "TotalSegmentator total_fastest: all files are as they were installed.")
    model.remove()
    model.jobs.wait()
    assert model.message is not None
    assert "was removed" in model.message.text
    assert not [row for row in model.rows if row.name.startswith("totalsegmentator:") and row.place != "catalogue"]
