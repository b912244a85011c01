"""Models come from Hugging Face, NGC and any address of a zip, whole and verified; the servers are on this machine."""

from __future__ import annotations

import errno
import hashlib
import io
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from bundles import write_threshold_bundle
from web import Web

from napari_seg.bundles.places import store_root
from napari_seg.bundles.store import fetch as module
from napari_seg.bundles.store.catalogue import entry_of
from napari_seg.bundles.store.installed import add, disk_use, installed, read_record, verify
from napari_seg.bundles.store.licence import Licence
from napari_seg.errors import Cancelled, NapariSegError
from napari_seg.formats import archive

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = bytes(range(256)) * 8_000


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    root = write_threshold_bundle(tmp_path / "from" / "threshold")
    (root / "LICENSE").write_text("MIT License\n\nCopyright")
    (root / "docs").mkdir()
    (root / "docs" / "README.md").write_text("text")
    (root / "scripts" / "__init__.py").touch()
    (root / "models" / "model.pt").write_bytes(WEIGHTS)
    return root


class Hub:
    """Serves a bundle as a repository of Hugging Face; `change` edits the entries of its listing."""

    def __init__(self, web: Web, bundle: Path, commit: str = COMMIT, change: Any = lambda listing: None) -> None:
        self.weights = f"/MONAI/threshold/resolve/{commit}/models/model.pt"
        listing = [{"type": "directory", "path": "models", "oid": "0" * 40, "size": 0}]
        for path in sorted(bundle.rglob("*")):
            if not path.is_file():
                continue
            name, content = path.relative_to(bundle).as_posix(), path.read_bytes()
            entry: dict[str, Any] = {"type": "file", "path": name, "size": len(content)}
            if name.startswith("models/"):
                entry |= {"oid": "0" * 40, "lfs": {"oid": hashlib.sha256(content).hexdigest(), "size": len(content)}}
                web.redirects[f"/MONAI/threshold/resolve/{commit}/{name}"] = f"/cdn/{commit}/{name}"
                web.files[f"/cdn/{commit}/{name}"] = content
                if name == "models/model.pt":
                    self.weights = f"/cdn/{commit}/{name}"
            else:
                entry["oid"] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
                web.files[f"/MONAI/threshold/resolve/{commit}/{name}"] = content
            listing.append(entry)
        change(listing)
        pages = f"/api/models/MONAI/threshold/tree/{commit}?recursive=true"
        web.put_json("/api/models/MONAI/threshold/revision/main", {"sha": commit})
        web.put_json(pages, listing[:2])
        web.put_json(f"{pages}&cursor=2", listing[2:])
        web.links[pages] = f'<{web.url}{pages}&cursor=2>; rel="next"'


