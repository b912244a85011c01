"""`napari-seg train`: a data set in, a trained bundle out."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from napari_seg.cli.exit_codes import ExitCode


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "train",
        help="train a network on a data set of one's own",
        description="Checks a data set, plans a training for it, writes OUT as a complete MONAI bundle and trains it "
        "with MONAI's own command. The same command again goes on where the last one stopped. Stop it with Ctrl-C, or "
        "with a file OUT/stop; it saves first.",
        epilog="Example: napari-seg train Task04_Hippocampus -o hippocampus --max-minutes 30",
    )
    parser.add_argument(
        "dataset", type=Path, help="a folder: Decathlon, nnU-Net, BIDS, PASCAL VOC, or images/ and labels/"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="the bundle's folder")
    parser.add_argument("--network", metavar="NAME", help="UNet (default), FCN, DeepLabV3, DeepLabV3Plus, MultiView")
    parser.add_argument("--dims", type=int, choices=(2, 3), help="of the network; 2 sees volumes slice by slice")
    parser.add_argument(
        "--max-minutes",
        type=float,
        metavar="M",
        help="of training, over all starts; the check, the planning and the last validation come on top; of each fold",
    )
    parser.add_argument("--max-epochs", type=int, metavar="N", help="more than before extends a training")
    parser.add_argument("--folds", type=int, metavar="K", help="cross-validate; the bundle becomes the folds' ensemble")
    parser.add_argument("--fold", type=int, metavar="I", help="only this one of the folds, 0 to K - 1")
    parser.add_argument("--option", nargs="+", default=[], metavar="NAME", help="option files, such as loss_focal")
    parser.add_argument("--fine-tune", type=Path, metavar="W", help="start from weights, or from a bundle's")
    parser.add_argument(
        "--labels", nargs="+", default=[], type=named_value, metavar="NAME=VALUE", help="liver=1 tumour=2,3"
    )
    parser.add_argument("--layout", metavar="NAME", help="decathlon, nnunet, bids, voc or folders, if it can't be told")
    parser.add_argument("--images", metavar="DIR", help="of the images, absolute or in DATASET; with --labels-dir")
    parser.add_argument("--labels-dir", metavar="DIR", help="of the label maps; of BIDS, the derivative")
    parser.add_argument("--channels", nargs="+", metavar="SUFFIX", help="of BIDS: what makes up an image, as T1w FLAIR")
    parser.add_argument(
        "--set", nargs="+", default=[], type=named_value, metavar="ID=VALUE", help="any value of the configs"
    )
    parser.add_argument(
        "--trust-bundle",
        action="store_true",
        help="go on in a folder whose bundle holds code of its own, of another version or your own",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan and the commands, and leave nothing")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from napari_seg.bundles.spec import WEIGHTS
    from napari_seg.errors import Cancelled
    from napari_seg.training import Choices, anew, plan_bundle
    from napari_seg.training.choices import weights_to_begin_from
    from napari_seg.training.folds import cross_validate, fold_commands
    from napari_seg.training.run import RUN, steps_of, train, training_command, writing

    dataset, out = arguments.dataset.resolve(), arguments.output.resolve()
    reading = {
        "layout": arguments.layout,
        "images_dir": _from(dataset, arguments.images),
        "labels_dir": _from(dataset, arguments.labels_dir),
        "channels": arguments.channels,
    }
    settings = {name: _value(text) for name, text in arguments.set}
    choices = Choices(
        network=arguments.network,
        dims=arguments.dims,
        options=tuple(arguments.option),
        settings=settings | {name: value for name, value in reading.items() if value is not None},
        labels={name: [_value(v) for v in text.split(",")] for name, text in arguments.labels},
        folds=arguments.folds,
        fine_tune=weights_to_begin_from(arguments.fine_tune, out) if arguments.fine_tune else {},
    )
    plan = plan_bundle(
        dataset, out, choices, fold=arguments.fold, dry_run=arguments.dry_run, trust=arguments.trust_bundle
    )
    _print_plan(plan)
    limits = {"max_epochs": arguments.max_epochs, "max_minutes": arguments.max_minutes}
    values = anew(plan, choices) | {name: value for name, value in limits.items() if value is not None}
    values["fine_tune"] = choices.fine_tune or plan["choices"].get("fine_tune")
    folds = plan["choices"].get("folds")
    if arguments.dry_run:
        commands = [training_command(out, dataset, **values)]
        if folds:
            picked = range(folds) if arguments.fold is None else [arguments.fold]
            commands = [words for n in picked for words in fold_commands(out, dataset, n, folds, **values)]
        print("would run", *map(shlex.join, commands), sep="\n  ")
        return ExitCode.DONE
    try:
        with writing(out):
            if folds:
                dice = cross_validate(out, dataset, folds, arguments.fold, say=_say, **values)
                _print_folds(dice, folds)
            else:
                _print_best(train(out, dataset, **values))
                _print_steps(steps_of(out / RUN))
    except Cancelled as error:
        print(f"napari-seg: {error}", file=sys.stderr)
        return ExitCode.CANCELLED
    if (out / WEIGHTS).is_file():
        print(f"bundle  {out}\ntry     {shlex.join(_predicting(plan, out))}")
    return ExitCode.DONE


def _predicting(plan: dict[str, Any], out: Path) -> list[str]:
    from napari_seg.training.run import command

    found = plan["fingerprint"]
    if found["modality"] == "picture" or len(found.get("channels", ())) > 1:
        # which predict does not run yet
        return command("inference", out, dataset_dir="IMAGES", output_dir="results")
    return ["napari-seg", "predict", "SCAN", "--bundle", str(out), "--trust-bundle", "-o", "results"]


def named_value(word: str) -> tuple[str, str]:
    """NAME=VALUE of an argument, in two."""
    name, _, text = word.partition("=")
    if not (name and text):
        raise argparse.ArgumentTypeError(f"{word!r} is no pair as NAME=VALUE")
    return name, text


def _from(dataset: Path, folder: str | None) -> str | None:
    """A folder as seen from the data set: a bundle is passed on, and says nothing of where its data lay."""
    return None if folder is None else os.path.relpath(dataset / folder, dataset)


def _value(text: str) -> Any:
    """As YAML has it: [4, 8] a list, 120-135 and $@x text; but numbers as a person writes them, 1e-3 and 010 too."""
    import yaml

    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            pass
    return yaml.safe_load(text)


def _print_plan(plan: dict[str, Any]) -> None:
    found = plan["fingerprint"]
    print(f"data    {found['cases']} cases, {', '.join(found['channels'])} ({found['modality']})")
    print(f"labels  {'; '.join(' '.join(map(str, [name, *values])) for name, values in plan['labels'].items())}")
    for option, why in plan["options"].items():
        print(f"plan    option {option}: {why}")
    for name, entry in plan["settings"].items():
        value = entry["value"]["_target_"].rpartition(".")[2] if isinstance(entry["value"], dict) else entry["value"]
        print(f"plan    {name} {value}: {entry['why']}")
    chosen = [f"{name} {value}" for name, value in plan["choices"].items() if name != "labels"]
    print(f"chosen  {', '.join(chosen) or 'nothing else'}", flush=True)


def _print_best(best: dict[str, Any] | None) -> None:
    if best is None:
        print("no validation yet; the last weights are the bundle's")
        return
    each = ", ".join(f"{name} {value:.4f}" for name, value in best["dice"].items() if value is not None)
    print(f"best    Dice {best['mean_dice']:.4f} in epoch {best['epoch']} ({each})")


def _print_steps(steps: tuple[int, int] | None) -> None:
    if steps is None or steps[0] >= steps[1]:
        return
    reached, planned = steps
    print(f"steps   {reached} of {planned} planned ({reached / planned:.1%})")
    if reached < 0.25 * planned:
        print(
            "        too few for a useful network: the same command with more --max-minutes, or without, goes on; a "
            "shorter plan is made with --max-epochs in a new folder"
        )


def _print_folds(dice: dict[str, list[float]], folds: int) -> None:
    from math import nan
    from statistics import mean, stdev

    for name, values in dice.items():
        spread = f" +- {stdev(values):.4f}" if len(values) > 1 else ""
        print(f"Dice    {name} {mean(values or [nan]):.4f}{spread} over {len(values)} of {folds} folds")
    if dice:
        print("        slightly too kind: of each fold, the cases that chose its best epoch")


def _say(text: str) -> None:
    print(text, flush=True)
