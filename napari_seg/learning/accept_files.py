"""Accept label maps from files: find the scan of each one, and put both into a training set."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from napari_seg.cohort.case import Case
from napari_seg.cohort.discover import find_cases
from napari_seg.cohort.naming import BIDS_SUFFIX, SUFFIX
from napari_seg.cohort.results_below import label_maps_below
from napari_seg.cohort.scan_files import is_of_headers_alone, scan_sha256
from napari_seg.errors import Cancelled, InputError, NapariSegError, listed
from napari_seg.formats.channels import ChannelSet
from napari_seg.formats.endings import ITK_ENDINGS, NIFTI_ENDINGS, SEG_NRRD_ENDINGS, ending_of, has_ending
from napari_seg.formats.find import find_scans
from napari_seg.formats.label_maps import on_grid, read_label_map, with_all_segments_named
from napari_seg.formats.mask_folder import mask_files
from napari_seg.formats.record import UNKNOWN, made_by_in, read_record, record_path
from napari_seg.formats.scan import ReadOptions, Scan
from napari_seg.learning.accept import accept
from napari_seg.learning.training_set import AcceptedCase, Part, Provenance, read_training_set
from napari_seg.volume import Segmentation, labels_in

State = Literal["accepted", "unchanged", "left out", "failed"]

_MAX_NAMED = 4
"""Maximum number of files or scans that a message names."""


@dataclass(frozen=True)
class AcceptOptions:
    """How label maps are accepted; see `learning.accept.accept`.

    Attributes:
        reader: name of the person who accepts them.
        checked: names of the structures that were checked; None: those of each label map.
        part: what the cases are for; None: as `accept` chooses.
        patient: identifier of the patient of all scans; "": as the scans state it.
        copy_series: copy the voxels of DICOM series, too.
        may_replace: whether the labels of scans that were accepted before are replaced.
        names: value -> name of structures that the files do not name.
        is_same_scan: take a scan with the name of the labels although its files have changed since.
        with_uncorrected: accept the label maps in a folder that are as the model made them, too.
        reading: how scans are read.
    """

    reader: str = ""
    checked: Sequence[str] | None = None
    part: Part | None = None
    patient: str = ""
    copy_series: bool = False
    may_replace: bool = False
    names: Mapping[str, str] = field(default_factory=dict)
    is_same_scan: bool = False
    with_uncorrected: bool = False
    reading: ReadOptions = field(default_factory=ReadOptions)


@dataclass(frozen=True)
class CorrectedLabels:
    """A label map with its scan.

    Attributes:
        name: path of the label map below its folder; of a file that was named itself, its name.
        labels: the label map.
        scan: its scan; None if it was not found.
        before: the labels as the model made them; None if they are not known.
        is_listed: whether it was found in a folder.
        is_alone: whether it is the only one, and was named itself.
        is_scan: whether it is a scan without labels, because it lies among the scans and none has its name.
        fault: why it can't be accepted; None if nothing is known against it.
    """

    name: str
    labels: Path
    scan: Scan | ChannelSet | None = None
    before: Path | None = None
    is_listed: bool = False
    is_alone: bool = False
    is_scan: bool = False
    fault: InputError | None = None

    @property
    def stem(self) -> str:
        """Name without the ending of the file."""
        return _without_ending(self.name)

    @cached_property
    def record(self) -> Mapping[str, Any]:
        """Record of the label map or of the labels before, if possible one that states the files of the scan."""
        read = (read_record(record_path(path)) for path in (self.labels, self.before) if path is not None)
        records = [record for record in read if record]
        return next((record for record in records if record.get("input_sha256")), records[0] if records else {})

    @property
    def is_as_made(self) -> bool:
        """Whether it was found in a folder and is as the model made it, by the digest in its record."""
        stated = (read_record(record_path(self.labels)) or {}).get("sha256") if self.is_listed else None
        return bool(stated) and stated == _Digests()[self.labels,]


@dataclass(frozen=True)
class AcceptedFile:
    """Outcome of accepting a label map.

    Attributes:
        name: see `CorrectedLabels`.
        state: "unchanged": the set has these labels of the scan already; "left out": it is as the model made it, or as
            the labels before, or is a scan without labels, which the message says.
        case: the case; None unless it is accepted or unchanged.
        code: code of the error of one that failed.
        message: the same in words.
    """

    name: str
    state: State
    case: AcceptedCase | None = None
    code: str = ""
    message: str = ""


def find_corrected(
    labels: Sequence[Path], scans: Path, options: AcceptOptions, before: Path | None = None
) -> list[CorrectedLabels]:
    """Return label maps with their scans.

    The scan of a result is the one whose files its record states. Without a record it is the one with the name of the
    label map, whose ending `_seg` or `_dseg` does not count; if both lie in folders, these must agree. A scan with
    several label maps is a fault of each of them; those that are left out don't count.

    Args:
        labels: label maps, and folders of them; or a folder with a mask for each structure of one scan.
        scans: the scan, if there is one label map; otherwise a folder of scans.
        options: how they are accepted.
        before: the label map as the model made it, or a folder with label maps of the same names.

    Raises:
        InputError: `input.missing`, a path does not exist; `input.none`, there is no label map or no scan;
            `accept.other_scan`, the only label map belongs to another scan.
    """
    for path in (*labels, scans, *([before] if before else [])):
        if not path.exists():
            raise InputError("input.missing", f"{path} does not exist; check the path")
    if len(labels) == 1 and (of_masks := _scan_of_masks(labels[0], scans)) is not None:
        return [CorrectedLabels(labels[0].name, labels[0], of_masks, before, is_alone=True)]
    folders_first = sorted(labels, key=Path.is_file)  # a file that is also named itself counts as that
    found = list({one.labels.resolve(): one for path in folders_first for one in _below(path)}.values())
    nothing = InputError("input.none", "found no label map; expected NIfTI or .seg.nrrd files in the folder")
    if not found:
        raise nothing
    if before is not None and before.is_dir():
        earlier = {name: one.labels for one in _below(before) for name in (one.stem, one.name)}
        found = [replace(one, before=earlier.get(one.name) or earlier.get(one.stem)) for one in found]
    else:
        found = [replace(one, before=before) for one in found]
    is_alone = len(found) == 1 and not found[0].is_listed
    if is_alone and len(only := find_scans(scans)) == 1:
        if not options.is_same_scan:
            _check_scan(found[0], only[0], _Digests())
        return [replace(found[0], scan=only[0], is_alone=True)]
    cases = _cases_below(scans, found)
    found = _with_scans(found, cases, options.is_same_scan)
    taken = {file.resolve() for one in found if one.scan is not None for file in one.scan.files}
    found = [one for one in found if not one.is_listed or one.labels.resolve() not in taken]
    if not found:
        raise nothing
    found = _each_scan_once(_without_scans(found, cases), options.with_uncorrected)
    return [replace(one, is_alone=is_alone) for one in found]


def accept_or_fault(one: CorrectedLabels, folder: Path, options: AcceptOptions) -> AcceptedFile:
    """Put a label map of several and its scan into a training set, or return why it could not be accepted.

    Args:
        one: the label map with its scan.
        folder: folder of the set; created if it is missing.
        options: how it is accepted.

    Raises:
        InputError: `accept.not_a_set`, which concerns the others, too.
        OutputError: `output.disk_full`.
    """
    try:
        return accept_file(one, folder, options)
    except NapariSegError as error:
        if isinstance(error, Cancelled) or error.code in ("accept.not_a_set", "output.disk_full"):
            raise
        return AcceptedFile(one.name, "failed", code=error.code, message=error.message)


def accept_file(one: CorrectedLabels, folder: Path, options: AcceptOptions) -> AcceptedFile:
    """Put a label map and its scan into a training set.

    Raises:
        NapariSegError: the label map or the scan can't be read; and as for `accept`.
    """
    if one.is_scan:
        return AcceptedFile(one.name, "left out", message="it lies among the scans and is taken for one without labels")
    if one.fault is not None:
        raise one.fault
    if not options.with_uncorrected and one.is_as_made:
        return AcceptedFile(one.name, "left out")
    known = read_training_set(folder).cases
    case = _accept(one, folder, options)
    if case is None:
        return AcceptedFile(one.name, "left out")
    is_known = any(case.labels == earlier.labels for earlier in known)
    return AcceptedFile(one.name, "unchanged" if is_known else "accepted", case)


def _accept(corrected: CorrectedLabels, folder: Path, options: AcceptOptions) -> AcceptedCase | None:
    """Put a label map and its scan into a training set, or return None: it is in a folder and as the labels before."""
    assert corrected.scan is not None
    try:
        scan = corrected.scan.read(**options.reading)
    except OSError as error:
        text = f"the operating system says: {error.strerror or type(error).__name__}"
        raise InputError("file.unreadable", text) from None
    images = scan.source.files if scan.source.format == "dicom" else ()

    def read(path: Path) -> Segmentation:
        found = with_all_segments_named(read_label_map(path, scan.grid, images=images))
        return on_grid(_named(found, options.names, is_only=corrected.is_alone), scan.grid, path)

    labels = read(corrected.labels)
    before = None if corrected.before is None else read(corrected.before)
    is_compared = corrected.is_listed and corrected.before != corrected.labels and not options.with_uncorrected
    if before is not None and is_compared and _is_same(labels, before):
        return None
    made_by = made_by_in(corrected.before or corrected.labels)
    return accept(
        labels,
        scan,
        folder,
        Provenance(options.reader, model=None if made_by == UNKNOWN else made_by),
        before=before,
        annotated=options.checked,
        part=options.part,
        patient=options.patient,
        copy_series=options.copy_series,
        may_replace=options.may_replace,
    )


def _is_same(labels: Segmentation, before: Segmentation) -> bool:
    """Return whether two segmentations on one grid have the same voxels, of structures with the same names."""
    if not np.array_equal(labels.array, before.array):
        return False
    present = set(labels_in(labels.array))
    names, earlier = ({one.label: one.name for one in each.segments} for each in (labels, before))
    return all(names.get(label) == earlier.get(label) for label in present)


def _scan_of_masks(folder: Path, scans: Path) -> Scan | None:
    """Return the scan, if a folder holds a mask for each of its structures, and no label maps of several scans."""
    names = mask_files(folder)
    if not names or any(name.endswith((SUFFIX, BIDS_SUFFIX)) for name in names):
        return None
    found = find_scans(scans)
    return found[0] if len(found) == 1 and found[0].name not in names else None


def _below(path: Path) -> list[CorrectedLabels]:
    if not path.is_dir():
        return [CorrectedLabels(path.name, path)]
    files = label_maps_below(path, with_others=True)
    return [CorrectedLabels(one.relative_to(path).as_posix(), one, is_listed=True) for one in files]


def _without_ending(name: str) -> str:
    path = Path(name)
    return name.removesuffix(ending_of(path, (*NIFTI_ENDINGS, *SEG_NRRD_ENDINGS, *ITK_ENDINGS)) or path.suffix)


def _cases_below(scans: Path, found: Sequence[CorrectedLabels]) -> list[Case]:
    """Return the scans below a path; images that were channels of the results are one scan.

    Raises:
        InputError: `input.none`, or the reason why the path can't be searched.
    """
    stated = (one.record.get("channels") for one in found)
    channels = next((tuple(one) for one in stated if isinstance(one, dict)), ())
    cases, unsearched = find_cases([scans], channels)
    if not cases:
        raise unsearched[0][1] if unsearched else InputError("input.none", f"found no scan in {scans}; check the path")
    return cases


class _Digests(dict[tuple[Path, ...], str]):
    """Files of a scan -> digest, computed when it is needed; "" if they can't be read."""

    def __missing__(self, files: tuple[Path, ...]) -> str:
        self[files] = ""
        with suppress(OSError):
            self[files] = scan_sha256(files)
        return self[files]


