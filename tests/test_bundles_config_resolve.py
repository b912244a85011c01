"""Entries of a config are what MONAI's parser makes of them, but only classes and functions on the list are used."""

from __future__ import annotations

import time
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from napari_seg.bundles.config.resolve import ResolveError, Resolver, import_of

UNET = {"_target_": "UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": [4, 8], "strides": [2]}


def resolver(root: Path, **entries: Any) -> Resolver:
    return Resolver(entries, root)


def test_references_macros_and_merging_entries_are_those_of_monai(tmp_path: Path) -> None:
    from monai.bundle import ConfigParser
    from monai.bundle.utils import merge_kv

    (tmp_path / "other.json").write_text('{"deep": {"list": [1, 2]}}')
    config: dict[str, Any] = {
        "size": [96, "@half", 4],
        "half": "$@size#0 // 2",
        "names": {"a": "@##half", "b": ["@size::2", "%size#0"], "c": "$[@half] * 2"},
        "macro": "%names::b",
        "here": {"x": 1, "y": "@#x", "z": ["@##x"]},
        "text": "a@b and @c",
        "names#a": 7,
        "+size": [5],
        "flag": "$@names#a > 3 and not @missing_is_in_a_text['k']",
        "missing_is_in_a_text": {"k": False},
        "steps": [
            {"_target_": "builtins.int", "_disabled_": "$@flag"},
            {"_target_": "UNet", "_disabled_": "true"},
            3,
        ],
        "parts": {"on": 1, "off": {"_target_": "UNet", "_disabled_": True}},
    }
    merged = ConfigParser()
    merged.set({})
    for key, value in deepcopy(config).items():
        merge_kv(merged, key, value)
    parser = ConfigParser(merged.get())
    ours = Resolver(config, tmp_path)
    for id in ("size", "names", "macro", "here", "text", "flag", "steps", "parts", "names#b#0"):
        expected = parser.get_parsed_content(id)
        assert ours.build(id) == expected, id
        assert ours.plain(id) == expected, id
    assert resolver(tmp_path, a="%other.json#deep::list").build("a") == [1, 2]


def test_plain_data_needs_no_objects(tmp_path: Path) -> None:
    plain = resolver(
        tmp_path,
        imports=["$import numpy as np"],
        net=UNET,
        key="$monai.utils.CommonKeys.PRED",
        steps=[
            {"_target_": "Lambdad", "keys": "@key", "func": "$lambda x: x > 0"},
            {"_target_": "own.Step", "a": "@net"},
        ],
        dtype="$np.uint8",
        path="$@bundle_root + '/models/' + os.path.basename('a/b.pt')",
        read="$open('x').read()",
    ).plain
    assert plain("steps") == [
        {"_target_": "Lambdad", "keys": "pred", "func": "$lambda x: x > 0"},
        {"_target_": "own.Step", "a": UNET},
    ]
    assert plain("dtype") == "$np.uint8"
    assert plain("path") == f"{tmp_path}/models/b.pt"
    assert plain("read") == "$open('x').read()"


def test_networks_and_transforms_are_built(tmp_path: Path) -> None:
    from monai.networks.nets import UNet
    from monai.transforms import Compose, Lambdad, ScaleIntensityd

    ours = resolver(
        tmp_path,
        network_def=UNET,
        network="$@network_def.to(@device)",
        also="$monai.networks.nets.UNet(spatial_dims=2, in_channels=1, out_channels=1, channels=[4, 8], strides=[2])",
        transforms=[
            {"_target_": "LoadImaged", "keys": "image", "reader": "NoSuchReader"},
            {"_target_": "EnsureChannelFirstD", "keys": "image"},
            {"_target_": "monai.transforms.intensity.dictionary.ScaleIntensityDict", "keys": "image"},
            {"_target_": "Lambdad", "keys": "image", "func": "$lambda x: torch.where(x > 0.5, 1, 0)"},
        ],
        preprocessing={"_target_": "Compose", "transforms": "$@transforms"},
    )
    assert isinstance(ours.build("network_def"), UNet)
    assert ours.build("network") is ours.build("network_def")
    assert ours.build("also").dimensions == 2
    preprocessing = ours.build("preprocessing")
    assert isinstance(preprocessing, Compose)
    assert [type(one) for one in preprocessing.transforms] == [ScaleIntensityd, Lambdad]
    image = torch.tensor([[[1.0, 2.0, 5.0]]])
    assert preprocessing({"image": image})["image"].tolist() == [[[0, 0, 1]]]
    assert ours.problems("network", "also", "preprocessing") == []


