"""Manifest of a cohort: an SQLite file in the output folder that knows every case, its state and its files.

The manifest decides what is done; files alone do not. Only runners write it: one at a time, or several that were
started to share the work. Other programs may read it at any time. It contains no absolute path and nothing of a
patient: a scan is known by its public relative path and by a fingerprint of its content.

States of a case: "waiting"; "running", a runner claimed it; "moving", its files are complete and are being renamed into
place; "done"; "failed"; "skipped", a filter or a rule excluded it.

The file is in WAL mode, in which readers never wait. WAL needs shared memory, which network drives lack, so runners of
several machines use SQLite's rollback journal.

Every change survives the death of the program. The note that the files of a case are complete also waits for the disk,
since files are renamed after it; with it, all earlier changes reach the disk. Later ones, such as that they are in
place, may be lost in a power cut, and the next run makes them again.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, get_args

from napari_seg.cohort.outcome import Outcome, OutputFile
from napari_seg.errors import CohortError, Notice, OutputError
from napari_seg.version import __version__

FILE = "manifest.sqlite"
"""Name of the manifest in the output folder."""

FORMAT = "1"

State = Literal["waiting", "running", "moving", "done", "failed", "skipped"]

_WAIT_SECONDS = 30.0
"""Time to wait for another program that writes the manifest."""

_MAX_VARIABLES = 500
"""Variables of one statement; SQLite allows 999 or more."""

_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE runners (
    id INTEGER PRIMARY KEY, host TEXT NOT NULL, pid INTEGER NOT NULL, folder TEXT NOT NULL, is_joined INTEGER NOT NULL,
    started REAL NOT NULL, ended REAL, version TEXT NOT NULL
);
CREATE TABLE models (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL, version TEXT NOT NULL, kind TEXT NOT NULL, digest TEXT NOT NULL,
    UNIQUE (name, digest)
);
CREATE TABLE cases (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, source TEXT NOT NULL DEFAULT '', format TEXT NOT NULL DEFAULT '',
    modality TEXT NOT NULL DEFAULT '', fingerprint TEXT NOT NULL DEFAULT '', input_sha256 TEXT NOT NULL DEFAULT '',
    input_bytes INTEGER NOT NULL DEFAULT 0, model INTEGER REFERENCES models (id), state TEXT NOT NULL,
    stage TEXT NOT NULL DEFAULT '', runner INTEGER REFERENCES runners (id), attempts INTEGER NOT NULL DEFAULT 0,
    code TEXT NOT NULL DEFAULT '', message TEXT NOT NULL DEFAULT '', seconds REAL NOT NULL DEFAULT 0,
    read_seconds REAL NOT NULL DEFAULT 0, network_seconds REAL NOT NULL DEFAULT 0,
    write_seconds REAL NOT NULL DEFAULT 0, peak_bytes INTEGER NOT NULL DEFAULT 0,
    outputs TEXT NOT NULL DEFAULT '{}', volumes_ml TEXT NOT NULL DEFAULT '{}', confidence TEXT NOT NULL DEFAULT '{}',
    notices TEXT NOT NULL DEFAULT '[]', run TEXT NOT NULL DEFAULT '{}', started REAL, ended REAL
);
CREATE INDEX cases_by_state ON cases (state);
"""


@dataclass(frozen=True)
class ModelRow:
    """A model of the run.

    Attributes:
        id: number in the manifest.
        name: title of the bundle.
        version: version of the bundle.
        kind: format of the bundle.
        digest: digest of weights, configs and code; see `model_digest`.
    """

    id: int
    name: str
    version: str
    kind: str
    digest: str


@dataclass(frozen=True)
class RunnerRow:
    """A process that ran, or runs, cases of the cohort.

    Attributes:
        id: number in the manifest.
        host: name of its machine.
        pid: its process id.
        folder: name of its hidden folder for unfinished files.
        is_joined: whether others may run beside it.
        started: time of its start, in seconds since 1970 UTC.
        ended: time of its orderly end; None while it runs, or if it was killed.
        version: version of this program.
    """

    id: int
    host: str
    pid: int
    folder: str
    is_joined: bool
    started: float
    ended: float | None
    version: str


