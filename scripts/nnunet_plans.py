"""Plan data sets with nnU-Net and with `napari-seg train --plan nnunet`, and compare the plans key by key.

    python scripts/nnunet_plans.py --data DATA --work FOLDER --peer PYTHON
    python scripts/nnunet_plans.py --data DATA --work FOLDER --peer PYTHON --only anisotropic

Writes docs/reference/nnunet_plans.md. DATA holds the real scans that `benchmarks/nnunet_cases.py` cuts and varies;
PYTHON is the interpreter of an environment with nnU-Net. Both programs read the same files.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from math import isclose
from pathlib import Path
from typing import Any

import yaml
from benchmarks.measuring import CHECKOUT
from benchmarks.nnunet_cases import write_dataset
from benchmarks.nnunet_models import environment
from benchmarks.report import paragraph, table

DATASETS = {
    "hippocampus": "all 208 crops of the Medical Segmentation Decathlon's Task04",
    "axons": "quarters of images of axons in colours",
    "anisotropic": "a CT in variations, 0.8 x 0.8 x 5 mm",
    "ct": "a CT in variations, 3 mm",
    "two_channels": "T1 crops and their edges as a second channel",
}
RUNS = [(name, dims) for name in DATASETS for dims in ((2,) if name == "axons" else (3, 2))]
TOLERANCE = 0.02
"""Relative difference of intensities, which both programs estimate from samples."""
REASONS = {
    "resampling of images": "windows are sampled on the network's grid without a resampled copy of the scan, which "
    "streams scans of any size; linear interpolation does not overshoot",
    "normalised": "the same transforms run in training and in inference, window by window",
    "conv_bias": "no effect before instance normalisation, which subtracts each feature's mean",
    "schedule": "the rate falls after each step, not after each epoch, so that time limits of minutes work",
    "mirroring": "left and right often have different labels; option flips adds it",
    "augmentation": "napari-seg's own transforms",
    "validation": "whole cases by their Dice, about 12 times, instead of patches in each epoch",
}


def main() -> None:
    """Compare the data sets that the command names and write the report."""
    args = parse()
    lines = ["# Plans of nnU-Net, key by key", ""]
    lines += paragraph(
        "Written by `scripts/nnunet_plans.py`: what nnU-Net 2 plans for a data set, and what `napari-seg train --plan "
        "nnunet` plans for it. Axes are in nnU-Net's order, and both programs read the same files."
    )
    different = 0
    for name, dims in [run for run in RUNS if not args.only or run[0] in args.only]:
        theirs, ours = plan_both(name, dims, args)
        rows = compare(theirs, ours)
        different += sum(row[3] == "DIFFERENT" for row in rows)
        lines += [f"## {name}, {dims}D", "", f"{DATASETS[name][0].upper()}{DATASETS[name][1:]}.", ""]
        lines += [*table(("key", "nnU-Net", "napari-seg", ""), rows), ""]
    lines += ["## What differs by design", ""]
    lines += [*table(("what", "reason"), REASONS.items()), ""]
    print("\n".join(lines))
    if not args.only:
        args.report.write_text("\n".join(lines))
    sys.exit(f"{different} values differ" if different else 0)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the real scans")
    parser.add_argument("--work", type=Path, required=True, help="folder for data sets and plans; kept")
    parser.add_argument("--peer", type=Path, required=True, help="Python of an environment with nnU-Net")
    parser.add_argument("--only", nargs="+", choices=DATASETS, metavar="NAME", help="data sets; default: all")
    parser.add_argument(
        "--report", type=Path, default=CHECKOUT / "docs" / "reference" / "nnunet_plans.md", help="file of the report"
    )
    return parser.parse_args()


def plan_both(name: str, dims: int, args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the planned values of both programs by their names in the report."""
    from napari_seg.training.choices import Choices
    from napari_seg.training.prepare import plan_bundle

    for folder in ("raw", "preprocessed", "results"):
        (args.work / folder).mkdir(parents=True, exist_ok=True)
    root = write_hippocampus(args) if name == "hippocampus" else write_dataset(name, args.data, args.work / "raw")
    plans, number = args.work / f"{root.name}.json", root.name[7:].partition("_")[0]
    if not plans.is_file():
        command = [args.peer, Path(__file__).parent / "benchmarks" / "nnunet_planning.py", number, plans]
        subprocess.run(command, env=environment(args.work), stdout=sys.stderr, check=True)
    theirs = json.loads(plans.read_text())
    out = args.work / f"ours_{name}_{dims}d"
    shutil.rmtree(out, ignore_errors=True)
    plan = plan_bundle(root, out, Choices(plan="nnunet", dims=dims))
    config = yaml.safe_load((out / "configs" / "train.yaml").read_text())
    configuration = "2d" if dims == 2 else "3d_fullres"
    return describe_theirs(theirs, configuration), describe_ours(plan, config)


