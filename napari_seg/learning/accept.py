"""Accept a corrected case: put a scan and its labels into a training set, with a record of who changed what."""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from napari_seg.errors import InputError, NapariSegError, one_line
from napari_seg.formats.atomic import make_output_folder, not_written
from napari_seg.formats.nifti import write_map, write_volume
from napari_seg.geometry import Grid, resample
from napari_seg.learning.same_scan import ScanIdentity, case_of_scan, has_changed, refuse_mirrored
from napari_seg.learning.scans import labels_of, scan_of
from napari_seg.learning.training_set import (
    IMAGES,
    LABELS,
    AcceptedCase,
    Part,
    Provenance,
    StructureChange,
    TrainingSet,
    locked,
    read_training_set,
    remove_rounds,
    write_training_set,
)
from napari_seg.training.choices import check_names
from napari_seg.training.gather.referenced import (
    ENDING,
    KnownScan,
    ReferencedScan,
    remember,
    write_reference,
)
from napari_seg.training.gather.write import make_folders
from napari_seg.volume import MAX_LABEL, Segmentation, Volume, labels_in, rounded_ml, smallest_label_type

_MAX_ACTIONS, _MAX_WORDS = 1000, 200
_MAX_NAME = 200
_RESERVED = ("background", "ignore")
"""Names that have a meaning in the list of a data set."""

_MADE_UP = re.compile(r"label \d+")
"""Names that this program shows for labels that nobody has named."""


