"""Errors and notices in the words of the window.

The code comes last, in parentheses: a person reads the message, and the code finds it in the documentation. Where the
library names what a person does on the command line, the window names what she does here.
"""

from __future__ import annotations

import re
from typing import Protocol

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
    (r"--trust-bundle, or read_bundle\(\.\.\., trust=True\)", "“Trust this model…” in the Segment tab"),
    (r"--trust-bundle", "“Trust this model…” in the Segment tab"),
    (r"say so with --labels NAME=(\d+)", r"open the reference as labels and name label \1 in the Structures tab"),
    (r"pass --overwrite", "choose another folder of results"),
    (r"another folder with -o\b", "another folder of results"),
    (r"pass --?scan", "open the scan first"),
    (r"'?napari-seg bundles'?", "the Segment tab"),
    (r"--([a-z]+)-([a-z]+)", r"“\1 \2”"),  # of the command line alone
    (r"--([a-z]+)", r"“\1”"),
)


class Fault(Protocol):
    """An error or a notice."""

    @property
    def code(self) -> str: ...
    @property
    def message(self) -> str: ...


def words_of(fault: Fault) -> str:
    """Return what the window says of an error or a notice."""
    return f"{in_window_words(fault.message)} ({fault.code})"


def in_window_words(text: str) -> str:
    """Return a text with the window's controls in place of options and commands of the command line."""
    for option, control in _IN_THE_WINDOW:
        text = re.sub(option, control, text)
    return text
