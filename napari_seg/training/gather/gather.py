"""Find the pairs of a data set and convert them, if training does not read the data set as it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from napari_seg.errors import InputError, Notice, OutputError, TrainingError, counted
from napari_seg.formats.archive import shown, unpacked
from napari_seg.formats.endings import (
    ARCHIVE_ENDINGS,
    IMAGE2D_ENDINGS,
    ITK_ENDINGS,
    NIFTI_ENDINGS,
    has_ending,
)
from napari_seg.formats.find import find
from napari_seg.formats.image2d import is_image2d
from napari_seg.formats.nifti import count_slices
from napari_seg.formats.scan import Scan
from napari_seg.training.choices import SOFT
from napari_seg.training.gather.colours import IGNORED, Colours, colours_of, is_in_colours
from napari_seg.training.gather.dicom import dicom_pairs
from napari_seg.training.gather.frames import Fault, as_stacks, count_frames, in_frames
from napari_seg.training.gather.named import named_pairs, part_of
from napari_seg.training.gather.pair import Pair, PassedOver, passed_over, unread_files, with_distinct_names
from napari_seg.training.gather.patients import CaseSource, folder_of, origin_of, with_patients
from napari_seg.training.gather.polygons import polygon_pairs
from napari_seg.training.gather.referenced import ENDING, referenced_scan
from napari_seg.training.gather.write import RECORD, describe_notices, write_cases
from napari_seg.training.identity import identity
from napari_seg.training.write import PLAN

if TYPE_CHECKING:
    from segnets.data import Dataset
    from segnets.errors import TrainingError as SegnetsError

STACKS = "stacks"
"""Value of `--layout`: any layout that is recognised, with multi-page TIFF files whose pages are slices."""

DATA = "data"
"""Folder of the converted data set inside the bundle's folder."""