def accept(
    segmentation: Segmentation,
    scan: Volume,
    folder: Path,
    provenance: Provenance,
    *,
    before: Segmentation | None = None,
    annotated: Collection[str] | None = None,
    part: Part | None = None,
    patient: str = "",
    copy_series: bool = False,
    may_replace: bool = True,
) -> AcceptedCase:
    """Put a scan and its labels into a training set, which `napari-seg train` and `improve` read.

    A scan that was accepted before gets the new labels in place of the former ones, and keeps its name and part; they
    lie on the voxels of the image that the set has, in its order, or on a new image if its place has changed. If they
    are the former ones of the same reader, nothing is written, and the case is returned as it is. A DICOM series stays
    where it is and is referred to; the voxels of all other scans are copied. Cases are numbered: neither the files nor
    the records hold names of files, or of people except the reader.

    Args:
        segmentation: labels as accepted, on the voxels of the scan; the order and direction of the axes may differ.
            Structures are matched by name with those of the set; new ones extend its table.
        scan: the scan.
        folder: folder of the set; created if it is missing.
        provenance: who accepts, and which model made the labels.
        before: labels as the model made them, on the same grid; None if they are not known.
        annotated: names of the structures that were checked, in this case or in others of the set; None: those of the
            segmentation. Voxels of others are not accepted, and nothing is learned about them from this case.
        part: what the case is for; None: validation for the second of each five patients, otherwise training. All
            scans of a patient, and a case that was accepted before, stay in the part that they are in.
        patient: identifier of the patient, which is not written; "": that of the DICOM series or else of its study, or
            the part of a file's name such as `sub-01`, or that of another volume of the same file, or a patient of its
            own.
        copy_series: copy the voxels of a DICOM series, too.
        may_replace: whether the labels of a scan that was accepted before are replaced.

    Raises:
        InputError: `file.unreadable`, the files of the scan can't be read any more, so that its patient is unknown;
            `accept.not_a_set`, the folder holds something else; `accept.busy`; `accept.again`, the scan was
            accepted before and may not be replaced; `accept.mirrored`, the set has the scan in another orientation;
            `accept.grid`, labels and scan do not fit; `accept.channels`, the other scans of the set have other
            channels; `accept.unnamed`, labels without a name; `accept.same_name`, two structures with one name;
            `accept.empty`, no voxel, and `annotated` does not say what was looked for; `labels.names`, an unknown name
            in `annotated`.
        BundleError: `bundle.name`, a structure has a name that configs can't hold.
        OutputError: `output.*`.
    """
    labels = _on_grid(segmentation, scan.grid)
    earlier = None if before is None else replace(before, array=_on_grid(before, scan.grid), grid=scan.grid)
    names = _names(segmentation, labels, annotated)
    identity = ScanIdentity.of(scan)
    make_output_folder(folder)
    with locked(folder):
        content = read_training_set(folder)
        content = replace(content, salt=content.salt or secrets.token_hex(16))
        identity = identity.in_set(content, patient)
        known = case_of_scan(content, folder, identity)
        if known is None:
            refuse_mirrored(content, folder, identity)
        elif (folder / known.image).resolve() in identity.files:  # the copy in the set, which no run has
            identity = replace(identity, input_sha256="")
        channels = _channels(content, scan)
        structures = _structures(content.structures, names)
        checked = _checked(annotated, names, structures)
        kept = None if known is None else _kept_image(folder, known, scan, copy_series)
        values = {label: structures[name] for label, name in _as_in(names, structures).items() if name in checked}
        accepted = _renumbered(labels, values)
        if not accepted.any() and not annotated:
            text = "the labels hold no voxel; expected at least one, or the names of structures that were looked for"
            raise InputError("accept.empty", text)
        if known is not None and kept is not None:
            accepted = resample(accepted, scan.grid, kept, order=0, outside=0)
            is_said = not (identity.who and known.who and identity.who != known.who) and checked == {*known.annotated}
            is_by = not may_replace or provenance.reader in ("", known.provenance.reader)
            if is_said and is_by and _holds(folder, known, kept, accepted):
                return _with_patient(folder, content, known, identity)
        if known is not None and not may_replace:
            raise _accepted_before(known, checked, has_changed(known, folder, identity))
        make_folders(folder, IMAGES, LABELS)
        name = known.name if known else f"case{content.next_number:04d}"
        revision = known.revision + 1 if known else 1
        if known is not None and kept is not None:
            image = known.image
            kept_values, files = known.values or identity.values, known.input_sha256 or identity.input_sha256
            identity = replace(identity, voxels=known.scan, values=kept_values, input_sha256=files)
        else:
            image, kept = _write_image(scan, folder, name, revision, identity.voxels, copy_series), scan.grid
        label_file = f"./{LABELS}/{name}_r{revision}.nii.gz"
        write_map(accepted, kept, folder / label_file)
        content, number, of_patient = _patient(content, known, identity)
        case = AcceptedCase(
            name,
            image,
            label_file,
            number,
            of_patient or part or content.next_part(),
            tuple(sorted(checked)),
            identity.voxels,
            _recorded(provenance, _renumbered(labels, values), scan.grid, structures, checked, earlier),
            identity.who or (known.who if known else ""),
            identity.values,
            identity.series or (known.series if known else ""),
            identity.input_sha256,
        )
        cases = tuple(case if one.name == name else one for one in content.cases)
        cases, next_number = (cases, content.next_number) if known else ((*cases, case), content.next_number + 1)
        used = _used(structures, cases, content)
        changed = replace(content, structures=used, channels=channels, channel_count=len(scan.array))
        write_training_set(folder, replace(changed, cases=cases, next_number=next_number))
    return case


def discard(folder: Path, name: str, *, with_rounds: bool = False) -> None:
    """Remove a case from a training set.

    Its files stay as long as the list of a round names them, so that the training of that round can be resumed. What
    models have learned from it is not unlearned. A scan that is accepted again comes into the same part.

    Args:
        folder: training set.
        name: name of the case.
        with_rounds: also remove the lists and crops of the rounds that it was part of.

    Raises:
        InputError: `accept.unknown_case`, there is no such case; and as for `read_training_set` and `locked`.
        OutputError: `output.*`.
    """
    if not folder.is_dir():
        raise InputError("accept.unknown_case", f"{folder} is no training set; see the list of its cases")
    with locked(folder):
        content = read_training_set(folder)
        gone = tuple(case for case in content.cases if case.name == name)
        if not gone:
            raise InputError("accept.unknown_case", f"{folder} has no case {name}; see the list of its cases")
        if with_rounds:
            remove_rounds(folder, name)
        kept = tuple(case for case in content.cases if case.name != name)
        bare = tuple(replace(case, provenance=Provenance()) for case in gone)
        write_training_set(folder, replace(content, cases=kept, removed=(*content.removed, *bare)))


