"""Manifest of a cohort: an SQLite file in the output folder that knows every case, its state and its files.

The manifest decides what is done; files alone do not. Only runners write it: one at a time, or several that were
started to share the work. Other programs may read it at any time. It contains no absolute path and nothing of a
patient: a scan is known by its public relative path, a fingerprint of its content, and a salted digest of its path.

States of a case: "waiting"; "running", a runner claimed it; "moving", its files are complete and are being renamed into
place; "done"; "failed"; "skipped", a filter or a rule excluded it.
A case that was done and whose scan the last run left out, or could not use, is "skipped" or "failed" and keeps its
files and values; it is done again when a run has the scan again.

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
from pathlib import Path, PurePath
from secrets import token_hex
from types import TracebackType
from typing import Any, Self, get_args

from napari_seg.cohort.outcome import Outcome, OutputFile
from napari_seg.cohort.rows import CaseRow, Claim, ModelRow, RunnerRow, State
from napari_seg.errors import CohortError, Notice, OutputError
from napari_seg.version import __version__

FILE = "manifest.sqlite"
"""Name of the manifest in the output folder."""

FORMAT = "2"

_EARLIER_FORMAT = "1"
"""Format without the places of scans; see `Manifest.add_places`."""

_COUNT = "scans of {}"
"""Key of the number of scans of a model; see `Manifest.first_count`."""

_WAIT_SECONDS = 30.0
"""Time to wait for another program that writes the manifest."""

_MAX_VARIABLES = 500
"""Variables of one statement; SQLite allows 999 or more."""

_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE runners (
    id INTEGER PRIMARY KEY, host TEXT NOT NULL, machine TEXT NOT NULL DEFAULT '', pid INTEGER NOT NULL,
    folder TEXT NOT NULL, is_joined INTEGER NOT NULL, started REAL NOT NULL, ended REAL, version TEXT NOT NULL,
    wanted TEXT NOT NULL DEFAULT ''
);
CREATE TABLE settings (id INTEGER PRIMARY KEY, content TEXT NOT NULL UNIQUE);
CREATE TABLE models (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL, version TEXT NOT NULL, kind TEXT NOT NULL, digest TEXT NOT NULL,
    UNIQUE (name, digest)
);
CREATE TABLE cases (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE COLLATE NOCASE,
    source TEXT NOT NULL DEFAULT '', format TEXT NOT NULL DEFAULT '',
    modality TEXT NOT NULL DEFAULT '', place TEXT NOT NULL DEFAULT '',
    fingerprint TEXT NOT NULL DEFAULT '', input_sha256 TEXT NOT NULL DEFAULT '',
    input_bytes INTEGER NOT NULL DEFAULT 0, model INTEGER REFERENCES models (id),
    settings INTEGER REFERENCES settings (id), state TEXT NOT NULL,
    stage TEXT NOT NULL DEFAULT '', runner INTEGER REFERENCES runners (id), attempts INTEGER NOT NULL DEFAULT 0,
    code TEXT NOT NULL DEFAULT '', message TEXT NOT NULL DEFAULT '', seconds REAL NOT NULL DEFAULT 0,
    read_seconds REAL NOT NULL DEFAULT 0, network_seconds REAL NOT NULL DEFAULT 0,
    write_seconds REAL NOT NULL DEFAULT 0, peak_bytes INTEGER NOT NULL DEFAULT 0,
    outputs TEXT NOT NULL DEFAULT '{}', replaced TEXT NOT NULL DEFAULT '{}',
    volumes_ml TEXT NOT NULL DEFAULT '{}', confidence TEXT NOT NULL DEFAULT '{}',
    notices TEXT NOT NULL DEFAULT '[]', run TEXT NOT NULL DEFAULT '{}', started REAL, ended REAL
);
CREATE INDEX cases_by_state ON cases (state);
"""


def has_manifest(folder: Path) -> bool:
    """Return whether a folder has a manifest; an empty file is none, and a run starts it anew."""
    path = folder / FILE
    return path.is_file() and path.stat().st_size > 0