def test_removed_arguments_and_hard_coded_devices_are_noticed(tmp_path: Path) -> None:
    ours = resolver(
        tmp_path,
        net={"_target_": "DiNTS", "img_size": 96},
        swin={"_target_": "SwinUNETR", "img_size": 96, "in_channels": 1, "out_channels": 2, "nonsense": 1},
        device_of="$torch.device('cuda:0')",
        chosen="$'gpu' if torch.cuda.is_available() else 'cpu'",
        typed={"_target_": "EnsureTyped", "keys": "image", "device": "cuda:1"},
    )
    assert ours.build("device_of") == torch.device("cpu")
    assert ours.build("chosen") == "cpu"
    assert str(ours.build("typed").converter.device) == "cpu"
    with pytest.raises(ResolveError, match=r"swin: TypeError.*nonsense"):
        ours.build("swin")
    with pytest.raises(ResolveError, match=r"net: TypeError.*img_size"):
        ours.build("net")
    assert ours.notices == ["SwinUNETR has no argument img_size in this version of MONAI; it is left out"]


def test_files_of_the_bundle_are_loaded_as_tensors_only(tmp_path: Path) -> None:
    root = tmp_path / "bundle"
    root.mkdir()
    torch.save({"code": np.arange(6).reshape(2, 3), "one": np.float64(2)}, root / "code.pt")
    torch.save({"code": 1}, tmp_path / "outside.pt")
    torch.save(Path("x"), root / "pickle.pt")
    ours = resolver(
        root,
        code="$torch.load(@bundle_root + '/code.pt', map_location=torch.device('cuda'), weights_only=False)['code']",
        tensor="$torch.from_numpy(@code).float().sum()",
        outside="$torch.load('../outside.pt')",
        above="$torch.load(@bundle_root + '/../outside.pt')",
        pickle="$torch.load('pickle.pt', weights_only=False)",
        exists="$[os.path.exists('code.pt'), os.path.exists('../outside.pt'), os.path.exists('/etc/passwd')]",
    )
    assert ours.build("code").tolist() == [[0, 1, 2], [3, 4, 5]]
    assert ours.build("tensor") == 15
    assert ours.build("exists") == [True, False, False]
    for id, cause in (("outside", "leads out"), ("above", "leads out"), ("pickle", "objects other than tensors")):
        with pytest.raises(ResolveError, match=cause):
            ours.build(id)


EVIL = {
    "system": {"_target_": "os.system", "command": "touch {trap}"},
    "eval": {"_target_": "builtins.eval", "source": "open({trap!r}, 'w')"},
    "run": {"_target_": "monai.bundle.scripts.run", "config_file": "{trap}"},
    "run-too": {"_target_": "monai.bundle.run"},
    "debug": {**UNET, "_mode_": "debug"},
    "no mode": {**UNET, "_mode_": ["default"]},
    "lambda": {"_target_": "monai.transforms.Lambdad", "keys": "image", "func": "$__import__('os').system"},
    "class": "$().__class__.__base__.__subclasses__()",
    "globals": "$torch.where.__globals__",
    "module": "$torch.nn.functional",
    "hub": {"_target_": "torch.hub.load", "repo_or_dir": "x"},
    "download": "$monai.apps.download_url('x', {trap!r})",
    "save": {"_target_": "torch.save", "obj": 1, "f": "{trap}"},
    "save-too": "$torch.save(1, {trap!r})",
    "write": "$numpy.save({trap!r}, [1])",
    "out": "$torch.where(1, 2, 3, out=1)",
    "target": {"_target_": "$torch.save", "obj": 1, "f": "{trap}"},
    "target-too": {"_target_": "$open", "file": "{trap}", "mode": "w"},
    "a list": {"_target_": ["UNet"]},
    "number": {"_target_": 3},
    "by name": {"_target_": "monai.utils.module.instantiate", "__path": "os.system"},
    "transform": {"_target_": "TorchVisiond", "keys": "image", "name": "ToTensor"},
    "requires": {**UNET, "_requires_": "$open({trap!r}, 'w')"},
    "disabled": {**UNET, "_disabled_": "$open({trap!r}, 'w')"},
    "partial": {"_target_": "$(lambda: open)()"},
    "circle": "@circle",
    "circles": ["$@circles + []"],
    "nothing": "@nothing_there",
    "large": {**UNET, "channels": [2**20, 2**20]},
    "deep": {**UNET, "num_res_units": 10**9},
    "import": {"_target_": "_import.UNet"},
    "private": {"_target_": "Compose", "_private": 1},
    "pickle": {"_target_": "monai.transforms.LoadImaged.__init__"},
    "inner": {"_target_": "monai.transforms.os.system", "command": "touch {trap}"},
    "nets": {"_target_": "monai.networks.nets.torch.save"},
    "resnet": {"_target_": "resnet50", "pretrained": "{trap}"},
    "many": {"_target_": "SwinUNETR", "in_channels": 1, "out_channels": 1, "depths": [10**9]},
    "depths": {"_target_": "TopologyInstance", "num_depths": 10**12},
    "text": "$numpy.array([1], dtype='V100000000')",
    "stack": "$numpy.stack([numpy.array([0] * 9999)] * 9999)",
    "environment": "$monai.utils.MONAIEnvVars.DATA_DIR",
    "positional": "$monai.networks.nets.UNet(3, 1, 2, [4, 8], [2], spatial_dims=3)",
    "alias": "$system('touch x')",
    "hidden": "$[f for f in [open]][0]({trap!r}, 'w')",
    "format": "$'%s' % torch",
    "load": "$torch.load('/etc/passwd')",
    "reader": "$monai.transforms.LoadImaged('image', reader='builtins.open', file={trap!r}, mode='w')",
    "reader-too": {
        "_target_": "$monai.transforms.LoadImageDict",
        "keys": "image",
        "reader": "os.system",
        "command": "touch {trap}",
    },
    "writer": "$monai.transforms.SaveImaged('image', output_dir={trap!r})",
    "made later": {"_target_": "$monai.transforms.SaveImaged", "_mode_": "callable", "keys": "image"},
}