def _on_grid(segmentation: Segmentation, grid: Grid) -> NDArray[np.unsignedinteger]:
    """Return the labels on the grid of the scan, whose voxels they share.

    Raises:
        InputError: `accept.grid`.
    """
    if segmentation.grid.matches(grid):
        return segmentation.array
    if segmentation.grid.reoriented().matches(grid.reoriented()):
        return resample(segmentation.array, segmentation.grid, grid, order=0, outside=0)
    raise InputError(
        "accept.grid",
        f"the labels have {segmentation.grid.shape} voxels, the scan {grid.shape}, at other positions; expected labels "
        "on the voxels of the scan; choose the scan that they were drawn on",
    )


def _accepted_before(known: AcceptedCase, checked: Collection[str], has_changed: bool) -> InputError:
    record = known.provenance
    changed = "; its series holds other voxels since then, which would replace the earlier ones" * has_changed
    by, at = f" by {record.reader}" * bool(record.reader), f" ({record.time})" * bool(record.time)
    text = f"this scan was accepted before as {known.name}{by}{at} with {', '.join(known.annotated)}"
    lost = ", ".join(name for name in known.annotated if name not in checked)
    more = f"; {lost} would be lost" * bool(lost)
    way = "allow it (--replace) to put the new labels in their place"
    return InputError("accept.again", f"{text}{changed}{more}; {way}")


def _names(
    segmentation: Segmentation, labels: NDArray[np.unsignedinteger], annotated: Collection[str] | None
) -> dict[int, str]:
    """Return label -> name of each structure.

    Raises:
        InputError: `accept.unnamed`.
        BundleError: `bundle.name`.
    """
    names = {segment.label: " ".join(segment.name.split()) for segment in segmentation.segments}
    made_up = [name for name in names.values() if _MADE_UP.fullmatch(name) and (annotated is None or name in annotated)]
    if made_up:
        listed = ", ".join(made_up[:8])
        text = f"found {listed} without a name; expected one; name them (--names), or leave them unchecked"
        raise InputError("accept.unnamed", text)
    if unnamed := [label for label in labels_in(labels) if label and not names.get(label)]:
        listed = ", ".join(map(str, unnamed[:8]))
        raise InputError("accept.unnamed", f"labels {listed} have no name; expected one for each; name the structures")
    if long := next((name for name in names.values() if len(name) > _MAX_NAME), None):
        raise InputError("accept.unnamed", f"a name has {len(long)} characters; expected up to {_MAX_NAME}; shorten it")
    if reserved := next((name for name in names.values() if name.casefold() in _RESERVED), None):
        raise InputError("accept.unnamed", f"a structure is named {reserved}; expected another name; rename it")
    check_names(names.values())
    same: dict[str, str] = {}
    for name in names.values():
        if name.casefold() in same:
            text = f"two structures are named {same[name.casefold()]} and {name}; expected different names; rename one"
            raise InputError("accept.same_name", text)
        same[name.casefold()] = name
    return names


def _structures(known: Mapping[str, int], names: Mapping[int, str]) -> dict[str, int]:
    """Return name -> value of all structures of the set and of a case; new ones keep their label if it is free."""
    structures = dict(known)
    folded = {name.casefold() for name in known}
    for label, name in names.items():
        if name.casefold() not in folded:
            taken = set(structures.values())
            structures[name] = label if label not in taken else next(n for n in range(1, MAX_LABEL) if n not in taken)
            folded.add(name.casefold())
    return structures


def _as_in(names: Mapping[int, str], structures: Mapping[str, int]) -> dict[int, str]:
    """Return label -> name as the set writes it, in upper and lower case."""
    written = {name.casefold(): name for name in structures}
    return {label: written[name.casefold()] for label, name in names.items()}


