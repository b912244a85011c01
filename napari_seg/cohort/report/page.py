"""The report of a run as one HTML page that opens anywhere: no network, no library, light and dark.

Cases are a compact block of JSON, from which the page draws the rows that are looked at. Names, sources and messages
come from strangers: here they are escaped, the block of JSON can't end its element, the script sets text as text, and
the page's content security policy runs no other script.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from math import isfinite
from pathlib import Path
from typing import IO, Any, get_args

from napari_seg.cohort.report import sections
from napari_seg.cohort.report.distributions import LIMIT, Distribution
from napari_seg.cohort.report.facts import Facts
from napari_seg.cohort.report.thumbnails import MAX_EMBEDDED_BYTES, is_below, thumbnails
from napari_seg.cohort.rows import CaseRow, State
from napari_seg.error_codes import CODES
from napari_seg.errors import counted
from napari_seg.evaluation.html import document

TITLE = "Segmentation of"
"""Start of the page's title."""

_DATA = "<!--data-->"
_CASES = f"""<section id="cases" tabindex="-1" aria-label="Cases">
<noscript><p class="bad">This list needs JavaScript; cases.csv next to this page has the same.</p></noscript>
<div id="controls" class="controls" role="search"></div>
<div id="list"></div>
<p id="printed" class="paper"></p>
</section>
<dialog id="dialog" aria-labelledby="dialog-title"></dialog>
{_DATA}"""
"""Elements that the script fills."""

_STATES: tuple[str, ...] = get_args(State)
_LINKED = ("overlay", "labels", "record")


def write_page(
    file: IO[str], rows: Iterable[CaseRow], facts: Facts, folder: Path, base: str = "", max_embedded: int | None = None
) -> None:
    """Write the page.

    Args:
        file: text file to write to.
        rows: all cases.
        facts: facts of the same run.
        folder: the output folder, which has the previews.
        base: address of the output folder relative to the page: "", or a path that ends in "/".
        max_embedded: size of all embedded thumbnails in bytes; `MAX_EMBEDDED_BYTES` if left out.
    """
    limit = MAX_EMBEDDED_BYTES if max_embedded is None else max_embedded
    before, after = _document(facts).split(_DATA)
    file.write(before)
    file.write(f'<script type="application/json" id="data">{_json(_head(facts, base))[:-1]},"cases":[')
    models = {model: n for n, model in enumerate(_models(facts))}
    numbers = {model: {name: n for n, name in enumerate(known)} for model, known in facts.volumes.items()}
    previews: list[str] = []
    doubtful: list[bool] = []
    for n, row in enumerate(rows):
        thumb = None
        if row.state == "done" and "overlay" in row.outputs and is_below(row.outputs["overlay"].path):
            thumb = len(previews)
            previews.append(row.outputs["overlay"].path)
        case = _case(row, facts, models, numbers.get(row.model or 0, {}))
        if thumb is not None:
            doubtful.append(bool(case[_UNUSUAL] or case[_NOTICES]))
        file.write(("," if n else "") + "\n" + _json([*case, thumb]))
    file.write("\n]}</script>\n")
    _write_thumbnails(file, previews, doubtful, folder, limit)
    file.write(after)


def _write_thumbnails(
    file: IO[str], previews: Sequence[str], doubtful: Sequence[bool], folder: Path, limit: int
) -> None:
    """Write the thumbnails as JSON, preview number -> base64, "" without a preview; those of doubtful cases first."""
    order = sorted(range(len(previews)), key=lambda n: not doubtful[n])
    file.write('<script type="application/json" id="thumbs">{')
    contents = thumbnails((previews[n] for n in order), folder, limit)
    for place, (n, content) in enumerate(zip(order, contents, strict=False)):
        file.write(f'{"," if place else ""}\n"{n}":"{content}"')
    file.write("}</script>\n")


def _json(value: Any) -> str:
    """Return JSON that can stand in a script element: no text of it ends the element or opens a comment."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.translate({ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"})


def _head(facts: Facts, base: str) -> dict[str, Any]:
    codes = {*facts.failed, *facts.skipped, *facts.notices}
    return {
        "base": base,
        "states": _STATES,
        "models": [{"name": name, "version": version} for name, version in _models(facts).values()],
        "structures": [
            [_structure(known) for known in facts.volumes.get(model, {}).values()] for model in _models(facts)
        ],
        "codes": {code: CODES[code].mend for code in codes if code in CODES},
    }


def _models(facts: Facts) -> dict[int, tuple[str, str]]:
    """Return number -> name and version of all models; a number that the manifest does not explain has none."""
    known = {number: (one.name, one.version) for number, one in facts.models.items()}
    return known | {number: ("", "") for number in facts.volumes if number not in known}


def _structure(known: Distribution) -> dict[str, Any]:
    return {
        "name": known.structure,
        "count": known.count,
        "absent": known.absent,
        "absentUnusual": known.absent if known.is_unusual(0.0) else 0,
        "quartiles": [_finite(value) for value in known.quartiles_ml],
    }


_UNUSUAL, _NOTICES = 15, 16
"""Places in `_case`."""


def _case(row: CaseRow, facts: Facts, models: Mapping[int, int], numbers: Mapping[str, int]) -> list[Any]:
    """Return a case as the script expects it, without its thumbnail."""
    volumes: list[float | None] = [None] * len(numbers) if row.state == "done" else []
    confidence = list(volumes)
    unusual = []
    if volumes:
        for name, volume_ml in row.volumes_ml.items():
            n = numbers[name]
            volumes[n], confidence[n] = _finite(volume_ml), _finite(row.confidence.get(name))
            z = facts.z(row, name)
            if z is not None and abs(z) > LIMIT:
                unusual.append([n, _finite(z, 2)])
    links = {role: row.outputs[role].path for role in _LINKED if role in row.outputs and row.state == "done"}
    return [
        row.id,
        row.name,
        _STATES.index(row.state),
        models.get(row.model or 0, -1),
        row.source,
        row.format,
        row.modality,
        _finite(row.seconds, 2),
        [_finite(part, 2) for part in (row.read_seconds, row.network_seconds, row.write_seconds)],
        round(row.peak_bytes / 2**20),
        row.attempts,
        row.code,
        row.message,
        volumes,
        confidence,
        unusual,
        [[one.code, one.message, one.segment] for one in row.notices] if row.state == "done" else [],
        {role: path for role, path in links.items() if is_below(path)},
    ]


def _finite(value: float | None, digits: int = 4) -> float | None:
    return None if value is None or not isfinite(value) else round(value, digits)


def _document(facts: Facts) -> str:
    here = files("napari_seg.cohort.report")
    style, *scripts = ((here / name).read_text(encoding="utf-8") for name in ("page.css", "page.js", "plots.js"))
    shown = {
        "Summary": sections.summary(facts),
        "Failed": sections.groups(facts.failed, "failed"),
        "Skipped": sections.groups(facts.skipped, "skipped"),
        "Unusual volumes": sections.unusual(facts),
        "Notices": sections.notices(facts),
        "Volumes": sections.volumes(facts),
        "Cases": _CASES,
        "Run": sections.run(facts),
        "About this page": sections.about(),
    }
    total = facts.total
    return document(
        f"{TITLE} {counted(total, 'case')}",
        sections.lead(facts),
        shown,
        style="\n" + style,
        script="\n".join(['(() => {"use strict";', *scripts, "})();\n"]),
        images="data: 'self' file:",
    )
