"""Session files of strangers: every attack is refused with a code, and nothing is written outside."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import phantoms
import pytest

pytest.importorskip("napari", reason="the plugin's tests need napari: pip install napari-seg[napari]")

from labelled import viewer_with_labels

from napari_seg.errors import InputError, NapariSegError, OutputError
from napari_seg.formats.nifti import write_map
from napari_seg.geometry import Grid
from napari_seg.plugin.session_file import archive
from napari_seg.plugin.session_file.archive import (
    CONTENT,
    extract,
    read_content,
    write_session,
)
from napari_seg.plugin.session_file.content import SavedPanel
from napari_seg.plugin.session_file.endings import is_session_file
from napari_seg.plugin.session_file.restore import open_session
from napari_seg.plugin.session_file.save import save
from napari_seg.plugin.session_file.take import take
from napari_seg.volume import Volume


@pytest.fixture
def good(head: Volume, tmp_path: Path) -> Path:
    path = tmp_path / "good.napari-seg"
    save(take(viewer_with_labels(head)), SavedPanel(tab="Segment"), None, path)
    return path


Members = dict[str, bytes]


def members_of(path: Path) -> Members:
    with zipfile.ZipFile(path) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def repacked(members: Members, path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name, data in members.items():
            made.writestr(name, data)
    return path


def altered(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    members = members_of(path)
    content = json.loads(members[CONTENT])
    change(content)
    members[CONTENT] = json.dumps(content).encode()
    return repacked(members, path.with_name("bad.napari-seg"))


def code_of(path: Path) -> str:
    with pytest.raises(NapariSegError) as caught:
        open_session(path)
    return caught.value.code


def test_a_good_file_is_read(good: Path) -> None:
    assert is_session_file(good)
    assert not is_session_file(Path("a.zip"))
    content = read_content(good)
    assert [layer.kind for layer in content.layers] == ["image", "labels"]
    assert sorted(members_of(good)) == ["images/0.nii", "labels/1.nii", CONTENT]
    assert content.panel.tab == "Segment"


def test_paths_that_lead_out_are_refused(good: Path, tmp_path: Path) -> None:
    for name in ("../evil.nii", "/evil.nii", "labels/../../evil.nii", "C:\\evil.nii", "labels/9.nii", "x.pkl"):
        bad = repacked({**members_of(good), name: b"x"}, tmp_path / "bad.napari-seg")
        assert code_of(bad) == "session.unsafe"
    assert not list(tmp_path.rglob("evil*"))
    assert not list(tmp_path.parent.glob("evil*"))


def test_two_members_of_one_name_and_links_are_refused(good: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.napari-seg"
    made = zipfile.ZipFile(repacked(members_of(good), bad), "a")
    with pytest.warns(UserWarning, match="Duplicate"):
        made.writestr(CONTENT, b"{}")
    made.close()
    assert code_of(bad) == "session.unsafe"
    with zipfile.ZipFile(bad, "w") as made:
        for name, data in members_of(good).items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (0o120777 if name.startswith("labels") else 0o100644) << 16
            made.writestr(info, data)
    assert code_of(bad) == "session.unsafe"
    with zipfile.ZipFile(bad, "w", zipfile.ZIP_LZMA) as made:
        for name, data in members_of(good).items():
            made.writestr(name, data)
    assert code_of(bad) == "session.unsafe"


def test_bombs_are_refused_before_they_are_unpacked(good: Path, tmp_path: Path) -> None:
    members = members_of(good)
    bomb = bytes(300_000_000)
    bad = repacked({**members, "labels/1.nii": bomb}, tmp_path / "bad.napari-seg")
    assert bad.stat().st_size < 1_000_000
    assert code_of(bad) == "session.damaged"  # more than its grid has
    bad = repacked({**members, CONTENT: b'{"program": "' + b"x" * (1 << 26) + b'"}'}, bad)
    assert code_of(bad) == "session.damaged"

    def huge(content: dict[str, Any]) -> None:
        content["layers"][1]["grid"]["shape"] = [65536, 65536, 65536]

    assert code_of(altered(good, huge)) == "session.damaged"  # the member is too small for it


def test_a_member_that_unpacks_to_more_than_it_states_is_refused(good: Path, tmp_path: Path) -> None:
    data = bytearray(good.read_bytes())
    at = data.index(b"PK\1\2")  # the first entry of the directory: session.json
    data[at + 24 : at + 28] = (100).to_bytes(4, "little")
    (tmp_path / "bad.napari-seg").write_bytes(bytes(data))
    assert code_of(tmp_path / "bad.napari-seg") == "session.damaged"


def test_layers_that_do_not_fit_in_memory_are_refused(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("napari_seg.memory.free_bytes", lambda: 10_000)
    assert code_of(good) == "environment.memory"


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"program": "napari-seg", "salt": "../..", "layers": []}',
        pickle.dumps({"salt": 1}),
    ],
)
def test_json_that_is_no_session_is_refused(good: Path, tmp_path: Path, text: bytes) -> None:
    bad = repacked({**members_of(good), CONTENT: text}, tmp_path / "bad.napari-seg")
    assert code_of(bad) == "session.damaged"


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("salt",), "00"),
        (("layers", 1, "kind"), "python"),
        (("layers", 1, "grid", "shape"), [0, 5, 5]),
        (("layers", 1, "grid", "shape"), [1e3, "5", 5]),
        (("layers", 1, "grid", "affine"), [[1, 0, 0, 0]]),
        (("layers", 1, "grid", "affine", 0, 0), "NaN"),
        (("layers", 1, "segments", 0, "label"), -1),
        (("layers", 1, "segments", 0, "color"), [1, 2, 300]),
        (("layers", 1, "segments", 0, "color"), "abc"),
        (("layers", 1, "segments", 0, "name"), "x" * 5000),
        (("layers", 1, "hidden"), {"a": 1}),
        (("layers", 1, "name", "parts"), [["x"]]),
        (("view", "camera_zoom"), -1),
        (("view", "order"), [0, 1, 7]),
        (("panel", "tab"), "<b>x</b>"),
        (("frame",), [[1, 2], [3, 4]]),
        (("scans",), [{"format": "pickle", "files": ["/etc/passwd"]}]),
        (("active",), -5),
    ],
)
def test_unusable_values_are_refused(good: Path, place: tuple, value: object) -> None:
    def change(content: Any) -> None:
        for key in place[:-1]:
            content = content[key]
        content[place[-1]] = value

    assert code_of(altered(good, change)) == "session.damaged"


def test_a_later_format_says_so(good: Path) -> None:
    assert code_of(altered(good, lambda content: content.update(format=99, layers="other"))) == "session.newer"


def test_unknown_fields_are_ignored(good: Path) -> None:
    bad = altered(good, lambda content: content.update(more=1))
    assert len(open_session(bad).layers) == 2


def test_labels_of_another_grid_or_type_are_not_shown(good: Path, tmp_path: Path) -> None:
    def fault(bad: Path) -> str:
        opened = open_session(bad)
        assert list(opened.layers) == [0]
        return opened.faults[0].code

    def shifted(content: dict[str, Any]) -> None:
        content["layers"][1]["grid"]["affine"][0][3] += 3

    assert fault(altered(good, shifted)) == "session.damaged"

    def twice(content: dict[str, Any]) -> None:
        content["layers"][1]["segments"][1]["label"] = 1

    assert fault(altered(good, twice)) == "session.damaged"

    def singular(content: dict[str, Any]) -> None:
        content["layers"][1]["grid"]["affine"][1] = content["layers"][1]["grid"]["affine"][0]

    assert fault(altered(good, singular)) == "geometry.affine"
    head = phantoms.head()
    write_map(np.full(head.grid.shape, -3, np.int16), head.grid, tmp_path / "negative.nii")
    members = {**members_of(good), "labels/1.nii": (tmp_path / "negative.nii").read_bytes()}
    assert fault(repacked(members, tmp_path / "bad.napari-seg")) == "labels.type"
    write_map(np.zeros((20, 26, 15), np.uint8), Grid((20, 26, 15), head.grid.affine), tmp_path / "other.nii")
    members["labels/1.nii"] = (tmp_path / "other.nii").read_bytes()
    assert fault(repacked(members, tmp_path / "bad.napari-seg")) == "session.damaged"
    members["labels/1.nii"] = members_of(good)["labels/1.nii"][:-1] + b""
    assert fault(repacked(members, tmp_path / "bad.napari-seg")) == "file.truncated"


def test_settings_of_a_stranger_are_taken_only_where_napari_accepts_them(good: Path) -> None:
    def wild(content: dict[str, Any]) -> None:
        content["layers"][0]["settings"] = {
            "data": [1], "metadata": {"a": 1}, "__class__": "x", "opacity": 99, "blending": "explode",
            "contrast_limits": [5, 5], "colormap": {"x": 1}, "gamma": "big", "events": 3, "visible": False,
        }  # fmt: skip
        content["layers"][0]["colormap"] = {"name": "__import__('os')"}
        content["layers"][1]["settings"] = {"selected_label": -3, "brush_size": [1], "contour": "x"}

    opened = open_session(altered(good, wild))
    assert not opened.faults
    assert not opened.layers[0].visible
    assert opened.layers[0].data.ndim == 3
    assert opened.layers[0].colormap.name == "gray"


def test_every_damaged_byte_gives_a_code_or_the_same_labels(good: Path, tmp_path: Path) -> None:
    whole, bad = good.read_bytes(), tmp_path / "bad.napari-seg"
    random = np.random.default_rng(0)
    for at in random.integers(0, len(whole), 300):
        data = bytearray(whole)
        data[at] ^= 1 << int(random.integers(8))
        bad.write_bytes(bytes(data))
        try:
            content = read_content(bad)
            extract(bad, content, _folder(tmp_path, at), lambda: None)
        except NapariSegError:
            continue
    for at in random.integers(0, len(whole), 30):
        bad.write_bytes(whole[:at])
        with pytest.raises(InputError):
            read_content(bad)


def _folder(tmp_path: Path, number: int) -> Path:
    folder = tmp_path / f"out{number}-{len(list(tmp_path.iterdir()))}"
    folder.mkdir()
    return folder


def test_a_file_that_can_not_be_written_leaves_the_earlier_one(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, content = good.read_bytes(), read_content(good)
    files = extract(good, content, _folder(tmp_path, 0), lambda: None)
    monkeypatch.setattr(archive, "read_content", lambda path: content.model_copy(update={"salt": "0" * 32}))
    with pytest.raises(OutputError) as caught:
        write_session(content, files, good)
    assert caught.value.code == "output.not_equal"
    assert good.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    monkeypatch.undo()
    with pytest.raises(OutputError) as caught:
        write_session(content, files, tmp_path / "none" / "a.napari-seg")
    assert caught.value.code == "output.not_written"


def test_prompts_that_take_too_much_room_are_refused(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = read_content(good)
    files = extract(good, content, _folder(tmp_path, 0), lambda: None)
    monkeypatch.setattr(archive, "MAX_CONTENT_BYTES", 100)
    with pytest.raises(OutputError) as caught:
        write_session(content, files, good)
    assert caught.value.code == "session.too_large"


def test_what_killed_programs_left_is_removed_after_an_hour(good: Path, tmp_path: Path) -> None:
    import os

    content = read_content(good)
    files = extract(good, content, _folder(tmp_path, 0), lambda: None)
    old, new, other = (tmp_path / name for name in (f".{'a' * 32}.napari-seg", f".{'b' * 32}.napari-seg", ".hidden"))
    for file in (old, new, other):
        file.touch()
    os.utime(old, (0, 0))
    write_session(content, files, good)
    assert [file.exists() for file in (old, new, other)] == [False, True, True]


def test_a_grid_that_is_huge_in_the_stated_frame_is_refused(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("napari_seg.memory.free_bytes", lambda: 2**31)
    half = 0.5**0.5
    frame = [[half, -half, 0], [half, half, 0], [0, 0, 1]]
    long = Grid((30_000, 1, 1), np.eye(4))
    write_map(np.zeros(long.shape, np.uint8), long, tmp_path / "long.nii")

    def change(content: dict[str, Any]) -> None:
        content["frame"] = frame
        content["layers"][1]["grid"] = {"shape": long.shape, "affine": long.affine.tolist()}

    members = members_of(altered(good, change))
    members["labels/1.nii"] = (tmp_path / "long.nii").read_bytes()
    opened = open_session(repacked(members, tmp_path / "bad.napari-seg"))
    assert list(opened.layers) == [0]
    assert [fault.code for fault in opened.faults] == ["environment.memory"]
