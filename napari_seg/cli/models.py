"""`napari-seg models`: list, install, check and remove models. Nothing of a model runs here."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_seg.cli.exit_codes import ExitCode
from napari_seg.cli.task_card import show_task
from napari_seg.errors import counted, one_line, printable

if TYPE_CHECKING:
    from napari_seg.bundles.spec import Bundle
    from napari_seg.bundles.store.catalogue import Entry
    from napari_seg.bundles.store.licence import Licence

MAX_LINE = 2000
"""Length limit of a printed line of foreign text."""

MAX_SHOWN_LINES = 10

MAX_SHOWN_NAMES = 15


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "models",
        aliases=["bundles"],
        help="list, install, check and remove models, and the structures that they segment",
        description="Manages the models on this machine. Without an ACTION, lists them: the shipped bundle, the "
        "bundles in the folders given by the environment variable NAPARI_SEG_BUNDLES, and the installed models. No "
        "code of a model is run, and only 'add' opens a connection. Models are installed in the folder given by "
        "NAPARI_SEG_MODELS, by default one for the user's data.",
    )
    parser.add_argument("--json", action="store_true", help="print objects instead of text")
    parser.set_defaults(run=_list)
    actions = parser.add_subparsers(title="actions", metavar="ACTION")

    def action(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        one = actions.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        # without a default of its own, which would hide a --json before the action
        one.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print objects, not text")
        one.set_defaults(run=run)
        return one

    action("list", _list, "list the models on this machine")
    search = action("search", _search, "search the catalogue of published models, without a network")
    search.add_argument("words", nargs="*", metavar="WORD", help="a structure, a modality, a name; none: all models")
    add = action("add", _add, "install a model from this machine or the web; a stopped download goes on from there")
    add.add_argument(
        "source",
        metavar="SOURCE",
        help="folder or zip of a bundle or of nnU-Net; the address of a zip; hf:OWNER/NAME[@REVISION] on Hugging Face; "
        "ngc:NAME[@VERSION] of the MONAI Model Zoo; totalsegmentator:TASK, such as totalsegmentator:total; or a name "
        "that 'search' lists",
    )
    add.add_argument("--name", help="name of the installed model; by default the source's")
    add.add_argument("--replace", action="store_true", help="replace the installed model of the same name")
    add.add_argument(
        "--accept-licence", action="store_true", help="accept the licence of the model without being asked"
    )
    add.add_argument(
        "--offline",
        action="store_true",
        help="do not download the weights that a folder or zip names in large_files.yml but lacks",
    )
    for name, run, text in (
        ("show", _show, "show what a model is: what it finds, its licence, its size and its source"),
        ("check", _check, "check a bundle: what is missing or wrong, in which file and entry, and how to mend it"),
        ("remove", _remove, "remove an installed model"),
        ("verify", _verify, "compare the files of an installed model with those that were installed"),
    ):
        action(name, run, text).add_argument("model", metavar="MODEL", help="name of the model, or its folder")
    convert = action("convert", _convert, "write a model of nnU-Net as a MONAI bundle, which runs without napari-seg")
    convert.add_argument("model", metavar="MODEL", help="nnU-Net model, such as FOLDER:3d_fullres or :2d+3d_fullres")
    convert.add_argument("-o", "--output", type=Path, required=True, metavar="BUNDLE", help="a new folder")
    new = action("new", _new, "write a new bundle to start from, without weights")
    new.add_argument("folder", type=Path, metavar="FOLDER", help="a new folder; its name is that of the model")
    new.add_argument(
        "--finds", action="extend", nargs="+", metavar="NAME", help="the structures, in the order of their labels"
    )
    codes = ("CR", "CT", "DX", "MG", "MR", "NM", "PT", "RGB", "US", "XA")
    new.add_argument(
        "--modality",
        default="MR",
        choices=codes,
        metavar="M",
        help=f"DICOM's code of the images, or RGB: {', '.join(codes)}; default MR",
    )
    new.add_argument(
        "--channels",
        action="extend",
        nargs="+",
        metavar="NAME",
        help="names of the images of one case, such as T1 T1c T2 FLAIR; default: one image",
    )
    new.usage = "napari-seg models new FOLDER [--finds NAME ...] [--modality M] [--channels NAME ...] [--json]"
    new.epilog = (
        "Example: napari-seg models new brain_tumor --finds core edema --modality MR --channels T1 T1c T2 FLAIR"
    )


def _list(arguments: argparse.Namespace) -> int:
    from napari_seg.bundles.places import kept_folder
    from napari_seg.bundles.read import find_bundles, shipped_root
    from napari_seg.bundles.store.installed import disk_use, installed_as, task_name
    from napari_seg.bundles.totalsegmentator.task import TaskBundle

    bundles, faults = find_bundles()
    for fault in faults:
        print(f"napari-seg: {fault}", file=sys.stderr)
    if arguments.json:
        print(json.dumps([_as_dict(bundle) for bundle in bundles], indent=2))
        return ExitCode.DONE
    use = disk_use()
    for bundle in bundles:
        _print_bundle(bundle)
        if isinstance(bundle, TaskBundle):
            print(f"  name: {shlex.quote(task_name(bundle))}")
        elif bundle.reference != str(bundle.root):
            print(f"  name: {bundle.reference}")
        elif bundle.root == shipped_root():
            print(f'  name: "{bundle.name}"')
        elif name := installed_as(bundle):
            print(f"  installed as: {name} ({_in_words(use.get(name.partition(':')[0], 0))})")
    if use:
        print(f"installed models take {_in_words(sum(use.values()))}")
        if ".part" in use:
            print(f"  of it unfinished downloads: {_in_words(use['.part'])}")
        if ".weights" in use:
            print(f"  of it weights read from nnU-Net's checkpoints: {_in_words(use['.weights'])}, safe to delete in")
            print(f"    {one_line(kept_folder(), MAX_LINE)}")
    return ExitCode.DONE


def _print_bundle(bundle: Bundle) -> None:
    print(f"{bundle.name}  {bundle.version}   {bundle.modality}   {_state(bundle)}")
    print(f"  {bundle.description}")
    print(f"  segments: {_first_names([segment.name for segment in bundle.segments])}")
    if bundle.in_channels > 1 or bundle.kind in ("nnunet", "ensemble"):  # --channel takes these names
        print(f"  channels: {_first_names(list(bundle.channel_names))}")
    print(f"  folder: {one_line(bundle.root, MAX_LINE)}")


def _state(bundle: Bundle) -> str:
    """Return how a bundle runs, in words, and whether its weights are missing."""
    way = _way(bundle)
    return _way_in_words(way, bundle) + ", once its weights are there" * bool(way["missing_weights"])


def _way_in_words(way: dict[str, Any], bundle: Bundle) -> str:
    from napari_seg.bundles.ways import way_in_words

    return way_in_words(way["way"], way["needs_consent"] and not bundle.trusted, consented=way["trusted"])


def _way(bundle: Bundle) -> dict[str, Any]:
    """Return how a bundle runs, and why; a bundle whose config can't be read is refused."""
    from napari_seg.bundles.trust import is_trusted
    from napari_seg.bundles.ways import Way, missing_weights, way_of
    from napari_seg.errors import BundleError

    try:
        way, trusted = way_of(bundle), is_trusted(bundle)
    except BundleError as error:
        way, trusted = Way("refused", False, (error.message,)), bundle.trusted
    return {
        "way": way.kind,
        "needs_consent": way.needs_consent,
        "reasons": list(way.reasons),
        "trusted": trusted,
        "missing_weights": missing_weights(bundle),
    }


