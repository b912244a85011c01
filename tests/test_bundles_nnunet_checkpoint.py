"""Checkpoints of nnU-Net: read as plain data; whatever could run is refused, and nothing of it runs."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunet_models import save_checkpoint, write_model

from napari_seg.bundles.load import load_model
from napari_seg.bundles.nnunet.checkpoint import read_nnunet_checkpoint
from napari_seg.bundles.nnunet.network import build_network
from napari_seg.bundles.read import read_bundle
from napari_seg.errors import BundleError


class Evil:
    """An object whose pickle writes a file when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"echo run > {self.marker}",)


def _doubled(value: Any, times: int) -> Any:
    """Return lists or tuples that hold the same one twice, so that their text has 2 ** times parts."""
    for _ in range(times):
        value = type(value)((value, value))
    return value


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NAPARI_SEG_MODELS", str(tmp_path / "store"))
    return tmp_path / "store"


def test_a_checkpoint_that_becomes_evil_is_refused_though_it_was_read_before(tmp_path: Path) -> None:
    root, marker = write_model(tmp_path), tmp_path / "marker"
    path = root / "fold_0" / "checkpoint_final.pth"
    bundle = read_bundle(root)
    load_model(bundle, "cpu")
    before = path.stat()
    save_checkpoint(path, build_network(bundle.configuration), init_args=Evil(marker))
    with path.open("ab") as file:
        file.write(b"\0" * max(before.st_size - path.stat().st_size, 0))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(BundleError) as raised:
        load_model(bundle, "cpu")
    assert raised.value.code == "bundle.weights_unsafe"
    assert not marker.exists()


@pytest.mark.parametrize("place", ["network_weights", "logging", "optimizer_state", "trainer_name", "init_args", "new"])
def test_code_anywhere_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path, place: str) -> None:
    root, marker = write_model(tmp_path), tmp_path / "marker"
    path = root / "fold_0" / "checkpoint_final.pth"
    network = build_network(read_bundle(root).configuration)
    evil: dict[str, Any] = {place: Evil(marker)}
    if place == "network_weights":
        evil = {place: {**network.state_dict(), "encoder.evil": Evil(marker)}}
    save_checkpoint(path, network, **evil)
    with pytest.raises(BundleError) as raised:
        load_model(read_bundle(root), "cpu")
    assert raised.value.code == "bundle.weights_unsafe"
    with pytest.raises(BundleError) as raised:  # where nothing looked at it before
        read_nnunet_checkpoint(path)
    assert raised.value.code == "bundle.weights_unsafe"
    assert not marker.exists()


def test_bare_pickles_and_pickles_under_other_names_are_refused_and_not_run(tmp_path: Path) -> None:
    root, marker = write_model(tmp_path), tmp_path / "marker"
    path = root / "fold_0" / "checkpoint_final.pth"
    for protocol in (2, 4):
        path.write_bytes(pickle.dumps({"network_weights": Evil(marker)}, protocol=protocol))
        with pytest.raises(BundleError) as raised:
            load_model(read_bundle(root), "cpu")
        assert raised.value.code == "bundle.weights_unsafe"
    content = io.BytesIO()
    torch.save({"network_weights": {}}, content)
    with zipfile.ZipFile(content) as archive, zipfile.ZipFile(path, "w") as changed:
        for name in archive.namelist():
            data = pickle.dumps(Evil(marker), protocol=2) if name.endswith("data.pkl") else archive.read(name)
            changed.writestr(name, data)
    with pytest.raises(BundleError) as raised:
        load_model(read_bundle(root), "cpu")
    assert raised.value.code == "bundle.weights_unsafe"
    assert not marker.exists()


def test_a_program_in_place_of_weights_is_refused(tmp_path: Path) -> None:
    root = write_model(tmp_path)
    path = root / "fold_0" / "checkpoint_final.pth"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    with pytest.raises(BundleError) as raised:
        load_model(read_bundle(root), "cpu")
    assert raised.value.code in ("bundle.weights", "bundle.weights_unsafe")


