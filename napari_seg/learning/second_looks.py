"""Second looks at the scans of a run, kept in its output folder, so that no scan is looked at twice.

They are in an SQLite file: each one is complete or absent, whenever the program ends. A look is found again by the
model, the content of the scan and the options, not by names. The file has nothing of a patient.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from napari_seg.errors import OutputError
from napari_seg.inference.disagreement import Disagreement
from napari_seg.inference.second_look import SecondLook

FILE = "looks.sqlite"
"""Name of the file in the output folder of a run."""

_FORMAT = 2
_WAIT_SECONDS = 30.0

_TABLES = """
CREATE TABLE IF NOT EXISTS looks (
    model TEXT NOT NULL, scan TEXT NOT NULL, options TEXT NOT NULL, is_complete INTEGER NOT NULL, members TEXT,
    structures TEXT, embedding BLOB, description BLOB NOT NULL, PRIMARY KEY (model, scan, options)
);
CREATE TABLE IF NOT EXISTS scans (scan TEXT PRIMARY KEY, voxels TEXT NOT NULL)
"""


class KeptLook(NamedTuple):
    """A look at a scan.

    Attributes:
        look: what was found.
        is_complete: whether the members of the model were compared, as far as it has any.
    """

    look: SecondLook
    is_complete: bool


class SecondLooks:
    """The second looks of one model with some options; a context manager that closes the file.

    Args:
        folder: output folder of the run.
        model: digest of the model.
        options: what decides a look, as plain values.

    Raises:
        OutputError: `output.folder`, the file can't be opened or written; `output.disk_full`.
    """

    def __init__(self, folder: Path, model: str, options: Mapping[str, Any]) -> None:
        self.path = folder / FILE
        self._model = model
        self._options = hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()
        with self._faults():
            self._connection = sqlite3.connect(self.path, timeout=_WAIT_SECONDS, isolation_level=None)
            try:
                (version,) = self._connection.execute("PRAGMA user_version").fetchone()
                if version != _FORMAT:  # of another version of the program; it can be made again
                    for table in ("looks", "scans"):
                        self._connection.execute(f"DROP TABLE IF EXISTS {table}")
                    self._connection.execute(f"PRAGMA user_version = {_FORMAT}")
                for statement in _TABLES.split(";"):
                    self._connection.execute(statement)
            except BaseException:
                self._connection.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def get(self, scan: str) -> KeptLook | None:
        """Return the look at a scan; None if there is none.

        Args:
            scan: digest of the scan's files.
        """
        with self._faults():
            row = self._connection.execute(
                "SELECT is_complete, members, structures, embedding, description FROM looks "
                "WHERE model = ? AND scan = ? AND options = ?",
                (self._model, scan, self._options),
            ).fetchone()
        try:
            return None if row is None else _kept(*row)
        except (ValueError, TypeError, AttributeError, RecursionError):  # written by another program; made again
            return None

    def put(self, scan: str, look: SecondLook, *, is_complete: bool) -> None:
        """Keep the look at a scan.

        Args:
            scan: digest of the scan's files.
            look: what was found.
            is_complete: whether the members of the model were compared, as far as it has any.
        """
        found = look.disagreement
        members, structures = (None, None) if found is None else (found.members, json.dumps(dict(found.structures)))
        arrays = [None if one is None else one.astype("<f4").tobytes() for one in (look.embedding, look.description)]
        with self._faults():
            self._connection.execute(
                "INSERT OR REPLACE INTO looks VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (self._model, scan, self._options, is_complete, members, structures, *arrays),
            )

    def voxels(self, scan: str) -> str:
        """Return the digest of a scan's voxels, which a copy in another format shares; "" if it is not known."""
        with self._faults():
            row = self._connection.execute("SELECT voxels FROM scans WHERE scan = ?", (scan,)).fetchone()
        return "" if row is None else str(row[0])

    def put_voxels(self, scan: str, voxels: str) -> None:
        """Keep the digest of a scan's voxels (`referenced.voxel_digest`)."""
        with self._faults():
            self._connection.execute("INSERT OR REPLACE INTO scans VALUES (?, ?)", (scan, voxels))

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            if "full" in str(error).lower():
                text = f"{self.path} could not be written: no space is left; free some space and run again"
                raise OutputError("output.disk_full", text) from error
            text = f"{self.path} can't be read or written ({error}); delete it, or make its folder writable"
            raise OutputError("output.folder", text) from error


def _kept(is_complete: Any, members: Any, structures: Any, embedding: Any, description: Any) -> KeptLook:
    """Return a look from the columns of its row.

    Raises:
        ValueError, TypeError, AttributeError: they are no look.
    """
    found = None
    if members is not None:
        figures = {str(name): float(value) for name, value in json.loads(structures).items()}
        if not all(0 <= value <= 1 for value in figures.values()):
            raise ValueError("no disagreement")
        found = Disagreement(figures, str(members))
    features = None if embedding is None else _numbers(embedding)
    return KeptLook(SecondLook(found, features, _numbers(description)), bool(is_complete))


def _numbers(content: Any) -> NDArray[np.float32]:
    """Return the finite numbers of a column.

    Raises:
        ValueError, TypeError: it holds none.
    """
    values = np.frombuffer(content, "<f4").astype(np.float32)
    if not values.size or not np.isfinite(values).all():
        raise ValueError("no numbers")
    return values