def _as_dict(bundle: Bundle) -> dict[str, object]:
    return {
        "name": bundle.name,
        "version": bundle.version,
        "description": bundle.description,
        "modality": bundle.modality,
        **_way(bundle),
        "segments": [{"label": s.label, "name": s.name} for s in bundle.segments],
        "folder": str(bundle.root),
        "reference": bundle.reference,
    }


def _search(arguments: argparse.Namespace) -> int:
    from dataclasses import asdict

    from napari_seg.bundles.store.catalogue import counts, entries, search, similar_word
    from napari_seg.bundles.store.installed import installed
    from napari_seg.bundles.totalsegmentator.read import find_tasks

    words = " ".join(arguments.words)
    found = search(words)
    here = {bundle.root.name for bundle in installed()} | {bundle.reference for bundle in find_tasks()[0]}
    if arguments.json:
        print(
            json.dumps(
                [asdict(one) | {"archive_url": one.archive_url, "installed": one.name in here} for one in found],
                indent=2,
            )
        )
    else:
        for entry in found:
            state = _state_of_entry(entry, entry.name in here)
            print("  ".join(filter(None, (entry.name, entry.version, entry.modality, state))))
            print(f"  reason: {entry.reason}" if entry.refused else f"  finds: {_first_names(entry.finds)}")
            if entry.note:
                print(f"  note: {entry.note}")
            if entry.channels:
                print(f"  images: {', '.join(entry.channels)}")
            size = "size unknown" if entry.size_bytes is None else _in_words(entry.size_bytes)
            licence = entry.licence or "unknown"
            kind = "" if entry.licence_kind in licence.lower() else f" ({entry.licence_kind})"
            print(f"  licence: {licence}{kind}; download: {size}")
            if entry.data and not entry.refused:
                print(f"  training data: {entry.data} ({entry.data_licence or 'terms not stated here'})")
        if found:
            print(f"{counted(len(found), 'model')}; 'napari-seg models add NAME' installs one")
        else:
            each = ", ".join(
                f"{count} {'has' if count == 1 else 'have'} {word!r}"
                + (f" (did you mean {near}?)" if not count and (near := similar_word(word)) else "")
                for word, count in counts(words).items()
            )
            print(
                one_line(
                    f"no model has all of these words; {each}; 'models search' alone lists all {len(entries())}",
                    MAX_LINE,
                )
            )
    return ExitCode.DONE if found else ExitCode.NOTHING_FOUND


