"""Messages of the window: errors and notices of the library in the words of its controls.

The code comes last, in parentheses: a person reads the message, and the code leads to the documentation. Options and
commands of the command line are replaced by the controls of the window.
"""

from __future__ import annotations

import logging
import re
import traceback
from dataclasses import dataclass
from typing import Literal, Protocol

from napari_seg.errors import NapariSegError
from napari_seg.worker import WorkerError

logger = logging.getLogger(__name__)

_IN_THE_WINDOW = (
    (r"found --volume (\d+)", r"found volume \1"),
    (r"--volume", "the volume box below the list in the Study tab"),
    (r"--resample-tilt shifts", "“Straighten and show” in the Study tab shifts"),
    (r"--resample-tilt", "“Straighten and show” in the Study tab"),
    (r"--memory", "Preferences > napari-seg > Memory"),
    (r"--device (\w+) too", r"the device \1 in the Segment tab too"),
    (r"--device (\w+)", r"the device \1 in the Segment tab"),
    (r"--device", "another device in the Segment tab"),
    (r"--precision (\w+), or napari's Preferences > napari-seg", r"precision \1 in Preferences > napari-seg"),
    (r"--precision", "the precision in Preferences > napari-seg"),
    (r"--backend (\w+)", r"the backend \1"),
    (r"--trust, or read_bundle\(\.\.\., trust=True\)", "“Trust this model…” in the Segment tab"),
    (r"--trust", "“Trust this model…” in the Segment tab"),
    (r"name it with --labels NAME=(\d+)", r"open the reference as labels and name label \1 in the Structures tab"),
    (r"rename them, or give the value .* --labels .*", "rename them in the Structures tab"),
    (r"if the result numbers .* --labels .*", "name the labels of the result in the Structures tab"),
    (r"\balso was (.*?) and is", r"“Also write” was \1 and is"),
    (r"choose another folder, or pass --redo to make them again", "“Make again” replaces them"),
    (r"choose another folder, or pass --redo to replace it", "“Make again” replaces it"),
    (r"run again with --redo", "run it again"),
    (r"wait for it, stop it, or start both with --join to share the work", "wait for it, or stop it where it runs"),
    (r"with another output folder, or with --overwrite", "with another folder of results"),
    (r"pass --overwrite", "choose another folder of results"),
    (r"If you trust the source[^;]*; otherwise choose a new folder with -o", "Choose another “Model folder…”"),
    (r"(leave these arguments out to continue, or )?choose a new folder with -o", "choose another “Model folder…”"),
    (r"another folder with -o\b", "another folder of results"),
    (r"--max-minutes (\d+)", r"the time limit of \1 minutes"),
    (r"run the same command again to continue", "press Resume to continue"),
    (r"the same command continues", "Resume continues"),
    (r"; see the output above", ""),
    (r"pass --?scan", "open the scan first"),
    (r"; remove it first, give --replace, or another name with --name", "; remove it first"),
    (r"; give another with --name", ""),
    (r"; in a script, --accept-licence accepts it", ""),
    (r"'napari-seg models list' lists those .*", "“Models…” in the Segment tab lists them"),
    (r"--model; 'napari-seg models search' finds .* install", "“Models…” in the Segment tab lists more"),
    (r"'napari-seg models (list|add)'", "“Models…” in the Segment tab"),
    (r"--([a-z]+)-([a-z]+)", r"“\1 \2”"),  # of the command line alone
    (r"--([a-z]+)", r"“\1”"),
)


@dataclass(frozen=True)
class Message:
    """One line of text for a person.

    Attributes:
        kind: severity, which decides the mark before the text.
        text: the line.
    """

    kind: Literal["info", "warning", "error"]
    text: str


class CodedMessage(Protocol):
    """Error or notice with a code."""

    @property
    def code(self) -> str: ...
    @property
    def message(self) -> str: ...


def message_of(error: Exception | None) -> Message:
    """Return the message for an error.

    The text of an unexpected error may hold private data. Its message therefore names only the type of the error, and
    the log gets the places in the code.
    """
    if isinstance(error, NapariSegError):
        return Message("error", gui_text_of(error))
    if isinstance(error, MemoryError):
        return Message("error", "There is too little memory for this. Close other scans or programs, then try again.")
    kind, places = type(error).__name__, "" if error is None else "".join(traceback.format_tb(error.__traceback__))
    if isinstance(error, WorkerError):
        kind, places = error.kind, places + error.places
    logger.error("%s\n%s", kind, places)
    return Message("error", f"Unexpected error: {kind}. Details are in the log of napari.")


def gui_text_of(coded: CodedMessage) -> str:
    """Return the text for an error or a notice, followed by its code."""
    return f"{as_gui_text(coded.message)} ({coded.code})"


def as_gui_text(text: str) -> str:
    """Return a text with options and commands of the command line replaced by controls of the window."""
    for option, control in _IN_THE_WINDOW:
        text = re.sub(option, control, text)
    return text