@pytest.mark.parametrize(
    "changes",
    [
        {"network_weights": None},
        {"network_weights": {}},
        {"network_weights": {"encoder": [1, 2]}},
        {"network_weights": torch.zeros(3)},
        {"inference_allowed_mirroring_axes": (7,)},
        {"inference_allowed_mirroring_axes": (-1,)},
        {"inference_allowed_mirroring_axes": 10**9},
        {"inference_allowed_mirroring_axes": "012"},
        {"inference_allowed_mirroring_axes": (0,) * 1000},
        {"inference_allowed_mirroring_axes": {"a": _doubled([0], 60)}},
        {"inference_allowed_mirroring_axes": _doubled((0,), 60)},
    ],
)
def test_a_checkpoint_that_nnunet_does_not_write_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    root = write_model(tmp_path)
    save_checkpoint(root / "fold_0" / "checkpoint_final.pth", build_network(read_bundle(root).configuration), **changes)
    with pytest.raises(BundleError) as raised:
        load_model(read_bundle(root), "cpu")
    assert raised.value.code == "bundle.weights"


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02", b"text", bytes(1000)])
def test_damaged_checkpoints_are_refused(tmp_path: Path, content: bytes) -> None:
    root = write_model(tmp_path)
    (root / "fold_0" / "checkpoint_final.pth").write_bytes(content)
    with pytest.raises(BundleError) as raised:
        load_model(read_bundle(root), "cpu")
    assert raised.value.code in ("bundle.weights", "bundle.weights_unsafe")


def test_tensors_that_claim_more_than_the_file_holds_take_no_memory(tmp_path: Path) -> None:
    root = write_model(tmp_path)
    network = build_network(read_bundle(root).configuration)
    huge = torch.zeros(1).expand(2**40)  # one number, repeated by its stride
    save_checkpoint(
        root / "fold_0" / "checkpoint_final.pth", network, network_weights={**network.state_dict(), "encoder.x": huge}
    )
    with pytest.raises(BundleError) as raised:
        load_model(read_bundle(root), "cpu")
    assert raised.value.code == "bundle.weights"


def test_an_axis_beyond_the_network_is_refused(tmp_path: Path) -> None:
    from nnunet_models import configuration

    root = write_model(tmp_path, "2d", configuration((16, 16), (1, 1)), mirror_axes=(0, 2))
    with pytest.raises(BundleError) as raised:
        load_model(read_bundle(root), "cpu")
    assert raised.value.code == "bundle.weights"


def test_names_that_are_endless_as_text_are_left_out(tmp_path: Path) -> None:
    root, endless = write_model(tmp_path), _doubled([0], 60)
    path = root / "fold_0" / "checkpoint_final.pth"
    network = build_network(read_bundle(root).configuration)
    save_checkpoint(path, network, trainer_name=endless, init_args={"configuration": endless})
    checkpoint = read_nnunet_checkpoint(path)
    assert (checkpoint.trainer, checkpoint.configuration) == ("", "")


@pytest.mark.parametrize(
    "change",
    [
        lambda tensor: tensor.to(torch.complex64),
        lambda tensor: tensor.to(torch.int8),
        lambda tensor: tensor.to(torch.bool),
        lambda tensor: tensor.to_sparse(),
        lambda tensor: tensor.to("meta"),
    ],
)
def test_weights_that_are_no_dense_numbers_are_refused_by_name(tmp_path: Path, change: Any) -> None:
    root = write_model(tmp_path)
    network = build_network(read_bundle(root).configuration)
    weights = {name: change(tensor) for name, tensor in network.state_dict().items()}
    save_checkpoint(root / "fold_0" / "checkpoint_final.pth", network, network_weights=weights)
    with pytest.raises(BundleError, match="encoder") as raised:
        load_model(read_bundle(root), "cpu")
    assert raised.value.code == "bundle.weights"


def test_weights_by_one_name_twice_are_refused(tmp_path: Path) -> None:
    root = write_model(tmp_path)
    network = build_network(read_bundle(root).configuration)
    weights = network.state_dict()
    wrapped = {f"module.{name}": tensor * 2 for name, tensor in weights.items()}
    save_checkpoint(root / "fold_0" / "checkpoint_final.pth", network, network_weights=weights | wrapped)
    with pytest.raises(BundleError, match="twice") as raised:
        load_model(read_bundle(root), "cpu")
    assert raised.value.code == "bundle.weights"


def test_a_compressed_archive_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "run" / "fold_0" / "checkpoint_final.pth"
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(2**24))
    with pytest.raises(BundleError, match="compressed archive") as raised:
        read_nnunet_checkpoint(path)
    assert raised.value.code == "bundle.weights"