def _state_of_entry(entry: Entry, is_installed: bool) -> str:
    """Return whether a model of the catalogue is installed, and how it runs then."""
    from napari_seg.bundles.ways import way_in_words

    way = way_in_words(entry.way, entry.needs_consent)
    if entry.refused:
        return way
    return f"{'' if is_installed else 'not '}installed; {way}" + "; licensed" * entry.is_licensed


def _add(arguments: argparse.Namespace) -> int:
    from napari_seg.bundles.places import store_root
    from napari_seg.bundles.read import read_bundles
    from napari_seg.bundles.store.installed import add, disk_use, installed_as

    with _Bar(show=sys.stderr.isatty()) as bar:

        def accept(licence: Licence) -> bool:
            bar.stop()
            return arguments.accept_licence or _is_accepted(licence)

        bundle = add(
            arguments.source,
            accept_licence=accept,
            progress=bar.update,
            name=arguments.name,
            replace=arguments.replace,
            offline=arguments.offline,
        )
    name, _, choice = installed_as(bundle).partition(":")
    models = read_bundles(store_root() / name) if choice else [bundle]  # an nnU-Net folder may hold several
    names = [installed_as(model) or model.reference for model in models]
    name = name or bundle.reference
    # all tasks of TotalSegmentator together, because they share models
    size = disk_use().get(name.partition(":")[0], 0)
    if arguments.json:
        print(json.dumps(_as_dict(bundle) | {"size_bytes": size, "installed_as": names}, indent=2))
        return ExitCode.DONE
    for model in models:
        _print_bundle(model)
    missing = _way(bundle)["missing_weights"]
    example = next((one for one in names if one.endswith(":3d_fullres")), names[0])
    use = f"it can't be used until its weights are there: {missing}" if missing else f"use it with --model {example}"
    if choice:
        use = f"it holds {', '.join(one.partition(':')[2] for one in names)}; use one with --model {example}"
    print(one_line(f"installed as {name} ({_in_words(size)}); {use}", MAX_LINE))
    return ExitCode.DONE


