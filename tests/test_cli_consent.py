"""`--trust` says what it allows, and is remembered; no command lets a bundle act without it."""

from __future__ import annotations

import json
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import monai
import phantoms
import pytest
import torch
from bundles import write_threshold_bundle

from napari_seg.bundles.places import BUNDLES_VARIABLE, store_root
from napari_seg.cli.main import main
from napari_seg.volume import Volume


@pytest.fixture
def scan(head: Volume, tmp_path: Path) -> Path:
    return phantoms.write_nifti(head, tmp_path / "scan.nii.gz")


@pytest.mark.usefixtures("inline_cohorts")
def test_trust_is_printed_and_remembered(scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = write_threshold_bundle(tmp_path / "threshold")
    words = ["predict", str(scan), "-o", str(tmp_path / "out"), "--bundle", str(root), "--device", "cpu"]
    assert main(words) == 1
    assert "bundle.untrusted" in capsys.readouterr().err
    assert main([*words, "--trust"]) == 0
    printed = capsys.readouterr().err
    digest = next(iter(json.loads((store_root() / "trust.json").read_text())["trusted"]))
    assert f"sha256 {digest}, 4 files" in printed
    assert "scripts/nets.py: all lines run (19)  (Python module of the bundle)" in printed
    assert "configs/inference.yaml:3: scripts.nets.Threshold" in printed
    assert (
        "  because configs/inference.yaml: network_def._target_ scripts.nets.Threshold is the bundle's own" in printed
    )
    assert main([*words, "--redo-all"]) == 0
    assert "you allow" not in capsys.readouterr().err
    with (root / "configs" / "inference.yaml").open("a") as file:
        file.write('\nmore: "$1 + 1"\n')
    assert main([*words, "--redo-all"]) == 1
    assert "bundle.trust_changed" in capsys.readouterr().err
    assert main([*words, "--redo-all", "--trust-bundle"]) == 0


@pytest.mark.usefixtures("inline_cohorts")
def test_a_bundle_without_code_needs_no_trust_and_leaves_no_memory(
    scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    root = write_threshold_bundle(tmp_path / "plain")
    (root / "configs" / "inference.yaml").write_text(PLAIN)
    network = monai.networks.nets.UNet(3, 1, 3, channels=[2, 4], strides=[2])
    torch.save(network.state_dict(), root / "models" / "model.pt")
    words = ["predict", str(scan), "-o", str(tmp_path / "out"), "--bundle", str(root), "--device", "cpu", "--trust"]
    assert main(words) == 0
    assert "you allow" not in capsys.readouterr().err
    assert not (store_root() / "trust.json").exists()
    assert main([*words[:-1], "--redo-all"]) == 0


@pytest.mark.usefixtures("inline_cohorts")
def test_trust_holds_for_one_run_where_the_store_can_t_be_written(
    scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("NAPARI_SEG_MODELS", str(tmp_path / "file" / "store"))
    root = write_threshold_bundle(tmp_path / "threshold")
    words = ["predict", str(scan), "-o", str(tmp_path / "out"), "--bundle", str(root), "--device", "cpu"]
    assert main([*words, "--trust"]) == 0
    assert "for this run only" in capsys.readouterr().err
    assert main([*words, "--redo-all"]) == 1


PLAIN = """
network_def:
  _target_: UNet
  spatial_dims: 3
  in_channels: 1
  out_channels: 3
  channels: [2, 4]
  strides: [2]
preprocessing:
  _target_: Compose
  transforms:
    - {_target_: LoadImaged, keys: image}
    - {_target_: EnsureChannelFirstd, keys: image}
inferer: {_target_: SlidingWindowInferer, roi_size: [32, 32, 32]}
"""


class Evil:
    """Creates a folder as it is unpickled."""

    def __init__(self, trap: Path) -> None:
        self.trap = trap

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trap),)


def _expression(root: Path, trap: Path) -> None:
    _append(root, f'bad: "$open({str(trap)!r}, \'w\')"\npreprocessing::more: "@bad"\nnetwork_def::act: "@bad"\n')


def _target(root: Path, trap: Path) -> None:
    _append(root, f"network_def::norm:\n  _target_: os.system\n  command: {json.dumps(f'mkdir {trap}')}\n")


def _scripts(root: Path, trap: Path) -> None:
    (root / "scripts").mkdir()
    (root / "scripts" / "__init__.py").write_text(f"open({str(trap)!r}, 'w')\n")
    _append(root, 'imports: "$import scripts"\nnetwork_def::norm: "$scripts.norm"\n')


def _pickle(root: Path, trap: Path) -> None:
    (root / "models" / "model.pt").write_bytes(pickle.dumps(Evil(trap)))


def _archived_pickle(root: Path, trap: Path) -> None:
    torch.save({"model": Evil(trap)}, root / "models" / "model.pt")


def _logging(root: Path, trap: Path) -> None:
    text = f"[handlers]\nkeys=a\n[handler_a]\nclass=StreamHandler\nargs=(open({str(trap)!r}, 'w'),)\n"
    (root / "configs" / "logging.conf").write_text(text)


def _metadata(root: Path, trap: Path) -> None:
    path = root / "configs" / "metadata.json"
    metadata = json.loads(path.read_text())
    metadata["name"] = f"$__import__('os').mkdir({str(trap)!r})"
    metadata["description"] = {"_target_": "os.mkdir", "path": str(trap)}
    path.write_text(json.dumps(metadata))


def _torchscript(root: Path, trap: Path) -> None:
    (root / "models" / "model.pt").unlink()
    torch.jit.save(torch.jit.trace(torch.nn.Conv3d(1, 1, 1), torch.zeros(1, 1, 2, 2, 2)), root / "models" / "model.ts")


def _writer(root: Path, trap: Path) -> None:
    """Save by a handler of a whole workflow, which the engine does not run."""
    writer = f"{{_target_: SaveImaged, keys: pred, output_dir: {json.dumps(str(trap))}}}"
    command = f"{{_target_: os.mkdir, path: {json.dumps(str(trap))}}}"
    _append(root, f"postprocessing: {{_target_: Compose, transforms: [{writer}, {command}]}}\nrun: ['$@x']\n")


def _linked_code(root: Path, trap: Path) -> None:
    outside = root.parent / "outside"
    outside.mkdir()
    (outside / "__init__.py").write_text(f"open({str(trap)!r}, 'w')\n")
    (root / "scripts").symlink_to(outside)


def _append(root: Path, text: str) -> None:
    with (root / "configs" / "inference.yaml").open("a") as file:
        file.write(text)


EVIL: dict[Callable[[Path, Path], None], str] = {
    _expression: "bundle.foreign_expression",
    _target: "bundle.foreign_target",
    _scripts: "bundle.untrusted",
    _pickle: "bundle.weights_unsafe",
    _archived_pickle: "bundle.weights_unsafe",
    _logging: "",
    _metadata: "",
    _linked_code: "bundle.link",
    _torchscript: "bundle.torchscript",
    _writer: "bundle.foreign_target",
}
"""What makes a bundle evil -> code of its refusal; "" if nothing acts, so that it may or may not be refused."""


@pytest.mark.usefixtures("inline_cohorts")
@pytest.mark.parametrize("make", EVIL)
def test_nothing_of_an_evil_bundle_acts_without_consent(
    make: Callable[[Path, Path], None],
    scan: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if make is _linked_code and sys.platform == "win32":
        pytest.skip("links need a right there")
    root, trap = write_threshold_bundle(tmp_path / "models" / "evil"), tmp_path / "trap"
    (root / "scripts" / "nets.py").unlink()
    (root / "scripts").rmdir()
    (root / "configs" / "inference.yaml").write_text(PLAIN)
    make(root, trap)
    monkeypatch.setenv(BUNDLES_VARIABLE, str(root.parent))
    for words in (["bundles"], ["models", "list"], ["models", "list", "--json"], ["models", "show", "evil"]):
        assert main(words) == 0
    main(["models", "check", "evil"])
    capsys.readouterr()
    code = main(["predict", str(scan), "-o", str(tmp_path / "out"), "--bundle", "evil", "--device", "cpu"])
    printed = capsys.readouterr()
    assert code in (1, 4, 5)
    assert EVIL[make] in printed.err + printed.out
    assert not trap.exists()
    assert all(letter.isprintable() or letter in "\n\t" for letter in printed.err)