@pytest.fixture
def hub(web: Web, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.setenv("HF_ENDPOINT", f"{web.url}/")
    return Hub(web, bundle)


def yes(licence: Licence) -> bool:
    return True


def no(licence: Licence) -> bool:
    return False


def again(licence: Licence) -> bool:
    raise AssertionError("the licence was accepted before")


def code_of_add(source: str | Path, accept: Any = yes) -> str:
    """The code of a refusal, which installs nothing."""
    with pytest.raises(NapariSegError) as caught:
        add(source, accept_licence=accept)
    assert installed() == []
    return caught.value.code


def zipped(root: Path) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as packed:
        for file in sorted(root.rglob("*")):
            packed.write(file, f"threshold/{file.relative_to(root).as_posix()}")
    return content.getvalue()


def test_a_repository_is_downloaded_at_one_commit(web: Web, hub: Hub, bundle: Path) -> None:
    asked: list[Licence] = []
    steps: list[tuple[str, int, int]] = []

    def accept(licence: Licence) -> bool:
        asked.append(licence)
        assert hub.weights not in web.paths()
        return True

    added = add("hf:MONAI/threshold", accept_licence=accept, progress=lambda *one: steps.append(one))
    assert [(one.name, one.kind, "MIT License" in one.text) for one in asked] == [("MIT", "open", True)]
    assert (added.root / "models" / "model.pt").read_bytes() == WEIGHTS
    assert verify("threshold") == []
    total = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
    assert steps[-1] == ("downloading", total, total)
    assert [done for _, done, _ in steps] == sorted(done for _, done, _ in steps)
    record = read_record("threshold")
    assert (record.source, record.revision) == ("hf:MONAI/threshold", COMMIT)
    assert record.licence_accepted
    add("https://huggingface.co/MONAI/threshold", accept_licence=again, name="again")
    assert disk_use().keys() == {"threshold", "again"}


def test_a_declined_licence_requests_no_weights(web: Web, hub: Hub) -> None:
    assert code_of_add("hf:MONAI/threshold", no) == "store.licence"
    assert not [path for path in web.paths() if "/models/model.pt" in path]
    assert disk_use() == {}


def test_a_stopped_download_goes_on_where_it_was(web: Web, hub: Hub) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if done > 1_500_000:
            raise Cancelled

    with pytest.raises(Cancelled):
        add("hf:MONAI/threshold", accept_licence=yes, progress=stop)
    assert installed() == []
    assert disk_use()[".part"] > 1_400_000
    before = len(web.requests)
    add("hf:MONAI/threshold", accept_licence=again)
    requests = [one for one in web.requests[before:] if "resolve" in one[0] or "cdn" in one[0]]
    (rest,) = [one for one in requests if one[2]]
    assert rest[0] == hub.weights
    assert rest[1] == f"bytes={len(WEIGHTS) - rest[2]}-"
    assert rest[2] < len(WEIGHTS) - 1_400_000
    assert verify("threshold") == []
    assert disk_use().keys() == {"threshold"}


def test_a_killed_download_goes_on_where_it_was(web: Web, hub: Hub) -> None:
    code = (
        "import os\n"
        "from napari_seg.bundles.store.installed import add\n"
        "kill = lambda stage, done, total: done > 1500000 and os._exit(9)\n"
        "add('hf:MONAI/threshold', accept_licence=lambda licence: True, progress=kill)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert installed() == []
    before = len(web.requests)
    add("hf:MONAI/threshold", accept_licence=again)
    (rest,) = [one for one in web.requests[before:] if one[0] == hub.weights]
    assert 0 < rest[2] < len(WEIGHTS) - 1_400_000
    assert verify("threshold") == []


def test_a_new_commit_meanwhile_leaves_nothing_of_the_old_one(web: Web, hub: Hub, bundle: Path) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if done > 1_500_000:
            raise Cancelled

    with pytest.raises(Cancelled):
        add("hf:MONAI/threshold", accept_licence=yes, progress=stop)
    (bundle / "docs" / "README.md").unlink()
    (bundle / "models" / "model.pt").write_bytes(WEIGHTS[::-1])
    Hub(web, bundle, commit="f" * 40)
    root = add("hf:MONAI/threshold", accept_licence=yes).root
    assert not (root / "docs" / "README.md").exists()
    assert (root / "models" / "model.pt").read_bytes() == WEIGHTS[::-1]
    assert read_record("threshold").revision == "f" * 40


def test_wrong_content_is_never_installed(web: Web, hub: Hub, bundle: Path) -> None:
    small = f"/MONAI/threshold/resolve/{COMMIT}/scripts/nets.py"
    right = web.files[small]
    web.files[small] = right.replace(b"import torch", b"import os   ")
    assert code_of_add("hf:MONAI/threshold") == "download.digest"
    web.files[small] = right
    web.files[hub.weights] = WEIGHTS[::-1]
    assert code_of_add("hf:MONAI/threshold") == "download.digest"
    web.files[hub.weights] = WEIGHTS[:-1]
    assert code_of_add("hf:MONAI/threshold") == "download.size"


def test_torchscript_beside_plain_weights_and_hidden_files_stay_away(web: Web, hub: Hub, bundle: Path) -> None:
    (bundle / "models" / "model.ts").write_bytes(b"code")
    (bundle / "models" / "alone.ts").write_bytes(b"code")
    (bundle / ".gitattributes").write_text("")
    Hub(web, bundle)
    root = add("hf:MONAI/threshold", accept_licence=yes).root
    assert sorted(path.name for path in (root / "models").iterdir()) == ["alone.ts", "model.pt"]
    assert not (root / ".gitattributes").exists()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda listing: listing[3].update(path="../evil.py"), "store.unsafe"),
        (lambda listing: listing[3].update(path="/tmp/evil.py"), "store.unsafe"),
        (lambda listing: listing[3].update(path="C:\\evil.py"), "store.unsafe"),
        (lambda listing: listing[3].update(path="a" * 5000), "store.unsafe"),
        (lambda listing: listing[3].update(path="a\nb"), "store.unsafe"),
        (lambda listing: listing[3].update(path=7), "download.server"),
        (lambda listing: listing[3].update(size="many"), "download.server"),
        (lambda listing: listing[3].update(size=2**50), "store.too_large"),
        (lambda listing: listing.append("text"), "download.server"),
        (lambda listing: listing.append(listing[3] | {"path": listing[3]["path"].upper()}), "store.unsafe"),
        (lambda listing: listing.clear(), "store.no_bundle"),
    ],
)
def test_hostile_listings_are_refused(web: Web, hub: Hub, bundle: Path, tmp_path: Path, change: Any, code: str) -> None:
    Hub(web, bundle, change=change)
    assert code_of_add("hf:MONAI/threshold") == code
    assert not [path for path in tmp_path.rglob("*evil*")]


