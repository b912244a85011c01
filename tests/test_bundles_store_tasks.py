"""Weights of TotalSegmentator's tasks come from its releases and are verified; the server is on this machine."""

from __future__ import annotations

import errno
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from web import Web

from napari_seg.bundles.places import store_root
from napari_seg.bundles.store.folders import parts_folder
from napari_seg.bundles.store.installed import disk_use, remove, verify
from napari_seg.bundles.store.licence import Licence
from napari_seg.bundles.store.tasks import add_task, read_task_record, remove_task, verify_task
from napari_seg.bundles.totalsegmentator import table
from napari_seg.bundles.totalsegmentator.table import parts_needed, task_of, weights_of
from napari_seg.errors import Cancelled, NapariSegError, OutputError
from napari_seg.formats import archive


def yes(licence: Licence) -> bool:
    return True


def refuse(licence: Licence) -> bool:
    raise AssertionError(licence)


def zip_of(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as written:
        for name, content in files.items():
            written.writestr(name, content)
    return packed.getvalue()


def release_of(name: str) -> dict[str, bytes]:
    """Path -> zip of each model that a task needs, as TotalSegmentator packs them."""
    found: dict[str, dict[str, bytes]] = {}
    for part in parts_needed(task_of(name)):
        weights = weights_of(part.number)
        training = f"{weights.folder}/{part.trainer}__{part.plans}__{part.configuration}"
        found.setdefault(f"/{weights.release}/{weights.folder}.zip", {}).update(
            {
                f"{training}/plans.json": b"{}",
                f"{training}/fold_0/checkpoint_final.pth": b"weights of %d" % part.number * 1000,
                f"{weights.folder}/.DS_Store": b"noise",
                f"{weights.folder}/._plans.json": b"noise",
                f"__MACOSX/{training}/._plans.json": b"noise",
            }
        )
    return {path: zip_of(files) for path, files in found.items()}


@pytest.fixture
def web(web: Web, monkeypatch: pytest.MonkeyPatch) -> Web:
    monkeypatch.setattr(table, "RELEASES", web.url)
    return web


def own() -> Path:
    return store_root() / "totalsegmentator"


def code_of(call: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    with pytest.raises(NapariSegError) as caught:
        call(*arguments, **options)
    return caught.value.code


def test_all_models_of_a_task_and_of_its_crop_are_fetched(web: Web) -> None:
    web.files |= release_of("liver_vessels")
    asked, steps = [], []
    add_task(
        "totalsegmentator:liver_vessels",
        accept_licence=lambda licence: asked.append(licence) is None and not web.requests,
        progress=lambda *one: steps.append(one),
    )
    assert [licence.name for licence in asked] == ["Apache-2.0"]
    assert sorted(path.name for path in own().iterdir()) == [
        "Dataset008_HepaticVessel",
        "Dataset298_TotalSegmentator_total_6mm_1559subj",
        "record.json",
    ]
    folder = own() / "Dataset008_HepaticVessel"
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()) == [
        "nnUNetTrainer__nnUNetPlans__3d_fullres/fold_0/checkpoint_final.pth",
        "nnUNetTrainer__nnUNetPlans__3d_fullres/plans.json",
    ]
    assert {stage for stage, _, _ in steps} == {"downloading"}
    assert [done for _, done, _ in steps] == sorted(done for _, done, _ in steps)
    assert list(read_task_record().tasks) == ["liver_vessels"]
    assert not list(parts_folder().iterdir())
    assert verify_task("liver_vessels") == []
    assert disk_use()["totalsegmentator"] > 0


def test_what_is_here_is_not_fetched_and_the_licence_is_asked_once(web: Web) -> None:
    web.files |= release_of("liver_vessels") | release_of("cerebral_bleed")
    add_task("liver_vessels", accept_licence=yes, progress=lambda *_: None)
    before = len(web.requests)
    add_task("cerebral_bleed", accept_licence=refuse, progress=lambda *_: None)
    assert {path for path, _, _ in web.requests[before:]} == {"/v2.0.0-weights/Dataset150_icb_v0.zip"}
    before = len(web.requests)
    add_task("cerebral_bleed", accept_licence=refuse, progress=lambda *_: None, offline=True)
    assert len(web.requests) == before


def test_weights_that_totalsegmentator_has_fetched_are_used(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOTALSEG_WEIGHTS_PATH", str(tmp_path / "theirs"))
    training = (
        tmp_path / "theirs" / weights_of(298).folder / "nnUNetTrainer_4000epochs_NoMirroring__nnUNetPlans__3d_fullres"
    )
    (training / "fold_0").mkdir(parents=True)
    (training / "plans.json").write_text("{}")
    (training / "fold_0" / "checkpoint_final.pth").touch()
    web.files |= release_of("liver_vessels")
    add_task("liver_vessels", accept_licence=yes, progress=lambda *_: None)
    assert [path.name for path in own().glob("Dataset*")] == ["Dataset008_HepaticVessel"]
    assert remove_task("liver_vessels") > 0
    assert training.is_dir()


def test_a_shared_model_is_removed_with_the_last_task(web: Web) -> None:
    web.files |= release_of("liver_vessels") | release_of("cerebral_bleed")
    for name in ("liver_vessels", "cerebral_bleed"):
        add_task(name, accept_licence=yes, progress=lambda *_: None)
    assert remove("totalsegmentator:liver_vessels") > 0
    assert sorted(path.name[:10] for path in own().glob("Dataset*")) == ["Dataset150", "Dataset298"]
    assert code_of(remove, "totalsegmentator:liver_vessels") == "store.unknown"
    remove("totalsegmentator:cerebral_bleed")
    assert not list(own().glob("Dataset*"))
    assert code_of(verify, "totalsegmentator:cerebral_bleed") == "store.unknown"


def test_changed_and_lost_files_are_found(web: Web) -> None:
    web.files |= release_of("total_fastest")
    add_task("total_fastest", accept_licence=yes, progress=lambda *_: None)
    folder = weights_of(298).folder
    training = own() / folder / "nnUNetTrainer_4000epochs_NoMirroring__nnUNetPlans__3d_fullres"
    (training / "plans.json").write_text("[]")
    (training / "fold_0" / "checkpoint_final.pth").unlink()
    assert [
        (one.file.removeprefix(f"{folder}/{training.name}/"), one.fault)
        for one in verify("totalsegmentator:total_fastest")
    ] == [
        ("fold_0/checkpoint_final.pth", "missing"),
        ("plans.json", "changed"),
    ]
    (own() / "record.json").unlink()
    assert code_of(verify_task, "total_fastest") == "store.record"


def test_a_stopped_download_goes_on_where_it_was(web: Web) -> None:
    web.files |= release_of("liver_vessels")
    second = f"/v2.0.0-weights/{weights_of(298).folder}.zip"

    def stop(stage: str, done: int, total: int) -> None:
        if (own() / "Dataset008_HepaticVessel").is_dir():
            raise Cancelled

    with pytest.raises(Cancelled):
        add_task("liver_vessels", accept_licence=yes, progress=stop)
    assert list(read_task_record().tasks) == []
    before = len(web.requests)
    add_task("liver_vessels", accept_licence=refuse, progress=lambda *_: None)
    assert {path for path, _, _ in web.requests[before:]} <= {second}
    assert list(read_task_record().tasks) == ["liver_vessels"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.ENOSPC, "full")])
