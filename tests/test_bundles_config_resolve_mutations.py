"""Damaged configs, 2,000 before a release: each is built or refused by its code, quickly, and nothing of it acts."""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from bundles import write_plain_bundle

from napari_seg.bundles.config.resolve import ResolveError
from napari_seg.bundles.config.sections import find_sections
from napari_seg.bundles.load import load_model
from napari_seg.bundles.read import read_bundle
from napari_seg.bundles.spec import Bundle
from napari_seg.bundles.ways import resolver_of, way_of
from napari_seg.errors import BundleError, NapariSegError, one_line

TRANSFORMS = [
    {"_target_": "LoadImaged", "keys": "@key", "image_only": False},
    {"_target_": "EnsureChannelFirstd", "keys": "@key"},
    {"_target_": "Orientationd", "keys": "@key", "axcodes": "RAS"},
    {"_target_": "Spacingd", "keys": "@key", "pixdim": "@pixdim", "mode": "bilinear"},
    {"_target_": "ScaleIntensityRanged", "keys": "@key", "a_min": -57, "a_max": 164, "b_min": 0, "b_max": 1},
    {"_target_": "CropForegroundd", "keys": ["@key"], "source_key": "@key", "mode": ["minimum"]},
    {"_target_": "CastToTyped", "keys": "@key", "dtype": "$torch.float32"},
]
POSTPROCESSING = [
    {"_target_": "Activationsd", "keys": "pred", "softmax": True},
    {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "@key"},
    {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
    {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir", "output_dtype": "$np.uint8"},
]
COMMON: dict[str, Any] = {
    "imports": ["$import glob", "$import numpy as np", "$import os"],
    "displayable_configs": {"fine": True, "overlap": 0.25},
    "bundle_root": ".",
    "key": "image",
    "classes": "$len(@names)",
    "names": {"background": 0, "one": 1, "two": 2},
    "pixdim": "$[1.5] * 3 if @displayable_configs#fine else [3.0, 3.0, 3.0]",
    "output_dir": "$@bundle_root + '/eval'",
    "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
    "network": "$@network_def.to(@device)",
    "preprocessing": {"_target_": "Compose", "transforms": "$@transforms"},
    "transforms": TRANSFORMS,
    "inferer": {
        "_target_": "SlidingWindowInferer",
        "roi_size": [16, 16, "$4 * 4"],
        "sw_batch_size": 4,
        "overlap": "@displayable_configs#overlap",
        "device": "@device",
    },
    "postprocessing": {"_target_": "Compose", "transforms": POSTPROCESSING},
    "dataset": {
        "_target_": "Dataset",
        "data": "$[{'image': i} for i in glob.glob('*')]",
        "transform": "@preprocessing",
    },
    "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "num_workers": 4},
    "evaluator": {
        "_target_": "SupervisedEvaluator",
        "val_data_loader": "@dataloader",
        "network": "@network",
        "inferer": "@inferer",
        "postprocessing": "@postprocessing",
        "val_handlers": "@handlers",
    },
    "handlers": [
        {
            "_target_": "CheckpointLoader",
            "_disabled_": "$not os.path.exists(@path)",
            "load_path": "@path",
            "load_dict": {"model": "@network"},
        }
    ],
    "path": "$@bundle_root + '/models/model.pt'",
    "run": ["$@evaluator.run()"],
}
SHAPE = {"spatial_dims": 3, "in_channels": 1, "out_channels": "@classes"}
BASES = [
    {**COMMON, "network_def": {"_target_": "UNet", **SHAPE, "channels": [2, 4], "strides": [2], "num_res_units": 1}},
    {
        **COMMON,
        "network_def": {"_target_": "SegResNet", **SHAPE, "blocks_down": [1, 1], "blocks_up": [1], "act": "relu"},
    },
    {
        **COMMON,
        "network_def": {
            "_target_": "monai.networks.nets.DynUNet",
            **SHAPE,
            "kernel_size": [3, 3, 3],
            "strides": [1, 2, [2, 2, 1]],
            "upsample_kernel_size": [2, [2, 2, 1]],
            "filters": [2, 4, 4],
        },
        "inferer": {"_target_": "SimpleInferer"},
        "+names": {},
        "inferer#_disabled_": False,
    },
]


def words(text: str) -> list[str]:
    return text.split()


TARGETS = words(
    "UNet SegResNet VNet monai.networks.nets.UNet monai.networks.nets.torch.save DenseNet121 Compose Lambdad Resized "
    "torch.nn.ReLU torch.nn.Sequential torch.device torch.save os.system builtins.eval builtins.exec subprocess.run "
    "monai.bundle.run monai.bundle.scripts.run monai.apps.download_url scripts.net.Net pathlib.Path.touch SaveImaged "
    "monai.transforms.Lambdad monai.transforms.io.dictionary.SaveImaged monai.utils.module.instantiate "
    "SlidingWindowInferer"
)
WORDS = words(
    "@ $ % + - * ** / // ( ) [ ] { } , : . # :: ' \" if else lambda for in not and x y i 0 1 2 10 1e9 10**9 -1 None "
    "True @key @names @network_def @transforms @nothing torch np os torch.load torch.device torch.float32 np.uint8 "
    "open eval __class__ .__class__ __import__ ('trap','w') glob.glob os.system os.path.exists os.path.join len range "
    "list zip"
)
TEXTS = [
    *("@key", "@network_def", "@evil", "@transforms::0", "@network_def#channels", "@", "@@", "@_meta_", "@##key"),
    *("%key", "%transforms::2", "%/etc/passwd::x", "%../x.json", "%configs/metadata.json::version", "%", "%names#one"),
    *(
        "$open('trap', 'w')",
        "$__import__('os').system('touch trap')",
        "$().__class__.__mro__",
        "$torch.save(1, 'trap')",
    ),
    *("$torch.load('models/model.pt')", "$torch.load('../trap')", "$[0] * 10 ** 9", "$9 ** 9 ** 9", "$lambda x: x[0]"),
    *("$import os", "$from os import system", "$(lambda f: f(f))(lambda f: f(f))", "$@evaluator.run()", "$", "$1 / 0"),
    *("$monai.networks.nets.UNet(3, 1, 2, [2, 4], [2])", "$torch.zeros_like(torch.tensor([1]))", "$@names['one']"),
    *("cuda:7", "models/model.pt", "../../trap", "\x00", "\ud800", "x" * 5000, "true", "a#b", "é", "", " "),
]
NUMBERS = [0, -1, 1, 2, 3, 1.5, 10**4, 10**9, 10**400, -(10**30), 1e308, float("nan"), float("inf"), True, False, None]


def places(value: Any, depth: int = 0) -> Iterator[tuple[Any, Any]]:
    """Each container in a config with each of its keys."""
    for key, one in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield value, key
        if isinstance(one, dict | list) and depth < 9:
            yield from places(one, depth + 1)


def anything(chance: random.Random, depth: int = 0) -> Any:
    kind = chance.randrange(9 if depth < 3 else 6)
    if kind < 2:
        return chance.choice(TEXTS)
    if kind == 2:
        return "$" + " ".join(chance.choices(WORDS, k=chance.randint(1, 9)))
    if kind == 3:
        return chance.choice(NUMBERS)
    if kind == 4:
        return {"_target_": chance.choice(TARGETS), **chance.choice([{}, {"_mode_": "debug"}, {"_requires_": "@evil"}])}
    if kind == 5:
        return chance.choice(TARGETS)
    if kind == 6:
        return [anything(chance, depth + 1) for _ in range(chance.randint(0, 4))]
    if kind == 7:
        keys = chance.choices(["_target_", "_disabled_", "_mode_", "_requires_", "keys", "x", "transforms"], k=3)
        return {key: anything(chance, depth + 1) for key in keys}
    value: Any = 1
    for _ in range(chance.choice([5, 70, 300])):
        value = [value]
    return value


def damaged(chance: random.Random) -> dict[str, Any]:
    config = deepcopy(chance.choice(BASES))
    for _ in range(chance.randint(1, 4)):
        found = list(places(config))
        place, key = chance.choice(found)
        kind = chance.randrange(6)
        if kind == 0:
            del place[key]
        elif kind == 1:
            other, name = chance.choice(found)
            place[key] = deepcopy(other[name]) if name in other or isinstance(other, list) else None
        elif kind == 2 and isinstance(place, dict):
            name = chance.choice(
                ["_target_", "_disabled_", "_mode_", "_requires_", "+names", "inferer#x", "a::b::c", "evil"]
            )
            place[name] = anything(chance)
        elif isinstance(place[key], str) and kind == 3:
            text = place[key]
            at = chance.randint(0, len(text))
            place[key] = text[:at] + chance.choice(WORDS) + text[at + chance.randint(0, 3) :]
        else:
            place[key] = anything(chance)
    return config


class Watch:
    """Records what a program does beyond reading, while it is on. An audit hook can't be removed again."""

    acts = (
        "os.system",
        "subprocess.Popen",
        "socket.connect",
        "os.mkdir",
        "os.remove",
        "os.rename",
        "pty.spawn",
    )

    def __init__(self) -> None:
        self.found: list[str] = []
        self.is_on = False
        sys.addaudithook(self.hook)

    def hook(self, event: str, args: tuple) -> None:
        if not self.is_on:
            return
        writes = event == "open" and isinstance(args[1], str) and bool(set(args[1]) & set("wax+"))
        if event == "open" and args[0] == tempfile.gettempdir():
            return  # a file without a name, to map weights from
        if writes or event in self.acts:
            self.found.append(f"{event} {args}")

    @contextmanager
    def on(self) -> Iterator[None]:
        self.is_on = True
        try:
            yield
        finally:
            self.is_on = False


@pytest.fixture(scope="module")
def watch() -> Watch:
    return Watch()


def outcome(root: Path, number: int) -> str:
    """Return "built", or the code by which the bundle's config was refused."""
    began = time.monotonic()
    code, message = "built", ""
    try:
        bundle = read_bundle(root)
        if number % 4 == 0:
            load_model(bundle, "cpu")
        else:  # the same without consent and weights
            build_all(bundle)
    except NapariSegError as error:
        code, message = error.code, error.message
    assert time.monotonic() - began < 10
    assert len(message) < 2000
    assert message.replace("\n", "").isprintable()
    return code


def build_all(bundle: Bundle) -> None:
    """Build the sections of a bundle, whether or not they are on the list."""
    resolver = resolver_of(bundle)
    way = way_of(bundle, resolver)
    if way.kind != "refused":
        sections = find_sections(resolver)
        failed = []
        for id in filter(None, (sections.network, sections.preprocessing, sections.inferer)):
            try:
                resolver.build(id)
            except ResolveError as error:
                failed.append(str(error))
        assert failed or not way.needs_consent or way.reasons
        if failed:
            raise BundleError("bundle.config", one_line(failed[0], 300))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("structural", "textual"), [(900, 100), pytest.param(1900, 100, marks=pytest.mark.slow)])
def test_damaged_configs_are_built_or_refused(
    structural: int,
    textual: int,
    tmp_path: Path,
    watch: Watch,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    root = write_plain_bundle(tmp_path / "bundle")
    torch.save({}, root / "models/model.pt")  # weights that fit none: a network that is built ends with bundle.weights
    path = root / "configs/inference.json"
    before = sorted(tmp_path.rglob("*"))
    chance = random.Random(20)
    codes: dict[str, int] = {}
    for number in range(structural):
        text = json.dumps(damaged(chance))
        path.write_text(text, errors="surrogatepass")
        os.utime(path, (number, number))
        with watch.on():
            code = outcome(root, number)
        codes[code] = codes.get(code, 0) + 1
    path.unlink()
    path = path.with_suffix(".yaml")
    texts = [yaml.safe_dump(base) for base in BASES]
    for number in range(textual):
        text = chance.choice(texts)
        for _ in range(chance.randint(1, 5)):
            at = chance.randrange(len(text))
            text = text[:at] + chance.choice([*"{}[]&*!|>%@$#:-'\"\t\n ", "<<: *a", "!!python/object"]) + text[at + 1 :]
        path.write_text(text, errors="surrogatepass")
        os.utime(path, (number, number))
        with watch.on():
            code = outcome(root, number)
        codes[code] = codes.get(code, 0) + 1
    path.unlink()
    assert watch.found == []
    assert sorted(tmp_path.rglob("*")) == [one for one in before if one.suffix != ".json" or one.stem != "inference"]
    # many different ends: the damage reaches the networks as well as the checks
    assert sum(codes.values()) == structural + textual
    assert codes["built"] > 100
    assert codes["bundle.weights"] > 50
    assert codes["bundle.config"] > 100


def test_the_watch_sees_what_acts(tmp_path: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    watch.found.clear()
    with watch.on():
        Path("trap").write_text("x")
        Path("folder").mkdir()
    assert len(watch.found) == 2
    watch.found.clear()