def _checked(
    annotated: Collection[str] | None, names: Mapping[int, str], structures: Mapping[str, int]
) -> frozenset[str]:
    """Return the names of the structures that were checked, as the set writes them.

    Raises:
        InputError: `labels.names`.
    """
    written = {name.casefold(): name for name in structures}
    wanted = list(names.values()) if annotated is None else list(annotated)
    if unknown := [name for name in wanted if name.casefold() not in written]:
        listed = ", ".join(structures)
        raise InputError("labels.names", f"found {', '.join(unknown)} among the checked structures; expected {listed}")
    return frozenset(written[name.casefold()] for name in wanted)


def _renumbered(labels: NDArray[np.unsignedinteger], values: Mapping[int, int]) -> NDArray[np.unsignedinteger]:
    """Return labels with new values; those without one become background."""
    highest = max(int(labels.max(initial=0)), *values, 0)
    table = np.zeros(highest + 1, smallest_label_type(max(values.values(), default=0)))
    for label, value in values.items():
        table[label] = value
    return table[labels]


def _used(structures: Mapping[str, int], cases: Sequence[AcceptedCase], content: TrainingSet) -> dict[str, int]:
    """Return the structures that a case was annotated for, or that the set had before."""
    named = {name for case in cases for name in case.annotated} | set(content.structures)
    return {name: value for name, value in structures.items() if name in named}


def _channels(content: TrainingSet, scan: Volume) -> tuple[str, ...]:
    """Return the names of the channels of the set with a further scan.

    Raises:
        InputError: `accept.channels`.
    """
    own = scan.channel_names or ((scan.modality,) if scan.modality and len(scan.array) == 1 else ())
    own = tuple(one_line(name, _MAX_NAME) for name in own)
    check_names(own)
    is_other = content.channels and own and [n.casefold() for n in content.channels] != [n.casefold() for n in own]
    if content.cases and (content.channel_count != len(scan.array) or is_other):
        has, wanted = (", ".join(c) or f"{n} channel(s)" for c, n in (
            (own, len(scan.array)), (content.channels, content.channel_count)
        ))  # fmt: skip
        text = f"the scan has {has}, the set {wanted}; expected the same; choose another folder for these scans"
        raise InputError("accept.channels", text)
    return content.channels or own


def _kept_image(folder: Path, known: AcceptedCase, scan: Volume, copy_series: bool) -> Grid | None:
    """Return the grid of the image that a set has of a scan; None if it is not here, or has another place or type."""
    path = folder / known.image
    is_reference = path.name.endswith(ENDING)
    if not path.is_file() or (is_reference and copy_series):
        return None
    if is_reference and _is_same_series(scan, known.scan):  # it may have moved
        remember(known.scan, KnownScan(scan.source.absolute().files))
        return scan.grid
    try:
        grid = scan_of(folder, known).grid
    except NapariSegError:
        return None
    return grid if grid.reoriented().matches(scan.grid.reoriented()) else None


def _holds(folder: Path, known: AcceptedCase, grid: Grid, accepted: NDArray[np.unsignedinteger]) -> bool:
    """Return whether a set has these labels of a case already."""
    try:
        return np.array_equal(labels_of(folder, known, grid), accepted)
    except NapariSegError:  # they are missing or damaged, and are replaced
        return False


def _is_same_series(scan: Volume, digest: str) -> bool:
    """Return whether a scan is a DICOM series whose files alone are read as it is.

    A volume that was chosen among several, straightened, or joined is not.
    """
    if scan.source.format != "dicom" or not scan.source.files:
        return False
    try:
        return ReferencedScan("", "dicom", scan.source.absolute().files, digest).read().grid.matches(scan.grid)
    except InputError:  # too little memory is no reason to copy it
        return False


