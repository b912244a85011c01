"""Find the patient of each case by its name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

PATIENT = r"^(sub-[^_]+|(?:subj(?:ect)?|pat(?:ient)?)[-_]?\d+)"
"""Regular expression that finds the patient in usual names of cases, such as `sub-01_ses-2` or `patient001_frame01`."""

MAY_SHARE = (
    "several cases have names that differ only in their last number or letter, as rat1_a and rat1_b do, and count as "
    "one patient each; if they belong to one patient, set patient, a pattern such as '^[^_]+', or training and "
    "validation may share patients"
)
"""What to say if `may_share_patients`."""

_NUMBERED = re.compile(r"(.*\d.*?)(?:[-_. ][a-z]*\d*|(?<=\d)[a-z])", re.IGNORECASE)


def patient_of(case: str, patient: str | None = None) -> str:
    """Return the match of a regular expression (None: `PATIENT`) in the name of a case; without a match, the name."""
    match = re.search(patient or PATIENT, case, re.IGNORECASE)
    return match[0] if match else case


def may_share_patients(patients: Iterable[str]) -> bool:
    """Return whether some names differ only after a number that distinguishes others: rat1_a, rat1_b, rat2_a."""
    begin = [found[1] for name in patients if (found := _NUMBERED.fullmatch(name))]
    return len(set(begin)) > 1 and max(Counter(begin).values()) > 1
