"""Errors of a network whose values are no numbers: its weights are damaged, or float16 can't hold the values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from napari_seg.errors import BundleError


class NotFinite(BundleError):
    """The network returned NaN or infinity."""


class Float16Overflow(BundleError):
    """The network returned NaN or infinity in float16, whose numbers end at 65504."""


def not_finite() -> NotFinite:
    """Return the error for values that decide and are NaN or infinite."""
    return NotFinite("bundle.network", "the network returned NaN (no number) or infinity; its weights are damaged")


@contextmanager
def naming_overflow(precision: str) -> Iterator[None]:
    """Turn `NotFinite` into `Float16Overflow` in a block that computes in float16.

    Args:
        precision: name of the number format.
    """
    try:
        yield
    except NotFinite as error:
        if precision != "float16":
            raise
        raise Float16Overflow(
            "bundle.network",
            "the network returned NaN (no number) or infinity in float16, in which a GPU computes by default; choose "
            "--precision float32 (in napari: Preferences > napari-seg)",
        ) from error
