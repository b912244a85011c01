"""Consent holds for the content that a person allowed, is remembered, and is asked again after a change."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from bundles import write_threshold_bundle

from napari_seg.bundles.content import consent_hash, content_hash
from napari_seg.bundles.load import load_model
from napari_seg.bundles.places import store_root
from napari_seg.bundles.read import read_bundle
from napari_seg.bundles.trust import check_runnable, forget, is_trusted, remember
from napari_seg.errors import BundleError
from napari_seg.inference.segment import segment
from napari_seg.volume import Volume


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_threshold_bundle(tmp_path / "threshold")


def refusal(check: Callable[[], object]) -> BundleError:
    with pytest.raises(BundleError) as caught:
        check()
    return caught.value


def test_consent_is_remembered_until_the_content_changes(root: Path) -> None:
    bundle = read_bundle(root)
    error = refusal(lambda: check_runnable(bundle))
    assert error.code == "bundle.untrusted"
    assert "scripts/nets.py 'all lines run (19)'" in error.message
    assert "--trust, or read_bundle(..., trust=True)" in error.message
    assert not is_trusted(bundle)
    digest = remember(bundle)
    assert list(json.loads((store_root() / "trust.json").read_text())["trusted"]) == [digest]
    assert is_trusted(bundle)
    check_runnable(bundle)
    assert load_model(bundle, "cpu").network is not None
    torch.save({"model": {}}, root / "models" / "model.pt")
    check_runnable(bundle)
    with (root / "scripts" / "nets.py").open("a") as file:
        file.write("\nimport os\n")
    error = refusal(lambda: load_model(bundle, "cpu"))
    assert error.code == "bundle.trust_changed"
    assert "changed since you trusted it" in error.message
    remember(bundle)
    load_model(bundle, "cpu")
    forget(bundle.root)
    assert refusal(lambda: check_runnable(bundle)).code == "bundle.untrusted"


def test_a_module_s_pickle_in_a_file_named_as_an_image_needs_new_consent(root: Path) -> None:
    image = root / "models" / "template.nii"
    image.write_bytes(b"template")
    remember(read_bundle(root))
    check_runnable(read_bundle(root))
    image.write_bytes(pickle.dumps(Path))
    assert not is_trusted(read_bundle(root))
    error = refusal(lambda: load_model(read_bundle(root), "cpu"))
    assert error.code == "bundle.trust_changed"


def consent_of_an_earlier_version(root: Path) -> None:
    """Remember consent as before `consent_hash`: all that is named as data counted with its name only."""
    entry = {"name": "threshold", "folder": str(root.resolve()), "since": "2026-01-01T00:00:00+00:00"}
    store_root().mkdir(parents=True, exist_ok=True)
    (store_root() / "trust.json").write_text(json.dumps({"trusted": {content_hash(read_bundle(root)): entry}}))


def test_consent_to_a_trained_bundle_outlives_the_update_and_later_reports(root: Path) -> None:
    (root / "training").mkdir()
    (root / "training" / "report.html").write_text("<!doctype html>")
    (root / "training" / "lock").touch()
    consent_of_an_earlier_version(root)
    assert is_trusted(read_bundle(root))
    check_runnable(read_bundle(root))
    assert list(json.loads((store_root() / "trust.json").read_text())["trusted"]) == [consent_hash(read_bundle(root))]
    (root / "training" / "mean_dice_raw.csv").write_text("filename,class0\n")
    check_runnable(read_bundle(root))


def test_files_that_an_earlier_version_did_not_check_are_named(root: Path) -> None:
    (root / "models" / "template.nii").write_bytes(pickle.dumps(Path))
    consent_of_an_earlier_version(root)
    assert not is_trusted(read_bundle(root))
    error = refusal(lambda: check_runnable(read_bundle(root)))
    assert error.code == "bundle.trust_changed"
    assert "by name only; its content counts now: models/template.nii" in error.message


def test_consent_holds_for_a_copy_and_not_for_the_folder(root: Path, tmp_path: Path) -> None:
    remember(read_bundle(root))
    shutil.copytree(root, tmp_path / "copy")
    assert is_trusted(read_bundle(tmp_path / "copy"))
    shutil.rmtree(root)
    write_threshold_bundle(root, halves=True)
    assert not is_trusted(read_bundle(root))


def test_a_change_that_keeps_size_and_time_is_found(root: Path) -> None:
    bundle, path = read_bundle(root), root / "scripts" / "nets.py"
    remember(bundle)
    stamp = path.stat()
    path.write_text(path.read_text().replace("100.0", "200.0"))
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert refusal(lambda: load_model(bundle, "cpu")).code == "bundle.trust_changed"


def test_a_damaged_memory_trusts_nothing_and_is_replaced(root: Path) -> None:
    bundle = read_bundle(root)
    remember(bundle)
    for content in ("", "[1]", '{"trusted": 3}', '{"trusted": {"a": 1}}', "[" * 100_000):
        (store_root() / "trust.json").write_text(content)
        assert not is_trusted(bundle)
        assert refusal(lambda: check_runnable(bundle)).code == "bundle.untrusted"
    remember(bundle)
    assert is_trusted(bundle)


def test_consent_includes_the_coarse_bundle(root: Path) -> None:
    write_threshold_bundle(root / "coarse")
    metadata = json.loads((root / "configs" / "metadata.json").read_text())
    metadata["napari_seg"] = {"coarse": {"bundle": "coarse", "margin_mm": 5}}
    (root / "configs" / "metadata.json").write_text(json.dumps(metadata))
    bundle = read_bundle(root)
    remember(bundle)
    check_runnable(bundle)
    with (root / "coarse" / "scripts" / "nets.py").open("a") as file:
        file.write("\n")
    assert refusal(lambda: check_runnable(bundle)).code == "bundle.trust_changed"


def test_a_program_that_trusts_a_bundle_leaves_no_memory(root: Path) -> None:
    load_model(read_bundle(root, trust=True), "cpu")
    assert not (store_root() / "trust.json").exists()


def test_new_code_runs_after_new_consent(root: Path, head: Volume) -> None:
    bundle, path = read_bundle(root), root / "scripts" / "nets.py"
    for limit in (100.0, 150.0):
        path.write_text(path.read_text().replace("100.0", f"{limit}"))
        remember(bundle)
        found = segment(head, bundle, device="cpu")
        np.testing.assert_array_equal(found.array > 0, head.array[0] > limit)


def test_two_bundles_with_modules_of_one_name_run_in_turn(tmp_path: Path, head: Volume) -> None:
    bundles = {}
    for limit in (100.0, 150.0):
        root = write_threshold_bundle(tmp_path / f"limit{limit:.0f}")
        path = root / "scripts" / "nets.py"
        late = "        from scripts.values import LIMIT\n        bright = image[:, :1] - LIMIT"
        path.write_text(path.read_text().replace("        bright = image[:, :1] - 100.0", late))
        (root / "scripts" / "values.py").write_text(f"LIMIT = {limit}\n")
        bundles[limit] = read_bundle(root)
        remember(bundles[limit])
    for limit in (100.0, 150.0, 100.0, 150.0):
        found = segment(head, bundles[limit], device="cpu")
        np.testing.assert_array_equal(found.array > 0, head.array[0] > limit)


def test_a_pickle_that_calls_functions_is_refused_even_with_consent(root: Path) -> None:
    torch.save(torch.nn.Conv3d(1, 1, 1), root / "models" / "model.pt")
    error = refusal(lambda: check_runnable(read_bundle(root, trust=True)))
    assert error.code == "bundle.weights_unsafe"
    assert "torch.nn.modules.conv.Conv3d" in error.message


@pytest.mark.skipif(sys.platform == "win32", reason="links need a right there")
def test_weights_outside_of_a_bundle_need_consent(tmp_path: Path) -> None:
    root = write_threshold_bundle(tmp_path / "linked")
    shutil.rmtree(root / "scripts")
    text = (root / "configs" / "inference.yaml").read_text()
    start, end = text.index("network_def:"), text.index("preprocessing:")
    plain = "network_def: {_target_: BasicUNet, in_channels: 1, out_channels: 3}\n"
    (root / "configs" / "inference.yaml").write_text(text[:start] + plain + text[end:])
    check_runnable(read_bundle(root))
    (root / "models" / "model.pt").rename(tmp_path / "model.pt")
    (root / "models" / "model.pt").symlink_to(tmp_path / "model.pt")
    bundle = read_bundle(root)
    error = refusal(lambda: check_runnable(bundle))
    assert error.code == "bundle.link"
    assert "models/model.pt" in error.message
    remember(bundle)
    check_runnable(bundle)
    torch.save({}, tmp_path / "other.pt")
    (root / "models" / "model.pt").unlink()
    (root / "models" / "model.pt").symlink_to(tmp_path / "other.pt")
    assert refusal(lambda: check_runnable(bundle)).code == "bundle.link"