def test_answers_that_are_no_listing_are_refused(web: Web, hub: Hub) -> None:
    revision = "/api/models/MONAI/threshold/revision/main"
    for content in (b"<html>", b"[]", b'{"sha": "../main"}', b"[" * 100_000):
        web.files[revision] = content
        assert code_of_add("hf:MONAI/threshold") == "download.server"
    web.statuses[revision] = 401
    assert code_of_add("hf:MONAI/threshold") == "download.denied"


def test_a_zip_of_the_web_is_installed(web: Web, bundle: Path) -> None:
    web.files["/threshold_v0.1.0.zip?token=secret"] = zipped(bundle)
    address = f"{web.url}/threshold_v0.1.0.zip?token=secret"
    asked: list[Licence] = []
    assert code_of_add(address, asked.append) == "store.licence"
    assert [(one.name, "MIT License" in one.text) for one in asked] == [("MIT", True)]
    assert sum(sent for _, _, sent in web.requests) < len(WEIGHTS) / 10
    web.ranges = False
    assert code_of_add(address, asked.append) == "store.licence"
    assert (asked[1].kind, asked[1].text) == ("unknown", "")
    web.ranges = True
    add(address, accept_licence=yes)
    assert verify("threshold") == []
    assert read_record("threshold").source == f"{web.url}/threshold_v0.1.0.zip"