def fill(value: Any, trap: Path) -> Any:
    if isinstance(value, dict):
        return {key: fill(one, trap) for key, one in value.items()}
    if isinstance(value, str):
        return value.replace("{trap!r}", repr(str(trap))).replace("{trap}", str(trap))
    return value


@pytest.mark.parametrize("name", EVIL)
def test_an_attack_does_nothing(tmp_path: Path, name: str) -> None:
    trap = tmp_path / "trap"
    (tmp_path / "bundle").mkdir()
    id = name if name.startswith("circle") else "evil"
    ours = resolver(tmp_path / "bundle", **{id: fill(EVIL[name], trap), "imports": ["$import os", "$from os import *"]})
    for read in (ours.problems, ours.plain):
        with suppress(ResolveError):
            read(id)
    with pytest.raises(ResolveError) as caught:
        ours.build(id)
    assert "\n" not in str(caught.value)[:50]
    assert not trap.exists()


@pytest.mark.parametrize(
    "written",
    [
        "$monai.networks.nets.FlexibleUNet(1, 2, 'efficientnet-b0', True, (256, 128, 64, 32, 16), 2)",
        "$monai.networks.nets.FlexibleUNet(1, 2, 'efficientnet-b0', **{'pretrained': True})",
        {
            "_target_": "FlexibleUNet",
            "in_channels": 1,
            "out_channels": 2,
            "backbone": "efficientnet-b0",
            "pretrained": "$not False",
        },
    ],
)
def test_no_weights_are_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: Any) -> None:
    def download(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a download")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", download)
    monkeypatch.setattr("torch.utils.model_zoo.load_url", download)
    assert type(resolver(tmp_path, net=written).build("net")).__name__ == "FlexibleUNet"


def test_a_text_is_no_function(tmp_path: Path) -> None:
    transform = resolver(tmp_path, a={"_target_": "Lambdad", "keys": "image", "func": "os.system"}).build("a")
    with pytest.raises(TypeError, match="callable"):
        transform({"image": torch.ones(1)})


@pytest.mark.parametrize("text", ["%/etc/passwd::x", "%../other.json::x", "%/etc/hostname.json", "%configs/no.json#x"])
def test_macros_read_only_files_of_the_bundle(tmp_path: Path, text: str) -> None:
    (tmp_path / "other.json").write_text('{"x": 1}')
    (tmp_path / "bundle").mkdir()
    with pytest.raises(ResolveError, match=r"names no file in the bundle|is not defined"):
        resolver(tmp_path / "bundle", a=text)


