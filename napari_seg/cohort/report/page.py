"""The report of a run as one HTML page that opens anywhere: no network, no library, light and dark.

Cases are a compact block of JSON, from which the page draws the rows that are looked at. Names, sources and messages
come from strangers: here they are escaped, the block of JSON can't end its element, the script sets text as text, and
the page's content security policy runs no other script.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from importlib.resources import files
from math import isfinite, isinf
from pathlib import Path
from typing import IO, Any, get_args

from napari_seg.cohort.manifest import CaseRow, State
from napari_seg.cohort.report.distributions import LIMIT, RULE, Distribution
from napari_seg.cohort.report.facts import Ended, Facts
from napari_seg.cohort.report.thumbnails import MAX_EMBEDDED_BYTES, is_below, thumbnails
from napari_seg.error_codes import CODES
from napari_seg.evaluation.html import document, table
from napari_seg.memory import describe_bytes
from napari_seg.progress import describe_seconds
from napari_seg.version import __version__

TITLE = "Segmentation of"
"""Start of the page's title."""

_DATA = "<!--data-->"
_STATES: tuple[str, ...] = get_args(State)
_MAX_LISTED = 20
"""Cases of a group that are shown at once."""

_MAX_FOLDED = 500
"""Further cases of a group, which are shown on request."""

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
    style, script = ((here / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    sections = {
        "Failed": _groups(facts.failed, "failed"),
        "Skipped": _groups(facts.skipped, "skipped"),
        "Unusual volumes": _unusual(facts),
        "Notices": _notices(facts),
        "Volumes": _volumes(facts),
        "Cases": _cases(facts),
        "Run": _run(facts),
        "About this page": _about(),
    }
    total = facts.total
    return document(
        f"{TITLE} {total:,} case{'s' * (total != 1)}",
        _lead(facts),
        {"Summary": _summary(facts), **sections},
        style="\n" + style,
        script=script,
        images="data: 'self' file:",
    )


def _lead(facts: Facts) -> str:
    left = sum(facts.counts[state] for state in ("waiting", "running", "moving"))
    verb = "was" if left == 1 else "were"
    text = f"<b class=warn>{_cases_in_words(left)} {verb} not finished when this page was written.</b> " if left else ""
    return (
        f'<a class="skip" href="#cases">Skip to the cases</a>{text}{_span(facts)}. napari-seg '
        f"{escape(facts.version or __version__)}. For research; not a medical device."
    )


def _span(facts: Facts) -> str:
    start, end = _time(facts.started), _time(facts.ended)
    if not start:
        return "No case was started"
    if not end:
        return f"Since {start} UTC"
    if end[:10] == start[:10]:
        end = end[11:]
    return f"{start} to {end} UTC"


def _time(seconds: float | None) -> str:
    try:
        return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
    except (OverflowError, ValueError, OSError):
        return ""


def _summary(facts: Facts) -> str:
    counts, total = facts.counts, max(facts.total, 1)
    left = sum(counts[state] for state in ("waiting", "running", "moving"))
    with_notice = sum(facts.notices.values())
    rate = facts.per_minute
    read, network, write = facts.part_seconds
    share = f"network {100 * network / (read + network + write):.0f} %" if read + network + write > 0 else ""
    cards = [
        ("done", f'<span class="good">{counts["done"]:,}</span>', f"{100 * counts['done'] / total:.4g} % of {total:,}"),
        ("failed", f'<span class="{"bad" if counts["failed"] else ""}">{counts["failed"]:,}</span>', ""),
        ("skipped", f"{counts['skipped']:,}", "") if counts["skipped"] else None,
        ("not finished", f'<span class="warn">{left:,}</span>', "") if left else None,
        ("unusual volumes", f"{facts.unusual_count:,}", "listed below" if facts.unusual_count else ""),
        ("notices", f"{with_notice:,}", "listed below" if with_notice else ""),
        ("time", describe_seconds(facts.busy_seconds), "" if rate is None else f"{rate:.3g} cases a minute"),
        ("a case, median", describe_seconds(facts.case_seconds), share) if counts["done"] else None,
        ("cases at once", f"{facts.at_once:,}", "on all machines") if facts.at_once else None,
        ("highest memory", describe_bytes(facts.peak_bytes), "of a worker") if facts.peak_bytes else None,
    ]
    parts = [(name, counts[name]) for name in ("done", "failed", "skipped") if counts[name]]
    bar = "".join(f'<span class="{name}" style="flex:{count}"></span>' for name, count in parts)
    rest = f'<span style="flex:{left}"></span>' if left else ""
    shown = "".join(
        f"<div><dt>{name}</dt><dd>{value}<small>{more}</small></dd></div>" for name, value, more in filter(None, cards)
    )
    return f'<div class="share" aria-hidden="true">{bar}{rest}</div><dl class="cards">{shown}</dl>'


def _groups(groups: Mapping[str, Sequence[Ended]], state: str) -> str:
    """Return the failed or skipped cases by their codes, the most frequent first, with what to do."""
    return "".join(
        _group(code, groups[code], state) for code in sorted(groups, key=lambda code: (-len(groups[code]), code))
    )


def _group(code: str, cases: Sequence[Ended], state: str) -> str:
    known = CODES.get(code)
    texts = f"<p>{_prose(known.meaning)}</p><p><b>What to do:</b> {_prose(known.mend)}</p>" if known else ""
    folded = ""
    if len(cases) > _MAX_LISTED:
        further = cases[_MAX_LISTED : _MAX_LISTED + _MAX_FOLDED]
        rest = len(cases) - _MAX_LISTED - len(further)
        more = f"<p>and {rest:,} others, in the list of cases and in cases.csv</p>" if rest else ""
        count = len(cases) - _MAX_LISTED
        folded = f"<details><summary>{count:,} more</summary><ul>{''.join(map(_ended, further))}</ul>{more}</details>"
    find = f' <button type="button" class="link screen" data-find="{escape(code)}">show in the list</button>'
    heading = f"<h3>{escape(code) or 'without a code'} <small>{_cases_in_words(len(cases))}{find if code else ''}"
    return (
        f'<div class="group {state}">{heading}</small></h3>{texts}'
        f"<ul>{''.join(map(_ended, cases[:_MAX_LISTED]))}</ul>{folded}</div>"
    )


def _prose(text: str) -> str:
    """Return a text of `error_codes` as HTML."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", escape(text))


def _ended(case: Ended) -> str:
    source = f"<small>{escape(case.source)}</small>" if case.source and case.source != case.name else ""
    message = f"<br>{escape(case.message)}" if case.message else ""
    return f"<li>{_case_button(case.id, case.name)}{source}{message}</li>"


def _case_button(number: int, name: str) -> str:
    return f'<button type="button" class="link" data-case="{number:d}">{escape(name)}</button>'


def _unusual(facts: Facts) -> str:
    if not facts.unusual:
        return ""
    rows = [
        [
            _case_button(one.id, one.name),
            escape(one.structure),
            _ml(one.volume_ml),
            _ml(one.median_ml),
            "–" if isinf(one.z) else f"{one.z:.1f}".replace("-", "−"),
        ]
        for one in facts.unusual
    ]
    rest = facts.unusual_count - len(rows)
    more = f" {rest:,} others are in volumes_long.csv." if rest else ""
    return table(["case", "structure", "ml", "median ml", "modified z"], rows, text=(0, 1), sortable=True) + (
        f"<p>{RULE}{more}</p>"
    )


def _notices(facts: Facts) -> str:
    if not facts.notices:
        return ""
    rows = []
    for code, count in facts.notices.most_common():
        known = CODES.get(code)
        find = f'<button type="button" class="link" data-find="{escape(code)}">{escape(code)}</button>'
        text = f"{_prose(known.meaning)} {_prose(known.mend)}" if known else ""
        rows.append([find, f"{count}", text])
    return table(["notice", "cases", "meaning"], rows, text=(0, 2))


def _volumes(facts: Facts) -> str:
    if not facts.volumes:
        return ""
    several = len(facts.models) > 1
    rows = []
    for model, structures in facts.volumes.items():
        name = facts.models[model].name if model in facts.models else ""
        for known in structures.values():
            low, first, middle, third, high = map(_ml, known.quartiles_ml)
            numbers = [middle, f"{first} to {third}", f"{low} to {high}"] if known.count else ["–"] * 3
            start = [escape(known.structure), *([escape(name)] if several else [])]
            rows.append([*start, str(known.count), str(known.absent), *numbers])
    heads = ["structure", *(["model"] if several else []), "cases", "absent", "median ml", "quartiles", "range"]
    listed = table(heads, rows, text=(0, 1) if several else (0,))
    if len(rows) > _MAX_LISTED:
        listed = f"<details><summary>table of {len(rows):,} structures</summary>{listed}</details>"
    return (
        '<p class="screen">A dot, or a bar of many, stands for cases: point at it for the name, click to open; on the '
        "keyboard, arrow keys and Enter. The box spans the quartiles, the line is the median, unusual volumes are "
        f'red.</p><div id="plots"></div>{listed}'
    )


def _cases(facts: Facts) -> str:
    return (
        '<section id="cases" tabindex="-1" aria-label="Cases"><noscript><p class="bad">This list needs JavaScript; '
        'cases.csv next to this page has the same.</p></noscript><div id="controls" class="controls" role="search">'
        '</div><div id="list"></div><p id="printed" class="paper"></p></section>'
        f'<dialog id="dialog" aria-labelledby="dialog-title"></dialog>{_DATA}'
    )


def _run(facts: Facts) -> str:
    models = [
        [escape(one.name), escape(one.version), escape(one.kind), f"<code>{escape(one.digest[:16])}</code>"]
        for one in facts.models.values()
    ]
    runners = [
        [escape(one.host), str(one.pid), escape(one.version), _time(one.started), _time(one.ended) or "no orderly end"]
        for one in facts.runners
    ]
    settings = [[escape(str(name)), escape(_in_words(value))] for name, value in sorted(facts.settings.items())]
    parts = (
        ("Models", ["name", "version", "kind", "digest"], models, (0, 1, 2, 3)),
        ("Processes", ["host", "process", "napari-seg", "start (UTC)", "end (UTC)"], runners, (0, 2, 3, 4)),
        ("Options", ["option", "value"], settings, (0, 1)),
    )
    return "".join(
        f'<h3>{heading}</h3><div class="facts">{table(heads, rows, text=text)}</div>'
        for heading, heads, rows, text in parts
        if rows
    )


def _in_words(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "not set"}[value]
    return str(value)


def _about() -> str:
    return (
        f"<p>{RULE} Volumes are in ml. Confidence is the mean probability of the voxels of a structure.</p>"
        f"<p>Thumbnails of the previews are part of this page, up to {MAX_EMBEDDED_BYTES // 10**6} MB, those of cases "
        "with notices or unusual volumes first; the other previews, and all in full size, are loaded from the folder "
        "of the results. Tables for R, pandas and spreadsheets lie next to this page: cases.csv, cases.json, "
        "volumes_long.csv (one row for each case and structure) and volumes_wide.csv (one row for each case).</p>"
    )


def _cases_in_words(count: int) -> str:
    return f"{count:,} case{'s' * (count != 1)}"


def _ml(value: float) -> str:
    digits = 0 if value == 0 or value >= 100 else 1 if value >= 10 else 2 if value >= 0.1 else 4
    return f"{value:.{digits}f}"