class Manifest:
    """The manifest of an output folder; a context manager that closes it."""

    def __init__(self, path: Path, connection: sqlite3.Connection, *, is_read_only: bool = False) -> None:
        self.path = path
        self._connection = connection
        self._is_read_only = is_read_only

    @classmethod
    def open(cls, folder: Path, *, read_only: bool = False) -> Self:
        """Open the manifest of an output folder; create it unless it is only read.

        Args:
            folder: the output folder.
            read_only: read only; works while a runner writes, and on a read-only medium.

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
                    manifest._prepare()
                known = manifest.meta("format")
        except BaseException:
            connection.close()
            raise
        if known not in (FORMAT, _EARLIER_FORMAT):
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

    def _prepare(self) -> None:
        """Create the tables of a new file."""
        run = self._connection.execute
        run("PRAGMA synchronous = FULL")
        with self.transaction():
            if not run("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone():
                if run("SELECT 1 FROM sqlite_master").fetchone():
                    text = f"{self.path} is a database of another program; move it away"
                    raise CohortError("cohort.manifest", text)
                for statement in filter(str.strip, _TABLES.split(";")):
                    run(statement)
                values = {"format": FORMAT, "version": __version__, "created": str(time.time()), "salt": token_hex()}
                self._connection.executemany("INSERT INTO meta VALUES (?, ?)", values.items())

    def add_places(self) -> None:
        """Let a file of an earlier version know places of scans; call it while no other program runs cases in it."""
        if self.meta("format") == _EARLIER_FORMAT:
            with self.transaction():
                self._connection.execute("ALTER TABLE cases ADD COLUMN place TEXT NOT NULL DEFAULT ''")
                values = (FORMAT, token_hex())
                self._connection.execute("INSERT OR REPLACE INTO meta VALUES ('format', ?), ('salt', ?)", values)

    def use_wal(self, on: bool) -> bool:
        """Switch WAL on or off, and return whether the file is in the required mode; not while others have it open."""
        with suppress(sqlite3.OperationalError):
            self._connection.execute(f"PRAGMA journal_mode = {'wal' if on else 'delete'}").fetchone()
        # a rollback journal that was not synced could damage the file in a power cut
        self._connection.execute(f"PRAGMA synchronous = {'NORMAL' if self.is_wal else 'FULL'}")
        return self.is_wal == on

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

    def copy(self) -> Self:
        """Return a read-only copy in memory, or in a temporary file if it is large; it ends when it is closed.

        Raises:
            CohortError: `cohort.manifest`, `cohort.manifest_locked`.
            OutputError: `output.disk_full`, there is no space for temporary files.
        """
        connection = sqlite3.connect("", isolation_level=None)
        connection.row_factory = sqlite3.Row
        try:
            with _faults(self.path):
                self._connection.execute("BEGIN")
                try:
                    self._connection.execute("SELECT 1 FROM meta").fetchone()  # `backup` would wait for ever
                    self._connection.backup(connection)
                finally:
                    self._connection.execute("ROLLBACK")
        except BaseException:
            connection.close()
            raise
        return type(self)(self.path, connection, is_read_only=True)

    # content

    def add_settings(self, content: Mapping[str, Any]) -> int:
        """Return the number of settings, which are added if they are new."""
        text = json.dumps(content, sort_keys=True)
        self._write("INSERT OR IGNORE INTO settings (content) VALUES (?)", (text,))
        return int(self._read("SELECT id FROM settings WHERE content = ?", (text,)).fetchone()[0])

    def all_settings(self) -> dict[int, dict[str, Any]]:
        """Return number -> settings, of all runs."""
        return {int(row[0]): json.loads(row[1]) for row in self._read("SELECT id, content FROM settings")}

    def meta(self, key: str) -> str | None:
        """Return a value of the run as a whole; None if there is none."""
        row = self._read("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    @property
    def salt(self) -> str:
        """Salt of the digests of places; "" in a file of an earlier version, which has none."""
        return self.meta("salt") or ""

    def set_meta(self, key: str, value: str) -> None:
        """Set a value of the run as a whole."""
        with _faults(self.path):
            self._connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def first_count(self, digest: str, scans: int) -> int:
        """Return the number of scans that the first run in the folder had for a model.

        It decides which program runs the network, so it stays the same for later runs, which may have more or fewer.
        """
        key = _COUNT.format(digest)
        if (known := self.meta(key)) is not None:
            return int(known)
        self.set_meta(key, str(scans))
        return scans

    def settings(self) -> dict[str, Any]:
        """Return the settings of the last run, which decide its results; see `RunSettings.to_record`."""
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

    def set_digest(self, model: ModelRow) -> None:
        """Replace the digest of a model, which this version computes otherwise than the one that noted it."""
        (before,) = self._read("SELECT digest FROM models WHERE id = ?", (model.id,)).fetchone()
        self._write("UPDATE OR IGNORE models SET digest = ? WHERE id = ?", (model.digest, model.id))
        keys = (_COUNT.format(model.digest), _COUNT.format(before))
        self._write("UPDATE OR IGNORE meta SET key = ? WHERE key = ?", keys)

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
        """Return number -> name, state, stage, attempts, code and runner of all cases; each change alters one."""
        rows = self._read("SELECT id, name, state, stage, attempts, code, runner FROM cases ORDER BY id")
        return {int(number): tuple(mark) for number, *mark in rows}

    def rows_of(self, numbers: Sequence[int]) -> Iterator[CaseRow]:
        """Yield the cases of these numbers."""
        for start in range(0, len(numbers), _MAX_VARIABLES):
            part = numbers[start : start + _MAX_VARIABLES]
            marks = ", ".join("?" * len(part))
            yield from map(_case_row, self._read(f"SELECT * FROM cases WHERE id IN ({marks}) ORDER BY id", part))

    def last_ends(self, count: int) -> list[float]:
        """Return the times at which the last cases were done or failed, in order; refused ones were not run."""
        which = "state IN ('done', 'failed') AND ended > 0 AND attempts > 0"
        text = f"SELECT ended FROM cases WHERE {which} ORDER BY ended DESC LIMIT ?"
        return [float(ended) for (ended,) in self._read(text, (count,))][::-1]

    def case(self, number: int) -> CaseRow:
        """Return the case of a number."""
        return _case_row(self._read("SELECT * FROM cases WHERE id = ?", (number,)).fetchone())

    def row(self, name: str) -> CaseRow | None:
        """Return the case of a name; None if there is none."""
        row = self._read("SELECT * FROM cases WHERE name = ?", (name,)).fetchone()
        return None if row is None else _case_row(row)

    def runners(self) -> list[RunnerRow]:
        """Return all runners, in the order of their starts."""
        names = "id, host, machine, pid, folder, is_joined, started, ended, version"
        rows = self._read(f"SELECT {names} FROM runners ORDER BY id")
        return [RunnerRow(**dict(row) | {"is_joined": bool(row["is_joined"])}) for row in rows]

    # changes of runners; several of them belong into a transaction

    def add_runner(self, host: str, pid: int, folder: str, is_joined: bool, machine: str = "") -> int:
        """Add a runner that starts now, and return its number."""
        columns = "host, machine, pid, folder, is_joined, started, version"
        found = self._write(
            f"INSERT INTO runners ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (host, machine, pid, folder, is_joined, time.time(), __version__),
        )
        assert found.lastrowid is not None
        return found.lastrowid

    def end_runner(self, runner: int, *, was_killed: bool = False) -> None:
        """Note the end of a runner: now, or the last sign of life of one that was killed."""
        last = "SELECT coalesce(max(max(cases.started, coalesce(cases.ended, 0))), 0)"
        killed = f"max(started, ({last} FROM cases WHERE cases.runner = runners.id))"
        if was_killed:
            self._write(f"UPDATE runners SET ended = {killed} WHERE id = ?", (runner,))
        else:
            self._write("UPDATE runners SET ended = ? WHERE id = ?", (time.time(), runner))

    def share(self, runner: int, wanted: str) -> RunnerRow | None:
        """Note what a runner makes; return another one that has not ended and makes something else.

        Args:
            runner: number of the runner.
            wanted: text that says how it segments scans.
        """
        self._write("UPDATE runners SET wanted = ? WHERE id = ?", (wanted, runner))
        rows = self._read(
            "SELECT id FROM runners WHERE ended IS NULL AND id <> ? AND wanted NOT IN ('', ?)", (runner, wanted)
        )
        others = {int(row[0]) for row in rows}
        return next((row for row in self.runners() if row.id in others), None)

    def has_ended(self, runner: int) -> bool:
        """Return whether a runner has ended, or was taken for dead."""
        row = self._read("SELECT ended FROM runners WHERE id = ?", (runner,)).fetchone()
        return row is None or row[0] is not None

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
        condition = f"id = ? AND state IN ({', '.join('?' * len(if_state))})" if if_state else "id = ?"
        return self._update_case(values, condition, (number, *if_state))

    def remove_unused(self) -> None:
        """Remove scans that an earlier plan left out; the next plan adds them again."""
        self._write("DELETE FROM cases WHERE model IS NULL AND state IN ('failed', 'skipped')", ())

    def claim(self, number: int, runner: int, attempts: int) -> Claim | None:
        """Claim a case for a runner; return None if another runner has it or has tried it in the meantime.

        Args:
            number: number of the case.
            runner: number of the runner.
            attempts: how often the case had been started when it was planned; does not matter for a waiting case.

        Raises:
            CohortError: `cohort.taken_over`, another runner took over the cases of this one.
        """
        with self.transaction():
            if self.has_ended(runner):
                raise taken_over()
            row = self._read("SELECT state, attempts, outputs FROM cases WHERE id = ?", (number,)).fetchone()
            if row["state"] in ("running", "moving") or (row["state"] != "waiting" and row["attempts"] != attempts):
                return None
            claim = Claim(number, runner, row["attempts"] + 1, _outputs(row["outputs"]))
            now = {"state": "running", "stage": "", "runner": runner, "attempts": claim.attempt}
            clean = {"code": "", "message": "", "started": time.time(), "ended": None}
            self.change_case(number, now | clean)
        return claim

    def check_holds(self, claim: Claim) -> None:
        """Check that a runner still holds a case.

        Raises:
            CohortError: `cohort.taken_over`.
        """
        row = self._read("SELECT runner, attempts FROM cases WHERE id = ?", (claim.number,)).fetchone()
        if tuple(row) != (claim.runner, claim.attempt):
            raise taken_over()

    def set_moving(self, claim: Claim, outcome: Outcome, values: Mapping[str, Any] | None = None) -> None:
        """Note the result of a case, before its files are renamed into place.

        Args:
            claim: the claim on the case.
            outcome: its result.
            values: column -> new value, of others.

        Raises:
            CohortError: `cohort.taken_over`, the runner does not hold the case any more.
        """
        noted = {
            "state": "moving",
            "stage": "",
            "outputs": _records(outcome.outputs),
            "replaced": _records(claim.before),
            "volumes_ml": {name: float(f"{ml:.9g}") for name, ml in outcome.volumes_ml.items()},
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
            self._change_held(claim, "running", noted | dict(values or {}))

    def set_done(self, claim: Claim) -> None:
        """Note that all files of a case are in place; see `set_moving`."""
        self._change_held(claim, "moving", _done_now())

    def set_failed(self, claim: Claim, code: str, message: str) -> None:
        """Note the failure of a case; see `set_moving`."""
        values = {"state": "failed", "stage": "", "code": code, "message": message, "ended": time.time()}
        self._change_held(claim, "running", values)

    def set_back(self, claim: Claim) -> None:
        """Return a case to those that wait, or to those that are done if it has an earlier result; see `set_moving`."""
        self._change_held(claim, "running", {"state": "done" if claim.before else "waiting", "stage": ""})

    def finish_moving(self, row: CaseRow) -> None:
        """Note that all files of a case are in place, which a runner that died did not do."""
        self.change_case(row.id, _done_now(), if_state=("moving",))

    def undo(self, row: CaseRow) -> None:
        """Return a case that a runner left to its state before: its earlier result, if it has one, counts again."""
        if row.state == "moving":  # its values are those of the new files, which were lost
            values = {"state": "waiting", "stage": "", "outputs": _records(row.replaced), "replaced": {}}
        else:
            values = {"state": "done" if row.outputs else "waiting", "stage": ""}
        self.change_case(row.id, values, if_state=("running", "moving"))

    def _change_held(self, claim: Claim, state: State, values: Mapping[str, Any]) -> None:
        """Change a case that a runner holds in a state."""
        condition = "id = ? AND runner = ? AND attempts = ? AND state = ?"
        if not self._update_case(values, condition, (claim.number, claim.runner, claim.attempt, state)):
            raise taken_over()

    def _update_case(self, values: Mapping[str, Any], condition: str, parameters: Sequence[Any]) -> bool:
        """Set columns of the case that meets a condition; return whether there is one."""
        changes = ", ".join(f"{column} = ?" for column in values)
        content = [json.dumps(v) if isinstance(v, (dict, list)) else v for v in values.values()]
        return self._write(f"UPDATE cases SET {changes} WHERE {condition}", (*content, *parameters)).rowcount == 1

    def _write(self, text: str, values: Sequence[Any]) -> sqlite3.Cursor:
        with _faults(self.path):
            return self._connection.execute(text, values)

    def _read(self, text: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        with _faults(self.path):
            return self._connection.execute(text, values)


def _connect_read_only(path: Path) -> sqlite3.Connection:
    """Open a manifest for reading; on a read-only medium without its journal."""
    where = _uri(path.absolute())  # `resolve` replaces a drive of Windows by its server
    with _faults(path):
        connection = sqlite3.connect(f"{where}?mode=ro", uri=True, timeout=_WAIT_SECONDS, isolation_level=None)
        try:
            connection.execute("SELECT 1 FROM sqlite_master").fetchone()
            return connection
        except sqlite3.Error as error:
            connection.close()
            if not any(word in str(error).lower() for word in ("readonly", "unable to open")):
                raise
            # WAL needs a file next to the manifest, which can't be written there
            return sqlite3.connect(f"{where}?immutable=1", uri=True, isolation_level=None)


def _uri(path: PurePath) -> str:
    """Return the URI of an absolute path; that of a network drive of Windows names its server behind four slashes.

    `as_uri` puts the server where SQLite takes none: https://sqlite.org/uri.html.
    """
    uri = path.as_uri()
    return uri if uri.startswith("file:///") else f"file:////{uri.removeprefix('file://')}"


def taken_over() -> CohortError:
    """Return the error for a runner whose cases another one has taken over."""
    text = (
        "another run took over the cases of this one, because this one gave no sign of life for a while; finished "
        "results are kept; let the other run go on"
    )
    return CohortError("cohort.taken_over", text)


def _done_now() -> dict[str, Any]:
    return {"state": "done", "code": "", "message": "", "replaced": {}, "ended": time.time()}


def _records(files: Mapping[str, OutputFile]) -> dict[str, Any]:
    return {role: file.to_record() for role, file in files.items()}


def _outputs(text: str) -> dict[str, OutputFile]:
    return {role: OutputFile(**one) for role, one in json.loads(text).items()}


@contextmanager
def _faults(path: Path) -> Iterator[None]:
    """Replace errors of SQLite by errors that say what to do."""
    try:
        yield
    except (sqlite3.ProgrammingError, sqlite3.IntegrityError):  # faults of this program
        raise
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
            f"{path} is damaged or of another program ({error}); finished results are not affected; restore it from a "
            "copy, or move it away and choose another output folder"
        )
        raise CohortError("cohort.manifest", message) from error


def _case_row(row: sqlite3.Row) -> CaseRow:
    values = dict(row)
    files = {name: _outputs(values[name]) for name in ("outputs", "replaced")}
    notices = tuple(Notice(one["code"], one["message"], one["segment"]) for one in json.loads(values["notices"]))
    decoded = {name: json.loads(values[name]) for name in ("volumes_ml", "confidence", "run")}
    return CaseRow(**values | decoded | files | {"notices": notices})
