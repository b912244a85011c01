"""Bundles are found and read without running them, and unfit ones are refused with the reason."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path

import pytest
from bundles import write_threshold_bundle

from napari_seg.bundles import metadata as module
from napari_seg.bundles.load import load_model
from napari_seg.bundles.places import BUNDLES_VARIABLE
from napari_seg.bundles.read import find_bundles, read_bundle, shipped_root
from napari_seg.errors import BundleError


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A bundle from somebody else: the shipped one's configs and code, no weights."""
    root = tmp_path / "foreign"
    shutil.copytree(shipped_root(), root, ignore=shutil.ignore_patterns("models", "__pycache__"))
    return root


def code_of(call: object, *args: object, **kwargs: object) -> str:
    with pytest.raises(BundleError) as caught:
        call(*args, **kwargs)  # type: ignore[operator]
    return caught.value.code


def test_a_model_is_found_by_its_title() -> None:
    title = read_bundle().name
    assert read_bundle(title) == read_bundle()
    with pytest.raises(BundleError, match="found no model"):
        read_bundle(f"{title} of nobody")


def test_an_unknown_name_is_answered_with_the_nearest(foreign: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BUNDLES_VARIABLE, str(foreign.parent))
    title = read_bundle().name
    with pytest.raises(BundleError, match="lists the available ones") as caught:
        read_bundle("hippocampus")  # two have this title, which stands for none of them
    assert "did you mean" not in caught.value.message
    path = foreign / "configs" / "metadata.json"
    path.write_text(path.read_text().replace(title, "Another title"))
    for text, near in (("hippocampus", title), ("hipocampus", title), ("foriegn", "foreign"), ("FOREIGN", "foreign")):
        with pytest.raises(BundleError, match=f'did you mean "{near}"') as caught:
            read_bundle(text)
        assert caught.value.code == "bundle.unknown"
    for text in ("kidney", "a/hippocampus", "hip"):
        with pytest.raises(BundleError, match="found no model at") as caught:
            read_bundle(text)
        assert "did you mean" not in caught.value.message


def test_the_shipped_bundle_declares_itself() -> None:
    bundle = read_bundle()
    assert bundle.trusted
    assert bundle.modality == "MR"
    assert [s.name for s in bundle.segments] == [
        "left anterior hippocampus",
        "left posterior hippocampus",
        "right anterior hippocampus",
        "right posterior hippocampus",
    ]
    assert bundle.localiser is not None
    assert [r.mirror for r in bundle.localiser.regions] == [False, True]
    assert find_bundles()[0][0].root == bundle.root
    assert read_bundle(bundle) is bundle


def test_bundles_are_found_by_folder_and_by_name(foreign: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BUNDLES_VARIABLE, str(foreign.parent))
    shutil.copytree(foreign, foreign.parent / "zebra")
    (foreign.parent / "zebra/configs/metadata.json").write_text("{}")
    bundles, faults = find_bundles()
    assert [b.root for b in bundles] == [shipped_root(), foreign]
    assert [fault.code for fault in faults] == ["bundle.metadata"]
    assert read_bundle("foreign").root == foreign
    assert read_bundle(str(foreign)).root == foreign
    assert not read_bundle(foreign).trusted
    assert read_bundle(read_bundle(foreign), trust=True).trusted


def test_unknown_and_broken_bundles_are_named(foreign: Path) -> None:
    (foreign.parent / "bare/configs").mkdir(parents=True)
    assert code_of(read_bundle, foreign.parent / "bare") == "bundle.metadata"
    assert code_of(read_bundle, "no-such-bundle") == "bundle.unknown"
    for name, meant in (("total_fast", "total_fast"), ("TotalSegmentator", "total"), ("Lung_Vessels", "lung_vessels")):
        with pytest.raises(BundleError, match=f"did you mean totalsegmentator:{meant}$") as raised:
            read_bundle(name)
        assert raised.value.code == "bundle.unknown"
    with pytest.raises(BundleError, match='did you mean "totalsegmentator:total"'):
        read_bundle("totl")
    with pytest.raises(BundleError, match='did you mean "totalsegmentator:lung_vessels"'):
        read_bundle("totalsegmentor:lung_vessels")
    (foreign / "configs/metadata.json").write_text("{not json")
    assert code_of(read_bundle, foreign) == "bundle.metadata"
    (foreign / "configs/metadata.json").write_text(json.dumps({"version": "1"}))
    assert code_of(read_bundle, foreign) == "bundle.metadata"


