"""Plans of nnU-Net: read into plain data, old fields and inheritance included; the unknown is refused."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from nnunet_models import arguments, configuration, dataset, plans, write_model

from napari_seg.bundles.nnunet.plans import read_configuration
from napari_seg.bundles.read import read_bundle
from napari_seg.bundles.spec import Bundle
from napari_seg.errors import BundleError


def write(folder: Path, described: Any = None, **entries: Any) -> Path:
    """Write plans.json with the given configurations, and dataset.json."""
    folder.mkdir(exist_ok=True)
    (folder / "plans.json").write_text(json.dumps(plans(entries)))
    (folder / "dataset.json").write_text(json.dumps(described or dataset()))
    return folder


def change(root: Path, file: str, **changes: Any) -> None:
    content = json.loads((root / file).read_text())
    (root / file).write_text(json.dumps(content | changes))


def test_old_plans_describe_the_network_in_fields_of_their_own(tmp_path: Path) -> None:
    old = configuration()
    new = old.pop("architecture")["arch_kwargs"]
    old |= {
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": 4,
        "unet_max_num_features": 6,
        "n_conv_per_stage_encoder": [1, 1],
        "n_conv_per_stage_decoder": [1],
        "num_pool_per_axis": [1, 1, 1],
        "pool_op_kernel_sizes": [[1, 1, 1], [2, 2, 2]],
        "conv_kernel_sizes": [[3, 3, 3], [3, 3, 3]],
    }
    found = read_configuration(write(tmp_path, old=old), "old", "")
    assert found.network_class == "PlainConvUNet"
    assert json.loads(found.network_arguments) == new | {"features_per_stage": [4, 6]}


def test_a_configuration_takes_over_what_it_does_not_say(tmp_path: Path) -> None:
    base = configuration(batch_size=7)
    root = write(
        tmp_path, base=base, middle={"inherits_from": "base", "spacing": [2, 2, 2]}, top={"inherits_from": "middle"}
    )
    assert read_configuration(root, "top", "").spacing_mm == (2, 2, 2)


@pytest.mark.parametrize(
    "entries",
    [
        {"a": {"inherits_from": "a"}},
        {"a": {"inherits_from": "b"}, "b": {"inherits_from": "a"}},
        {"a": {"inherits_from": "missing"}},
        {"a": {"inherits_from": ["b"]}},
        {"a": 5},
        {},
    ],
)
def test_inheritance_without_an_end_is_refused(tmp_path: Path, entries: dict[str, Any]) -> None:
    with pytest.raises(BundleError) as raised:
        read_configuration(write(tmp_path, **entries), "a", "")
    assert raised.value.code == "bundle.nnunet"


def test_old_names_of_intensities_and_channels_are_read(tmp_path: Path) -> None:
    root = write(tmp_path, a=configuration(normalization_schemes=["CTNormalization"]))
    content = json.loads((root / "plans.json").read_text())
    content["foreground_intensity_properties_by_modality"] = content.pop("foreground_intensity_properties_per_channel")
    (root / "plans.json").write_text(json.dumps(content))
    described = dataset(modality={"0": "CT"})
    del described["channel_names"]
    (root / "dataset.json").write_text(json.dumps(described))
    found = read_configuration(root, "a", "")
    (one,) = found.normalisation
    assert (one.scheme, one.mean, one.low, one.high) == ("ct", 50, -100, 250)
    assert found.channel_names == ("CT",)


def test_an_ignored_label_has_no_channel(tmp_path: Path) -> None:
    labels = {"background": 0, "inner": [1], "outer": 2, "ignore": 3}
    root = write_model(tmp_path, dataset_changes={"labels": labels})
    bundle = read_bundle(root)
    assert bundle.out_channels == 3
    assert bundle.configuration.ignore_label == 3
    assert [(one.label, one.name) for one in bundle.segments] == [(1, "inner"), (2, "outer")]


def test_regions_keep_their_order(tmp_path: Path) -> None:
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "tip": 3, "ignore": 4}
    root = write_model(tmp_path, dataset_changes={"labels": labels, "regions_class_order": [1, 2, 3]})
    bundle = read_bundle(root)
    assert bundle.out_channels == 3
    assert bundle.configuration.region_labels == (1, 2, 3)
    assert [(one.label, one.name) for one in bundle.segments] == [(1, "whole"), (2, "core"), (3, "tip")]


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("plans.json", {"image_reader_writer": "os.system"}),
        ("plans.json", {"image_reader_writer": "MyReader"}),
        ("dataset.json", {"overwrite_image_reader_writer": "MyReader"}),
        ("plans.json", {"transpose_forward": [0, 0, 1]}),
        ("plans.json", {"transpose_forward": [0, 1]}),
        ("plans.json", {"transpose_forward": "012"}),
        ("plans.json", {"label_manager": "MyLabels"}),
        ("dataset.json", {"labels": {"background": 0, "far": 2}}),
        ("dataset.json", {"labels": {"background": 0, "below": -1}}),
        ("dataset.json", {"labels": {"background": 0, "huge": 10**9}}),
        ("dataset.json", {"labels": {"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": [1]}),
        ("dataset.json", {"labels": {"background": 0, "whole": [1, 2], "core": 2}}),
        ("dataset.json", {"labels": {"background": 0, "one": 1, "ignore": 1}}),
        ("dataset.json", {"labels": {"0": "background", "1": "one"}}),
        ("dataset.json", {"labels": {"background": 0, "one": 1.9}}),
        ("dataset.json", {"labels": {"background": 0, "one": 1, "again": 1}}),
        ("dataset.json", {"labels": {"background": 0}}),
        ("dataset.json", {"labels": []}),
        ("dataset.json", {"labels": {}}),
        ("dataset.json", {"channel_names": {}}),
        ("dataset.json", {"channel_names": {"1": "T1"}}),
        ("dataset.json", {"channel_names": {str(n): "x" for n in range(10_000)}}),
    ],
)
def test_what_nnunet_does_not_have_is_refused(tmp_path: Path, file: str, changes: dict[str, Any]) -> None:
    root = write_model(tmp_path)
    change(root, file, **changes)
    with pytest.raises(BundleError) as raised:
        read_bundle(root)
    assert raised.value.code == "bundle.nnunet"


@pytest.mark.parametrize(
    "changes",
    [
        {"preprocessor_name": "MyPreprocessor"},
        {"patch_size": [16.7, 16, 16]},
        {"normalization_schemes": ["MyNormalization"]},
        {"normalization_schemes": ["os.system"]},
        {"normalization_schemes": []},
        {"resampling_fn_data": "my_resampling"},
        {"resampling_fn_data": "os.system"},
        {"resampling_fn_probabilities_kwargs": {"order": 10**6}},
        {"resampling_fn_probabilities_kwargs": {"func": "os.system"}},
        {"resampling_fn_seg_kwargs": 5},
        {"patch_size": [10**6] * 3},
        {"patch_size": [-16, 16, 16]},
        {"patch_size": [0, 16, 16]},
        {"patch_size": [16]},
        {"patch_size": [16] * 1000},
        {"patch_size": [1e400] * 3},
        {"patch_size": "16"},
        {"spacing": [0, 1, 1]},
        {"spacing": [-1, 1, 1]},
        {"spacing": [float("nan"), 1, 1]},
        {"spacing": [1, 1]},
        {"spacing": [1e35, 1, 1]},
        {"spacing": [1e-300, 1, 1]},
        {"architecture": None},
        {"architecture": {"network_class_name": "os.system"}},
        {"previous_stage": 5},
    ],
)
def test_what_a_configuration_of_nnunet_can_not_be_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    root = write_model(tmp_path)
    content = json.loads((root / "plans.json").read_text())
    content["configurations"]["3d_fullres"] |= changes
    (root / "plans.json").write_text(json.dumps(content))
    with pytest.raises(BundleError) as raised:
        read_bundle(root)
    assert raised.value.code in ("bundle.nnunet", "bundle.unknown")


def test_messages_name_what_is_not_known(tmp_path: Path) -> None:
    root = write(tmp_path, a=configuration(preprocessor_name="MyPreprocessor"))
    with pytest.raises(BundleError, match="MyPreprocessor"):
        read_configuration(root, "a", "")


@pytest.mark.parametrize("file", ["plans.json", "dataset.json"])
@pytest.mark.parametrize(
    ("content", "code"),
    [
        ("", "bundle.nnunet"),
        ("[]", "bundle.nnunet"),
        ("5", "bundle.nnunet"),
        ("{", "bundle.nnunet"),
        ("[" * 100_000, "bundle.too_large"),
        ('{"a":' * 100_000, "bundle.too_large"),
        ('{"a": ' + "[" * 70 + "]" * 70 + "}", "bundle.too_large"),
        (json.dumps({"a": ["x"] * 300_000}), "bundle.too_large"),
        (" " * (2**24 + 1), "bundle.too_large"),
        ('{"a": ' + "9" * 10_000 + "}", "bundle.nnunet"),
    ],
)
def test_files_that_are_no_plans_or_too_large_are_refused(tmp_path: Path, file: str, content: str, code: str) -> None:
    root = write_model(tmp_path)
    (root / file).write_text(content)
    with pytest.raises(BundleError) as raised:
        read_bundle(root)
    assert raised.value.code == code


@pytest.mark.parametrize("file", ["plans.json", "dataset.json"])
def test_any_value_in_any_place_gives_a_bundle_or_a_code(tmp_path: Path, file: str) -> None:
    root = write_model(tmp_path, other_configurations={"2d": configuration((16, 16), (1, 1))})
    original = json.loads((root / file).read_text())
    places = list(_places(original))
    values = [None, True, -1, 0, 10**30, 1e308, "", "os.system", [], {}, [[]], {"0": []}, "9" * 5000, ["x"] * 5]
    numbers = random.Random(0)
    for _ in range(150):
        changed = json.loads(json.dumps(original))
        *parents, last = numbers.choice(places)
        place = changed
        for key in parents:
            place = place[key]
        if numbers.random() < 0.2:
            del place[last]
        else:
            place[last] = numbers.choice(values)
        (root / file).write_text(json.dumps(changed))
        found = _read(root)
        if isinstance(found, BundleError):
            assert found.code in ("bundle.nnunet", "bundle.unknown")
            assert len(found.message) < 2000
            assert found.message.isprintable()
        else:
            assert all(one.name and one.name.isprintable() for one in found.segments)
            assert 1 <= found.out_channels <= 65536


def _read(root: Path) -> Bundle | BundleError:
    try:
        return read_bundle(root)
    except BundleError as error:
        return error


def _places(value: Any, path: tuple = ()) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from _places(inner, (*path, key))


def test_the_arguments_in_tests_are_those_of_nnunet() -> None:
    assert {*arguments()} >= {"n_stages", "features_per_stage", "conv_op", "kernel_sizes", "strides"}


def test_intensities_beyond_those_of_scans_are_refused(tmp_path: Path) -> None:
    root = write_model(tmp_path, entry=configuration(normalization_schemes=["CTNormalization"]))
    huge = {"mean": 1e308, "std": 1.0, "percentile_00_5": 0.0, "percentile_99_5": 1.0}
    change(root, "plans.json", foreground_intensity_properties_per_channel={"0": huge})
    with pytest.raises(BundleError, match="mean") as raised:
        read_bundle(root)
    assert raised.value.code == "bundle.nnunet"