def _with_scans(found: Sequence[CorrectedLabels], cases: Sequence[Case], is_same_scan: bool) -> list[CorrectedLabels]:
    """Return label maps with their scans, or with the reason why they have none."""
    digests, result = _Digests(), []
    for one in found:
        try:
            scan = _scan_of(one, cases, digests, is_same_scan)
            if not is_same_scan:
                _check_scan(one, scan, digests)
            result.append(replace(one, scan=scan))
        except InputError as error:
            result.append(replace(one, fault=error))
    return result


def _without_scans(found: Sequence[CorrectedLabels], cases: Sequence[Case]) -> list[CorrectedLabels]:
    """Return label maps, with a mark on those that are scans without labels."""
    scans = {file.resolve() for case in cases for file in case.scan.files}

    def is_scan(one: CorrectedLabels) -> bool:
        is_named = one.stem.endswith((SUFFIX, BIDS_SUFFIX)) or has_ending(one.labels, SEG_NRRD_ENDINGS)
        return one.is_listed and one.scan is None and not is_named and one.labels.resolve() in scans

    return [replace(one, is_scan=True) if is_scan(one) else one for one in found]


def _each_scan_once(found: Sequence[CorrectedLabels], with_uncorrected: bool) -> list[CorrectedLabels]:
    """Return label maps, with a fault for those that have their scan in common with others."""
    of_scan: dict[tuple[Path, ...], list[CorrectedLabels]] = defaultdict(list)
    for one in found:
        if one.scan is not None:
            of_scan[one.scan.files].append(one)
    faults: dict[Path, InputError] = {}
    for several in of_scan.values():
        counted = several if with_uncorrected or len(several) == 1 else [one for one in several if not one.is_as_made]
        if len(counted) > 1:
            text = f"found the label maps {listed([one.name for one in counted], _MAX_NAMED)} of one scan; expected one"
            error = InputError("accept.two_labels", f"{text}; name only the one to accept, or remove the others")
            faults |= {one.labels: error for one in counted}
    return [replace(one, fault=faults[one.labels]) if one.labels in faults else one for one in found]