def test_foreign_code_does_not_run_without_trust(foreign: Path, tmp_path: Path) -> None:
    trap = tmp_path / "ran"
    config = foreign / "configs/inference.yaml"
    config.write_text(config.read_text() + f"\nnetwork_def: \"$open({str(trap)!r}, 'w')\"\n")
    assert code_of(load_model, read_bundle(foreign), "cpu") == "bundle.untrusted"
    assert not trap.exists()


def test_missing_and_foreign_weights_are_reported(foreign: Path) -> None:
    import torch

    bundle = read_bundle(foreign, trust=True)
    assert code_of(load_model, bundle, "cpu") == "bundle.weights"
    (foreign / "models").mkdir()
    torch.save({"other.weight": torch.zeros(3)}, foreign / "models/model.pt")
    assert code_of(load_model, bundle, "cpu") == "bundle.weights"
    (foreign / "models/model.pt").write_bytes(b"not a checkpoint")
    assert code_of(load_model, bundle, "cpu") == "bundle.weights"


def test_the_cause_of_what_a_library_raised_is_reported_whole(tmp_path: Path) -> None:
    import torch

    def message_of(root: Path) -> str:
        with pytest.raises(BundleError) as caught:
            load_model(read_bundle(root, trust=True), "cpu")
        return caught.value.message

    root = write_threshold_bundle(tmp_path / "needs")
    network = (root / "scripts" / "nets.py").read_text()
    (root / "scripts" / "nets.py").write_text("import no_such_package.layers\n" + network)
    assert "the package no_such_package is not installed (pip install no_such_package)" in message_of(root)
    (root / "scripts" / "nets.py").write_text("import cv2_of_nobody as cv2\nfrom scripts import missing\n" + network)
    assert "cv2_of_nobody" in message_of(root)
    lazy = "\n        from monai.utils import optional_import\n        optional_import('no_such_package')[0].layer()\n"
    (root / "scripts" / "nets.py").write_text(network.replace("super().__init__()", "super().__init__()" + lazy))
    assert "(pip install no_such_package)" in message_of(root)

    root = write_threshold_bundle(tmp_path / "differs")
    layers = ("heads = torch.nn.Conv3d(1, 4, 1)", "tail = torch.nn.Linear(40, 1)")
    extra = "super().__init__()\n" + "".join(f"        self.{layer}\n" for layer in layers)
    (root / "scripts" / "nets.py").write_text(network.replace("super().__init__()", extra))
    many = {f"encoder.stage_{n}.a_long_name_of_a_layer.weight": torch.zeros(1) for n in range(300)}
    torch.save(
        {"heads.weight": torch.zeros(2, 1, 1, 1, 1), "tail.weight": torch.zeros(1, 40), **many},
        root / "models/model.pt",
    )
    text = message_of(root)
    for part in (
        "2 missing in the file (heads.bias, tail.bias)",
        "300 unknown to the network (encoder.stage_0",
        "heads.weight (2, 1, 1, 1, 1) for (4, 1, 1, 1, 1)",
    ):
        assert part in text
    assert "\n" not in text


def test_a_config_that_fails_is_reported(foreign: Path) -> None:
    (foreign / "models").mkdir()
    (foreign / "models/model.pt").touch()
    (foreign / "configs/inference.yaml").write_text("network_def: {_target_: segnets.NoSuchNet}\n")
    assert code_of(load_model, read_bundle(foreign, trust=True), "cpu") == "bundle.config"


def test_two_bundles_whose_modules_share_a_name_do_not_shadow_each_other(foreign: Path) -> None:
    before = sys.modules.get("segnets")
    (foreign / "models").mkdir()
    shutil.copy(shipped_root() / "models/model.pt", foreign / "models/model.pt")
    network = foreign / "segnets/unet.py"
    network.write_text(network.read_text() + "\nUNet.origin = 'foreign'\n")
    theirs = load_model(read_bundle(foreign, trust=True), "cpu")
    ours = load_model(read_bundle(), "cpu")
    assert getattr(theirs.network, "origin", "") == "foreign"
    assert not hasattr(ours.network, "origin")
    assert sys.modules.get("segnets") is before
    assert str(foreign) not in sys.path


def test_a_model_is_loaded_once() -> None:
    assert load_model(read_bundle(), "cpu") is load_model(read_bundle(), "cpu")


