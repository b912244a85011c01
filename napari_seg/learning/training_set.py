"""Training set of corrections: a folder in the Decathlon's layout, whose list also says who accepted each case.

    dataset.json                     list of the cases: the index, replaced in one step
    imagesTr/case0001.nii.gz         voxels of a scan, without the texts of its header; _r2 if it had to be replaced
    imagesTr/case0002.series.json    DICOM series that stays where it is, see `training.gather.referenced`
    labelsTr/case0001_r2.nii.gz      its labels, accepted for the second time
    rounds/                          what each improvement of a model was trained on, see `improve`
    regions/, scores/                computed before, and computed again if they are removed

`napari-seg train FOLDER` reads the folder as it is. A file that the index names is never changed, so a training that
runs meanwhile is not disturbed, and a process that is killed leaves the former state or the new one.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from napari_seg.errors import BundleError, InputError
from napari_seg.formats.atomic import atomic_write, not_written
from napari_seg.training.choices import check_names
from napari_seg.volume import MAX_LABEL

INDEX = "dataset.json"
IMAGES, LABELS, ROUNDS = "imagesTr", "labelsTr", "rounds"
_LOCK = ".lock"
_LOCK_SECONDS = 60.0
_KIND = "training set of corrections"
_VERSION = 1
_MAX_BYTES = 1 << 26
_COST = 1 << 15
_NAME = re.compile(r"case\d{4,6}")
_IMAGE_FILE = re.compile(rf"\./{IMAGES}/case\d{{4,6}}(_r\d{{1,6}})?\.(nii\.gz|series\.json)")
_LABEL_FILE = re.compile(rf"\./{LABELS}/case\d{{4,6}}_r\d{{1,6}}\.nii\.gz")
_PATIENT = re.compile(r"patient [0-9]{1,6}")
_MAX_NUMBER = 900_000
"""Highest number of a case, and of an acceptance of it: the next ones fit into the names of files, too."""

_UNFINISHED = re.compile(r"\.[0-9a-f]{32}(\..*)?")
"""Name of a file that a killed process leaves, see `formats.atomic`."""

Part = Literal["training", "validation"]
"""What a case is for: validation compares models, and is never trained on."""

_EVERY, _FIRST, _MAX_VALIDATION = 5, 2, 20
"""Of each 5 patients, in the order in which they come, the second one is for validation, up to 20 of them."""


@dataclass(frozen=True)
class StructureChange:
    """What a person changed of one structure.

    Attributes:
        voxels: number of voxels as accepted.
        ml: volume in ml as accepted.
        voxels_before: number of voxels as the model had them; None if that is unknown.
        ml_before: the same in ml.
        added: number of voxels that the model did not have.
        removed: number of voxels that only the model had.
    """

    voxels: int
    ml: float
    voxels_before: int | None = None
    ml_before: float | None = None
    added: int | None = None
    removed: int | None = None


@dataclass(frozen=True)
class Provenance:
    """Where the labels of a case come from.

    Attributes:
        reader: name of the person who accepted them; "" if it is unknown.
        time: when, in UTC, ISO 8601; "" for now.
        model: name and version of the model that made the labels before; None if a person made them.
        model_digest: its digest (`bundles.digest.model_digest`); "" if it is unknown.
        actions: what the person did, in words, in order.
        changes: structure -> what was changed; `accept` computes it.
    """

    reader: str = ""
    time: str = ""
    model: tuple[str, str] | None = None
    model_digest: str = ""
    actions: tuple[str, ...] = ()
    changes: Mapping[str, StructureChange] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Provenance:
        """Return what `asdict` made plain values of.

        Raises:
            KeyError, TypeError, ValueError: it is no such content.
        """
        values = dict(content)
        values["model"] = None if values.get("model") is None else tuple(map(str, values["model"]))
        values["actions"] = tuple(map(str, values.get("actions", ())))
        values["changes"] = {name: StructureChange(**one) for name, one in dict(values.get("changes", {})).items()}
        return cls(**values)


@dataclass(frozen=True)
class AcceptedCase:
    """A case of a training set.

    Attributes:
        name: name without identifiers, such as "case0001".
        image: file of its image, or the reference to its series, relative to the folder of the set.
        labels: file of its labels, relative to the folder of the set.
        patient: number of its patient, such as "patient 1".
        part: what it is for.
        annotated: names of the structures that were looked for; no others are learned from it.
        scan: digest of the scan's voxels (`training.gather.referenced.voxel_digest`).
        provenance: who accepted it, when, and what was changed.
        who: digest of the patient's identifier, which is slow to compute and differs from set to set, see
            `TrainingSet.digest_of`; "" if the identifier is unknown.
        values: digest of the values of its voxels in any order (`training.gather.referenced.value_digest`); "" in sets
            of earlier versions.
        series: digest of the identifier of its DICOM series, as `who`; "" if there is none, and in sets of earlier
            versions.
        input_sha256: digest of the files of the scan, as a run keeps it; "" if they could not be read, and in sets of
            earlier versions.
    """

    name: str
    image: str
    labels: str
    patient: str
    part: Part
    annotated: tuple[str, ...]
    scan: str
    provenance: Provenance
    who: str = ""
    values: str = ""
    series: str = ""
    input_sha256: str = ""

    @property
    def revision(self) -> int:
        """How often it was accepted."""
        return int(self.labels.rpartition("_r")[2].partition(".")[0])


@dataclass(frozen=True)
class TrainingSet:
    """Content of the index of a training set.

    Attributes:
        structures: name -> value in all label maps.
        channels: names of the channels of the images; empty if they are unknown.
        channel_count: number of channels; 0 without a case.
        cases: in the order in which they were accepted first.
        next_number: number of the next new case; the number of a case that was removed is not used again.
        removed: cases that were removed, so that a scan of the same patient stays in the part that it was in.
        salt: random text for the digests of patients and series; "" for a set that is not written yet.
    """

    structures: Mapping[str, int] = field(default_factory=dict)
    channels: tuple[str, ...] = ()
    channel_count: int = 0
    cases: tuple[AcceptedCase, ...] = ()
    next_number: int = 1
    removed: tuple[AcceptedCase, ...] = ()
    salt: str = ""

    @property
    def corrected(self) -> tuple[str, ...]:
        """Names of the structures that a person changed in a case, as far as is known; else all that were checked."""
        changed = {
            name
            for case in self.cases
            for name, change in case.provenance.changes.items()
            if name in case.annotated and (change.voxels_before is None or change.added or change.removed)
        }
        checked = {name for case in self.cases for name in case.annotated}
        return tuple(name for name in self.structures if name in (changed or checked))

    def without(self, names: Collection[str]) -> TrainingSet:
        """Return this set without some structures, by their names in lower case; their voxels are background."""
        kept = {name: value for name, value in self.structures.items() if name.casefold() not in names}
        cases = (replace(one, annotated=tuple(n for n in one.annotated if n in kept)) for one in self.cases)
        return replace(self, structures=kept, cases=tuple(cases))

    def digest_of(self, identifier: str) -> str:
        """Return the digest of the identifier of a patient or a series in this set; "" without one.

        It tells scans of one patient, whoever accepts them on whichever machine. It is a pseudonym: who has the set and
        a list of identifiers can try them, at some tenths of a second each.
        """
        if not identifier:
            return ""
        salt = self.salt.encode()
        return hashlib.scrypt(
            identifier.encode(errors="surrogateescape"), salt=salt, n=_COST, r=8, p=1, maxmem=1 << 27, dklen=16
        ).hex()

    def part_of(self, part: Part) -> tuple[AcceptedCase, ...]:
        """Return the cases of a part."""
        return tuple(case for case in self.cases if case.part == part)

    def next_part(self) -> Part:
        """Return the part of the next patient: the second of each five is for validation."""
        patients = {case.patient: case.part for case in (*self.cases, *self.removed)}
        is_turn = len(patients) % _EVERY == _FIRST - 1
        is_full = sum(part == "validation" for part in patients.values()) >= _MAX_VALIDATION
        return "validation" if is_turn and not is_full else "training"

    def as_list(self) -> dict[str, Any]:
        """Return the list of cases that a training reads; the index holds more beside it."""
        training = []
        for case in self.cases:
            entry = {
                "name": case.name,
                "image": case.image,
                "label": case.labels,
                "patient": case.patient,
                "split": case.part,
            }
            is_partly = not set(self.structures) <= set(case.annotated)
            training.append(entry | ({"labelled": sorted(case.annotated)} if is_partly else {}))
        return {
            "description": "cases accepted in napari-seg",
            "modality": {str(number): name for number, name in enumerate(self.channels)},
            "labels": {"background": 0, **self.structures},
            "training": training,
        }


def moved_to_training(before: TrainingSet, after: TrainingSet) -> list[str]:
    """Return the names of cases that were for validation and are for training now."""
    validated = {case.name for case in before.part_of("validation")}
    return [case.name for case in after.part_of("training") if case.name in validated]


def read_training_set(folder: Path) -> TrainingSet:
    """Return the content of a training set; an empty one for a folder that is missing or empty.

    Raises:
        InputError: `accept.not_a_set`, the folder holds something else, or its index is damaged.
    """
    path = folder / INDEX
    if not path.is_file():
        if folder.is_dir() and any(one.name != _LOCK and not _is_ours(one) for one in folder.iterdir()):
            raise _not_a_set(folder, "other files")
        return TrainingSet()
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError("too large")
        return from_index(json.loads(path.read_bytes()))
    except OSError as error:
        raise InputError("file.unreadable", f"{path} can't be read ({error.strerror})") from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise _not_a_set(folder, f"a {INDEX} that is none of napari-seg accept") from error


def from_index(content: Mapping[str, Any]) -> TrainingSet:
    """Return the training set that an index describes.

    Raises:
        ValueError, LookupError, TypeError, AttributeError: it is no index of this version.
    """
    own = content["napari_seg"]
    if own["kind"] != _KIND or own["version"] != _VERSION:
        raise ValueError("of another kind or version")
    labels = {name: value for name, value in content["labels"].items() if name != "background"}
    channels = tuple(str(name) for name in content["modality"].values())
    _check_names_and_values(content["labels"], labels, channels)
    cases, removed = (tuple(map(_case, entries)) for entries in (content["training"], own.get("removed", ())))
    if len({case.name for case in cases}) < len(cases):
        raise ValueError("two cases of one name")
    if unknown := {name for case in cases for name in case.annotated} - set(labels):
        raise ValueError(f"unknown structures {unknown}")
    if not max((int(case.name[4:]) for case in cases), default=0) < int(own["next"]) <= _MAX_NUMBER:
        raise ValueError("the number of the next case")
    return TrainingSet(
        labels, channels, int(own["channels"]), cases, int(own["next"]), removed, str(own.get("salt", ""))
    )


def _check_names_and_values(listed: Mapping[str, Any], labels: Mapping[str, Any], channels: Sequence[str]) -> None:
    """Check that each structure has a value of its own, and that names are no code.

    Raises:
        ValueError: a value is missing, twice there or out of range, or a name is code or twice there.
    """
    try:
        check_names([*labels, *channels])
    except BundleError as error:
        raise ValueError(error.message) from error
    values = [value for value in labels.values() if type(value) is int and 0 < value <= MAX_LABEL]
    if not len(labels) == len(set(values)) == len({name.casefold() for name in labels}) or listed["background"] != 0:
        raise ValueError("structures without a value of their own")


def as_index(content: TrainingSet) -> dict[str, Any]:
    """Return the index that describes a training set."""
    listed = content.as_list()
    for entry, case in zip(listed["training"], content.cases, strict=True):
        entry |= _own(case)
    of_removed = replace(content, cases=content.removed).as_list()["training"]
    removed = [entry | _own(case) for entry, case in zip(of_removed, content.removed, strict=True)]
    own = {"kind": _KIND, "version": _VERSION, "channels": content.channel_count, "next": content.next_number}
    return listed | {"napari_seg": own | {"salt": content.salt, "removed": removed}}


def _own(case: AcceptedCase) -> dict[str, Any]:
    provenance = asdict(case.provenance)
    own = {"annotated": list(case.annotated), "scan": case.scan, "values": case.values}
    own |= {"input_sha256": case.input_sha256, "who": case.who, "series": case.series}
    return {"accepted": own | {"provenance": provenance}}


def _is_ours(path: Path) -> bool:
    """Return whether an entry of a folder without an index is what a killed first acceptance leaves."""
    if path.name in (IMAGES, LABELS):
        names = [one.name for one in path.iterdir()] if path.is_dir() else ["?"]
        return all(_UNFINISHED.fullmatch(one) or one.startswith("case") for one in names)
    return bool(_UNFINISHED.fullmatch(path.name))


def _not_a_set(folder: Path, found: str) -> InputError:
    text = f"{folder} holds {found}; expected a folder of accepted cases, or a new or empty one; choose another folder"
    return InputError("accept.not_a_set", text)


def _case(entry: Mapping[str, Any]) -> AcceptedCase:
    """Return a case of the index; its files can lie nowhere but in the folder of the set.

    Raises:
        ValueError, LookupError, TypeError: it is none.
    """
    own = entry["accepted"]
    name, image, labels, part = (str(entry[key]) for key in ("name", "image", "label", "split"))
    if not (_NAME.fullmatch(name) and _IMAGE_FILE.fullmatch(image) and _LABEL_FILE.fullmatch(labels)):
        raise ValueError(name)
    if part not in ("training", "validation"):
        raise ValueError(part)
    annotated, scan = tuple(str(one) for one in own["annotated"]), str(own["scan"])
    provenance = Provenance.from_dict(own["provenance"])
    patient = str(entry["patient"])
    if not _PATIENT.fullmatch(patient) or int(labels.rpartition("_r")[2].partition(".")[0]) > _MAX_NUMBER:
        raise ValueError(name)
    of_part: Part = "training" if part == "training" else "validation"
    others = (str(own.get(key, "")) for key in ("who", "values", "series", "input_sha256"))
    return AcceptedCase(name, image, labels, patient, of_part, annotated, scan, provenance, *others)


def write_training_set(folder: Path, content: TrainingSet) -> None:
    """Replace the index of a training set in one step, then remove what no list names any longer.

    Raises:
        OutputError: `output.not_written`, `output.disk_full`.
    """
    try:
        atomic_write(folder / INDEX, json.dumps(as_index(content), indent=1) + "\n")
    except OSError as error:
        raise not_written(str(folder / INDEX), error) from error
    _sweep(folder, content)


def _sweep(folder: Path, content: TrainingSet) -> None:
    """Remove files that neither the index nor a list of a round names, and what killed processes left."""
    kept = {file for case in content.cases for file in (case.image, case.labels)}
    for path in (folder / ROUNDS).glob("*.json"):
        try:
            of_round = from_index(json.loads(path.read_bytes())["index"])
            kept |= {file for case in of_round.cases for file in (case.image, case.labels)}
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return  # it is not known what the round names, so nothing is removed
    for place in (folder, folder / IMAGES, folder / LABELS):
        for path in place.iterdir() if place.is_dir() else ():
            file = f"./{place.name}/{path.name}"
            is_old = (_IMAGE_FILE.fullmatch(file) or _LABEL_FILE.fullmatch(file)) and file not in kept
            if (is_old or _UNFINISHED.fullmatch(path.name)) and path.is_file():
                with suppress(OSError):  # open in another program; the next acceptance removes it
                    path.unlink()


def remove_rounds(folder: Path, name: str) -> None:
    """Remove the lists of the rounds that a case was part of, with their crops, and any crops of the case.

    Raises:
        OutputError: `output.not_written`.
    """
    of_case = {path.with_suffix("") for path in (folder / ROUNDS).glob("*.json") if _may_name(path, name)}
    of_case |= {path.parent.parent for path in (folder / ROUNDS).glob(f"*/*/{name}_box*")}
    for crops in sorted(of_case):
        try:
            crops.with_name(f"{crops.name}.json").unlink(missing_ok=True)
            if crops.is_dir():
                shutil.rmtree(crops)
        except OSError as error:
            raise not_written(str(crops), error) from error


def _may_name(path: Path, name: str) -> bool:
    """Return whether the list of a round names a case, or is damaged."""
    with suppress(ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return name in [case.name for case in from_index(json.loads(path.read_bytes())["index"]).cases]
    return True


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from changing a training set; its folder must exist.

    Raises:
        InputError: `accept.busy`, another process changes it for longer than a minute.
    """
    lock = FileLock(folder / _LOCK)
    try:
        with suppress(NotImplementedError):  # a file system without locks
            lock.acquire(timeout=_LOCK_SECONDS)
    except Timeout as error:
        raise InputError(
            "accept.busy", f"another program is writing into {folder}; try again when it is done"
        ) from error
    try:
        yield
    finally:
        lock.release()
