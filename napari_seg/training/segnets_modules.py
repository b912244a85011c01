"""Access to `segnets`, the networks and data handling inside the shipped bundle."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from napari_seg.bundles.modules import shipped_modules
from napari_seg.errors import OutputError, TrainingError


@contextmanager
def with_segnets() -> Iterator[None]:
    """Make the shipped bundle's `segnets` importable within the block, and convert its errors to this package's."""
    with shipped_modules().importable():
        from segnets.errors import TrainingError as SegnetsError

        try:
            yield
        except SegnetsError as error:
            kind = OutputError if error.code.startswith("output.") else TrainingError
            raise kind(error.code, error.message) from error