def write_hippocampus(args: argparse.Namespace) -> Path:
    """Write all crops in nnU-Net's layout; the smaller set of the other scripts has the same number elsewhere."""
    out = args.work / "raw" / "Dataset801_Crops"
    if not (out / "dataset.json").is_file():
        description = json.loads((args.data / "hippocampus" / "dataset.json").read_text())
        for folder, ending in (("imagesTr", "_0000"), ("labelsTr", "")):
            (out / folder).mkdir(parents=True, exist_ok=True)
            for path in (args.data / "hippocampus" / folder).glob("hippocampus_*.nii.gz"):
                shutil.copyfile(path, out / folder / path.name.replace(".nii.gz", f"{ending}.nii.gz"))
        names = {name: int(value) for value, name in description["labels"].items()}
        content = {
            "channel_names": description["modality"],
            "labels": names,
            "numTraining": len(list((out / "labelsTr").iterdir())),
            "file_ending": ".nii.gz",
        }
        (out / "dataset.json").write_text(json.dumps(content))
    return out


def describe_theirs(found: dict[str, Any], name: str) -> dict[str, Any]:
    """Return nnU-Net's values; the settings of its trainer are those of an object that is ready to train."""
    plans, trainer = found["plans"], found["trainers"][name]
    configuration = plans["configurations"][name]
    architecture = configuration["architecture"]["arch_kwargs"]
    seen = plans["foreground_intensity_properties_per_channel"]
    values = {
        key: configuration[key]
        for key in ("spacing", "median_image_size_in_voxels", "patch_size", "batch_size", "normalization_schemes")
    }
    values |= {"use_mask_for_norm": configuration["use_mask_for_norm"]}
    if "CTNormalization" in configuration["normalization_schemes"]:
        values |= {f"CT {key}": seen["0"][key] for key in ("mean", "std", "percentile_00_5", "percentile_99_5")}
    names = ("n_stages", "features_per_stage", "strides", "kernel_sizes", "n_conv_per_stage")
    values |= {key: architecture[key] for key in (*names, "n_conv_per_stage_decoder")}
    values |= {
        "network": configuration["architecture"]["network_class_name"].rpartition(".")[2],
        "norm": f"{architecture['norm_op'].rpartition('.')[2].rstrip('23d')} {architecture['norm_op_kwargs']}",
        "nonlin": f"{architecture['nonlin'].rpartition('.')[2]}, slope 0.01",
    }
    return values | trainer | {"3d_lowres": "3d_lowres" in plans["configurations"]}


