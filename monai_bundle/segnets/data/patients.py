"""Find the patient of each case: stated, matched by a pattern, or named by a file or a folder.

The rules are the same for all layouts (`patients_of`):

1. The match of the user's pattern.
2. The patient that the data set states.
3. The part of the case's name that names a patient, as `sub-01_ses-2` does. If the name says nothing, because several
   files have it or the case was found by a search: the folder that is named as a patient, unless it is that of all
   cases, or else the file.
4. The folder above several cases.
5. Below folders of visits that hold several cases each, such as `visit1/07.nii.gz` and `visit2/07.nii.gz`, the name of
   the file.
6. The folder above several cases, even if it is called as that of a visit or scan: `scan1/left.nii.gz`.
7. The case is a patient of its own.

Folders of parts (`train/`), of images (`images/`) and of visits or scans (`ses-1/`, `scan2/`, a date) are no patients,
and patients of one name in several of them are one. Other folders above a patient distinguish it: `north/p01` and
`south/p01` are two.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import takewhile
from pathlib import PurePosixPath
from typing import NamedTuple

from segnets.data.pairing import stem
from segnets.errors import TrainingError

PATIENT = r"^(sub-[^_]+|(?:subj(?:ect)?|pat(?:ient)?)[-_]?\d+)"
"""Regular expression that finds the patient in usual names of cases, such as `sub-01_ses-2` or `patient001_frame01`."""

IMAGE_FOLDER = re.compile(r"(images?|imgs?|scans?|volumes?|data|dicoms?)(tr|ts)?", re.IGNORECASE)
PART_FOLDER = re.compile(r"train(ing)?|val(id(ation)?)?|test(ing)?", re.IGNORECASE)

_PATIENT = re.compile(PATIENT, re.IGNORECASE)
_PATIENT_FOLDERS = tuple(
    re.compile(rf"({words})[-_ ]?\d+", re.IGNORECASE)
    for words in (r"pat(ient)?|sub(j(ect)?)?|participant|volunteer|animal|mouse|rat", "p|case")
)
"""Names of folders of patients, those of which the names mean nothing else first."""

_VISIT = re.compile(
    r"(ses(sion)?|day|week|month|year|visit|time(point)?|tp?|baseline|follow[-_ ]?up|pre|post)[-_ ]?\d*", re.IGNORECASE
)
_SCAN = re.compile(
    r"(scan|run|rep|exam|study|series|acq|frame)[-_ ]?\d*|(19|20)\d\d[-_.]?\d\d[-_.]?\d\d.*", re.IGNORECASE
)
"""Names of folders with one of several scans of a patient, which may also hold one patient each."""

_MIN_FOLDERS = 4
"""Number of folders from which each is taken for a patient even if their names have no numbers."""

MAY_SHARE = (
    "several cases have names that differ only in their last number or letter, as rat1_a and rat1_b do, and count as "
    "one patient each; if they belong to one patient, give --patient '^[^_]+' or a like pattern, or training and "
    "validation may share patients"
)
"""What to say if `may_share_patients`."""

ONE_FOLDER = (
    "all cases lie in a folder that is named as a patient, but count as different patients: if they are of one "
    "patient, training and validation share it, and the scores say nothing about other patients; add patients to "
    "measure that, or give --patient PATTERN if these are several"
)
"""What to say if `lie_in_one_folder`."""

_NUMBERED = re.compile(r"(.*\d.*?)(?:[-_. ][a-z]*\d*|(?<=\d)[a-z])", re.IGNORECASE)


class Origin(NamedTuple):
    """What identifies the patient of a case.

    Attributes:
        path: path of its image below the data set, with / between folders.
        name: name of the case; "" if it says nothing about the patient.
        stated: the patient that the data set states; "" if it does not.
        folders: folders above the image, the highest first; None: those of the path.
        file: name that may be the patient's; None: that of the file in the path without its ending.
    """

    path: str
    name: str = ""
    stated: str = ""
    folders: tuple[str, ...] | None = None
    file: str | None = None

    @property
    def lasting(self) -> tuple[str, ...]:
        """Folders without those of images and parts."""
        folders = PurePosixPath(self.path).parent.parts if self.folders is None else self.folders
        return tuple(one for one in folders if not IMAGE_FOLDER.fullmatch(one) and not PART_FOLDER.fullmatch(one))

    @property
    def last(self) -> str:
        """Name below the folders that may be the patient's; "" if there is none."""
        return stem(PurePosixPath(self.path)) if self.file is None else self.file


def patients_of(cases: Sequence[Origin], pattern: str | None = None, only_named: bool = False) -> list[str]:
    """Return the patient of each case; see the module for the rules.

    Args:
        cases: the cases.
        pattern: regular expression that finds the patient; it is searched in the name of a case, or in its path if the
            name says nothing or the pattern contains a /.
        only_named: whether folders count only if all of them are named as those of patients, as `patient01/`; others
            may be batches.

    Raises:
        TrainingError: "dataset.patient", the pattern is no regular expression.
    """
    if pattern is not None:
        try:
            return [_match(case, pattern) or case.stated or _own(case) for case in cases]
        except (re.error, TypeError) as error:
            text = f"found --patient {pattern!r}; expected a regular expression such as '^[^_]+' ({error})"
            raise TrainingError("dataset.patient", text) from error
    found = [case.stated or _patient_in(case.name) for case in cases]
    above = [case.lasting for case in cases]
    for rule in (
        _named_folders(cases),
        [_named_file(case) for case in cases],
        _folders_of([_without_scans(folders) for folders in above], only_named),
        _below_visits(cases),
        _folders_of(above, only_named),
        [_own(case) for case in cases],
    ):
        found = [who or other for who, other in zip(found, rule, strict=True)]
    return found


