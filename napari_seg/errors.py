"""What can go wrong for a user, each kind with a code that stays the same from release to release."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal


def printable(text: str) -> str:
    """Return a text that any terminal, font and encoder of UTF-8 takes.

    Bytes of a file name that are not UTF-8 are read as Latin-1; control characters, such as the escape codes of a
    terminal, become "_".
    """
    letters = (chr(ord(c) - 0xDC00) if "\udc80" <= c <= "\udcff" else c for c in text)
    return "".join(c if c.isprintable() or c in "\n\t" else "_" for c in letters)


def one_line(text: object, max_length: int) -> str:
    """Return text of a foreign file on one line, without control characters and cut to a length.

    Control characters, such as the escape codes of a terminal, become spaces.
    """
    plain = " ".join("".join(c if c.isprintable() else " " for c in str(text)[: 4 * max_length]).split())
    return plain if len(plain) <= max_length else f"{plain[: max_length - 1]}…"


class NapariSegError(Exception):
    """Something a user can cause and mend.

    The text says what was found, what was expected and what to do; it never holds a patient's name or
    identifier.

    Attributes:
        code: stable and lower case, `<area>.<fault>`, such as `geometry.missing_slice`.
        message: one line for a person.
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
    """A scan can be used once a person has chosen how to read it.

    Attributes:
        option: of `Scan.read`: "volume" or "resample_tilt".
        count: how many volumes there are to choose from, counted from 0; 0 where the option is none but a yes.
    """

    def __init__(self, code: str, message: str, option: Literal["volume", "resample_tilt"], count: int = 0) -> None:
        super().__init__(code, message)
        self.option = option
        self.count = count

    def __reduce__(self) -> tuple:
        return type(self), (self.code, self.message, self.option, self.count)


class LocaliseError(NapariSegError):
    """The place to look at was not found in the scan (`localise.*`)."""


class BundleError(NapariSegError):
    """A bundle is missing, incomplete, untrusted or does not fit the scan (`bundle.*`)."""


class TrainingError(NapariSegError):
    """A data set can't be trained on, or a training failed (`dataset.*`, `data.*`, `labels.*`, `training.*`, ...)."""


class OutputError(NapariSegError):
    """A result could not be written (`output.*`)."""


class EnvironmentFault(NapariSegError):
    """This machine lacks something that was asked for (`environment.*`)."""


class Cancelled(NapariSegError):
    """The user stopped the work; raise it from a progress callback to do so."""

    def __init__(
        self, code: str = "run.cancelled", message: str = "stopped before the end; nothing was written"
    ) -> None:
        super().__init__(code, message)


@dataclass(frozen=True)
class Notice:
    """A doubt that does not stop the work, such as `result.implausible`.

    Attributes:
        code: as of an error.
        message: as of an error.
        segment: name of the structure that is doubted; "" for the whole scan.
    """

    code: str
    message: str
    segment: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", printable(self.message))

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


@contextmanager
def told_plainly(
    fault: type[NapariSegError], code: str, text: str, passing: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Turns what libraries raise on foreign headers into an error of ours that does not quote them.

    What they raise is named by its kind alone and not chained: its words hold values, and those may be private.

    Args:
        fault: what is raised instead; our own errors pass.
        code: its code.
        text: its message, with "{kind}" where the kind of the error goes.
        passing: others that pass.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, (NapariSegError, *passing)):
            raise
        raise fault(code, text.replace("{kind}", type(error).__name__)) from None