def with_metadata(root: Path, change: object) -> Path:
    """A bundle with metadata of its own; the shipped one's, changed, or any text."""
    (root / "configs").mkdir(parents=True)
    metadata = json.loads((shipped_root() / "configs/metadata.json").read_text())
    text = change if isinstance(change, str) else json.dumps(change(metadata) or metadata)  # type: ignore[operator]
    (root / "configs/metadata.json").write_text(text)
    return root


def outputs(metadata: dict, **changes: object) -> None:
    metadata["network_data_format"]["outputs"]["pred"].update(changes)


HOSTILE = {
    "deep": "[" * 200_000,
    "deep-too": '{"a":' * 200_000,
    "large": '{"name": "' + "x" * 2**23 + '"}',
    "overflow": lambda m: json.loads('{"network_data_format": 0}'),
    "channels": lambda m: outputs(m, num_channels=1_000_000_000, channel_def={}),
    "no-channels": lambda m: outputs(m, num_channels=-3),
    "channel": lambda m: outputs(m, channel_def={"1000000000": "all"}),
    "label": lambda m: m["napari_seg"]["segments"][0].update(label=2**40),
    "background": lambda m: m["napari_seg"]["segments"][0].update(label=0),
    "a-list": "[]",
    "nothing": "",
    "numbers": '{"network_data_format": {"inputs": {"image": {"num_channels": 1e400}}, "outputs": {"pred": {}}}}',
    "inputs": lambda m: m["network_data_format"]["inputs"]["image"].update(num_channels="\x1b[2J"),
    "place": lambda m: m["napari_seg"]["localiser"]["regions"][0].update(center_mm=[float("inf")] * 3),
    "bytes": "\ud800",
}


def test_one_hostile_bundle_costs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from napari_seg.cli.main import main

    for name, change in HOSTILE.items():
        if name == "bytes":
            with_metadata(tmp_path / name, "").joinpath("configs/metadata.json").write_bytes(b"\xff\xfe\xff{")
        else:
            with_metadata(tmp_path / name, change)
    (tmp_path / "folder/configs/metadata.json").mkdir(parents=True)
    with_metadata(tmp_path / "good", lambda m: m.update(name="Good"))
    monkeypatch.setenv(BUNDLES_VARIABLE, str(tmp_path))
    began = time.monotonic()
    assert main(["bundles"]) == 0
    assert time.monotonic() - began < 5
    printed = capsys.readouterr()
    assert "Good" in printed.out
    assert "Hippocampus" in printed.out
    assert printed.err.count("bundle.too_large") == 3  # "deep", "deep-too" and "large"
    assert printed.err.count("bundle.metadata") == len(HOSTILE) - 3 + 1  # and the one whose metadata.json is a folder
    assert "\x1b" not in printed.err


TWICE = {"0": "background", "1": "lesion", "2": "lesion", "3": "liver"}


def test_channels_of_one_name_are_numbered(tmp_path: Path) -> None:
    root = with_metadata(tmp_path / "twice", lambda m: m["napari_seg"].clear() or outputs(m, channel_def=TWICE))
    assert [segment.name for segment in read_bundle(root).segments] == ["lesion (1)", "lesion (2)", "liver"]


def test_a_name_can_fake_no_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from napari_seg.cli.main import main

    evil = "A\x1b[2K\x1b]0;title\x07\rB\n  C  1.0   MR   trusted\u202e\u2028D" + "x" * 500

    def change(metadata: dict) -> None:
        metadata.update(dict.fromkeys(("name", "version", "description", "license", "intended_use"), evil))
        metadata["network_data_format"]["inputs"]["image"]["modality"] = evil
        metadata["network_data_format"]["outputs"]["pred"]["channel_def"]["1"] = evil
        metadata["eval_metrics"] = {evil: 0.5, "huge": 10**400, "infinite": float("inf")}
        metadata["napari_seg"]["segments"][0]["name"] = evil
        metadata["napari_seg"]["network_segments"] = []

    root = with_metadata(tmp_path / "evil", change)
    bundle = read_bundle(root)
    assert len(bundle.name) == module.MAX_NAME
    assert bundle.name.startswith("A [2K ]0;title B C 1.0 MR trusted D")
    texts = (bundle.version, bundle.description, bundle.modality, bundle.licence, bundle.intended_use)
    names = [segment.name for segment in (*bundle.segments, *bundle.network_segments)]
    assert all(text.isprintable() for text in (*texts, *names, *(name for name, _ in bundle.accuracy)))
    assert [value for _, value in bundle.accuracy] == [0.5]
    monkeypatch.setenv(BUNDLES_VARIABLE, str(tmp_path))
    main(["bundles"])
    printed = capsys.readouterr().out
    assert printed.count("\n") == 9
    assert printed.replace("\n", "").isprintable()