def _scan_of(one: CorrectedLabels, cases: Sequence[Case], digests: _Digests, is_same_scan: bool) -> Scan | ChannelSet:
    """Return the scan of a label map.

    Raises:
        InputError: `accept.no_scan`.
    """
    stem = one.stem.removesuffix(SUFFIX).removesuffix(BIDS_SUFFIX)
    own = one.labels.resolve()
    others = [case for case in cases if own not in {file.resolve() for file in case.scan.files}]
    stated_source = one.record.get("source")
    exact = [
        case for case in others if case.source == stated_source or stem in (case.key, _without_ending(case.source))
    ]
    named = exact or [case for case in others if _has_name(case, stem)]
    if stated := one.record.get("input_sha256"):
        in_order = [*named, *(case for case in others if case not in named)]
        if (same := next((case for case in in_order if digests[case.scan.files] == stated), None)) is not None:
            return same.scan
    if len(named) == 1:
        return named[0].scan
    file = stem.rpartition("/")[2]
    elsewhere = [case for case in others if file in (case.name, _without_ending(case.source).rpartition("/")[2])]
    what = f"{len(named)} scans with the name of" if named else "no scan of"
    in_folder = " in its folder, but" if elsewhere and not named else ":"
    sources = [case.source for case in named or elsewhere]
    candidates = f"{in_folder} {listed(sources, _MAX_NAMED)}" * bool(sources)
    text = f"found {what} {one.name}{candidates}; expected one scan whose files its record states, or that has its name"
    raise InputError("accept.no_scan", f"{text}; name the folder of the scans that were segmented")