def _is_accepted(licence: Licence) -> bool:
    """Show a licence on standard error, and ask for it if there is a person to ask."""
    err = sys.stderr
    print(printable(licence.text) or "The licence is inside the download.", file=err)
    print(f"\nlicence of {licence.model}: {licence.name or 'unknown'}; class: {licence.kind}", file=err)
    if not sys.stdin.isatty():
        return False
    print("Accept this licence? [y/N] ", end="", file=err, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _show(arguments: argparse.Namespace) -> int:
    from napari_seg.bundles.read import read_bundle
    from napari_seg.bundles.totalsegmentator.table import is_task_name

    if is_task_name(arguments.model) and "+" not in arguments.model:
        return show_task(arguments.model, arguments.json)
    bundle = read_bundle(arguments.model)
    card = _card(bundle)
    if arguments.json:
        print(json.dumps(card, indent=2))
        return ExitCode.DONE
    _print_bundle(bundle)
    shown = ("images", "intended_use", "licence", "source", "revision", "installed", "licence_accepted", "in_its_task")
    for key in shown:
        if card.get(key):
            print(f"  {key.replace('_', ' ')}: {card[key]}")
    for member in bundle.models if bundle.kind == "ensemble" else ():
        print(f"  member: {one_line(member.root, MAX_LINE)}")
    if bundle.previous is not None:
        print(f"  previous stage: {one_line(bundle.previous.root, MAX_LINE)}")
    for name, value in bundle.accuracy:
        print(f"  {name}: {value:g}")
    print(f"  size: {_in_words(card['size_bytes'])}")
    if card["missing_weights"]:
        print(f"  weights: missing; {one_line(card['missing_weights'], MAX_LINE)}")
    asks = card["needs_consent"] and not card["trusted"]
    print(f"  way: {_way_in_words(card, bundle)}{' (--trust gives it)' * asks}")
    for reason in card["reasons"]:
        print(f"    because of {one_line(reason, MAX_LINE)}")
    for line in card["code"][:MAX_SHOWN_LINES]:
        print("    code: " + one_line(f"{line['place']}: {line['text']} ({line['why']})", MAX_LINE))
    if len(card["code"]) > MAX_SHOWN_LINES:
        print(f"    code: {len(card['code']) - MAX_SHOWN_LINES} more lines; --json prints them")
    return ExitCode.DONE


def _card(bundle: Bundle) -> dict[str, Any]:
    from napari_seg.bundles.content import code_lines
    from napari_seg.bundles.store.installed import installed_as, read_record
    from napari_seg.bundles.store.licence import read_licence
    from napari_seg.errors import BundleError

    card: dict[str, Any] = _as_dict(bundle)
    licence = read_licence(bundle.root, bundle.name)
    card |= {
        "channels": bundle.in_channels,
        "channel_names": list(bundle.channel_names),
        "images": bundle.images,
        "intended_use": bundle.intended_use,
        "accuracy": dict(bundle.accuracy),
        "licence": "; ".join(filter(None, (licence.name, bundle.licence))),
        "licence_kind": licence.kind,
        "size_bytes": sum(path.lstat().st_size for path in _content(bundle) if not path.is_dir()),
        "in_its_task": _in_its_task(bundle),
    }
    try:
        lines = code_lines(bundle) if card["needs_consent"] else []
    except BundleError as error:  # a link out of the bundle, for example
        card["reasons"].append(error.message)
        lines = []
    card["code"] = [{"place": line.place, "text": line.text, "why": line.why} for line in lines]
    if name := installed_as(bundle):
        record = read_record(name.partition(":")[0])
        noted = ("source", "revision", "installed", "licence_accepted")
        card |= {key: getattr(record, key) for key in noted}
    return card


def _content(bundle: Bundle) -> Iterator[Path]:
    """Yield what is in the folder of a model, or in those of a task's models."""
    from napari_seg.bundles.totalsegmentator.task import TaskBundle

    for root in [one.root for one in bundle.parts] if isinstance(bundle, TaskBundle) else [bundle.root]:
        yield from root.rglob("*")


def _in_its_task(bundle: Bundle) -> str:
    """Return how an improved model runs in the task of TotalSegmentator that it is a part of, or why it can't."""
    from napari_seg.bundles.read import whole_task
    from napari_seg.bundles.store.installed import task_name
    from napari_seg.errors import BundleError

    try:
        whole = whole_task(bundle)
    except BundleError as error:
        return f"no: {error.message}"
    return "" if whole is None else f"--model {shlex.quote(task_name(whole))}"


def _check(arguments: argparse.Namespace) -> int:
    from dataclasses import asdict

    from napari_seg.bundles.check import WEIGHTS, check
    from napari_seg.bundles.parts import nnunet_models
    from napari_seg.bundles.read import read_bundle, root_of
    from napari_seg.bundles.totalsegmentator.table import is_task_name

    folder = Path(arguments.model)
    if is_task_name(arguments.model):
        roots = [model.root for model in nnunet_models(read_bundle(arguments.model))]
    else:
        roots = [folder if folder.is_dir() else root_of(arguments.model)]
    findings = [finding for root in roots for finding in check(root)]
    faults = sum(finding.level == "error" for finding in findings)
    if arguments.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            place = ": ".join(filter(None, (finding.file, finding.key)))
            print(f"{finding.level:8} {one_line(f'{place}: {finding.found}', MAX_LINE)}")
            if finding.mend:
                print(f"         to do: {one_line(finding.mend, MAX_LINE)}")
        counts = [(sum(one.level == level for one in findings), level) for level in ("error", "warning", "note")]
        usable = "; it can't be used until its weights are there" * any(one.file == WEIGHTS for one in findings)
        usable = "; the bundle can't be used" if faults else usable
        print(", ".join(counted(count, level) for count, level in counts) + usable)
    return ExitCode.ALL_FAILED if faults else ExitCode.DONE


def _new(arguments: argparse.Namespace) -> int:
    from napari_seg.bundles.skeleton import write_skeleton

    folder = write_skeleton(
        arguments.folder, arguments.finds or ["structure"], arguments.modality, arguments.channels or ["image"]
    )
    if arguments.json:
        print(json.dumps({"folder": str(folder)}, indent=2))
    else:
        print(f"wrote {folder}; docs/README.md in it says what is to be filled in")
    return ExitCode.DONE


def _convert(arguments: argparse.Namespace) -> int:
    from napari_seg.bundles.nnunet.convert import convert
    from napari_seg.bundles.read import read_bundle

    convert(read_bundle(arguments.model), arguments.output)
    if arguments.json:
        print(json.dumps({"folder": str(arguments.output)}, indent=2))
    else:
        print(f"wrote {arguments.output}; docs/README.md in it says how to run it")
    return ExitCode.DONE


def _remove(arguments: argparse.Namespace) -> int:
    from napari_seg.bundles.store.installed import remove

    freed = remove(arguments.model)
    if arguments.json:
        print(json.dumps({"removed": arguments.model, "freed_bytes": freed}, indent=2))
    else:
        print(f"removed {arguments.model}; {_in_words(freed)} are free again")
    return ExitCode.DONE


def _verify(arguments: argparse.Namespace) -> int:
    from napari_seg.bundles.store.installed import verify

    damages = verify(arguments.model)
    if arguments.json:
        print(json.dumps([{"file": damage.file, "fault": damage.fault} for damage in damages], indent=2))
    else:
        for damage in damages:
            print(one_line(f"{damage.fault}  {damage.file}", MAX_LINE))
        is_more = bool(damages) and all(damage.fault == "added" for damage in damages)
        advice = "remove the model and add it again"
        advice = (
            "all other files are as installed; what was added is lost if you remove the model" if is_more else advice
        )
        print(advice if damages else "every file is as installed")
    return ExitCode.ALL_FAILED if damages else ExitCode.DONE


def _first_names(names: Sequence[str]) -> str:
    """Return the first names of a list, and how many follow; --json prints all."""
    more = len(names) - MAX_SHOWN_NAMES
    return ", ".join(names[:MAX_SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")


def _in_words(size: int) -> str:
    """Return a size such as "5.1 kB" or "1.2 GB"."""
    unit, name = (1e9, "GB") if size >= 1e9 else (1e6, "MB") if size >= 1e6 else (1e3, "kB")
    return f"{size / unit:.1f} {name}"


class _Bar:
    """Bar on standard error with the bytes done and in all, the speed and the time left."""

    def __init__(self, show: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.progress import TransferSpeedColumn as SpeedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), SpeedColumn())
        console = Console(file=sys.stderr)
        self._bars = Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=not show)
        self._task = self._bars.add_task("preparing", total=None)

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Hide the bar, so that a question can be asked; the next update shows it again."""
        self._bars.stop()

    def update(self, stage: str, done: int, total: int) -> None:
        self._bars.start()
        self._bars.update(self._task, description=stage, completed=done, total=total or None)
