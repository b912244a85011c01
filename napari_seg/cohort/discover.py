"""Find the scans of a run below files, folders and lists: each scan once, with what a list says about it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from napari_seg.cohort.case import Case
from napari_seg.cohort.lists import ListedScan, is_list, listed_file, read_list
from napari_seg.cohort.naming import compared, is_result, named_cases, place_of
from napari_seg.errors import InputError, one_line
from napari_seg.formats.archive import shown
from napari_seg.formats.channel_sets import grouped
from napari_seg.formats.channels import ChannelSet
from napari_seg.formats.data_sets import without_label_maps
from napari_seg.formats.endings import ITK_ENDINGS, NIFTI_ENDINGS, ending_of
from napari_seg.formats.find import find
from napari_seg.formats.scan import Scan, ScanFormat


@dataclass(frozen=True)
class Candidate:
    """A scan that was found, before it is decided what segments it.

    Attributes:
        scan: the scan; of a list that states several images, a set of channels that are named by their numbers.
        name: name of the case that a list gives; "" if it gives none.
        model: model that a list gives; "" if it gives none.
        root: the input below which it was found: a folder, an archive, a file, or the folder of a list.
        problem: why it can't be segmented, such as a missing file of a list; None if nothing is known against it.
    """

    scan: Scan | ChannelSet
    name: str = ""
    model: str = ""
    root: Path = field(default_factory=Path, compare=False)
    problem: InputError | None = field(default=None, compare=False)

    def for_channels(self, names: Sequence[str]) -> Candidate:
        """Return this candidate for a model with some channels: images of a list get their names, in their order."""
        if not isinstance(self.scan, ChannelSet) or self.problem is not None:
            return self
        if len(self.scan.channels) != len(names):
            text = f"the list states {len(self.scan.channels)} images; the model expects {', '.join(names)}"
            return replace(self, problem=InputError("channels.count", text))
        channels = tuple((name, scan) for name, (_, scan) in zip(names, self.scan.channels, strict=True))
        return replace(self, scan=replace(self.scan, channels=channels))


@dataclass(frozen=True)
class FoundScans:
    """Everything below the inputs of a run.

    Attributes:
        candidates: each scan once for each model that lists name for it, in the order in which they were found.
        faults: inputs that could not be searched.
        searched: absolute paths of the inputs that were searched; for a list, its folder.
        other_files: code of a skip -> number of files that are no scan.
        repeated: scans that were found again, below another input or in another line of a list.
    """

    candidates: list[Candidate] = field(default_factory=list)
    faults: list[tuple[Path, InputError]] = field(default_factory=list)
    searched: list[Path] = field(default_factory=list)
    other_files: Counter[str] = field(default_factory=Counter)
    repeated: int = 0


def find_cases(
    inputs: Sequence[Path], channel_names: Sequence[str] = ()
) -> tuple[list[Case], list[tuple[Path, InputError]]]:
    """Return every scan below the inputs once, and the inputs that could not be searched.

    For a model with several channels, images that belong together are one case; see `formats.channel_sets`.

    Results of earlier runs are skipped. The name of a case consists of the folders between the input and the file, and
    the name of the file, so that it depends on other files only if two names would be equal: these are preceded by
    further folders, or numbered. Exceptions:

    - Folders such as `images` or `imagesTr` are left out, so that results match the label maps of a data set.
    - A file that repeats the name of one of its folders (`sub-01/anat/sub-01_T1w`) is named without folders.
    - A DICOM series is named from its header; folders are added only if several series have the same name.
    - A file named after a modality alone (`T1`) is preceded by the name of its folder, even if it is itself the input.
    - A case of several images without a name of their own is named after their folder.
    - A name that a list gives is kept.

    Args:
        inputs: files, folders and lists (`lists.read_list`); a missing file of a list is one of the faults.
        channel_names: names of the model's channels.
    """
    found = find_candidates(inputs)
    units = units_of(found.candidates, channel_names)
    faults = [(one.scan.files[0], one.problem) for one in units if one.problem is not None]
    usable = [one for one in units if one.problem is None]
    cases = named_cases([one.scan for one in usable], found.searched, [one.name for one in usable])
    return cases, [*found.faults, *faults]


def case_of(scan: Scan | ChannelSet) -> Case:
    """Return the case of one scan, or of images that a user chose as channels; it has the name of the first file."""
    (case,) = named_cases([scan], [Path(os.path.abspath(shown(scan.files[0])))])
    return case


def find_candidates(inputs: Sequence[Path]) -> FoundScans:
    """Return every scan below the inputs once; see `find_cases`.

    Args:
        inputs: files, folders and lists.
    """
    scans: dict[_Key, Candidate] = {}
    listed: set[tuple[Path, ...]] = set()
    faults: list[tuple[Path, InputError]] = []
    searched: list[Path] = []
    others: Counter[str] = Counter()
    real_folders: dict[Path, str] = {}
    repeated = 0
    of_lists: dict[tuple[str, str], tuple[Path, ...]] = {}
    for path in inputs:
        has_entries = is_list(path)
        of_list: dict[tuple[str, str], tuple[Path, ...]] = {}
        try:
            for candidate in _listed(path, others) if has_entries else _below(path, others):
                # a link is a second name of a scan
                files = tuple(place_of(file, real_folders) for file in candidate.scan.files)
                if has_entries and candidate.name:
                    key = compared(candidate.name), candidate.model
                    of_list.setdefault(key, files)
                    if of_lists.get(key, files) != files and candidate.problem is None:
                        candidate = replace(candidate, problem=_named_twice(candidate.name, path))
                repeated += not _added(candidate, files, scans, listed, is_listed=has_entries)
        except InputError as fault:
            faults.append((path, fault))
            continue
        of_lists = {**of_list, **of_lists}
        searched.append(Path(os.path.abspath(path.parent if has_entries else path)))
    return FoundScans(list(scans.values()), faults, searched, others, repeated)


def _named_twice(name: str, path: Path) -> InputError:
    text = f"{path.name}: the name {one_line(name, 60)!r} is that of another scan in another list"
    return InputError("cohort.list_name", f"{text}; expected a name for each scan")


_Key = tuple[tuple[Path, ...], str, str]
"""Files of a scan, the model that a list gives, and the name that it gives if this is another name for the same."""


def _added(
    candidate: Candidate,
    files: tuple[Path, ...],
    scans: dict[_Key, Candidate],
    listed: set[tuple[Path, ...]],
    *,
    is_listed: bool,
) -> bool:
    """Add a scan to those that were found; return whether it is a further one.

    What a list says about a scan has priority over its folder. A second name for the same scan is refused.

    Args:
        candidate: the scan.
        files: its files, links resolved.
        scans: scans that were found.
        listed: files of the scans that lists name.
        is_listed: whether a list names it.
    """
    key: _Key = files, candidate.model, ""
    if not is_listed:
        if files in listed or key in scans:
            return False
        scans[key] = candidate
        return True
    is_further = files in listed or scans.pop((files, "", ""), None) is None
    listed.add(files)
    first = scans.get(key)
    if first is None or not first.name:
        scans[key] = candidate
        return first is None and is_further
    if candidate.name in ("", first.name):
        return False
    problem = candidate.problem or InputError(
        "cohort.list_twice",
        f"this is the scan of {first.name} under another name; expected one name for each scan; correct the path",
    )
    scans[files, candidate.model, candidate.name] = replace(candidate, problem=problem)
    return True


def units_of(candidates: Iterable[Candidate], channel_names: Sequence[str]) -> list[Candidate]:
    """Return what a model segments: the candidates, with those that are channels of one case replaced by the case.

    Args:
        candidates: scans, in the order in which they were found.
        channel_names: names of the model's channels.
    """
    candidates = list(candidates)
    order = {file: number for number, one in enumerate(candidates) for file in one.scan.files[:1]}
    free: list[Scan] = []
    kept: list[Candidate] = []
    for one in candidates:
        if isinstance(one.scan, Scan) and not one.name and one.problem is None:
            free.append(one.scan)
        else:
            kept.append(one.for_channels(channel_names))
    units = [*kept, *(Candidate(unit) for unit in grouped(free, channel_names))]
    return sorted(units, key=lambda one: order.get(one.scan.files[0], 0)) if kept else units


def _below(path: Path, others: Counter[str]) -> Iterator[Candidate]:
    """Yield the scans below a path, and count the files that are no scan."""
    found = without_label_maps(find(path, ignore=is_result), path)
    for skipped in found.skipped:
        others[skipped.code] += len(skipped.files)
    for scan in found.scans:
        yield Candidate(scan, root=path)


def _listed(path: Path, others: Counter[str]) -> Iterator[Candidate]:
    """Yield the scans of a list; a folder or an archive in it may hold several."""
    for entry in read_list(path):
        try:
            images = [_scans_of(listed_file(path, text), others) for text in entry.images]
        except InputError as fault:
            problem = InputError(fault.code, f"{path.name}, {entry.place}: {fault.message}")
            yield Candidate(_unread(path, entry), entry.name, entry.model, path.parent, problem)
            continue
        if len(images) == 1:
            several = len(images[0]) > 1
            for scan in images[0]:
                name = f"{entry.name}_{scan.name}" if entry.name and several else entry.name
                yield Candidate(scan, name, entry.model, path.parent)
        else:
            yield replace(_channels(entry, images), root=path.parent)


def _scans_of(file: Path, others: Counter[str]) -> list[Scan]:
    """Return the scans of one path of a list.

    Raises:
        InputError: `input.missing`, `input.not_a_file`, `input.none`: the path holds no scan.
    """
    # without the path: the name of a folder may be that of a patient, and there is no header to compare it with
    if not os.path.exists(file):
        raise InputError("input.missing", "found no file or folder at this path; correct the path")
    scans = [one.scan for one in _below(file, others) if isinstance(one.scan, Scan)]
    if not scans:
        raise InputError("input.none", "found no scan at this path; expected a file or a folder with a scan")
    return scans


def _channels(entry: ListedScan, images: Sequence[Sequence[Scan]]) -> Candidate:
    """Return the candidate of an entry with several images, which are channels in the order of the list."""
    scans = [scans[0] for scans in images]
    channels = ChannelSet(entry.name, tuple((str(number), scan) for number, scan in enumerate(scans)))
    problem = None
    if several := next((one for one in images if len(one) > 1), None):
        text = f"{several[0].source} holds {len(several)} scans where one channel is expected; name one of them"
        problem = InputError("input.several_scans", text)
    return Candidate(channels, entry.name, entry.model, problem=problem)


def _unread(path: Path, entry: ListedScan) -> Scan:
    """Return a scan for an entry of a list that holds none, so that it has a name.

    Only a file that is named as an image keeps its name: that of another file, or of a folder, may be a patient's.
    """
    file = Path(os.path.abspath(path.parent / entry.images[0].replace("\\", "/")))
    kinds: tuple[tuple[ScanFormat, tuple[str, ...]], ...] = (("nifti", NIFTI_ENDINGS), ("itk", ITK_ENDINGS))
    for kind, endings in kinds:
        if ending := ending_of(file, endings):
            return Scan(file.name[: -len(ending)], kind, (file,))
    file = path / entry.place.replace(" ", "_")
    return Scan(file.name, "nifti", (file,))