def _has_name(case: Case, stem: str) -> bool:
    """Return whether a scan has the name of labels in a folder: their folders agree, or the name holds the folders.

    Series of all patients have the same names, so a file name alone tells no patient from another.
    """
    source, name = _without_ending(case.source).split("/"), stem.rpartition("/")[2]
    shorter, longer = sorted((source, stem.split("/")), key=len)
    rest = iter(longer)
    if shorter[-1] == longer[-1] and all(part in rest for part in shorter):
        return True
    return case.scan.format != "dicom" and name == case.name != source[-1]


def _check_scan(one: CorrectedLabels, scan: Scan | ChannelSet, digests: _Digests) -> None:
    """Refuse labels whose record says that they were made from other files.

    Raises:
        InputError: `accept.other_scan`.
    """
    for path in filter(None, (one.labels, one.before)):
        stated = (read_record(record_path(path)) or {}).get("input_sha256")
        if stated and stated != digests[scan.files]:
            from napari_seg.formats.dicom.headers import file_label

            text = f"{path.name} was made from other files than {file_label(scan.files[0])}"
            if is_of_headers_alone(scan.files, stated):
                text = f"the record of {path.name} states only the header of a scan, not its pixel file"
            text = f"{text}; expected the scan that was segmented; if it is that scan, pass --same-scan"
            raise InputError("accept.other_scan", text)


def _named(segmentation: Segmentation, names: Mapping[str, str], *, is_only: bool) -> Segmentation:
    """Return labels with the names that a person gives.

    Args:
        segmentation: the labels.
        names: value -> name.
        is_only: whether each of the values must be there; in one of several label maps a structure may be absent.

    Raises:
        InputError: `labels.unknown`, there is no such value.
    """
    known = {str(one.label) for one in segmentation.segments}
    if is_only and (unknown := [value for value in names if value not in known]):
        text = f"found no value {', '.join(unknown)} to name; expected {', '.join(sorted(known, key=int))}"
        raise InputError("labels.unknown", f"{text}; check --names")
    segments = tuple(replace(one, name=names.get(str(one.label), one.name)) for one in segmentation.segments)
    return replace(segmentation, segments=segments)