def matches_any(cases: Iterable[Origin], pattern: str) -> bool:
    """Return whether a pattern finds the patient of some case."""
    return any(_match(case, pattern) for case in cases)


def patient_of(name: str) -> str:
    """Return the part of a name that names the patient; without one, the name."""
    return _patient_in(name) or name


def may_share_patients(patients: Iterable[str]) -> bool:
    """Return whether some names differ only after a number that distinguishes others: rat1_a, rat1_b, rat2_a."""
    begin = [found[1] for name in patients if (found := _NUMBERED.fullmatch(name))]
    return len(set(begin)) > 1 and max(Counter(begin).values()) > 1


def lie_in_one_folder(cases: Sequence[Origin], above: str) -> bool:
    """Return whether all cases lie in a folder that is named as a patient, and nothing else names their patients.

    Args:
        cases: the cases.
        above: name of the folder of the data set.
    """
    folders = [(above, *case.lasting) for case in cases]
    shared = [level[0] for level in takewhile(lambda level: len(set(level)) == 1, zip(*folders, strict=False))]
    if not _named_folder(shared):
        return False
    below = [_named_folder(path[len(shared) :]) for path in folders]
    return not any(below) and not any(case.stated or _patient_in(case.name or case.last) for case in cases)


def _match(case: Origin, pattern: str) -> str:
    match = re.search(pattern, case.name if case.name and "/" not in pattern else case.path, re.IGNORECASE)
    return match[0] if match else ""


def _own(case: Origin) -> str:
    return case.name or case.path


def _patient_in(name: str) -> str:
    match = _PATIENT.match(name)
    return match[0] if match else ""


def _named_folders(cases: Sequence[Origin]) -> list[str]:
    """Return the folder of each case that is named as a patient; "" without one, or if it is that of all cases."""
    named = ["" if case.name else _named_folder(case.lasting) for case in cases]
    return named if len(set(named)) > 1 else ["" for _ in cases]


def _named_folder(folders: Sequence[str]) -> str:
    certain, possible = _PATIENT_FOLDERS
    for words, which in ((certain.fullmatch, 0), (_PATIENT.match, 0), (possible.fullmatch, -1)):
        named = [(level, match[0]) for level, folder in enumerate(folders) if (match := words(folder))]
        if named:
            level, name = named[which]
            return "/".join((*_without_scans(folders[:level]), name))
    return ""


def _named_file(case: Origin) -> str:
    """Return the patient that the file of a case names, if the name of the case says nothing; "" without one."""
    match = "" if case.name else _patient_in(case.last)
    return "/".join((*_without_scans(case.lasting), match)) if match else ""


def _without_scans(folders: Sequence[str]) -> tuple[str, ...]:
    return tuple(one for one in folders if not _is_scan(one))


def _is_scan(folder: str) -> bool:
    return bool(_VISIT.fullmatch(folder) or _SCAN.fullmatch(folder))


def _folders_of(above: Sequence[tuple[str, ...]], only_named: bool) -> list[str]:
    """Return the folder of the patient of each case, "" if the folders do not say.

    It is the path down to the last folder that is not that of a visit or a scan, or equally below several others. Fewer
    than `_MIN_FOLDERS` folders count only if their names have numbers; the others may be groups of patients.

    Args:
        above: folders above the image of each case.
        only_named: see `patients_of`.
    """
    paths = list(above)
    parents: dict[str, set[tuple[str, ...]]] = {}
    for path in paths:
        for level, folder in enumerate(path):
            parents.setdefault(folder, set()).add(path[:level])
    for number, path in enumerate(paths):
        while len(path) > 1 and not _names_patient(path[-1]) and (_is_scan(path[-1]) or len(parents[path[-1]]) > 1):
            path = path[:-1]
        paths[number] = path
    counts = Counter(path for path in paths if path)
    have_numbers = all(re.search(r"\d", path[-1]) for path in counts)
    if len(counts) < 2 or max(counts.values()) == 1 or (len(counts) < _MIN_FOLDERS and not have_numbers):
        return ["" for _ in paths]
    if only_named and not all(_names_patient(path[-1]) for path in counts):
        return ["" for _ in paths]
    return ["/".join(path) for path in paths]


def _names_patient(folder: str) -> bool:
    return any(words.fullmatch(folder) for words in _PATIENT_FOLDERS)


def _below_visits(cases: Sequence[Origin]) -> list[str]:
    """Return other folders and file of each case below a folder of a visit; "" for other cases, or if all are equal."""
    files = [
        (*_without_scans(case.lasting), case.last) if case.last and any(map(_VISIT.fullmatch, case.lasting)) else ()
        for case in cases
    ]
    return ["/".join(file) if len(set(files) - {()}) > 1 else "" for file in files]
