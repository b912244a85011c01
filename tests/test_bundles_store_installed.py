"""Models are installed whole or not at all, listed, verified and removed; nothing of one runs."""

from __future__ import annotations

import os
import stat
import zipfile
from pathlib import Path
from typing import Any

import pytest
from bundles import write_threshold_bundle
from filelock import FileLock
from nnunet_models import configuration, write_model

from napari_seg.bundles.load import load_model
from napari_seg.bundles.places import kept_folder, store_root
from napari_seg.bundles.read import find_bundles, read_bundle
from napari_seg.bundles.store import fetch, sources
from napari_seg.bundles.store import installed as store
from napari_seg.bundles.store.folders import Damage
from napari_seg.bundles.store.installed import add, disk_use, installed, installed_as, read_record, remove, verify
from napari_seg.bundles.store.licence import Licence, read_licence
from napari_seg.bundles.trust import is_trusted, remember
from napari_seg.errors import BundleError, Cancelled, NapariSegError


def refuse(licence: Licence) -> bool:
    """Local sources ask nothing: whoever has the files has accepted their licence."""
    raise AssertionError(licence)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    root = write_threshold_bundle(tmp_path / "from" / "threshold")
    (root / "LICENSE").write_text("MIT License\n\nCopyright")
    return root


def zipped(root: Path, path: Path, inside: str = "") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for file in sorted(root.rglob("*")):
            packed.write(file, f"{inside}{file.relative_to(root).as_posix()}")
    return path


def code_of(call: Any, *arguments: Any, **options: Any) -> str:
    with pytest.raises(NapariSegError) as caught:
        call(*arguments, **options)
    return caught.value.code


def code_of_add(source: Path, **options: Any) -> str:
    """The code of a refusal, which leaves nothing that is found."""
    code = code_of(add, source, accept_licence=refuse, **options)
    assert installed() == []
    return code


