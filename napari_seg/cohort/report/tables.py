"""Tables of a run for R, pandas and spreadsheets: cases.csv, cases.json, volumes_long.csv and volumes_wide.csv.

CSV files are UTF-8 with the quoting and line ends of RFC 4180. A text that a spreadsheet would run as a formula begins
with an apostrophe in them; cases.json has all texts unchanged. Cases are read and written one by one.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from itertools import count
from math import isinf
from pathlib import Path
from typing import IO, Any

from napari_seg.cohort.report.distributions import LIMIT
from napari_seg.cohort.report.facts import Facts
from napari_seg.cohort.rows import CaseRow
from napari_seg.formats.atomic import atomic_file
from napari_seg.formats.csv_cells import text_cell

CASES_CSV, CASES_JSON = "cases.csv", "cases.json"
VOLUMES_LONG, VOLUMES_WIDE = "volumes_long.csv", "volumes_wide.csv"

CASE_COLUMNS = (
    "name",
    "state",
    "code",
    "message",
    "source",
    "format",
    "modality",
    "model",
    "model_version",
    "model_digest",
    "settings",
    "seconds",
    "read_seconds",
    "network_seconds",
    "write_seconds",
    "peak_bytes",
    "attempts",
    "started",
    "ended",
    "notices",
    "unusual",
    "labels",
    "overlay",
    "input_sha256",
    "labels_sha256",
)
LONG_COLUMNS = ("name", "source", "model", "structure", "volume_ml", "confidence", "modified_z", "is_unusual")
WIDE_COLUMNS = ("name", "source", "model")
"""Columns of volumes_wide.csv before those of the structures, which are named <structure>_ml."""


def write_tables(rows: Iterable[CaseRow], facts: Facts, folder: Path, unfinished: Path | None = None) -> None:
    """Write all tables into a folder, each atomically.

    Args:
        rows: all cases.
        facts: facts of the same run.
        folder: folder that exists.
        unfinished: folder for the files until they are complete; None: the same.

    Raises:
        OSError: a file could not be written.
    """
    structures = list(dict.fromkeys(name for known in facts.volumes.values() for name in known))
    with ExitStack() as stack:
        files = [
            stack.enter_context(open(hidden, "w", encoding="utf-8", newline=""))
            for hidden in (
                stack.enter_context(atomic_file(folder / name, folder=unfinished))
                for name in (CASES_CSV, CASES_JSON, VOLUMES_LONG, VOLUMES_WIDE)
            )
        ]
        cases, objects, long, wide = files
        case_table, long_table, wide_table = csv.writer(cases), csv.writer(long), csv.writer(wide)
        case_table.writerow(CASE_COLUMNS)
        long_table.writerow(LONG_COLUMNS)
        wide_table.writerow([*WIDE_COLUMNS, *(text_cell(f"{name}_ml") for name in structures)])
        _write_head(objects, facts)
        for row, number in zip(rows, count(), strict=False):
            objects.write(",\n" if number else "\n")
            known = case_object(row, facts)
            objects.write(json.dumps(known, ensure_ascii=False))
            case_table.writerow(_case_cells(known))
            if row.state == "done":
                long_table.writerows(_long_rows(row, facts))
                start = (text_cell(row.name), text_cell(row.source), text_cell(_model(row, facts)))
                wide_table.writerow([*start, *(_number(row.volumes_ml.get(name)) for name in structures)])
        objects.write("\n]}\n")


def case_object(row: CaseRow, facts: Facts) -> dict[str, Any]:
    """Return a case as plain values for JSON; what a result states is left out unless the case is done."""
    is_done = row.state == "done"
    model = facts.models.get(row.model or 0)
    return {
        "name": row.name,
        "state": row.state,
        "code": row.code,
        "message": row.message,
        "source": row.source,
        "format": row.format,
        "modality": row.modality,
        "model": "" if model is None else model.name,
        "model_version": "" if model is None else model.version,
        "model_digest": "" if model is None else model.digest,
        "settings": row.settings,
        "seconds": row.seconds,
        "read_seconds": row.read_seconds,
        "network_seconds": row.network_seconds,
        "write_seconds": row.write_seconds,
        "peak_bytes": row.peak_bytes,
        "attempts": row.attempts,
        "started": utc(row.started),
        "ended": utc(row.ended),
        "input_sha256": row.input_sha256,
        "outputs": {role: {"path": one.path, "sha256": one.sha256} for role, one in row.outputs.items() if is_done},
        "volumes_ml": row.volumes_ml if is_done else {},
        "confidence": row.confidence if is_done else {},
        "unusual": unusual_structures(row, facts),
        "notices": [
            {"code": one.code, "message": one.message, "segment": one.segment} for one in row.notices if is_done
        ],
    }


def unusual_structures(row: CaseRow, facts: Facts) -> list[str]:
    """Return the structures of a finished case whose volumes are unusual."""
    return [name for name in row.volumes_ml if row.state == "done" and _is_unusual(facts.z(row, name))]


def utc(seconds: float | None) -> str:
    """Return a time in seconds since 1970 as ISO 8601 in UTC; "" for None and for times outside the calendar."""
    if seconds is None:
        return ""
    try:
        return datetime.fromtimestamp(round(seconds), UTC).isoformat().replace("+00:00", "Z")
    except (OverflowError, ValueError, OSError):
        return ""


def _write_head(file: IO[str], facts: Facts) -> None:
    head = {
        "program": f"napari-seg {', '.join(facts.versions)}",
        "counts": facts.counts,
        "settings": facts.settings,
        "models": [
            {"name": one.name, "version": one.version, "kind": one.kind, "digest": one.digest}
            for one in facts.models.values()
        ],
    }
    file.write(f'{json.dumps(head, ensure_ascii=False)[:-1]}, "cases": [')


def _case_cells(known: Mapping[str, Any]) -> Sequence[Any]:
    """Return the cells of a case in cases.csv; `known` is its `case_object`."""
    outputs = known["outputs"]
    cells = {
        **known,
        "notices": " ".join(sorted({one["code"] for one in known["notices"]})),
        "unusual": "; ".join(known["unusual"]),
        "labels": outputs["labels"]["path"] if "labels" in outputs else "",
        "overlay": outputs["overlay"]["path"] if "overlay" in outputs else "",
        "labels_sha256": outputs["labels"]["sha256"] if "labels" in outputs else "",
    }
    return [text_cell(cells[name]) if isinstance(cells[name], str) else cells[name] for name in CASE_COLUMNS]


def _long_rows(row: CaseRow, facts: Facts) -> Iterator[Sequence[Any]]:
    name, source, model = text_cell(row.name), text_cell(row.source), text_cell(_model(row, facts))
    for structure, volume_ml in row.volumes_ml.items():
        z = facts.z(row, structure)
        yield (
            name,
            source,
            model,
            text_cell(structure),
            _number(volume_ml),
            _number(row.confidence.get(structure)),
            "" if z is None or isinf(z) else f"{z:.3f}",
            str(_is_unusual(z)).lower(),
        )


def _model(row: CaseRow, facts: Facts) -> str:
    model = facts.models.get(row.model or 0)
    return "" if model is None else model.name


def _is_unusual(z: float | None) -> bool:
    return z is not None and abs(z) > LIMIT


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