def test_shared_parts_do_not_explode(tmp_path: Path) -> None:
    entries: dict[str, Any] = {f"a{n}": [f"@a{n + 1}"] * 10 for n in range(30)} | {"a30": 1}
    with pytest.raises(ResolveError, match="more than"):
        resolver(tmp_path, **entries).plain("a0")
    macros = {f"a{n}": [f"%a{n + 1}"] * 10 for n in range(30)} | {"a30": 1}
    with pytest.raises(ResolveError, match="more than"):
        resolver(tmp_path, **macros)
    with pytest.raises(ResolveError, match="too deep"):
        resolver(tmp_path, a="%b", b="%a")
    with pytest.raises(ResolveError, match="more than"):
        resolver(tmp_path, **dict(reversed(macros.items())))
    chain = {f"a{n}": f"@a{n + 1}" for n in range(9000)} | {"a9000": 1}
    with pytest.raises(ResolveError, match="nests too deep"):
        resolver(tmp_path, **chain).plain("a0")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("$import numpy as np", ("np", "numpy")),
        ("$import os", ("os", "os")),
        ("$from monai.transforms import Compose", ("Compose", "monai.transforms.Compose")),
        ("$@a", None),
        ("$importlib", None),
    ],
)
def test_import_statements_are_recognised(text: str, found: object) -> None:
    assert import_of(text) == found


def test_an_imported_name_is_what_it_was_imported_from(tmp_path: Path) -> None:
    ours = resolver(
        tmp_path, imports=["$from torch import device as where", "$from torch import hub"], a="$where('cpu')"
    )
    assert ours.build("a") == torch.device("cpu")
    other = resolver(tmp_path, imports=["$from torch import hub as len"], a="$len.load('x')", b="$len([1])")
    assert other.problems("a", "b") == [
        "a: $len.load('x') uses the name len.load",
        "b: $len([1]) uses the name len",
    ]


def test_nothing_is_downloaded(tmp_path: Path) -> None:
    unet = "monai.networks.nets.FlexibleUNet"
    ours = resolver(
        tmp_path,
        positional=f"${unet}(3, 2, 'efficientnet-b0', True)",
        named={
            "_target_": unet,
            "in_channels": 3,
            "out_channels": 2,
            "backbone": "efficientnet-b0",
            "pretrained": "yes",
        },
    )
    for id in ("positional", "named"):
        assert type(ours.build(id)).__name__ == "FlexibleUNet"


def test_an_import_under_a_listed_name_hides_it(tmp_path: Path) -> None:
    ours = resolver(tmp_path, imports=["$import evil as torch"], a="$torch.float32")
    assert ours.problems("a") == ["a: $torch.float32 uses the name torch.float32"]


@pytest.mark.parametrize(
    "written", ["$os.path.exists('//host/share/x')", "$os.path.isfile('/host/x')", "%//host/share/x.json::a"]
)
def test_no_other_place_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str) -> None:
    looked: list[str] = []
    for name in ("resolve", "stat"):
        old = getattr(Path, name)
        monkeypatch.setattr(Path, name, lambda path, *a, old=old, **k: looked.append(str(path)) or old(path, *a, **k))
    with suppress(ResolveError):
        assert resolver(tmp_path, imports="$import os", a=written).plain("a") is False
    assert not [path for path in looked if "host" in path]


@pytest.mark.parametrize("folder", [".git", "__pycache__"])
def test_macros_read_no_file_whose_change_goes_unseen(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "a.json").write_text('{"x": 1}')
    with pytest.raises(ResolveError, match="names no file in the bundle"):
        resolver(tmp_path, a=f"%{folder}/a.json::x")


def test_repeated_expressions_take_no_more_time_than_one_config_may(tmp_path: Path) -> None:
    work = {"_target_": "UNet", "_disabled_": "$min([a * a for a in range(999)]) > 5"}
    ours = resolver(tmp_path, x=[work] * 1000)
    begin = time.monotonic()
    for n in range(10):
        assert ours.is_disabled(work, f"x::{n}") is False
    with pytest.raises(ResolveError, match="can't be evaluated"):
        [ours.is_disabled(work, f"x::{n}") for n in range(1000)]
    assert time.monotonic() - begin < 60


def test_a_repeated_text_is_checked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[object] = []
    monkeypatch.setattr("napari_seg.bundles.config.resolve.problems", lambda *given: checked.append(given) or [])
    assert resolver(tmp_path, x=["$1 + 1"] * 100).problems("x") == []
    assert len(checked) == 1
