"""Group the scans of a folder into cases whose images are the channels of a model.

Three layouts are known: numbers (nnU-Net: `case_0000`, `case_0001`), names (BIDS: `sub-01_T1w`, `sub-01_FLAIR`;
`case_t1c`, `case_flair`; or `T1`, `FLAIR` in a folder for each case), and DICOM series of one study. A case that lacks
a channel, or that has two images for one, is kept and refused when it is read. Names make several cases in one folder
only if they have a common part with all channels each: `T2_b` next to `T2` is a second image of the same case.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from napari_seg.errors import InputError
from napari_seg.formats.archive import shown
from napari_seg.formats.channel_names import NUMBERED, case_in, channels_in, words_of_case
from napari_seg.formats.channels import ChannelSet
from napari_seg.formats.scan import Scan


@dataclass(frozen=True, eq=False)
class _Image:
    """A scan that may be a channel.

    Attributes:
        scan: the scan.
        layout: where its name or its header says so.
        case: what it shares with the other images of its case.
        name: name of the case; "" if only its folder has one.
        channels: channels that it may be; empty for another image of the same case.
    """

    scan: Scan
    layout: Literal["number", "name", "study"]
    case: Hashable
    name: str
    channels: list[str]


def grouped(scans: Sequence[Scan], names: Sequence[str]) -> list[Scan | ChannelSet]:
    """Return scans with those that are channels of one case replaced by the case, in the order of the first images.

    Scans without any sign of a channel stay as they are: a 4D file may hold all channels, a 2D image three colours. So
    do scans with numbers that exceed those of the channels. Other series of a case's DICOM study are left out.

    Args:
        scans: scans of one or more folders.
        names: names of the model's channels; scans for a model with one channel stay as they are.
    """
    if len(names) < 2:
        return list(scans)
    images = [_image(scan, names) for scan in scans]
    groups: dict[tuple[str, Hashable], list[_Image]] = {}
    folders: dict[Path, dict[str, list[_Image]]] = {}
    for image in images:
        if image is not None and image.layout == "name":
            in_folder = folders.setdefault(shown(image.scan.files[0]).parent, {})
            in_folder.setdefault(image.name.casefold(), []).append(image)
        elif image is not None:
            groups.setdefault((image.layout, image.case), []).append(image)
    cases = [(group, _case(group, names)) for group in groups.values()]
    for in_folder in folders.values():
        cases += _cases_of_names(list(in_folder.values()), names)
    case_of = {image: (group, case) for group, case in cases for image in group}
    order = {image: number for number, image in enumerate(images)}
    found: list[Scan | ChannelSet] = []
    for scan, image in zip(scans, images, strict=True):
        group, case = ([], None) if image is None else case_of[image]
        if case is None:
            found.append(scan)
        elif min(group, key=order.__getitem__) is image:
            found.append(case)
    return found


def _cases_of_names(
    groups: Sequence[list[_Image]], names: Sequence[str]
) -> list[tuple[list[_Image], ChannelSet | None]]:
    """Return the cases of a folder and their images.

    A group with all channels is a case. Any other group joins the only one that it repeats the words of (`case1_T2_old`
    and `case1`) or that repeats its words (`T2` and `case1`). If no group of the folder has all channels, but they have
    them together, they are one case. A case of several groups is always refused: that they belong together is a guess.

    Args:
        groups: images with the same name but for the channel, of one folder.
        names: names of the model's channels.
    """
    described = [(not _channels_of([group]) >= set(names), words_of_case(group[0].name), group) for group in groups]
    hosts: list[tuple[frozenset[str], list[list[_Image]]]] = []
    for is_partial, words, group in sorted(described, key=lambda one: (one[0], len(one[1]))):
        above = [(own, host) for own, host in hosts if own <= words or words <= own] if is_partial else []
        longest = max((len(own) for own, _ in above), default=0)
        nearest = [host for own, host in above if len(own) == longest]
        if len(nearest) == 1:
            nearest[0].append(group)
        else:
            hosts.append((words, [group]))
    is_any_whole = not all(is_partial for is_partial, _, _ in described)
    if not is_any_whole and len(hosts) > 1 and _channels_of(groups) >= set(names):
        return [_merged("", groups, names)]
    return [_merged(host[0][0].name, host, names) for _, host in hosts]


def _channels_of(groups: Sequence[list[_Image]]) -> set[str]:
    """Return the channels that have an image which can't be another one."""
    return {image.channels[0] for group in groups for image in group if len(image.channels) == 1}


