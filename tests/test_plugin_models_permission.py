"""Whether a bundle may run, as the window shows it; nothing of the bundle runs."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

pytest.importorskip("napari", reason="the plugin's tests need napari: pip install napari-seg[napari]")

from bundles import write_threshold_bundle

from napari_seg.bundles.read import read_bundle
from napari_seg.plugin.models.permission import give_consent, permission_of


def test_consent_holds_for_the_content_that_was_shown(tmp_path: Path) -> None:
    bundle = read_bundle(write_threshold_bundle(tmp_path / "threshold"))
    shown = permission_of(bundle)
    assert (shown.kind, shown.may_run, shown.asks) == ("needed", False, True)
    assert any(line.file == "scripts/nets.py" for line in shown.lines)
    given = give_consent(bundle, shown)
    assert (given.kind, given.may_run, given.digest) == ("given", True, shown.digest)

    module = bundle.root / "scripts" / "nets.py"
    module.write_text(module.read_text() + "\nimport os\n")
    changed = permission_of(bundle)
    assert (changed.kind, changed.asks) == ("changed", True)
    assert changed.digest != shown.digest
    assert any(line.text == "import os" for line in changed.lines)

    # the content changes while the dialog is open: what was not shown is not consented to
    module.write_text("import shutil\n")
    again = give_consent(bundle, changed)
    assert again.kind == "changed"
    assert permission_of(bundle).kind == "changed"


def test_a_bundle_that_no_consent_lets_run_is_refused_with_its_reason(tmp_path: Path) -> None:
    root = write_threshold_bundle(tmp_path / "threshold")
    (root / "models" / "model.pt").unlink()
    refused = permission_of(read_bundle(root))
    assert (refused.kind, refused.may_run, refused.asks) == ("refused", False, False)
    assert "(bundle.weights)" in refused.sentence


def test_the_shipped_bundle_asks_nothing() -> None:
    assert permission_of(read_bundle()).kind == "not needed"


def test_a_bundle_of_monai_s_components_alone_asks_nothing(tmp_path: Path) -> None:
    root = write_threshold_bundle(tmp_path / "plain")
    config = root / "configs" / "inference.yaml"
    network = "{_target_: UNet, spatial_dims: 3, in_channels: 1, out_channels: 3, channels: [4, 8], strides: [2]}"
    text = re.sub("network_def:.*?(?=preprocessing:)", f"network_def: {network}\n", config.read_text(), flags=re.DOTALL)
    config.write_text(text)
    shutil.rmtree(root / "scripts")
    bundle = read_bundle(root)
    assert permission_of(bundle).sentence == "It runs at once."
    config.write_text(text.replace(network, "{_target_: os.system, command: echo}"))
    asked = permission_of(bundle)
    assert asked.kind == "needed"
    assert any("os.system" in reason for reason in asked.reasons)
    assert any(line.text == "os.system" for line in asked.lines)


def test_a_bundle_that_does_not_segment_is_refused_with_its_reason(tmp_path: Path) -> None:
    root = write_threshold_bundle(tmp_path / "boxes")
    config = root / "configs" / "inference.yaml"
    config.write_text(config.read_text().replace("scripts.nets.Threshold", "monai.apps.detection.RetinaNetDetector"))
    refused = permission_of(read_bundle(root))
    assert refused.kind == "refused"
    assert "boxes" in refused.sentence
    assert "(bundle.task)" in refused.sentence