@dataclass(frozen=True)
class Gathered:
    """A data set that was converted.

    Attributes:
        folder: the converted data set, in the Decathlon's layout.
        identity: `identity` of the data set before the conversion.
        passed_over: what became no case.
        notices: what was noticed while reading, by code.
        data_sets: {"dataset", "cases", "classes", "values"} of each data set that was combined, see `combine`; else
            empty.
        listed: name of a case -> values of the structures that its files list, with voxels or without.
        sources: name of a case -> its files before the conversion; may hold identifiers, so it is never written.
        unused: what the data set states and is not used, see `segnets.data.Dataset`, and how `combine` divided others.
    """

    folder: Path
    identity: dict[str, Any]
    passed_over: tuple[PassedOver, ...]
    notices: tuple[Notice, ...]
    data_sets: tuple[dict[str, Any], ...] = ()
    listed: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    sources: Mapping[str, CaseSource] = field(default_factory=dict, repr=False)
    unused: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for plan.json."""
        described = {"data sets": list(self.data_sets)} if self.data_sets else {}
        return {"folder": DATA, "notices": [str(notice) for notice in self.notices]} | described


@dataclass(frozen=True)
class Continued:
    """How the data set of a planned training is read again: its converted cases stay as they are.

    Attributes:
        check: called with `Gathered.identity` and `Gathered.data_sets` before anything is written; raises an error if
            they are not those of the plan.
        is_dry: whether nothing may be written; else converted cases that are missing are written again.
        data_sets: `Gathered.data_sets` of the plan.
    """

    check: Callable[[Mapping[str, Any], Sequence[dict[str, Any]]], None]
    is_dry: bool
    data_sets: Sequence[Mapping[str, Any]] = ()


def check_number(planned: Sequence[Mapping[str, Any]], number: int) -> None:
    """Check that a training was planned for so many data sets, before anything of them is converted.

    Args:
        planned: `Gathered.data_sets` of the plan; empty for a single data set.
        number: number of data sets now.

    Raises:
        OutputError: `output.exists`.
    """
    if max(1, len(planned)) != number:
        raise OutputError(
            "output.exists",
            f"the training was planned for {max(1, len(planned))} data sets, now {number}; give the same ones in the "
            "same order, or choose a new folder with -o",
        )


def gather(
    dataset_dir: Path,
    into: Path,
    reading: Mapping[str, Any],
    report: Callable[[str], None] = lambda text: None,
    marker: Path | None = None,
    own: Path | None = None,
    continued: Continued | None = None,
) -> Gathered | None:
    """Convert a data set that training does not read as it is; call it within `with_segnets`.

    Pairs come from the layouts of `segnets.data.find_dataset`; if none fits, from the references of DICOM objects and
    from the names of files and folders. Cases that `into` contains already are not converted again.

    Args:
        dataset_dir: folder or archive of the data set, or a list of its cases.
        into: folder of the converted data set.
        reading: keyword arguments of `find_dataset`.
        report: function that prints a line of progress.
        marker: file to create before the first case is written.
        own: folder of the bundle, which is not searched; None: the folder that `into` lies in.
        continued: how to continue a planned training.

    Returns:
        None if training reads the data set as it is.

    Raises:
        TrainingError: `dataset.*`, there are no pairs; `data.faults`, some can't be read, with a line for each.
        OutputError: the converted data set could not be written.
    """
    from segnets.data import find_dataset
    from segnets.data.layouts import stated_labels
    from segnets.errors import TrainingError as SegnetsError

    are_slices = reading.get("layout") == STACKS
    reading = {name: value for name, value in reading.items() if not are_slices or name != "layout"}
    unknown: SegnetsError | None = None
    dataset: Dataset | None = None
    colours: Colours = ()
    try:
        dataset = find_dataset(dataset_dir, **reading, convertible=True)
        if dataset.is_2d and any(is_in_colours(Path(case["label"])) for case in dataset.cases[:_LOOKED_AT]):
            colours = colours_of(dataset_dir)
        if continued is None:
            refuse_unclear(dataset)
            if own is None:  # of several data sets, others may have channels to choose
                _refuse_channels(dataset, dataset_dir, reading.get("channels"))
        if not colours and not are_slices and _is_readable(dataset):
            return None
    except SegnetsError as error:
        unknown = error
        may_search = error.code in _SEARCHED and reading.get("layout") in (None, "auto") and dataset_dir.is_dir()
        if not may_search and not (error.code == "dataset.missing" and _is_archive(dataset_dir)):
            raise
    if dataset is not None:
        pairs, left = _pairs_of(dataset, colours), unread_files(dataset.unread)
        labels, ignored, unused = dataset.labels, dataset.ignored, dataset.unused
        if colours:
            labels, ignored = {}, () if all(name for _, name in colours) else (IGNORED,)
    else:
        assert unknown is not None
        pairs, left, notes = _search(dataset_dir, into, own or into.parent, reading, unknown)
        labels, ignored = stated_labels(unpacked(dataset_dir) if _is_archive(dataset_dir) else dataset_dir)
        pairs, unused = _with_parts(pairs)
        unused = (*notes, *unused)
        _report_patients(pairs, report)
    if any("^" in pair.name for pair in pairs):  # as between the names of a person in DICOM
        pairs = [replace(pair, name=f"case_{number:04d}") for number, pair in enumerate(pairs, 1)]
    pairs = as_stacks(pairs) if are_slices else pairs
    soft = bool(reading.get(SOFT))
    pairs, faults = (list(pairs), []) if soft else in_frames(pairs)  # volumes of fractions are structures
    faults += _repeated(pairs)
    pairs = with_distinct_names(pairs)
    found = identity(pair.row for pair in pairs)
    if continued:
        continued.check(found, ())
        if continued.is_dry:
            return Gathered(into, found, left, (), sources=_sources(pairs, dataset_dir))
    if marker is not None:
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()
    written, unreadable = write_cases(
        pairs,
        into,
        report,
        labels=labels,
        ignored=ignored,
        channels=dataset.channels if dataset else (),
        regions=dataset.regions if dataset and not colours else {},
        keep=continued is not None,
        soft=soft,
    )
    faults += unreadable
    if faults:
        raise TrainingError("data.faults", list_faults(faults, len(pairs)))
    notices = describe_notices(written.notices)
    if written.pixels_mm:
        low, high = written.pixels_mm
        text = f"pixels of {low:g} to {high:g} mm are trained as they are, because single slices become 2D images"
        notices.append(Notice("data.pixel_size", text))
    if frames := sum(pair.frame is not None for pair in pairs):
        empty = f"; {written.empty} without labels were left out, because they may not be annotated"
        text = f"{frames} frames or pages are cases of their own{empty if written.empty else ''}"
        notices.append(Notice("data.frames", text))
    sources = _sources(pairs, dataset_dir)
    return Gathered(into, found, left, tuple(notices), listed=written.listed, sources=sources, unused=unused)


def refuse_unclear(dataset: Dataset) -> None:
    """Refuse a list that states patients or parts in a way that can't be used, and a pattern that matches no case.

    Raises:
        TrainingError: `data.faults`.
    """
    faults = [("dataset.stated", "all", text) for text in dataset.unclear]
    if dataset.is_unmatched:
        faults.append(("dataset.patient", "all", _UNMATCHED))
    if faults:
        raise TrainingError("data.faults", list_faults(faults, len(dataset.cases)))


def _refuse_channels(dataset: Dataset, dataset_dir: Path, channels: Sequence[str] | None) -> None:
    """Refuse a choice of channels for a layout that states them itself.

    Raises:
        TrainingError: `dataset.channels`.
    """
    from segnets.data.lists import TABLES

    files = [dataset_dir] if dataset_dir.is_file() else dataset_dir.iterdir()
    is_table = dataset.layout == "list" and any(path.name.lower().endswith(TABLES) for path in files)
    if channels and dataset.layout != "bids" and not is_table:
        names = f" ({', '.join(dataset.channels)})" if dataset.channels else ""
        text = f"found --channels {' '.join(channels)} for the layout {dataset.layout}, which has fixed channels"
        way = "expected it for BIDS, a CSV list, or scans that are found by their names; leave it out"
        raise TrainingError("dataset.channels", f"{text}{names}; {way}")


def _refuse_unmatched(pairs: Sequence[Pair], pattern: str | None) -> None:
    """Refuse a pattern of patients that matches none of the pairs that a search has found.

    Raises:
        TrainingError: `data.faults`.
    """
    from segnets.data.patients import matches_any

    if pattern is not None and pairs and not matches_any(map(origin_of, pairs), pattern):
        raise TrainingError("data.faults", list_faults([("dataset.patient", "all", _UNMATCHED)], len(pairs)))


_UNMATCHED = (
    "the pattern patient matches no case; expected one that is found in names of cases or, with a / or where cases are "
    "numbered, in paths below the data set, and in each of several data sets ('pat[0-9]+|.+' matches any name, too); "
    "correct it, or leave it out"
)


def refuse_unpaired(dataset: Dataset) -> None:
    """Refuse a data set with images or label maps that have no partner.

    Raises:
        TrainingError: `data.faults`.
    """
    from segnets.data.faults import unpaired_faults

    if faults := list(unpaired_faults(dataset)):
        raise TrainingError("data.faults", list_faults(faults, len(dataset.cases)))


def _sources(pairs: Sequence[Pair], dataset_dir: Path) -> dict[str, CaseSource]:
    folder = folder_of(dataset_dir)
    return {
        pair.name: CaseSource(folder, pair.patient, tuple(scan.files[0] for _, scan in pair.images)) for pair in pairs
    }


_LOOKED_AT = 3
"""Number of label maps that are opened to see whether they are in colours."""

_SEARCHED = ("dataset.unknown", "dataset.no_cases")


def _is_archive(path: Path) -> bool:
    return path.is_file() and has_ending(path, ARCHIVE_ENDINGS)


def _is_readable(dataset: Dataset) -> bool:
    """Return whether training reads all cases as they are: no other format, no time series, no single slices."""
    if (
        dataset.cases
        and not (dataset.is_2d or dataset.soft)
        and all(_is_slice(case["label"]) for case in dataset.cases)
    ):
        return False
    for case in dataset.cases:
        labels = [Path(path) for path in _as_list(case["label"])]
        images = [Path(path) for path in _as_list(case["image"])]
        if not all(has_ending(path, (*NIFTI_ENDINGS, *IMAGE2D_ENDINGS)) for path in (*labels, *images)):
            return False
        if len(labels) > 1 or (not dataset.soft and any(count_frames(path) > 1 for path in labels)):
            return False
        if any(is_image2d(path) and count_frames(path) > 1 for path in images):
            return False
    return True


def _is_slice(label: Any) -> bool:
    return isinstance(label, str) and has_ending(Path(label), NIFTI_ENDINGS) and count_slices(Path(label)) == 1


def _as_list(value: Any) -> list[str]:
    return value if isinstance(value, list) else [value]


def _pairs_of(dataset: Dataset, colours: Colours) -> list[Pair]:
    """Return the pairs of a data set whose layout is known.

    Args:
        dataset: the data set.
        colours: colours of its classes if its label maps are in colours.

    Raises:
        TrainingError: `data.faults`, images or label maps have no partner, or DICOM series that the set refers to are
            not here.
    """
    faults: list[Fault] = []
    refuse_unpaired(dataset)
    pairs = []
    are_by_structure = any(len(_as_list(case["label"])) > 1 for case in dataset.cases)
    for case, place in zip(dataset.cases, dataset.places, strict=True):
        images, labels = (tuple(Path(path) for path in _as_list(case[key])) for key in ("image", "label"))
        names = dataset.channels if len(dataset.channels) == len(images) > 1 else [str(n) for n in range(len(images))]
        try:
            scans = tuple(
                (name if len(images) > 1 else "", _scan(path)) for name, path in zip(names, images, strict=True)
            )
        except InputError as error:
            faults.append((error.code, case["name"], error.message))
            continue
        is_by_structure = len(labels) > 1 or (are_by_structure and "_label-" in labels[0].name)
        structures = tuple(_entity(path) for path in labels) if is_by_structure else ()
        patient = dataset.patients[case["name"]]
        labelled = dataset.labelled.get(case["name"])
        pair = Pair(case["name"], scans, labels, structures, patient, colours=colours, labelled=labelled, place=place)
        part, fold = dataset.parts.get(case["name"], ""), dataset.folds.get(case["name"])
        pairs.append(replace(pair, part=part, fold=fold))
    if faults:
        raise TrainingError("data.faults", list_faults(faults, len(dataset.cases)))
    return pairs


def _scan(path: Path) -> Scan:
    if path.name.endswith(ENDING):
        return referenced_scan(path)
    if is_image2d(path):
        return Scan(path.stem, "image2d", (path,))
    return Scan(path.name, "itk" if has_ending(path, ITK_ENDINGS) else "nifti", (path,))


def _entity(path: Path) -> str:
    """Return the structure in the name of a label map of BIDS, such as `_label-lesion_mask`."""
    return next((part.removeprefix("label-") for part in path.name.split("_") if part.startswith("label-")), path.name)


def _search(
    dataset_dir: Path, into: Path, out: Path, reading: Mapping[str, Any], unknown: SegnetsError
) -> tuple[list[Pair], tuple[PassedOver, ...], tuple[str, ...]]:
    """Search a folder for pairs, by the references of DICOM objects and then by names.

    Return also what was passed over, and notes on their patients.

    The bundle's own folder and others that were trained may lie in that of the data set; they are not searched.

    Raises:
        TrainingError: the code of `unknown`, there are none; the message lists what was found instead; `archive.*` or
            `file.*`, the data set is an archive that can't be unpacked.
    """
    from segnets.data.patients import ONE_FOLDER, lie_in_one_folder

    from napari_seg.errors import NapariSegError

    own = into if dataset_dir.is_relative_to(out) else out
    is_bundle = cache(_is_bundle)

    def is_of_a_model(file: Path) -> bool:
        above = (one for one in file.parents if one != dataset_dir and one.is_relative_to(dataset_dir))
        return file.is_relative_to(own) or any(map(is_bundle, above))

    try:
        found = find(dataset_dir, ignore=is_of_a_model)
    except NapariSegError as error:
        raise TrainingError(error.code, error.message) from error
    pairs, unpaired = dicom_pairs(found, reading.get("channels"))
    drawn, missing = polygon_pairs(found)
    archives = [scan.files[0] for scan in found.scans if scan.format == "archive"]
    if dataset_dir in archives:
        _unpack(dataset_dir)
    found = replace(found, scans=tuple(scan for scan in found.scans if scan.format != "archive"))
    unpaired = [*unpaired, *missing, *((file, _archive_fault(file)) for file in archives)]
    paired = {file for pair in (*pairs, *drawn) for file in pair.files}
    by_name, others = named_pairs(
        replace(found, scans=tuple(scan for scan in found.scans if not paired & set(scan.files))),
        dataset_dir,
        reading.get("channels"),
    )
    pairs, drawn, by_name = ([_placed(pair, dataset_dir) for pair in of_kind] for of_kind in (pairs, drawn, by_name))
    pattern = reading.get("patient")
    origins = [origin_of(pair) for pair in (*pairs, *drawn, *by_name)]
    is_shared = pattern is None and lie_in_one_folder(origins, dataset_dir.absolute().name)
    pairs = with_patients(pairs, pattern)
    drawn = with_patients(drawn, pattern, only_named=True)  # other folders are parts or batches, as train2017/, batch1/
    pairs = [*pairs, *drawn, *with_patients(by_name, pattern)]
    _refuse_unmatched(pairs, pattern)
    used = {file for pair in pairs for file in pair.files}
    in_unpaired = {what for what, _ in others if isinstance(what, Path)} | {
        w for w, _ in unpaired if isinstance(w, Path)
    }
    used |= in_unpaired | {dataset_dir / name for name in ("dataset.json", "labels.json")}  # of which layouts are read
    skipped = [replace(one, files=tuple(f for f in one.files if f not in used)) for one in found.skipped]
    left = passed_over([one for one in skipped if one.files], [*unpaired, *others])
    if not pairs:
        listed = "; ".join(map(str, left[:8])) or "nothing"
        # what comes before names folders, which may be called after patients
        expected = unknown.message.partition("; expected ")[2] or (
            "images and label maps of equal names, or a CSV list with the columns image and label"
        )
        text = f"{dataset_dir} holds no scan with a label map; found {listed}; expected {expected}"
        raise TrainingError(unknown.code if unknown.code in _SEARCHED else "dataset.unknown", text)
    return pairs, left, (ONE_FOLDER,) if is_shared else ()


def _unpack(archive: Path) -> None:
    """Unpack an archive.

    Raises:
        TrainingError: `archive.*` or `file.*`.
    """
    try:
        unpacked(archive)
    except InputError as error:
        raise TrainingError(error.code, error.message) from error


def _archive_fault(archive: Path) -> str:
    """Return the code of the reason why an archive among the scans was not unpacked."""
    try:
        _unpack(archive)
    except TrainingError as error:
        return error.code
    return "partner.no_label"


def _is_bundle(folder: Path) -> bool:
    """Return whether a folder is that of a model or of converted cases, even if it is not complete."""
    is_planned = (folder / PLAN).is_file() and (folder / "configs").is_dir()
    return is_planned or (folder / f"{PLAN}.unfinished").is_file() or (folder / RECORD).is_file()


def _placed(pair: Pair, dataset_dir: Path) -> Pair:
    """Return a pair that was found below the folder of the data set, or in its archive, with its place."""
    from segnets.data.pairing import normalized

    root = shown(dataset_dir)
    files = [shown(file) for file in (*(scan.files[0] for _, scan in pair.images), *pair.labels)]
    below = (file.relative_to(root) if file.is_relative_to(root) else file for file in files)
    return replace(pair, place=tuple(normalized(file.as_posix()) for file in below))


def _with_parts(pairs: Sequence[Pair]) -> tuple[list[Pair], tuple[str, ...]]:
    """Return pairs with the parts that folders such as train/ and test/ above them state; and what is not used."""
    parts = [part_of(PurePath(pair.place[0]).parent.parts) for pair in pairs]
    if len(set(parts)) > 1 and "training" in parts and "" not in parts:
        return [replace(pair, part=part) for pair, part in zip(pairs, parts, strict=True)], ()
    if len(set(parts) - {""}) > 1:
        counts = Counter(parts).items()
        found = ", ".join(f"{counted(count, 'case')} for {part or 'none of them'}" for part, count in counts)
        return list(pairs), (f"the folders of parts are not used as the split, because they hold {found}",)
    return list(pairs), ()


def _report_patients(pairs: Sequence[Pair], report: Callable[[str], None]) -> None:
    """Say how many patients the cases are of, if several are of one, or if folders hold several without a patient."""
    counts = Counter(pair.patient for pair in pairs)
    if counts and max(counts.values()) > 1:
        low, high = min(counts.values()), max(counts.values())
        cases = f"{low} cases" if low == high else f"{low} to {high} cases"
        report(
            f"{sum(counts.values())} cases are taken for those of {len(counts)} patients with {cases} each; if they "
            "are not, give --set patient=PATTERN, which matches the part of a path that names the patient"
        )
    unknown = [pair for pair in pairs if counts[pair.patient] == 1]
    folders = {PurePath(pair.place[0]).parent for pair in unknown if pair.images[0][1].format == "image2d"}
    if 1 < len(folders) < len(unknown):
        report(
            f"{len(unknown)} images in {len(folders)} folders count as those of a patient each; if each folder holds "
            "the images of one patient, give --set patient=PATTERN, which matches the part of a path that names the "
            "patient"
        )


def _repeated(pairs: Sequence[Pair]) -> list[Fault]:
    """Return a fault for each image that is in several cases: one for training could be another for validation."""
    counts = Counter((pair.images, pair.frame) for pair in pairs)
    text = "{} cases have the same image; expected one; remove the others"
    repeated = {pair.name: counts[pair.images, pair.frame] for pair in pairs if counts[pair.images, pair.frame] > 1}
    return [("name.twice", name, text.format(count)) for name, count in repeated.items()]


def list_faults(faults: Sequence[Fault], cases: int) -> str:
    """Return one line per fault, as `segnets.data.check` lists them."""
    width, second = (max(len(fault[n]) for fault in faults) for n in (0, 1))
    lines = [f"  {code:{width}}  {case:{second}}  {text}" for code, case, text in faults]
    count = f"{counted(len(faults), 'fault')} in the data set ({cases} cases)"
    return "\n".join([f"{count}; nothing was trained", *lines])
