"""A download is resumed, verified and never taken for more than it is; the server is on this machine."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from web import Web

from napari_seg.bundles.store import download as module
from napari_seg.bundles.store.download import Digest, RemoteFile, download, fetch_bytes
from napari_seg.errors import Cancelled, DownloadError

CONTENT = bytes(range(256)) * 12_000
MIDDLE = 1_000_000


@pytest.fixture
def target(tmp_path: Path, web: Web) -> Path:
    """Where the file goes; its part lies in `tmp_path`."""
    web.files["/model.pt"] = CONTENT
    return tmp_path / "models" / "model.pt"


def sha256(content: bytes) -> Digest:
    return Digest("sha256", hashlib.sha256(content).hexdigest())


def remote(web: Web, path: str = "/model.pt", **known: Any) -> RemoteFile:
    return RemoteFile(web.url + path, **known)


def fetch(one: RemoteFile, target: Path, on_bytes: Any = lambda done, total: None) -> None:
    download(one, target, target.parent.parent, on_bytes)


def code_of(one: RemoteFile, target: Path) -> str:
    with pytest.raises(DownloadError) as caught:
        fetch(one, target)
    assert not target.exists()
    return caught.value.code


def parts(target: Path) -> list[Path]:
    return [path for path in target.parent.parent.iterdir() if path.is_file() and path.suffix != ".json"]


def test_a_file_is_downloaded_once(web: Web, target: Path) -> None:
    seen: list[tuple[int, int]] = []
    for _ in range(2):
        fetch(remote(web, size=len(CONTENT), digest=sha256(CONTENT)), target, lambda *one: seen.append(one))
    assert target.read_bytes() == CONTENT
    assert web.requests == [("/model.pt", "", len(CONTENT))]
    assert seen[0] == (0, len(CONTENT))
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert list(target.parent.parent.iterdir()) == [target.parent]


def stop_in_the_middle(done: int, total: int) -> None:
    if done > MIDDLE:
        raise Cancelled


@pytest.mark.parametrize("digest", [None, sha256(CONTENT)])
def test_a_stopped_download_goes_on(web: Web, target: Path, digest: Digest | None) -> None:
    with pytest.raises(Cancelled):
        fetch(remote(web, digest=digest), target, stop_in_the_middle)
    (part,) = parts(target)
    have = part.stat().st_size
    assert MIDDLE < have < len(CONTENT)
    fetch(remote(web, digest=digest), target)
    assert target.read_bytes() == CONTENT
    assert web.requests[1] == ("/model.pt", f"bytes={have}-", len(CONTENT) - have)


def test_a_killed_download_goes_on(web: Web, target: Path) -> None:
    code = (
        "import os, sys, pathlib\n"
        "from napari_seg.bundles.store.download import RemoteFile, download\n"
        "target = pathlib.Path(sys.argv[2])\n"
        "kill = lambda done, total: done > 1000000 and os._exit(9)\n"
        "download(RemoteFile(sys.argv[1]), target, target.parent.parent, kill)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, f"{web.url}/model.pt", str(target)], check=False)
    assert killed.returncode == 9
    (part,) = parts(target)
    have = part.stat().st_size
    fetch(remote(web), target)
    assert target.read_bytes() == CONTENT
    assert web.requests[1:] == [("/model.pt", f"bytes={have}-", len(CONTENT) - have)]


def test_a_broken_connection_is_taken_up_at_once(web: Web, target: Path) -> None:
    web.cut_after["/model.pt"] = MIDDLE
    fetch(remote(web), target)
    assert target.read_bytes() == CONTENT
    assert web.requests == [
        ("/model.pt", "", MIDDLE),
        ("/model.pt", f"bytes={MIDDLE}-", len(CONTENT) - MIDDLE),
    ]


@pytest.mark.parametrize("conditions", [True, False])
def test_a_file_that_changed_meanwhile_is_downloaded_whole(web: Web, target: Path, conditions: bool) -> None:
    web.conditions = conditions
    with pytest.raises(Cancelled):
        fetch(remote(web), target, stop_in_the_middle)
    web.files["/model.pt"] = other = CONTENT[::-1]
    fetch(remote(web), target)
    assert target.read_bytes() == other
    assert web.requests[1][1].startswith("bytes=")
    assert web.requests[-1][2] == len(other)


@pytest.mark.parametrize("case", ["no ranges", "no tag", "weak tag"])
def test_a_server_that_can_not_resume_sends_all_again(web: Web, target: Path, case: str) -> None:
    web.ranges = case != "no ranges"
    if case != "no ranges":
        web.tags["/model.pt"] = 'W/"1"' if case == "weak tag" else ""
    with pytest.raises(Cancelled):
        fetch(remote(web), target, stop_in_the_middle)
    fetch(remote(web), target)
    assert target.read_bytes() == CONTENT
    assert web.requests[1][2] == len(CONTENT)


def test_a_part_that_is_longer_than_the_file_is_dropped(web: Web, target: Path) -> None:
    with pytest.raises(Cancelled):
        fetch(remote(web), target, stop_in_the_middle)
    web.files["/model.pt"], web.tags["/model.pt"] = CONTENT[:10], f'"{hash(CONTENT)}"'
    fetch(remote(web), target)
    assert target.read_bytes() == CONTENT[:10]


def test_a_download_that_was_killed_after_its_last_byte_needs_none(web: Web, target: Path) -> None:
    def stop_at_the_end(done: int, total: int) -> None:
        if done == total:
            raise Cancelled

    known = {"size": len(CONTENT), "digest": sha256(CONTENT)}
    for one, requests in ((remote(web, **known), 1), (remote(web), 2)):
        web.requests.clear()
        with pytest.raises(Cancelled):
            fetch(one, target, stop_at_the_end)
        fetch(one, target)
        assert target.read_bytes() == CONTENT
        assert len(web.requests) == requests
        assert sum(sent for _, _, sent in web.requests) == len(CONTENT)
        target.unlink()


@pytest.mark.parametrize("algorithm", module.ALGORITHMS)
def test_digests_are_compared(web: Web, target: Path, algorithm: str) -> None:
    content = b"blob 3072000\0" + CONTENT if algorithm == "git" else CONTENT
    value = hashlib.new("sha1" if algorithm == "git" else algorithm, content).hexdigest()
    wrong = Digest(algorithm, "0" * len(value))
    assert code_of(remote(web, digest=wrong), target) == "download.digest"
    assert parts(target) == []
    fetch(remote(web, digest=Digest(algorithm, value.upper())), target)
    assert target.read_bytes() == CONTENT


def test_a_length_that_lies_is_found(web: Web, target: Path) -> None:
    assert code_of(remote(web, size=len(CONTENT) - 1), target) == "download.size"
    assert parts(target) == []
    web.lengths["/model.pt"] = len(CONTENT) + 5
    assert code_of(remote(web), target) == "download.interrupted"
    parts(target)[0].unlink()
    web.lengths["/model.pt"] = 7
    assert code_of(remote(web, size=len(CONTENT)), target) == "download.size"
    assert code_of(remote(web, digest=sha256(CONTENT)), target) == "download.digest"
    assert parts(target) == []


def test_redirects_stay_on_the_web(web: Web, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").write_text("secret")
    web.redirects["/old.pt"] = "/model.pt"
    fetch(remote(web, "/old.pt"), target)
    assert target.read_bytes() == CONTENT
    target.unlink()
    for place in ((tmp_path / "secret").as_uri(), "ftp://127.0.0.1/model.pt", "data:,evil", "/loop.pt"):
        web.redirects["/loop.pt"] = place
        assert code_of(remote(web, "/loop.pt"), target) == "download.redirect"
    request = SimpleNamespace(full_url="https://example.org/model.pt")
    with pytest.raises(DownloadError) as caught:
        module._Redirects().redirect_request(request, SimpleNamespace(close=int), 302, "", {}, "http://example.org/a")  # type: ignore[arg-type]
    assert caught.value.code == "download.redirect"


@pytest.mark.parametrize(
    ("status", "code"),
    [(404, "not_found"), (410, "not_found"), (401, "denied"), (403, "denied"), (500, "server"), (416, "server")],
)
def test_statuses_have_codes(web: Web, target: Path, status: int, code: str) -> None:
    web.statuses["/model.pt"] = status
    assert code_of(remote(web), target) == f"download.{code}"


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://a/b", "http://", "model.pt", "http://[", "http://a/\nb"])
def test_other_addresses_are_refused(url: str, target: Path) -> None:
    assert code_of(RemoteFile(url), target) == "download.url"


def test_a_machine_without_a_network_is_told(web: Web, target: Path) -> None:
    assert code_of(RemoteFile("http://127.0.0.1:9/model.pt"), target) == "download.no_network"


def test_a_page_in_place_of_a_file_is_refused(web: Web, target: Path) -> None:
    web.types["/model.pt"] = "text/html; charset=utf-8"
    assert code_of(remote(web), target) == "download.web_page"


def test_a_full_disk_is_reported_before_it_is_full(web: Web, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=module.MIN_FREE_BYTES + 10))
    assert code_of(remote(web), target) == "download.disk_full"
    assert parts(target) == []


def test_a_disk_that_fills_up_is_reported(web: Web, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "_receive", full)
        assert code_of(remote(web), target) == "download.disk_full"
    fetch(remote(web), target)


def test_addresses_are_shown_without_their_secrets(web: Web, target: Path) -> None:
    with pytest.raises(DownloadError) as caught:
        fetch(RemoteFile(f"{web.url.replace('//', '//name:password@')}/none.pt?token=secret"), target)
    assert "secret" not in str(caught.value)
    assert "password" not in str(caught.value)


def test_short_answers_have_a_limit_and_pages(web: Web) -> None:
    web.files["/api"] = b"12345"
    assert fetch_bytes(f"{web.url}/api", 5) == (b"12345", "")
    with pytest.raises(DownloadError) as caught:
        fetch_bytes(f"{web.url}/api", 4)
    assert caught.value.code == "download.size"
    web.links["/api"] = '</api?page=2>; rel="next"'
    assert fetch_bytes(f"{web.url}/api", 5)[1] == f"{web.url}/api?page=2"