def describe_ours(plan: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Return napari-seg's values, from plan.json and the written train.yaml."""
    from napari_seg.training.segnets_modules import with_segnets

    with with_segnets():
        from segnets.blocks import ACT, NORM
    configuration = plan["network"]["nnU-Net"]
    architecture, arguments = configuration["architecture"], config["network_def"]
    back = [sorted(configuration["axes"]).index(axis) for axis in configuration["axes"]]
    channels = arguments.get("channels", [32, 64, 128, 256])

    def theirs(level: int | list[int]) -> list[int]:
        each = [level] * len(back) if isinstance(level, int) else level
        return [each[place] for place in back]

    def levels(value: Any, default: int) -> list[list[int]]:
        value = arguments.get(value, default)
        return [theirs(one) for one in ([value] * len(channels) if isinstance(value, int) else value)]

    convs = arguments.get("encoder_convs", 2)
    normalisation = plan["settings"]["normalisation"]["value"]
    is_ct = normalisation["_target_"].endswith("ScaleIntensityRanged")
    values: dict[str, Any] = {
        "spacing": configuration["spacing"],
        "median_image_size_in_voxels": configuration["median_image_size_in_voxels"],
        "patch_size": theirs(config["patch_size"]),
        "batch_size": config["batch_size"],
        "normalization_schemes": configuration["normalization_schemes"],
        "use_mask_for_norm": [normalisation.get("nonzero", False)] * len(configuration["use_mask_for_norm"]),
        "n_stages": len(channels),
        "features_per_stage": channels,
        "strides": levels("strides", 2),
        "kernel_sizes": levels("kernels", 3),
        "n_conv_per_stage": [convs] * len(channels),
        "n_conv_per_stage_decoder": [arguments.get("decoder_convs", 1)] * (len(channels) - 1),
        "network": "PlainConvUNet" if arguments.get("residual") is False else "residual",
        "norm": f"{NORM[0].title()}Norm {{'eps': 1e-05, 'affine': {NORM[1]['affine']}}}",
        "nonlin": f"LeakyReLU, slope {ACT[1]['negative_slope']}",
        "3d_lowres": configuration["3d_lowres"],
    }
    assert architecture["strides"] == values["strides"]
    if is_ct:
        low, high = normalisation["a_min"], normalisation["a_max"]
        std = (high - low) / (normalisation["b_max"] - normalisation["b_min"])
        values |= {"CT mean": low - normalisation["b_min"] * std, "CT std": std}
        values |= {"CT percentile_00_5": low, "CT percentile_99_5": high}
    optimizer, schedule = config["optimizer"], config["lr_scheduler"]
    trained_on = 0.8 * plan["fingerprint"]["cases"]
    ratios = config["crop"]["transforms"][0]["ratios"]
    loss = config["loss"]
    return values | {
        "optimizer": optimizer["_target_"].rpartition(".")[2],
        "learning_rate": config["learning_rate"],
        "momentum": optimizer["momentum"],
        "nesterov": optimizer["nesterov"],
        "weight_decay": optimizer["weight_decay"],
        "schedule": f"polynomial, exponent {schedule['power']}",
        "epochs": config["max_epochs"],
        "steps_per_epoch": round(config["patches_per_case"] * trained_on / config["batch_size"]),
        "oversampled": round(sum(ratios[1:])),
        "deep_supervision_weights": config["loss_function"]["weights"],
        "loss": {"DiceCELoss": "DC_and_CE_loss"}[loss["_target_"].rpartition(".")[2]],
        "batch_dice": loss.get("batch", False),
    }


def compare(theirs: dict[str, Any], ours: dict[str, Any]) -> list[tuple[str, Any, Any, str]]:
    """Return a row for each key."""
    rows = []
    for key in theirs.keys() | ours.keys():
        one, other = (_short(values.get(key, "none")) for values in (theirs, ours))
        rows.append((key, one, other, "equal" if _agree(key, theirs.get(key), ours.get(key)) else "DIFFERENT"))
    order = [*theirs, *ours]
    return sorted(rows, key=lambda row: order.index(row[0]))


def _agree(key: str, one: Any, other: Any) -> bool:
    if key == "steps_per_epoch":  # a whole number of patches of each case
        return isclose(one, other, rel_tol=0.1)
    if key.startswith("CT "):
        return isclose(one, other, rel_tol=TOLERANCE, abs_tol=2.0)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(_agree(key, a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, float) or isinstance(other, float):
        return isclose(one, other, rel_tol=1e-4, abs_tol=1e-6)
    return bool(one == other)


def _short(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