@dataclass(frozen=True)
class CaseRow:
    """A case of the manifest.

    Attributes:
        id: number in the manifest; cases have the order in which they were planned.
        name: name of the case.
        source: public path of the scan, relative to the folder of the inputs.
        format: format of the scan.
        modality: DICOM's code of the modality, once the scan was read.
        fingerprint: digest of the sizes and of parts of the scan's files, which shows that a scan was replaced.
        input_sha256: digest of the whole files of the scan, once it was segmented.
        input_bytes: size of the files of the scan.
        model: number of the model; None for a case without one.
        state: see the module.
        stage: stage of a running case.
        runner: number of the runner that claimed the case last; None if none did.
        attempts: how often the case was started.
        code: code of an error or of the reason to skip the case; "" otherwise.
        message: the same in words.
        seconds: time from opening the scan to writing the last file.
        read_seconds: part of it in which the scan was read.
        network_seconds: part of it in which the scan was segmented.
        write_seconds: part of it in which the files were written.
        peak_bytes: highest memory of the worker during the case; 0 if unknown.
        outputs: role -> file of the result.
        volumes_ml: segment name -> volume in ml.
        confidence: segment name -> mean probability.
        notices: warnings about the scan or the result.
        run: how the model was run.
        started: time of the last start, in seconds since 1970 UTC; None before it.
        ended: time of the end; None before it.
    """

    id: int
    name: str
    state: State
    source: str = ""
    format: str = ""
    modality: str = ""
    fingerprint: str = ""
    input_sha256: str = ""
    input_bytes: int = 0
    model: int | None = None
    stage: str = ""
    runner: int | None = None
    attempts: int = 0
    code: str = ""
    message: str = ""
    seconds: float = 0.0
    read_seconds: float = 0.0
    network_seconds: float = 0.0
    write_seconds: float = 0.0
    peak_bytes: int = 0
    outputs: dict[str, OutputFile] = field(default_factory=dict)
    volumes_ml: dict[str, float] = field(default_factory=dict)
    confidence: dict[str, float] = field(default_factory=dict)
    notices: tuple[Notice, ...] = ()
    run: dict[str, Any] = field(default_factory=dict)
    started: float | None = None
    ended: float | None = None