def _write_image(scan: Volume, folder: Path, name: str, revision: int, digest: str, copy_series: bool) -> str:
    """Write the voxels of a scan, or a reference to its series; return the file in the set, which is a new one."""
    if is_reference := not copy_series and _is_same_series(scan, digest):
        remember(digest, KnownScan(scan.source.absolute().files))
    ending = ENDING if is_reference else ".nii.gz"
    image = f"./{IMAGES}/{name}{ending}"
    if (folder / image).exists():  # a round may read it
        image = f"./{IMAGES}/{name}_r{revision}{ending}"
    if not is_reference:
        write_volume(scan, folder / image)
        return image
    try:
        write_reference(folder / image, digest)
    except OSError as error:
        raise not_written(str(folder / image), error) from error
    return image


def _patient(
    content: TrainingSet, known: AcceptedCase | None, identity: ScanIdentity
) -> tuple[TrainingSet, str, Part | None]:
    """Return the set with all scans of a patient in one part, his number, and that part; None if he is new.

    If it turns out now that scans of two parts are of one patient, all are for training: what a model has learned from
    can't tell any more how good it is.
    """
    who, every = identity.who, (*content.cases, *content.removed)
    of_scan = [case for case in every if identity.is_of(case) or (known and case.name == known.name)]
    same = [case for case in of_scan if not (who and case.who) or case.who == who]
    same += [case for case in every if who and case.who == who]
    same += [case for case in every if identity.shares_files(case) and not (who and case.who)]
    numbers = {case.patient for case in same}
    of_patient = [case for case in every if case.patient in numbers]
    parts = {case.part for case in (*of_patient, *of_scan)}
    highest = max((_number(case.patient) for case in every), default=0)
    number = min(numbers, key=_number, default=f"patient {highest + 1}")
    if not parts:
        return content, number, None
    part: Part = "training" if "training" in parts else "validation"

    def joined(cases: Sequence[AcceptedCase]) -> tuple[AcceptedCase, ...]:
        return tuple(replace(one, patient=number, part=part) if one.patient in numbers else one for one in cases)

    return replace(content, cases=joined(content.cases), removed=joined(content.removed)), number, part


def _with_patient(folder: Path, content: TrainingSet, known: AcceptedCase, identity: ScanIdentity) -> AcceptedCase:
    """Return a case that is accepted as it is; if its patient, series or files were not known before, write them.

    Raises:
        OutputError: `output.*`.
    """
    case = replace(
        known,
        who=known.who or identity.who,
        series=known.series or identity.series,
        input_sha256=known.input_sha256 or identity.input_sha256,
    )
    if case == known:
        return known
    if case.who != known.who:
        content, number, part = _patient(content, known, identity)
        case = replace(case, patient=number, part=part or known.part)
    cases = tuple(case if one.name == case.name else one for one in content.cases)
    write_training_set(folder, replace(content, cases=cases))
    return case


def _number(patient: str) -> int:
    return int(patient.rpartition(" ")[2])


def _recorded(
    provenance: Provenance,
    accepted: NDArray[np.unsignedinteger],
    grid: Grid,
    structures: Mapping[str, int],
    checked: Collection[str],
    before: Segmentation | None,
) -> Provenance:
    """Return the provenance with the time and with what was changed."""
    return replace(
        provenance,
        reader=one_line(provenance.reader, _MAX_WORDS),
        time=provenance.time or datetime.now(UTC).isoformat(timespec="seconds"),
        actions=tuple(one_line(action, _MAX_WORDS) for action in provenance.actions[-_MAX_ACTIONS:]),
        changes={
            name: _changed(accepted == structures[name], grid, _mask_of(before, name)) for name in sorted(checked)
        },
    )


def _mask_of(before: Segmentation | None, name: str) -> NDArray[np.bool_] | None:
    if before is None:
        return None
    labels = [segment.label for segment in before.segments if segment.name.casefold() == name.casefold()]
    return np.isin(before.array, labels)


def _changed(mask: NDArray[np.bool_], grid: Grid, before: NDArray[np.bool_] | None) -> StructureChange:
    count = int(mask.sum())
    ml = rounded_ml(count * grid.voxel_ml)
    if before is None:
        return StructureChange(count, ml)
    was = int(before.sum())
    both = int((mask & before).sum())
    return StructureChange(count, ml, was, rounded_ml(was * grid.voxel_ml), count - both, was - both)
