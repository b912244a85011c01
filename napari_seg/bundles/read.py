"""Bundles on disk: find them and read what they declare; nothing of a bundle runs here."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from functools import reduce
from pathlib import Path
from typing import Any

from napari_seg.bundles.config.read import TooLargeError, read_config
from napari_seg.bundles.ensemble import check_averaged, output_of_average
from napari_seg.bundles.metadata import MAX_METADATA_BYTES, bundle_of
from napari_seg.bundles.nnunet.folder import find_trainings, is_training
from napari_seg.bundles.nnunet.plans import PLANS
from napari_seg.bundles.nnunet.read import read_nnunet, read_training, split_choice
from napari_seg.bundles.places import bundle_folders
from napari_seg.bundles.spec import METADATA, Bundle, EnsembleBundle, PartOf, described
from napari_seg.bundles.store.catalogue import entry_of
from napari_seg.bundles.totalsegmentator.improved import with_improved
from napari_seg.bundles.totalsegmentator.read import find_tasks, read_task
from napari_seg.bundles.totalsegmentator.table import is_task_name, task_of, tasks
from napari_seg.bundles.totalsegmentator.task import PREFIX, TaskBundle
from napari_seg.bundles.totalsegmentator.weights import own_folder
from napari_seg.errors import BundleError, nearest, one_line


def shipped_root() -> Path:
    """Return the root of the bundle that comes with the package, in a checkout or in the installed package."""
    package = Path(__file__).resolve().parents[1]
    for root in (package / "monai_bundle", package.parent / "monai_bundle"):
        if (root / METADATA).is_file():
            return root
    raise BundleError("bundle.missing", "the bundle that comes with this package is missing; install napari-seg again")


def find_bundles(folders: Sequence[Path] = ()) -> tuple[list[Bundle], list[BundleError]]:
    """Return the shipped bundle, those in the folders of NAPARI_SEG_BUNDLES and the installed ones; and their errors.

    The tasks of TotalSegmentator whose weights are on this machine follow.

    Args:
        folders: further folders; one may be a bundle itself, and then those inside it are not returned.
    """
    places = (*bundle_folders(), *folders)
    roots: list[Path] = []
    for folder in places:
        with suppress(OSError):  # skip a folder that can't be listed
            if (folder / METADATA).is_file():
                roots.append(folder)  # bundles inside it, such as a first stage, are no models of their own
            else:
                roots += [path.parent.parent for path in sorted(folder.glob(f"*/{METADATA.as_posix()}"))]
    for folder in places:
        others = [child for child in _other_folders(folder) if child != own_folder()]  # its tasks are found below
        roots += [root for child in others for root in find_trainings(child)]
    bundles: list[Bundle] = []
    faults = []
    for root in dict.fromkeys((shipped_root(), *roots)):
        try:
            bundles.append(read_bundle(root))
        except BundleError as fault:
            faults.append(fault)
    found, unreadable = find_tasks()
    return [*bundles, *found, *_improved_tasks(found, bundles)], [*faults, *unreadable]


def _improved_tasks(tasks: Iterable[TaskBundle], bundles: Iterable[Bundle]) -> Iterator[TaskBundle]:
    """Yield each task with each improved model of it, and with the newest ones if several of its models have some."""
    improved = sorted((one for one in bundles if one.part_of is not None), key=_version)
    for task in tasks:
        newest: dict[PartOf | None, Bundle] = {}
        for bundle in improved:
            if bundle.part_of is not None and bundle.part_of.task == task.task.name:
                with suppress(BundleError):  # it is listed alone; `models show` says why
                    yield with_improved(task, bundle)
                    newest[bundle.part_of] = bundle
        if len(newest) > 1:
            yield reduce(with_improved, newest.values(), task)


def _version(bundle: Bundle) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", bundle.version)]


def read_bundles(folder: Path) -> list[Bundle]:
    """Return the bundle in a folder, or all models of nnU-Net in it.

    Raises:
        BundleError: as for `read_bundle`.
    """
    if (folder / METADATA).is_file() or not (roots := find_trainings(folder)):
        return [read_bundle(folder)]
    return [read_training(root) for root in roots]


def read_bundle(bundle: Bundle | str | Path | None = None, *, trust: bool = False) -> Bundle:
    """Return a bundle as its metadata describes it.

    Args:
        bundle: a bundle's folder, the name of an installed model or of a folder in one that NAPARI_SEG_BUNDLES lists,
            the title of one of these as `models list` prints it, a bundle that was read before, or None for the shipped
            one. "totalsegmentator:total" is the task "total" of TotalSegmentator, and "totalsegmentator:total+BUNDLE"
            that task with an improved model in the place of its own one. For a folder of nnU-Net a choice may follow,
            such as `FOLDER:3d_fullres`, see `bundles/nnunet/read.py`.
        trust: allow its code to run later. The shipped bundle is always trusted.

    Raises:
        BundleError: `bundle.unknown`, there is no such bundle; `bundle.metadata`, its metadata can't be read;
            `bundle.too_large`, they exceed a limit; `bundle.members`, its members can't be averaged; `bundle.nnunet` or
            `bundle.weights`, a model of nnU-Net can't be used; `bundle.part`, a model can't run in this task.
    """
    if isinstance(bundle, Bundle):
        return replace(bundle, trusted=True) if trust else bundle
    if isinstance(bundle, str) and is_task_name(bundle):
        return _task(bundle, trust)
    if bundle is not None and (model := _nnunet(bundle)) is not None:
        return model
    if isinstance(bundle, str) and (titled := _of_title(bundle)) is not None:
        return replace(titled, trusted=True) if trust else titled
    root = shipped_root() if bundle is None else root_of(bundle)
    return _read_folder(root, trust or root == shipped_root())


def _read_folder(root: Path, trusted: bool, is_member: bool = False) -> Bundle:
    """Return the MONAI bundle in a folder, or the ensemble of those inside it; a member of one is none itself."""
    try:
        metadata = read_config(root / METADATA, MAX_METADATA_BYTES)
        found = bundle_of(root, metadata, trusted=trusted)
        ours = metadata.get("napari_seg", {})
        found = _cascade(found, str(ours["previous"])) if "previous" in ours else found
        return _ensemble(found, ours) if "members" in ours and not is_member else found
    except BundleError:  # of an inner bundle
        raise
    except Exception as error:  # a foreign file can hold anything, and must not hide the other bundles
        cause = one_line(f"{type(error).__name__}: {error}", 200)
        raise BundleError(
            "bundle.too_large" if isinstance(error, TooLargeError) else "bundle.metadata",
            f"{METADATA} of {described(root)} can't be used ({cause}); expected "
            "metadata by MONAI's bundle specification, with network_data_format",
        ) from error


def _task(name: str, trust: bool) -> TaskBundle:
    """Return a task, with the models behind each "+" in the place of its own ones; a folder may hold a "+" itself."""
    first, *words = name.split("+")
    task_of(first)
    improved = []
    while words:
        texts = ["+".join(words[:count]) for count in range(len(words), 0, -1)]
        text = next((one for one in texts if any(_is_bundle(folder) for folder in _candidates(one))), words[0])
        improved.append(read_bundle(text, trust=trust))  # before the weights of the task, which may have to be fetched
        words = words[text.count("+") + 1 :]
    return reduce(with_improved, improved, read_task(first, trust=trust))


def _is_bundle(folder: Path) -> bool:
    with suppress(OSError, ValueError):  # a name that no file system takes
        return (folder / METADATA).is_file()
    return False


def whole_task(bundle: Bundle, before: Bundle | None = None) -> TaskBundle | None:
    """Return the task of which a model is an improved part, with that in its place; None if it is no part.

    Args:
        bundle: the model.
        before: model that was improved; if it is the task with improved models in it, those of other parts stay.

    Raises:
        BundleError: as for `read_task` and `with_improved`.
    """
    if bundle.part_of is None:
        return None
    task = read_task(bundle.part_of.task)
    improved = before.improved if isinstance(before, TaskBundle) and before.task.name == task.task.name else ()
    others = [one.bundle for one in improved if one.bundle.part_of != bundle.part_of]
    return reduce(with_improved, [*others, bundle], task)


def _of_title(title: str) -> Bundle | None:
    """Return the only known bundle with a title of several words; None if there is none, or a file of that name."""
    if " " not in title or os.path.exists(title):  # names of folders and of installed models have no spaces
        return None
    found = [one for one in find_bundles()[0] if one.name == title]
    return found[0] if len(found) == 1 else None


def read_coarse(bundle: Bundle) -> Bundle:
    """Return the coarse bundle of another one; it is trusted if that one is.

    Raises:
        BundleError: `bundle.metadata`, its folder is outside the other one's; `bundle.unknown`, it does not exist.
    """
    assert bundle.coarse is not None
    return read_bundle(_folder_in(bundle, bundle.coarse.bundle, "its coarse bundle"), trust=bundle.trusted)


def _folder_in(bundle: Bundle, name: str, meaning: str) -> Path:
    """Return the folder of a bundle inside another one.

    Raises:
        BundleError: `bundle.metadata`, it lies outside.
    """
    own = bundle.root.resolve()
    root = Path(os.path.normpath(own / name))
    root = root.resolve() if root.is_relative_to(own) else own  # on Windows, resolving a share connects to its host
    if root == own or not root.is_relative_to(own):
        raise BundleError(
            "bundle.metadata", f"bundle {bundle.root.name!r} names {name!r} as {meaning}; expected a folder in it"
        )
    return root


def _ensemble(bundle: Bundle, entry: dict[str, Any]) -> EnsembleBundle:
    """Return a bundle with the members that its metadata name.

    Args:
        bundle: what its metadata say otherwise.
        entry: what they say under `napari_seg`.

    Raises:
        BundleError: `bundle.metadata`, a member lies outside; `bundle.members`, the members can't be averaged.
        Exception: whatever an entry that can't be used raises.
    """
    names = list(dict.fromkeys(str(name) for name in entry["members"]))
    if not 2 <= len(names) <= _MAX_MEMBERS:
        raise ValueError(f"it names {len(names)} members; expected 2 to {_MAX_MEMBERS}")
    members = tuple(_read_folder(_folder_in(bundle, name, "a member"), bundle.trusted, True) for name in names)
    check_averaged(bundle, members, "largest" in entry)
    own = {one.name: getattr(bundle, one.name) for one in fields(Bundle)}
    takes_one_slice = all(member.takes_one_slice for member in members)
    own |= {"kind": "ensemble", "output": output_of_average(members[0]), "takes_one_slice": takes_one_slice}
    return EnsembleBundle(**own, members=members, largest=tuple(int(label) for label in entry.get("largest", ())))


_MAX_MEMBERS = 16


def _cascade(bundle: Bundle, name: str) -> Bundle:
    """Return a bundle with the previous stage that its metadata name.

    Args:
        bundle: what its metadata say otherwise.
        name: folder of the previous stage in it.

    Raises:
        BundleError: `bundle.metadata`, the folder lies outside.
        ValueError: the stages do not fit together.
    """
    previous = _read_folder(_folder_in(bundle, name, "its previous stage"), bundle.trusted, True)
    different = [key for key in _OF_BOTH_STAGES if getattr(previous, key) != getattr(bundle, key)]
    if different or bundle.localiser is not None or previous.localiser is not None:
        problem = f"has other {', '.join(different)}" if different else "or it has a localiser"
        raise ValueError(f"its previous stage {name!r} {problem}; expected the same channels and structures")
    return replace(bundle, previous=previous)


_OF_BOTH_STAGES = ("in_channels", "channel_names", "network_segments")
"""Attributes that are equal in both stages of a cascade: scan and labels."""


def inner_bundles(bundle: Bundle) -> tuple[Bundle, ...]:
    """Return the MONAI bundles inside a MONAI bundle that run before it: its previous stage, and its coarse bundle.

    Raises:
        BundleError: as for `read_coarse`.
    """
    previous = (bundle.previous,) if bundle.previous is not None and bundle.kind == "monai" else ()
    return previous if bundle.coarse is None else (*previous, read_coarse(bundle))


def with_inner(bundle: Bundle) -> list[Bundle]:
    """Return a bundle and its `inner_bundles`, with those inside them.

    Raises:
        BundleError: as for `read_coarse`.
    """
    return [bundle, *(one for inner in inner_bundles(bundle) for one in with_inner(inner))]


def root_of(bundle: str | Path) -> Path:
    """Return the folder of a bundle, whatever state it is in.

    Args:
        bundle: as for `read_bundle`.

    Raises:
        BundleError: `bundle.unknown`, there is no such bundle.
    """
    for candidate in _candidates(bundle):
        with suppress(OSError):  # a name that no file system takes
            if (candidate / METADATA).is_file():
                return candidate.resolve()
    for candidate in _candidates(bundle):
        if find_trainings(candidate):
            return candidate.resolve()
    with suppress(OSError, ValueError):
        if (Path(bundle) / "configs").is_dir():  # METADATA is missing, or no file
            text = f"{str(bundle)!r} has no {METADATA.as_posix()}; expected metadata by MONAI's bundle specification; "
            raise BundleError("bundle.metadata", f"{text}'napari-seg models new' writes an example")
    if entry := entry_of(str(bundle)):
        advice = f"'napari-seg models add {entry.name}' installs it"
        state = f"can't be used: {entry.reason}" if entry.refused else f"not installed; {advice}"
        raise BundleError("bundle.unknown", f"{entry.name!r} is in the catalogue but {state}")
    kinds = f"a MONAI bundle ({METADATA.as_posix()}) or an nnU-Net folder ({PLANS})"
    raise BundleError("bundle.unknown", f"found no model at {str(bundle)!r}; expected {kinds}; {_advice(bundle)}")


def _advice(bundle: str | Path) -> str:
    """Return what to give in place of a name that stands for no bundle."""
    path, text = Path(bundle), str(bundle)
    above = path.parent if path.name.startswith("fold_") else path.parent.parent
    if re.fullmatch(r"fold_\w+|checkpoint_\w+\.pth", path.name) and is_training(above):
        return f"take the folder above, {str(above.absolute())!r}"
    if text.lower().endswith(".zip"):
        return "'napari-seg models add' installs a model from a zip"
    if re.search(r"@\d+(-\d+)+$", text):
        return "folds are given one by one, such as @0,1,2"
    known = {"totalsegmentator": "total"} | {name.lower(): name for name in tasks()}
    known |= {PREFIX + word: name for word, name in known.items()}
    if task := known.get(text.lower()):
        return f"did you mean {PREFIX}{task}"
    listed = "'napari-seg models list' lists the available ones"
    near = _near(text) if isinstance(bundle, str) and path.name == text else ""
    if not near and (task_like := nearest(text, known, _LIKE)):
        near = PREFIX + known[task_like]
    return f'did you mean "{near}"? {listed}' if near else listed


def _near(text: str) -> str:
    """Return the title or the name of a known bundle that holds a text, or is like it or a word of it; "" for none."""
    found, folders = find_bundles()[0], [folder.resolve() for folder in bundle_folders()]
    titles = [one.name for one in found if " " in one.name]
    names = [title for title in titles if titles.count(title) == 1]
    for root in (one.root for one in found):
        names += [root.relative_to(folder).parts[0] for folder in folders if folder in root.parents]
    holding = [name for name in names if len(text) >= _MIN_LETTERS and text.casefold() in name.casefold()]
    words = {word: name for name in reversed(names) for word in (*re.findall(rf"\w{{{_MIN_LETTERS},}}", name), name)}
    return next(iter(holding), words.get(nearest(text, words), ""))


_MIN_LETTERS = 4
"""Letters of a part of a name that is taken for the name."""

_LIKE = 0.85
"""Similarity from which an unknown name is taken for a misspelt task of TotalSegmentator."""


def _candidates(bundle: str | Path) -> list[Path]:
    """Return the folders that a name may stand for, the path itself first."""
    found = [Path(bundle)]
    if Path(bundle).name == str(bundle):
        found += [folder / bundle for folder in bundle_folders()]
        found += [root for root in (shipped_root(),) if root.name == bundle]
    return found


def _nnunet(bundle: str | Path) -> Bundle | None:
    """Return the model of nnU-Net that a name or a folder stands for; None if it stands for none."""
    folder, configurations, folds = split_choice(bundle)
    for candidate in _candidates(str(folder) if isinstance(bundle, str) else folder):
        with suppress(OSError):  # a name that no file system takes
            if (candidate / METADATA).is_file():
                return None
        if find_trainings(candidate):
            return read_nnunet(candidate, configurations, folds)
    return None


def _other_folders(folder: Path) -> list[Path]:
    """Return a folder, or those in it, that may hold models of nnU-Net: all that are no MONAI bundles."""
    try:
        if (folder / METADATA).is_file():
            return []
        if is_training(folder):
            return [folder]
        children = [child for child in sorted(folder.iterdir()) if not child.name.startswith((".", "__MACOSX"))]
        children = [child for child in children if child != own_folder()]  # `find_tasks` looks there
        return [child for child in children if child.is_dir() and not (child / METADATA).is_file()]
    except OSError:  # skip a folder that can't be listed
        return []