def test_a_name_that_no_disk_takes_is_unknown() -> None:
    assert code_of(read_bundle, "x" * 5000) == "bundle.unknown"
    assert code_of(read_bundle, "a\0b") == "bundle.unknown"


CHANNELS = {
    "names of channel_def": ({"image": {"num_channels": 2, "channel_def": {"0": "T1", "1": "FLAIR"}}}, ("T1", "FLAIR")),
    "no names": ({"image": {"num_channels": 3}}, ("0", "1", "2")),
    "fewer names than channels": ({"image": {"num_channels": 2, "channel_def": {"0": "image"}}}, ("image", "1")),
    "twice the same": ({"image": {"num_channels": 2, "channel_def": {"0": "T1", "1": "T1"}}}, ("T1 (0)", "T1 (1)")),
    "several images": ({"artery": {"num_channels": 1}, "vein": {"num_channels": 1}}, ("artery", "vein")),
    "another name": ({"scan": {"num_channels": 1, "channel_def": {"0": "CT"}}, "time": {"type": "timesteps"}}, ("CT",)),
}


@pytest.mark.parametrize("case", CHANNELS)
def test_channels_of_the_input_have_names(tmp_path: Path, case: str) -> None:
    inputs, names = CHANNELS[case]
    bundle = read_bundle(with_metadata(tmp_path / "b", lambda m: m["network_data_format"].update(inputs=inputs)))
    assert bundle.channel_names == names
    assert bundle.in_channels == len(names)


def test_channels_without_names_are_called_after_the_images_that_the_config_reads(tmp_path: Path) -> None:
    inputs = {"image": {"num_channels": 2, "channel_def": {"0": "image"}}}
    root = with_metadata(tmp_path / "b", lambda m: m["network_data_format"].update(inputs=inputs))
    reader = {"_target_": "LoadImaged", "keys": ["artery", "vein", "label"]}
    config = {"preprocessing": {"_target_": "Compose", "transforms": [reader]}}
    for path in (root / "configs").glob("inference.*"):
        path.unlink()
    (root / "configs" / "inference.json").write_text(json.dumps(config))
    assert read_bundle(root).channel_names == ("artery", "vein")
    reader["keys"] = ["artery"]  # no name for each channel
    (root / "configs" / "inference.json").write_text(json.dumps(config))
    assert read_bundle(root).channel_names == ("image", "1")
    config["clicks"] = {"_target_": "AddGuidanceSignalDeepEditd", "keys": "image"}  # the second channel is no image
    (root / "configs" / "inference.json").write_text(json.dumps(config))
    assert read_bundle(root).channel_names == ("image",)


def test_a_bundle_without_an_image_is_refused(tmp_path: Path) -> None:
    latent = {"latent": {"num_channels": 1, "type": "noise"}}
    root = with_metadata(tmp_path / "b", lambda m: m["network_data_format"].update(inputs=latent))
    with pytest.raises(BundleError, match=r"inputs are latent; expected an image"):
        read_bundle(root)


def test_metadata_in_other_words_is_read(tmp_path: Path) -> None:
    def change(metadata: dict) -> None:
        metadata["napari_seg"].clear()
        pred = metadata["network_data_format"]["outputs"].pop("pred")
        del pred["channel_def"]
        seeds = {"format": "regression", "num_channels": 2}
        metadata["network_data_format"]["outputs"] = {
            "mask": {**pred, "format": "segmentation", "num_channels": 3, "label_def": TWICE},
            "distance": seeds,
        }

    bundle = read_bundle(with_metadata(tmp_path / "other", change))
    assert [segment.name for segment in bundle.segments] == ["lesion (1)", "lesion (2)", "liver"]
    both = with_metadata(tmp_path / "both", lambda m: m["network_data_format"].update(outputs={"a": {}, "b": {}}))
    with pytest.raises(BundleError, match="its outputs are a, b; expected pred"):
        read_bundle(both)
