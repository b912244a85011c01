"""Errors and notices for users, each with a stable code."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal


def printable(text: str) -> str:
    """Return text that every terminal, font and UTF-8 encoder accepts.

    Bytes of a file name that are not UTF-8 are read as Latin-1; control characters, such as the escape codes of a
    terminal, become "_".
    """
    if text.isprintable():
        return text
    letters = (chr(ord(c) - 0xDC00) if "\udc80" <= c <= "\udcff" else c for c in text)
    return "".join(c if c.isprintable() or c in "\n\t" else "_" for c in letters)


def one_line(text: object, max_length: int) -> str:
    """Return text of a foreign file on one line, without control characters and cut to a length.

    Control characters, such as the escape codes of a terminal, become spaces.
    """
    plain = " ".join("".join(c if c.isprintable() else " " for c in str(text)[: 4 * max_length]).split())
    return plain if len(plain) <= max_length else f"{plain[: max_length - 1]}…"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless it is one: "1 case", "2,000 cases"."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def listed(names: Sequence[str], most: int = 3) -> str:
    """Return the first names, and the number of the others: "a, b, c and 2 more"."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def nearest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return the known name that is most like a misspelt word, in any case; "" if none is.

    Args:
        word: the word.
        known: names to choose from.
        cutoff: lowest similarity, from 0 to 1.
    """
    names = {name.casefold(): name for name in reversed(list(known))}
    return next((names[name] for name in get_close_matches(word.casefold(), names, 1, cutoff)), "")


def did_you_mean(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return the end of a message that offers the nearest name, see `nearest`; "" without one."""
    near = nearest(word, known, cutoff)
    return f"; did you mean {near}?" if near else ""


def offered(word: str, known: Iterable[str]) -> str:
    """Return the end of a message that offers the name nearest to an unknown one, or all names if none is like it."""
    names = list(known)
    return did_you_mean(word, names) or f"; expected one of {', '.join(names)}"


class NapariSegError(Exception):
    """An error that a user can cause and correct.

    The message says what was found, what was expected and what to do. It never contains a patient's name or identifier.

    Attributes:
        code: stable code in lower case, `<area>.<fault>`, such as `geometry.missing_slice`.
        message: one line of text.
    """

    def __init__(self, code: str, message: str) -> None:
        message = printable(message)
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message

    def __reduce__(self) -> tuple:
        return type(self), (self.code, self.message)


class InputError(NapariSegError):
    """A file, a series or an array can't be used (`file.*`, `series.*`, `geometry.*`, `input.*`)."""


class ChoiceNeeded(InputError):
    """A scan can be read only with an option that the user must choose.

    Attributes:
        option: name of the option of `Scan.read`: "volume" or "resample_tilt".
        count: number of volumes to choose from; 0 for an option that is only switched on.
    """

    def __init__(self, code: str, message: str, option: Literal["volume", "resample_tilt"], count: int = 0) -> None:
        super().__init__(code, message)
        self.option = option
        self.count = count

    def __reduce__(self) -> tuple:
        return type(self), (self.code, self.message, self.option, self.count)


class LocaliseError(NapariSegError):
    """The region of interest was not found in the scan (`localise.*`)."""


class BundleError(NapariSegError):
    """A bundle is missing, incomplete, untrusted or does not fit the scan (`bundle.*`)."""


class StoreError(NapariSegError):
    """A model can't be installed, found or removed (`store.*`)."""


class DownloadError(NapariSegError):
    """A file could not be downloaded, or is not the expected one (`download.*`)."""


class TrainingError(NapariSegError):
    """A data set can't be trained on, or a training failed (`dataset.*`, `data.*`, `labels.*`, `training.*`, ...)."""


class OutputError(NapariSegError):
    """A result could not be written (`output.*`)."""


class EnvironmentFault(NapariSegError):
    """This machine lacks something that is required (`environment.*`)."""


class CohortError(NapariSegError):
    """A run over many scans can't start or go on (`cohort.*`)."""


class Cancelled(NapariSegError):
    """The user stopped the work; a progress callback raises it."""

    def __init__(
        self, code: str = "run.cancelled", message: str = "stopped before the end; nothing was written"
    ) -> None:
        super().__init__(code, message)


@dataclass(frozen=True)
class Notice:
    """A warning that does not stop the work, such as `result.implausible`.

    Attributes:
        code: stable code, as for an error.
        message: one line of text.
        segment: name of the segment that it concerns; "" for the whole scan.
    """

    code: str
    message: str
    segment: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", printable(self.message))

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


@contextmanager
def without_private_text(
    fault: type[NapariSegError], code: str, text: str, passing: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Replace errors that libraries raise on foreign headers by an error that does not quote the headers.

    The new error gives only the type of the original one, which is not chained: its text may contain private values.

    Args:
        fault: type of the new error; errors of this program pass unchanged.
        code: code of the new error.
        text: message of the new error; "{kind}" stands for the type of the original error.
        passing: other types of errors that pass unchanged.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, (NapariSegError, *passing)):
            raise
        raise fault(code, text.replace("{kind}", type(error).__name__)) from None
