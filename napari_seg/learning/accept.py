"""Accept a corrected case: put a scan and its labels into a training set, with a record of who changed what."""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from napari_seg.errors import InputError, NapariSegError, one_line
from napari_seg.formats.atomic import make_output_folder, not_written
from napari_seg.formats.endings import NIFTI_ENDINGS, ending_of
from napari_seg.formats.nifti import write_map, write_volume
from napari_seg.geometry import Grid, resample
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
    voxel_digest,
    write_reference,
)
from napari_seg.training.gather.write import make_folders
from napari_seg.volume import MAX_LABEL, Segmentation, Volume, labels_in, smallest_label_type

_MAX_ACTIONS, _MAX_WORDS = 1000, 200
_MAX_NAME = 200
_RESERVED = ("background", "ignore")
"""Names that have a meaning in the list of a data set."""

_PATIENT = re.compile(r"(sub-[^_]+|(?:subj(?:ect)?|pat(?:ient)?)[-_]?\d+)", re.IGNORECASE)
"""Patient in the name of a file, as `segnets.data.patients` finds it."""


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
) -> AcceptedCase:
    """Put a scan and its labels into a training set, which `napari-seg train` and `improve` read.

    A scan that was accepted before gets the new labels in place of the former ones, and keeps its name and part. A
    DICOM series stays where it is and is referred to; the voxels of all other scans are copied. Cases are numbered:
    neither the files nor the records hold names of files, or of people except the reader.

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
        patient: identifier of the patient, which is not written; "": that of the DICOM series, or the part of a
            file's name such as `sub-01`, or a patient of its own.
        copy_series: copy the voxels of a DICOM series, too.

    Raises:
        InputError: `accept.not_a_set`, the folder holds something else; `accept.busy`; `accept.grid`, labels and scan
            do not fit; `accept.channels`, the other scans of the set have other channels; `accept.unnamed`, labels
            without a name; `accept.same_name`, two structures with one name; `accept.empty`, no voxel, and `annotated`
            does not say what was looked for; `labels.names`, an unknown name in `annotated`.
        BundleError: `bundle.name`, a structure has a name that configs can't hold.
        OutputError: `output.*`.
    """
    labels = _on_grid(segmentation, scan.grid)
    earlier = None if before is None else replace(before, array=_on_grid(before, scan.grid), grid=scan.grid)
    names = _names(segmentation, labels)
    digest = voxel_digest(scan)
    make_output_folder(folder)
    with locked(folder):
        content = read_training_set(folder)
        content = replace(content, salt=content.salt or secrets.token_hex(16))
        known = content.case_of(digest) or _case_of_file(content, folder, scan)
        who = content.digest_of(_identifier(scan, patient))
        channels = _channels(content, scan)
        make_folders(folder, IMAGES, LABELS)
        structures = _structures(content.structures, names)
        checked = _checked(annotated, names, structures)
        values = {label: structures[name] for label, name in _as_in(names, structures).items() if name in checked}
        accepted = _renumbered(labels, values)
        if not accepted.any() and not annotated:
            text = "the labels hold no voxel; expected at least one, or the names of structures that were looked for"
            raise InputError("accept.empty", text)
        name = known.name if known else f"case{content.next_number:04d}"
        image = known.image if known else ""
        if not image or not (folder / image).is_file() or (copy_series and image.endswith(ENDING)):
            image = _write_image(scan, folder, name, digest, copy_series)
        elif image.endswith(ENDING):  # it may have moved
            remember(digest, KnownScan(scan.source.files))
        label_file = f"./{LABELS}/{name}_r{known.revision + 1 if known else 1}.nii.gz"
        write_map(accepted, scan.grid, folder / label_file)
        number, of_patient = _patient(content, known, digest, who)
        case = AcceptedCase(
            name,
            image,
            label_file,
            number,
            (known.part if known else None) or of_patient or part or content.next_part(),
            tuple(sorted(checked)),
            known.scan if known else digest,
            _recorded(provenance, accepted, scan.grid, structures, checked, earlier),
            who or (known.who if known else ""),
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


def _names(segmentation: Segmentation, labels: NDArray[np.unsignedinteger]) -> dict[int, str]:
    """Return label -> name of each structure.

    Raises:
        InputError: `accept.unnamed`.
        BundleError: `bundle.name`.
    """
    names = {segment.label: " ".join(segment.name.split()) for segment in segmentation.segments}
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


def _case_of_file(content: TrainingSet, folder: Path, scan: Volume) -> AcceptedCase | None:
    """Return the case whose image in the set a scan was read from; None for a scan from elsewhere."""
    files = {file.resolve() for file in scan.source.files}
    return next((case for case in content.cases if (folder / case.image).resolve() in files), None)


def _write_image(scan: Volume, folder: Path, name: str, digest: str, copy_series: bool) -> str:
    """Write the voxels of a scan, or a reference to a series that reads the same now; return the file in the set."""
    if scan.source.format == "dicom" and scan.source.files and not copy_series:
        source = scan.source.absolute()
        try:
            ReferencedScan(name, "dicom", source.files, digest).read()
        except NapariSegError:  # chosen among several volumes, straightened, or joined: the files alone are not it
            pass
        else:
            remember(digest, KnownScan(source.files))
            image = f"./{IMAGES}/{name}{ENDING}"
            try:
                write_reference(folder / image, digest)
            except OSError as error:
                raise not_written(str(folder / image), error) from error
            return image
    image = f"./{IMAGES}/{name}.nii.gz"
    write_volume(scan, folder / image)
    return image


def _identifier(scan: Volume, patient: str) -> str:
    """Return the patient's identifier as given, or as the files of the scan state it; "" if it is unknown."""
    files = scan.source.files
    if patient or not files:
        return patient
    if scan.source.format == "dicom":
        from napari_seg.formats.dicom.series import patient_of

        with suppress(InputError):  # the file was moved since it was read
            return patient_of(files[0])
        return ""
    found = _PATIENT.match(files[0].name.removesuffix(ending_of(files[0], NIFTI_ENDINGS)))
    return found[0] if found else ""


def _patient(content: TrainingSet, known: AcceptedCase | None, digest: str, who: str) -> tuple[str, Part | None]:
    """Return the number of the patient of a case, and the part of his other scans; None if there are none."""
    if known:
        return known.patient, known.part
    every = (*content.cases, *content.removed)
    for case in every:
        if case.scan == digest or (who and case.who == who):
            return case.patient, case.part
    numbers = [int(case.patient.rpartition(" ")[2]) for case in every]
    return f"patient {max(numbers, default=0) + 1}", None


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
    ml = round(count * grid.voxel_ml, 4)
    if before is None:
        return StructureChange(count, ml)
    was = int(before.sum())
    both = int((mask & before).sum())
    return StructureChange(count, ml, was, round(was * grid.voxel_ml, 4), count - both, was - both)