def test_a_zip_may_fill_the_disk_and_is_kept_if_it_does_not_fit(
    web: Web, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.files["/threshold.zip"] = zipped(bundle)
    monkeypatch.setattr(archive, "MAX_FREE_FRACTION", 0.0)  # of scans alone
    with monkeypatch.context() as full:
        full.setattr(module, "MIN_FREE_BYTES", 2**62)
        assert code_of_add(f"{web.url}/threshold.zip") == "output.disk_full"
        full.undo()

        def write(*_: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        full.setattr(archive, "_unpack", write)
        assert code_of_add(f"{web.url}/threshold.zip") == "output.disk_full"
    assert not list(store_root().rglob("files"))
    before = sum(sent for path, _, sent in web.requests)
    add(f"{web.url}/threshold.zip", accept_licence=yes)
    assert sum(sent for path, _, sent in web.requests) - before < len(WEIGHTS) / 10  # its licence alone


def test_a_licence_that_shows_only_after_the_download_is_asked_for(web: Web, bundle: Path) -> None:
    (bundle / "LICENSE").write_text("Own licence\nfor non-commercial use")
    web.files["/threshold.zip"] = zipped(bundle)
    web.ranges = False
    asked: list[Licence] = []

    def accept_unknown(licence: Licence) -> bool:
        asked.append(licence)
        return licence.kind == "unknown"

    assert code_of_add(f"{web.url}/threshold.zip", accept_unknown) == "store.licence"
    assert [(one.kind, "Own licence" in one.text) for one in asked] == [("unknown", False), ("non-commercial", True)]
    assert disk_use() == {}
    add(f"{web.url}/threshold.zip", accept_licence=yes)
    assert read_record("threshold").licence_accepted
    (bundle / "LICENSE").unlink()
    web.files["/threshold.zip"] = zipped(bundle)
    add(f"{web.url}/threshold.zip", accept_licence=again, replace=True)  # it has none: nothing more to show


def test_a_zip_that_is_none_is_refused(web: Web) -> None:
    web.files["/threshold.zip"] = b"PK no zip"
    assert code_of_add(f"{web.url}/threshold.zip") == "file.truncated"
    web.types["/threshold.zip"] = "text/html"
    assert code_of_add(f"{web.url}/threshold.zip") == "download.web_page"
    assert code_of_add(f"{web.url}/none.zip") == "download.not_found"
    assert code_of_add(f"{web.url}/") == "store.name"


def test_a_zip_of_ngc_is_held_against_the_catalogue(web: Web, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NGC_URL", web.url + "/{name}/{version}.zip")
    entry = entry_of("spleen_ct_segmentation")
    assert entry is not None
    web.files["/spleen_ct_segmentation/0.5.9.zip"] = web.files["/spleen_ct_segmentation/0.5.8.zip"] = zipped(bundle)
    asked: list[Licence] = []
    web.ranges = False
    assert code_of_add("ngc:spleen_ct_segmentation", lambda one: not asked.append(one)) == "download.digest"
    assert [(one.name, one.kind, one.text) for one in asked] == [("Apache-2.0", "open", "")]
    add("ngc:spleen_ct_segmentation@0.5.8", accept_licence=lambda one: not asked.append(one))
    assert [(one.name, "MIT License" in one.text) for one in asked[1:]] == [("MIT", True)]
    add("ngc:spleen_ct_segmentation@0.5.8", accept_licence=again, replace=True)
    assert read_record("spleen_ct_segmentation").revision == "0.5.8"
    with pytest.raises(NapariSegError, match="@VERSION"):
        add("ngc:unlisted", accept_licence=yes)


def with_large_files(bundle: Path, web: Web, **changes: Any) -> None:
    (bundle / "models" / "model.pt").unlink()
    web.files["/w/model.pt"] = WEIGHTS
    one = {"path": "models/model.pt", "url": f"{web.url}/w/model.pt", "hash_type": "md5"}
    one |= {"hash_val": hashlib.md5(WEIGHTS).hexdigest(), **changes}
    lines = "".join(f"    {key}: {value!r}\n" for key, value in one.items())
    script = f"  - path: models/model.ts\n    url: {web.url}/w/model.ts\n"
    (bundle / "large_files.yml").write_text(f"large_files:\n{script}  -\n{lines}")


def test_weights_that_a_bundle_keeps_elsewhere_are_downloaded(web: Web, bundle: Path) -> None:
    with_large_files(bundle, web)
    assert code_of_add(bundle, no) == "store.licence"
    assert web.requests == []
    root = add(bundle, accept_licence=yes).root
    assert (root / "models" / "model.pt").read_bytes() == WEIGHTS
    assert web.paths() == ["/w/model.pt"]
    assert verify("threshold") == []


def test_offline_installs_what_is_there(web: Web, bundle: Path) -> None:
    with_large_files(bundle, web)
    root = add(bundle, accept_licence=again, offline=True).root
    assert not (root / "models" / "model.pt").exists()
    assert web.requests == []


def test_weights_that_can_not_be_had_leave_two_ways(web: Web, bundle: Path) -> None:
    root = bundle.rename(bundle.with_name("spleen_ct_segmentation"))
    with_large_files(root, web)
    web.types["/w/model.pt"] = "text/html"
    with pytest.raises(NapariSegError, match="hf:MONAI/spleen_ct_segmentation may have it; --offline") as caught:
        add(root, accept_licence=yes)
    assert caught.value.code == "download.web_page"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"hash_val": "0" * 32}, "download.digest"),
        ({"path": "../evil.pt"}, "store.unsafe"),
        ({"path": "/tmp/evil.pt"}, "store.unsafe"),
        ({"url": "file:///etc/passwd"}, "download.url"),
        ({"url": 7}, "download.url"),
    ],
)
def test_hostile_large_files_are_refused(
    web: Web, bundle: Path, tmp_path: Path, changes: dict[str, Any], code: str
) -> None:
    with_large_files(bundle, web, **changes)
    assert code_of_add(bundle) == code
    assert not [path for path in tmp_path.rglob("*evil*")]


@pytest.mark.parametrize("text", ["large_files: 7", "large_files: [7]", "large_files: [{path: models/a}]", "[", "- a"])
def test_damaged_large_files_are_refused(web: Web, bundle: Path, text: str) -> None:
    (bundle / "large_files.yml").write_text(text)
    assert code_of_add(bundle) == "store.large_files"


@pytest.mark.usefixtures("inline_cohorts")
def test_everything_runs_without_a_network_once_it_is_installed(web: Web, bundle: Path, tmp_path: Path) -> None:
    import phantoms

    from napari_seg.cli.main import main

    bundle = write_threshold_bundle(tmp_path / "whole" / "threshold", roi=(16, 16, 16))
    web.files["/threshold.zip"] = zipped(bundle)
    add(f"{web.url}/threshold.zip", accept_licence=yes)
    web.close()
    scan = phantoms.write_nifti(phantoms.head(), tmp_path / "head.nii.gz")
    trusted = ["--bundle", "threshold", "--trust-bundle"]
    assert main(["predict", str(scan), "-o", str(tmp_path / "out"), "--backend", "torch", *trusted]) == 0
    assert (tmp_path / "out" / "head_seg.nii.gz").is_file()
    assert store_root() in installed()[0].root.parents