def test_what_was_fetched_is_kept_if_unpacking_is_stopped(
    web: Web, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    web.files |= release_of("total_fastest")
    with monkeypatch.context() as stopped:
        stopped.setattr(archive, "_unpack", Mock(side_effect=error))
        with pytest.raises((KeyboardInterrupt, OutputError)):
            add_task("total_fastest", accept_licence=yes, progress=lambda *_: None)
    before = len(web.requests)
    add_task("total_fastest", accept_licence=refuse, progress=lambda *_: None)
    assert len(web.requests) == before


def test_another_zip_than_at_the_first_time_is_refused(web: Web) -> None:
    web.files |= release_of("total_fastest")
    add_task("total_fastest", accept_licence=yes, progress=lambda *_: None)
    remove_task("total_fastest")
    path = f"/v2.0.0-weights/{weights_of(298).folder}.zip"
    web.files[path] += b"more"
    assert code_of(add_task, "total_fastest", accept_licence=yes, progress=lambda *_: None) == "download.digest"
    assert not list(own().glob("Dataset*"))


@pytest.mark.parametrize(
    ("files", "code"),
    [
        ({"Dataset298_TotalSegmentator_total_6mm_1559subj/other/plans.json": b"{}"}, "store.no_bundle"),
        ({"Dataset297_other/nnUNetTrainer/plans.json": b"{}"}, "store.no_bundle"),
        ({"../../evil": b""}, "archive.unsafe"),
    ],
)
def test_a_zip_with_something_else_installs_nothing(web: Web, files: dict[str, bytes], code: str) -> None:
    web.files[f"/v2.0.0-weights/{weights_of(298).folder}.zip"] = zip_of(files)
    assert code_of(add_task, "total_fastest", accept_licence=yes, progress=lambda *_: None) == code
    assert not list(own().glob("*"))
    assert not [path for path in store_root().rglob("evil*")]
    assert read_task_record().archives == {}


def test_without_consent_or_connection_nothing_is_requested(web: Web) -> None:
    web.files |= release_of("total_fastest")
    quiet: dict[str, Any] = {"progress": lambda *_: None}
    assert code_of(add_task, "total_fastest", accept_licence=lambda licence: False, **quiet) == "store.licence"
    assert code_of(add_task, "total_fastest", accept_licence=yes, offline=True, **quiet) == "store.offline"
    assert code_of(add_task, "heartchambers_highres", accept_licence=refuse, **quiet) == "store.refused"
    assert code_of(add_task, "totalsegmentator:livers", accept_licence=refuse, **quiet) == "bundle.unknown"
    assert web.requests == []


def test_non_commercial_weights_have_a_licence_of_their_own(web: Web) -> None:
    web.files |= release_of("brain_aneurysm") | release_of("total_fastest")
    add_task("total_fastest", accept_licence=yes, progress=lambda *_: None)
    asked: list[Licence] = []
    add_task("brain_aneurysm", accept_licence=lambda one: asked.append(one) is None, progress=lambda *_: None)
    assert [(one.model, one.kind) for one in asked] == [("TotalSegmentator brain_aneurysm", "non-commercial")]
    assert "time-of-flight" in asked[0].text


def test_a_task_that_came_with_another_one_is_not_removed(web: Web) -> None:
    web.files |= release_of("liver_vessels")
    add_task("liver_vessels", accept_licence=yes, progress=lambda *_: None)
    with pytest.raises(NapariSegError) as caught:
        remove_task("total_fastest")
    assert caught.value.code == "store.unknown"
    assert "totalsegmentator:liver_vessels" in caught.value.message