def _merged(name: str, groups: Sequence[list[_Image]], names: Sequence[str]) -> tuple[list[_Image], ChannelSet | None]:
    """Return the images of some groups, by name, and their case; it is refused if there is more than one group."""
    images = sorted((image for group in groups for image in group), key=lambda image: image.scan.name)
    case = _case(images, names)
    if case is None or len(groups) == 1:
        return images, case
    listed = _listed([image.scan for image in images])
    text = f"the names of the images ({listed}) do not say that they are of one case; choose one for each of"
    unclear = InputError("channels.ambiguous", f"{text} {', '.join(names)} with --channel NAME=FILE")
    return images, replace(case, name=name, problem=case.problem or unclear)


def common_folder(case: ChannelSet) -> Path:
    """Return the deepest folder with all images of a case."""
    folder = shown(case.files[0]).parent
    while not all(shown(file).is_relative_to(folder) for file in case.files):
        folder = folder.parent
    return folder


def _image(scan: Scan, names: Sequence[str]) -> _Image | None:
    """Return which case and which channels a scan may belong to; None if nothing says so."""
    if scan.format == "archive":
        return None
    if scan.format == "dicom":
        return _image_of_study(scan, names)
    folder = shown(scan.files[0]).parent
    if numbered := NUMBERED.fullmatch(scan.name):
        number = int(numbered["number"])
        channels = [names[number]] if number < len(names) else []
        return _Image(scan, "number", (folder, numbered["case"]), numbered["case"], channels)
    channels = channels_in(scan.name, names) if scan.format != "image2d" else []
    if not channels:
        return None
    case = case_in(scan.name, channels, names)
    return _Image(scan, "name", (folder, case.casefold()), case, channels)


def _image_of_study(scan: Scan, names: Sequence[str]) -> _Image | None:
    """Return the study of a DICOM series, and the channels that its description may mean."""
    from napari_seg.formats.dicom.series import words_of_series

    try:
        words = words_of_series(scan.files[0])
    except InputError:  # reading the scan raises it again
        return None
    channels: list[str] = []
    for text in words.texts:
        channels = channels or channels_in(text, names, has_contrast=words.has_contrast)
    return _Image(scan, "study", words.study, "", channels)


def _case(images: Sequence[_Image], names: Sequence[str]) -> ChannelSet | None:
    """Return the case of some images; None if they are scans of their own."""
    first = images[0]
    if first.layout == "number" and not _are_numbered_channels(images):
        return None
    candidates = {name: [image.scan for image in images if name in image.channels] for name in names}
    chosen = tuple((name, scans[0]) for name, scans in candidates.items() if scans)
    return ChannelSet(first.name, chosen or ((names[0], first.scan),), _problem(images, candidates))


def _are_numbered_channels(images: Sequence[_Image]) -> bool:
    """Return whether the numbers of files count channels; otherwise they count cases.

    nnU-Net writes one file, with the number 0, for three colours. A file with several volumes holds all channels.
    """
    if len(images) == 1 or not all(image.channels for image in images):
        return False
    first = images[0].scan
    if first.format != "nifti":
        return True
    from napari_seg.formats.nifti import count_volumes

    return count_volumes(first.files[0]) == 1


def _problem(images: Sequence[_Image], candidates: dict[str, list[Scan]]) -> InputError | None:
    """Return why images are no case, as an error with all candidates; None if there is one image for each channel."""
    listed = ", ".join(candidates)
    unclear = {name: scans for name, scans in candidates.items() if len(scans) > 1}
    unclear |= {" or ".join(image.channels): [image.scan] for image in images if len(image.channels) > 1}
    if unclear:
        text = "; ".join(f"{name}: {_listed(scans)}" for name, scans in unclear.items())
        return InputError(
            "channels.ambiguous",
            f"found several images for a channel ({text}); choose one for each of {listed} with --channel NAME=FILE",
        )
    missing = [name for name, scans in candidates.items() if not scans]
    if not missing:
        return None
    found = [name for name in candidates if name not in missing]
    others = [image.scan for image in images if not image.channels]
    besides = f"; its other images are {_listed(others)}" if others else ""
    return InputError(
        "channels.missing",
        f"no image for {', '.join(missing)}; found {', '.join(found) or 'none'}{besides}; the model expects {listed}; "
        "--channel NAME=FILE chooses an image",
    )


def _listed(scans: Sequence[Scan]) -> str:
    return ", ".join(scan.name for scan in scans[:6]) + (", ..." if len(scans) > 6 else "")