class Manifest:
    """The manifest of an output folder; a context manager that closes it."""

    def __init__(self, path: Path, connection: sqlite3.Connection, *, is_read_only: bool = False) -> None:
        self.path = path
        self._connection = connection
        self._is_read_only = is_read_only

    @classmethod
    def open(cls, folder: Path, *, read_only: bool = False, is_joined: bool = False) -> Self:
        """Open the manifest of an output folder; create it unless it is only read.

        Args:
            folder: the output folder.
            read_only: read only; works while a runner writes, and on a read-only medium.
            is_joined: several machines may write, so that WAL can't be used.

        Raises:
            CohortError: `cohort.no_manifest`, there is none to read; `cohort.manifest`, the file is damaged or from a
                later version; `cohort.manifest_locked`.
            OutputError: `output.folder`, `output.disk_full`.
        """
        path = folder / FILE
        if read_only:
            if not path.is_file():
                text = f"{folder} has no {FILE}; expected the output folder of 'napari-seg predict'"
                raise CohortError("cohort.no_manifest", text)
            connection = _connect_read_only(path)
        else:
            with _faults(path):
                connection = sqlite3.connect(path, timeout=_WAIT_SECONDS, isolation_level=None)
        manifest = cls(path, connection, is_read_only=read_only)
        connection.row_factory = sqlite3.Row
        try:
            with _faults(path):
                if not read_only:
                    manifest._prepare(is_joined)
                known = manifest.meta("format")
        except BaseException:
            connection.close()
            raise
        if known != FORMAT:
            connection.close()
            text = f"{path} has the format {known}; expected {FORMAT}; use the version of napari-seg that wrote it"
            raise CohortError("cohort.manifest", text)
        return manifest

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; the last writer leaves it without a journal, so that readers need no further files."""
        if not self._is_read_only:
            with suppress(sqlite3.Error):  # others have the file open
                self._connection.execute("PRAGMA busy_timeout = 0")
                self._connection.execute("PRAGMA journal_mode = delete").fetchone()
        with suppress(sqlite3.Error):
            self._connection.close()

    def _prepare(self, is_joined: bool) -> None:
        """Create the tables of a new file, and choose the journal."""
        run = self._connection.execute
        run("PRAGMA synchronous = FULL")
        with self.transaction():
            if not run("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone():
                if run("SELECT 1 FROM sqlite_master").fetchone():
                    text = f"{self.path} is a database of another program; move it away"
                    raise CohortError("cohort.manifest", text)
                for statement in filter(str.strip, _TABLES.split(";")):
                    run(statement)
                values = {"format": FORMAT, "version": __version__, "created": str(time.time())}
                self._connection.executemany("INSERT INTO meta VALUES (?, ?)", values.items())
        mode = "delete" if is_joined else "wal"
        if run("PRAGMA journal_mode").fetchone()[0] != mode:
            with suppress(sqlite3.OperationalError):  # others have the file open; `Runners.register` decides
                run(f"PRAGMA journal_mode = {mode}").fetchone()
        if self.is_wal:  # a rollback journal that was not synced could damage the file in a power cut
            run("PRAGMA synchronous = NORMAL")

    @property
    def is_wal(self) -> bool:
        """Whether the file is in WAL mode, which several machines can't share."""
        return bool(self._connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal")

    @contextmanager
    def _synced(self) -> Iterator[None]:
        """Let each change of a block, and all before it, wait until it has reached the disk."""
        with _faults(self.path):
            (level,) = self._connection.execute("PRAGMA synchronous").fetchone()
            self._connection.execute("PRAGMA synchronous = FULL")
            try:
                yield
            finally:
                self._connection.execute(f"PRAGMA synchronous = {level}")

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make all changes of a block at once, or none of them; other writers wait.

        Raises:
            CohortError: `cohort.manifest`, `cohort.manifest_locked`.
            OutputError: `output.folder`, `output.disk_full`.
        """
        with _faults(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
                raise

    # content

    def meta(self, key: str) -> str | None:
        """Return a value of the run as a whole; None if there is none."""
        row = self._read("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def set_meta(self, key: str, value: str) -> None:
        """Set a value of the run as a whole."""
        with _faults(self.path):
            self._connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def settings(self) -> dict[str, Any]:
        """Return the settings of the run, which decide its results; see `RunSettings.to_record`."""
        return dict(json.loads(self.meta("settings") or "{}"))

    def models(self) -> list[ModelRow]:
        """Return the models, in the order in which they were first used."""
        return [ModelRow(*row) for row in self._read("SELECT id, name, version, kind, digest FROM models ORDER BY id")]

    def add_model(self, name: str, version: str, kind: str, digest: str) -> int:
        """Return the number of a model, which is added if it is new."""
        with _faults(self.path):
            self._connection.execute(
                "INSERT OR IGNORE INTO models (name, version, kind, digest) VALUES (?, ?, ?, ?)",
                (name, version, kind, digest),
            )
        (number,) = self._read("SELECT id FROM models WHERE name = ? AND digest = ?", (name, digest)).fetchone()
        return int(number)

    def counts(self) -> dict[State, int]:
        """Return state -> number of cases, for all states."""
        found = dict(map(tuple, self._read("SELECT state, count(*) FROM cases GROUP BY state")))
        return {state: int(found.get(state, 0)) for state in get_args(State)}

    def rows(self, states: Sequence[State] | None = None, order: str = "id") -> Iterator[CaseRow]:
        """Yield cases; the file is read bit by bit.

        Args:
            states: states of the cases; None: all.
            order: column to sort by, and " DESC" behind it for descending order.
        """
        column, _, direction = order.partition(" ")
        assert column in CaseRow.__dataclass_fields__
        assert direction in ("", "DESC")
        chosen = get_args(State) if states is None else tuple(states)
        marks = ", ".join("?" * len(chosen))
        with _faults(self.path):
            for row in self._connection.execute(
                f"SELECT * FROM cases WHERE state IN ({marks}) ORDER BY {order}", chosen
            ):
                yield _case_row(row)

    def marks(self) -> dict[int, tuple[Any, ...]]:
        """Return number -> state, stage, attempts, code and runner of all cases; one of them differs after a change."""
        rows = self._read("SELECT id, state, stage, attempts, code, runner FROM cases ORDER BY id")
        return {int(number): tuple(mark) for number, *mark in rows}

    def rows_of(self, numbers: Sequence[int]) -> Iterator[CaseRow]:
        """Yield the cases of these numbers."""
        for start in range(0, len(numbers), _MAX_VARIABLES):
            part = numbers[start : start + _MAX_VARIABLES]
            marks = ", ".join("?" * len(part))
            yield from map(_case_row, self._read(f"SELECT * FROM cases WHERE id IN ({marks}) ORDER BY id", part))

    def last_ends(self, count: int) -> list[float]:
        """Return the times at which the last cases were done or failed, in order."""
        text = "SELECT ended FROM cases WHERE state IN ('done', 'failed') AND ended > 0 ORDER BY ended DESC LIMIT ?"
        return [float(ended) for (ended,) in self._read(text, (count,))][::-1]

    def row(self, name: str) -> CaseRow | None:
        """Return the case of a name; None if there is none."""
        row = self._read("SELECT * FROM cases WHERE name = ?", (name,)).fetchone()
        return None if row is None else _case_row(row)

    def runners(self) -> list[RunnerRow]:
        """Return all runners, in the order of their starts."""
        names = "id, host, pid, folder, is_joined, started, ended, version"
        rows = self._read(f"SELECT {names} FROM runners ORDER BY id")
        return [RunnerRow(**dict(row) | {"is_joined": bool(row["is_joined"])}) for row in rows]

    # changes of runners; several of them belong into a transaction

    def add_runner(self, host: str, pid: int, folder: str, is_joined: bool) -> int:
        """Add a runner that starts now, and return its number."""
        found = self._write(
            "INSERT INTO runners (host, pid, folder, is_joined, started, version) VALUES (?, ?, ?, ?, ?, ?)",
            (host, pid, folder, is_joined, time.time(), __version__),
        )
        assert found.lastrowid is not None
        return found.lastrowid

    def end_runner(self, runner: int) -> None:
        """Note the end of a runner."""
        self._write("UPDATE runners SET ended = ? WHERE id = ?", (time.time(), runner))

    # changes of cases

    def add_case(self, name: str, values: Mapping[str, Any]) -> int:
        """Add a case, and return its number.

        Args:
            name: name of the case.
            values: column -> value; the state is required.
        """
        columns = ["name", *values]
        marks = ", ".join("?" * len(columns))
        found = self._write(f"INSERT INTO cases ({', '.join(columns)}) VALUES ({marks})", (name, *values.values()))
        assert found.lastrowid is not None
        return found.lastrowid

    def change_case(self, number: int, values: Mapping[str, Any], *, if_state: Sequence[State] = ()) -> bool:
        """Change columns of a case; return whether it was changed.

        Args:
            number: number of the case.
            values: column -> new value; mappings and lists are stored as JSON.
            if_state: change the case only in one of these states; empty: in any.
        """
        changes = ", ".join(f"{column} = ?" for column in values)
        condition = f" AND state IN ({', '.join('?' * len(if_state))})" if if_state else ""
        content = [json.dumps(v) if isinstance(v, (dict, list)) else v for v in values.values()]
        found = self._write(f"UPDATE cases SET {changes} WHERE id = ?{condition}", (*content, number, *if_state))
        return found.rowcount == 1

    def claim(self, number: int, runner: int) -> int:
        """Claim a waiting case for a runner; return the number of the attempt, 0 if another runner has the case."""
        values = {"state": "running", "stage": "", "runner": runner, "started": time.time(), "ended": None}
        if not self.change_case(number, values | {"code": "", "message": ""}, if_state=("waiting",)):
            return 0
        self._write("UPDATE cases SET attempts = attempts + 1 WHERE id = ?", (number,))
        return int(self._read("SELECT attempts FROM cases WHERE id = ?", (number,)).fetchone()[0])

    def set_moving(self, number: int, outcome: Outcome) -> None:
        """Note the result of a case on the disk, before its files are renamed into place."""
        values = {
            "state": "moving",
            "stage": "",
            "outputs": {role: output.to_record() for role, output in outcome.outputs.items()},
            "volumes_ml": {name: round(ml, 6) for name, ml in outcome.volumes_ml.items()},
            "confidence": {name: round(mean, 6) for name, mean in outcome.confidence.items()},
            "notices": [{"code": one.code, "message": one.message, "segment": one.segment} for one in outcome.notices],
            "run": outcome.run,
            "modality": outcome.modality,
            "input_sha256": outcome.input_sha256,
            "seconds": round(outcome.seconds, 3),
            "read_seconds": round(outcome.read_seconds, 3),
            "network_seconds": round(outcome.network_seconds, 3),
            "write_seconds": round(outcome.write_seconds, 3),
            "peak_bytes": outcome.peak_bytes,
        }
        with self._synced():
            self.change_case(number, values)

    def set_done(self, number: int) -> None:
        """Note that all files of a case are in place."""
        self.change_case(number, {"state": "done", "code": "", "message": "", "ended": time.time()})

    def set_failed(self, number: int, code: str, message: str, seconds: float = 0.0) -> None:
        """Note the failure of a case."""
        values = {"state": "failed", "stage": "", "code": code, "message": message, "ended": time.time()}
        self.change_case(number, values | {"seconds": round(seconds, 3)})

    def set_waiting(self, number: int) -> None:
        """Return a case to those that wait."""
        self.change_case(number, {"state": "waiting", "stage": ""})

    def _write(self, text: str, values: Sequence[Any]) -> sqlite3.Cursor:
        with _faults(self.path):
            return self._connection.execute(text, values)

    def _read(self, text: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        with _faults(self.path):
            return self._connection.execute(text, values)


def _connect_read_only(path: Path) -> sqlite3.Connection:
    """Open a manifest for reading; on a read-only medium, or if nobody has it open, without its journal."""
    where = path.resolve().as_uri()
    with _faults(path):
        if _is_at_rest(path):  # otherwise reading would leave a new journal next to it
            return sqlite3.connect(f"{where}?immutable=1", uri=True, isolation_level=None)
        connection = sqlite3.connect(f"{where}?mode=ro", uri=True, timeout=_WAIT_SECONDS, isolation_level=None)
        try:
            connection.execute("SELECT 1 FROM sqlite_master").fetchone()
            return connection
        except sqlite3.OperationalError:  # WAL needs a file next to the manifest, which can't be written there
            connection.close()
            return sqlite3.connect(f"{where}?immutable=1", uri=True, isolation_level=None)
        except sqlite3.Error:
            connection.close()
            raise


def _is_at_rest(path: Path) -> bool:
    """Return whether a manifest is in WAL mode and has no journal, so that no program has it open."""
    if path.with_name(f"{path.name}-wal").exists():
        return False
    try:
        with path.open("rb") as file:
            return file.read(20)[18:] == b"\x02\x02"  # the versions of the format for writing and for reading
    except OSError:
        return False


@contextmanager
def _faults(path: Path) -> Iterator[None]:
    """Replace errors of SQLite by errors that say what to do."""
    try:
        yield
    except sqlite3.Error as error:
        text = str(error).lower()
        if "full" in text:
            message = f"{path} could not be written: no space is left; free some space and run again"
            raise OutputError("output.disk_full", message) from error
        if "readonly" in text or "unable to open" in text:
            message = f"can't write to {path}; choose another folder with -o"
            raise OutputError("output.folder", message) from error
        if "locked" in text or "busy" in text:
            message = f"another program has locked {path} for more than {_WAIT_SECONDS:.0f} s; close it and run again"
            raise CohortError("cohort.manifest_locked", message) from error
        if isinstance(error, sqlite3.OperationalError) and "i/o" in text:
            message = f"{path} could not be read or written ({error}); check the drive and run again"
            raise OutputError("output.not_written", message) from error
        message = (
            f"{path} is damaged or of another program ({error}); finished results are not affected; move it away, "
            "and run again with another output folder, or with --overwrite"
        )
        raise CohortError("cohort.manifest", message) from error


def _case_row(row: sqlite3.Row) -> CaseRow:
    values = dict(row)
    outputs = {role: OutputFile(**one) for role, one in json.loads(values["outputs"]).items()}
    notices = tuple(Notice(one["code"], one["message"], one["segment"]) for one in json.loads(values["notices"]))
    decoded = {name: json.loads(values[name]) for name in ("volumes_ml", "confidence", "run")}
    return CaseRow(**values | decoded | {"outputs": outputs, "notices": notices})