def files_of(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_folder_is_copied(bundle: Path) -> None:
    (bundle / "__pycache__").mkdir()
    (bundle / "__pycache__" / "old.pyc").write_bytes(b"0")
    (bundle / ".git").mkdir()
    added = add(bundle, accept_licence=refuse)
    assert added.root == store_root() / "threshold"
    assert not added.trusted
    assert files_of(added.root) == {
        name: content for name, content in files_of(bundle).items() if "old.pyc" not in name
    }
    assert [one.root for one in installed()] == [added.root]
    assert read_bundle("threshold").root == added.root.resolve()
    record = read_record("threshold")
    assert record.source == str(bundle)
    assert (record.licence, record.licence_kind, record.licence_accepted) == ("MIT", "open", "")
    assert "models/model.pt" in record.digests
    assert sorted(path.name for path in store_root().iterdir()) == [".part", ".records", "threshold"]
    assert list((store_root() / ".part").iterdir()) == []


@pytest.mark.parametrize("inside", ["", "some_name/"])
def test_a_zip_is_unpacked(bundle: Path, tmp_path: Path, inside: str) -> None:
    packed = zipped(bundle, tmp_path / "threshold_v0.1.2.zip", inside)
    added = add(packed, accept_licence=refuse)
    assert added.root == store_root() / "threshold"
    assert files_of(added.root) == files_of(bundle)


def test_a_model_of_the_same_name_is_replaced_only_on_request(bundle: Path) -> None:
    first = add(bundle, accept_licence=refuse)
    assert code_of(add, bundle, accept_licence=refuse) == "store.exists"
    (bundle / "scripts" / "nets.py").write_text("new = 1")
    add(bundle, accept_licence=refuse, replace=True)
    assert (first.root / "scripts" / "nets.py").read_text() == "new = 1"
    add(bundle, accept_licence=refuse, name="other name")
    assert [one.root.name for one in installed()] == ["other_name", "threshold"]
    assert verify("threshold") == []


def test_damage_is_found(bundle: Path) -> None:
    root = add(bundle, accept_licence=refuse).root
    assert verify("threshold") == []
    (root / "models" / "model.pt").write_bytes(b"other")
    (root / "LICENSE").unlink()
    (root / "scripts" / "more.py").write_text("")
    assert verify("threshold") == [
        Damage("LICENSE", "missing"),
        Damage("models/model.pt", "changed"),
        Damage("scripts/more.py", "added"),
    ]
    (store_root() / ".records" / "threshold.json").write_text("[" * 100_000)
    assert code_of(verify, "threshold") == "store.record"
    assert code_of(verify, "no-such-model") == "store.unknown"


def test_disk_use_is_reported_and_freed(bundle: Path) -> None:
    assert disk_use() == {}
    root = add(bundle, accept_licence=refuse).root
    expected = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    assert disk_use() == {"threshold": expected}
    left = store_root() / ".part" / "threshold-0123456789ab"
    other = store_root() / ".part" / "threshold-2-0123456789ab"
    for folder in (left, other):
        folder.mkdir(parents=True)
        (folder / "model.pt").write_bytes(b"1234")
    assert disk_use() == {"threshold": expected, ".part": 8}
    assert remove("threshold") == expected + 4
    assert disk_use() == {".part": 4}
    assert code_of(remove, "threshold") == "store.unknown"
    for name in ("", "..", "../threshold", ".part", "*"):
        assert code_of(remove, name) == "store.unknown"


def test_a_broken_model_can_be_removed(bundle: Path) -> None:
    root = add(bundle, accept_licence=refuse).root
    (root / "configs" / "metadata.json").write_text("{")
    assert installed() == []
    assert [fault.code for fault in find_bundles()[1]] == ["bundle.metadata"]
    (root / "configs" / "metadata.json").unlink()
    assert remove("threshold") > 0


@pytest.mark.parametrize(
    ("name", "safe"), [("a b/c", "a_b_c"), ("..", ""), ("nul", ""), ("COM1.old", ""), ("x" * 300, "x" * 100), ("ü", "")]
)
def test_names_are_folders_on_every_system(name: str, safe: str) -> None:
    if safe:
        assert sources.safe_name(name) == safe
    else:
        assert code_of(sources.safe_name, name) == "store.name"


def test_what_is_no_bundle_is_refused(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert code_of_add(tmp_path / "empty") == "store.no_bundle"
    write_threshold_bundle(tmp_path / "from" / "second")
    assert code_of_add(bundle.parent) == "store.no_bundle"
    assert code_of_add(tmp_path / "missing") == "store.source"
    assert code_of_add(Path("x" * 5000)) == "store.source"
    assert code_of_add(Path("a\0b")) == "store.source"
    (bundle / "configs" / "metadata.json").write_text("{}")
    assert code_of_add(bundle) == "bundle.metadata"


def test_two_programs_do_not_install_the_same_model_at_once(bundle: Path) -> None:
    source = sources.parse_source(bundle)
    with store._part_folder(source, "threshold") as part, FileLock(part.with_name(f"{part.name}.other")):
        assert code_of_add(bundle) == "store.busy"
        assert code_of(remove, "threshold") == "store.busy"
    add(bundle, accept_licence=refuse)


def test_a_stopped_copy_leaves_nothing_that_is_found(bundle: Path) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        assert (stage, 0 < done <= total) == ("copying", True)
        raise Cancelled

    assert code_of_add(bundle, progress=stop) == "run.cancelled"
    add(bundle, accept_licence=refuse)


def test_a_full_disk_is_reported(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "model.pt")

    with monkeypatch.context() as patch:
        patch.setattr(fetch.shutil, "copyfile", full)
        assert code_of_add(bundle) == "output.disk_full"


def test_a_failed_rename_keeps_the_model_that_was_there(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = add(bundle, accept_licence=refuse).root
    rename = Path.rename

    def fail(path: Path, target: Path) -> Path:
        if path.name == "files":
            raise PermissionError(13, "denied", str(target))
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fail)
        assert code_of(add, bundle, accept_licence=refuse, replace=True) == "output.not_written"
    assert verify(root.name) == []


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_links_and_devices_in_a_folder_are_refused(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    link = bundle / "models" / "other.pt"
    for target in (tmp_path / "secret", Path("/dev/zero"), tmp_path, Path(".."), Path("no-such-file")):
        link.symlink_to(target)
        assert code_of_add(bundle) == "store.unsafe"
        link.unlink()
    os.mkfifo(link)
    assert code_of_add(bundle) == "store.unsafe"
    link.unlink()
    link.symlink_to("model.pt")
    assert not (add(bundle, accept_licence=refuse).root / "models" / "other.pt").is_symlink()


def test_evil_zips_are_refused_and_write_nothing(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = tmp_path / "evil.zip"
    before = {path for path in tmp_path.rglob("*") if "store" not in path.parts}

    def code_with(name: str | zipfile.ZipInfo, content: bytes = b"evil") -> str:
        zipped(bundle, packed)
        with zipfile.ZipFile(packed, "a", zipfile.ZIP_DEFLATED) as file:
            file.writestr(name, content)
        code = code_of_add(packed)
        packed.unlink()
        assert {path for path in tmp_path.rglob("*") if "store" not in path.parts} == before
        return code

    for name in ("../evil.py", "a/../../evil.py", "/tmp/evil.py", "C:evil.py", "..\\evil.py", "a/C:/evil.py"):
        assert code_with(name) == "archive.unsafe"
    for name in ("docs/a.txt:evil", "docs/con.txt", "NUL", "docs/a.", "docs/\u202egnp.py"):
        assert code_with(name) == "store.unsafe"
    link = zipfile.ZipInfo("models/link.pt")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    assert code_with(link, b"/etc/passwd") == "store.unsafe"
    device = zipfile.ZipInfo("models/zero")
    device.external_attr = (stat.S_IFCHR | 0o666) << 16
    assert code_with(device, b"") == "store.unsafe"
    assert code_with("configs/metadata.json", b"{}") == "archive.same_name"
    with monkeypatch.context() as patch:
        patch.setattr(fetch, "FREE_RATIO_BYTES", 2**20)
        assert code_with("zeros", bytes(2**22)) == "store.too_large"
    with monkeypatch.context() as patch:
        patch.setattr(fetch, "MAX_FILES", 5)
        assert code_with("one more") == "store.too_large"
    with monkeypatch.context() as patch:
        patch.setattr(fetch, "MAX_BYTES", 100)
        assert code_with("one more") == "store.too_large"
    zipped(bundle, packed)
    content = bytearray(packed.read_bytes())
    content[len(content) // 3 : len(content) // 3 + 20] = bytes(20)
    packed.write_bytes(content)
    assert code_of_add(packed) == "file.truncated"


@pytest.mark.skipif(os.name == "nt", reason="links need a right there")
def test_a_linked_model_is_unlinked_and_its_files_stay(tmp_path: Path) -> None:
    own = tmp_path / "own"
    (own / "configs").mkdir(parents=True)
    (own / "configs" / "metadata.json").write_text("{}")
    store_root().mkdir(parents=True, exist_ok=True)
    (store_root() / "linked").symlink_to(own)
    assert remove("linked") == 0
    assert not (store_root() / "linked").is_symlink()
    assert (own / "configs" / "metadata.json").is_file()


@pytest.mark.parametrize("is_damaged", [False, True])
def test_a_removed_model_is_not_trusted_once_it_is_added_again(bundle: Path, is_damaged: bool) -> None:
    added = add(bundle, accept_licence=refuse)
    remember(added)
    assert is_trusted(added)
    if is_damaged:
        (added.root / "configs" / "metadata.json").write_text("{")
    remove("threshold")
    assert not is_trusted(add(bundle, accept_licence=refuse))


def zip_of(folder: Path, archive: Path, noise: bool = True) -> Path:
    """Pack a folder's content, as a Mac does."""
    with zipfile.ZipFile(archive, "w") as packed:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                name = path.relative_to(folder).as_posix()
                packed.write(path, name)
                if noise:
                    packed.writestr(f"__MACOSX/{'/'.join([*name.split('/')[:-1], '._' + path.name])}", b"\0\5")
        if noise:
            packed.writestr(".DS_Store", b"\0")
    return archive


def test_a_zip_of_nnunet_is_installed_and_chosen_by_name(tmp_path: Path) -> None:
    write_model(tmp_path / "results")
    archive = zip_of(tmp_path / "results", tmp_path / "hippocampus.zip")
    bundle = add(archive, accept_licence=lambda _: True)
    assert (bundle.kind, installed_as(bundle)) == ("nnunet", "hippocampus")
    assert read_bundle("hippocampus") == bundle
    assert bundle in installed()
    assert bundle in find_bundles()[0]
    assert verify("hippocampus") == []
    weights = bundle.root / "fold_0" / "checkpoint_final.pth"
    weights.write_bytes(weights.read_bytes() + b"x")
    assert [damage.fault for damage in verify("hippocampus")] == ["changed"]
    assert read_record("hippocampus").source == str(archive)
    assert remove("hippocampus") > 0
    with pytest.raises(BundleError):
        read_bundle("hippocampus")


def test_a_zip_with_plans_at_its_root_is_installed(tmp_path: Path) -> None:
    others = {"3d_fullres": configuration(), "2d": configuration((16, 16), (1, 1))}
    root = write_model(tmp_path / "results", "3d_fullres_bs8", configuration(), other_configurations=others)
    bundle = add(zip_of(root, tmp_path / "weights_v1.2.zip"), accept_licence=lambda _: True)
    assert installed_as(bundle) == "weights"
    assert read_bundle("weights").configuration.name == "3d_fullres_bs8"


def test_several_models_of_nnunet_are_installed_as_one(tmp_path: Path) -> None:
    root = write_model(tmp_path / "results")
    write_model(tmp_path / "results", "2d", configuration((16, 16), (1, 1)))
    (root / "fold_0" / "validation").mkdir()
    (root / "fold_0" / "validation" / "case.nii.gz").write_bytes(bytes(1000))
    (root / "LICENSE").write_text("Apache License\nVersion 2.0, January 2004\n")
    bundle = add(root.parent, accept_licence=lambda _: True, name="phantom")
    assert sorted(installed_as(one) for one in installed()) == ["phantom:2d", "phantom:3d_fullres"]
    assert read_bundle("phantom:2d+3d_fullres").kind == "ensemble"
    assert not list(bundle.root.parent.rglob("validation"))
    alone = add(root, accept_licence=lambda _: True, name="alone")
    assert alone.configuration.name == "3d_fullres"
    assert read_licence(alone.root, "").name == "Apache-2.0"


def test_an_evil_zip_of_nnunet_is_not_installed(tmp_path: Path) -> None:
    root = write_model(tmp_path / "results")
    text = (root / "plans.json").read_text()
    (root / "plans.json").write_text(text.replace("dynamic_network_architectures.architectures.unet", "os"))
    with pytest.raises(BundleError) as raised:
        add(zip_of(tmp_path / "results", tmp_path / "evil.zip"), accept_licence=lambda _: True)
    assert raised.value.code == "bundle.nnunet"
    assert installed() == []


@pytest.mark.parametrize("name", ["totalsegmentator", "TotalSegmentator"])
def test_no_model_has_the_name_of_the_folder_of_tasks(bundle: Path, name: str) -> None:
    for replace in (False, True):
        assert code_of_add(bundle, name=name, replace=replace) == "store.name"


def test_weights_that_are_kept_stay_out_of_installed_models(tmp_path: Path) -> None:
    root = write_model(tmp_path / "results")
    bundle = add(root, accept_licence=refuse, name="weights")
    load_model(bundle, "cpu")
    assert verify("weights") == []
    assert len([*kept_folder().iterdir()]) == 1
    add(root, accept_licence=refuse, name="weights", replace=True)
    assert len([*kept_folder().iterdir()]) == 1
