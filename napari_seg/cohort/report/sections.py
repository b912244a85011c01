"""Sections of the report of a run that need no script, as HTML; all texts are escaped here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from math import isinf

from napari_seg.cohort.report.distributions import RULE
from napari_seg.cohort.report.facts import Ended, Facts
from napari_seg.cohort.report.thumbnails import MAX_EMBEDDED_BYTES
from napari_seg.cohort.settings import differences, with_defaults
from napari_seg.error_codes import CODES
from napari_seg.errors import counted
from napari_seg.evaluation.html import table
from napari_seg.memory import describe_bytes
from napari_seg.progress import describe_seconds

_MAX_LISTED = 20
"""Cases of a group that are shown at once."""

_MIN_PLOTTED = 2
"""Cases of a structure from which on its volumes are drawn, as in plots.js."""

_MAX_FOLDED = 500
"""Further cases of a group, which are shown on request."""


def lead(facts: Facts) -> str:
    """Return the line below the title: what is left, when it ran, and by which versions."""
    left = sum(facts.counts[state] for state in ("waiting", "running", "moving"))
    verb = "was" if left == 1 else "were"
    first, *others = [facts.settings.get(number, {}) for number in facts.with_settings] or [{}]
    is_mixed = any(differences(first, other) for other in others)
    mixed = "<b class=warn>Cases were run with different options; see below.</b> " * is_mixed
    text = f"<b class=warn>{counted(left, 'case')} {verb} not finished when this page was written.</b> " if left else ""
    return (
        f'<a class="skip" href="#cases">Skip to the cases</a>{text}{mixed}{_span(facts)}. napari-seg '
        f"{escape(', '.join(facts.versions))}. For research; not a medical device."
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


def summary(facts: Facts) -> str:
    """Return the numbers of the run as a whole."""
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
        ("cases in progress", f"{facts.at_once:,}", "at most, on all machines") if facts.at_once else None,
        ("highest memory", describe_bytes(facts.peak_bytes), "of a worker") if facts.peak_bytes else None,
    ]
    parts = [(name, counts[name]) for name in ("done", "failed", "skipped") if counts[name]]
    bar = "".join(f'<span class="{name}" style="flex:{count}"></span>' for name, count in parts)
    rest = f'<span style="flex:{left}"></span>' if left else ""
    shown = "".join(
        f"<div><dt>{name}</dt><dd>{value}<small>{more}</small></dd></div>" for name, value, more in filter(None, cards)
    )
    return f'<div class="share" aria-hidden="true">{bar}{rest}</div><dl class="cards">{shown}</dl>'


def groups(cases_by_code: Mapping[str, Sequence[Ended]], state: str) -> str:
    """Return the failed or skipped cases by their codes, the most frequent first, with what to do."""
    return "".join(
        _group(code, cases, state)
        for code, cases in sorted(cases_by_code.items(), key=lambda item: (-len(item[1]), item[0]))
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
    heading = f"<h3>{escape(code) or 'without a code'} <small>{counted(len(cases), 'case')}{find if code else ''}"
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


def unusual(facts: Facts) -> str:
    """Return the list of unusual volumes."""
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


def notices(facts: Facts) -> str:
    """Return the codes of notices with the numbers of their cases and their meanings."""
    if not facts.notices:
        return ""
    rows = []
    for code, count in facts.notices.most_common():
        known = CODES.get(code)
        find = f'<button type="button" class="link" data-find="{escape(code)}">{escape(code)}</button>'
        text = f"{_prose(known.meaning)} {_prose(known.mend)}" if known else ""
        rows.append([find, f"{count}", text])
    return table(["notice", "cases", "meaning"], rows, text=(0, 2))


def volumes(facts: Facts) -> str:
    """Return the place of the plots, and the distribution of each structure as a table."""
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
    counts = [known.count for structures in facts.volumes.values() for known in structures.values()]
    if max(counts, default=0) < _MIN_PLOTTED:
        return listed
    rest = " A structure of a single case is in the table only." if 1 in counts else ""
    return (
        '<p class="screen">A dot, or a bar of many, stands for cases: point at it for the name, click to open; on the '
        "keyboard, arrow keys and Enter. The box spans the quartiles, the line is the median, unusual volumes are "
        f'red.{rest}</p><div id="plots"></div>{listed}'
    )


def run(facts: Facts) -> str:
    """Return the models, the processes and the options."""
    models = [
        [escape(one.name), escape(one.version), escape(one.kind), f"<code>{escape(one.digest[:16])}</code>"]
        for one in facts.models.values()
    ]
    runners = [
        [escape(one.host), str(one.pid), escape(one.version), _time(one.started), _time(one.ended) or "no orderly end"]
        for one in facts.runners
    ]
    parts = (
        ("Models", ["name", "version", "kind", "digest"], models, (0, 1, 2, 3)),
        ("Processes", ["host", "process", "napari-seg", "start (UTC)", "end (UTC)"], runners, (0, 2, 3, 4)),
        ("Options", *_options(facts)),
    )
    return "".join(
        f'<h3>{heading}</h3><div class="facts">{table(heads, rows, text=text)}</div>'
        for heading, heads, rows, text in parts
        if rows
    )


def _options(facts: Facts) -> tuple[list[str], list[list[str]], tuple[int, ...]]:
    """Return headings, rows and text columns of the options: a column for each of several settings."""
    used = [number for number in facts.settings if facts.with_settings[number]] or list(facts.settings)[-1:]
    settings = {number: with_defaults(facts.settings.get(number, {})) for number in used}
    names = sorted({name for one in settings.values() for name in one})
    heads = [f"settings {number}, {counted(facts.with_settings[number], 'case')}" for number in used]
    rows = []
    for name in names:
        values = [escape(_in_words(one.get(name))) for one in settings.values()]
        is_same = len(set(values)) == 1
        rows.append([escape(name), *(value if is_same else f"<b class=warn>{value}</b>" for value in values)])
    return ["option", *(heads if len(used) > 1 else ["value"])], rows, tuple(range(len(used) + 1))


def _in_words(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "not set"}[value]
    return str(value)


def about() -> str:
    """Return what the page contains and what its numbers mean."""
    return (
        f"<p>{RULE} Volumes are in ml; 1000 pixels of a 2D image count as 1 ml. Confidence is the mean probability of "
        "the voxels of a structure.</p>"
        f"<p>Thumbnails of the previews are part of this page, up to {MAX_EMBEDDED_BYTES // 10**6} MB, those of cases "
        "with notices or unusual volumes first; the other previews, and all in full size, are loaded from the folder "
        "of the results. Tables for R, pandas and spreadsheets lie next to this page: cases.csv, cases.json, "
        "volumes_long.csv (one row for each case and structure) and volumes_wide.csv (one row for each case).</p>"
    )


def _ml(value: float) -> str:
    digits = 0 if value == 0 or value >= 100 else 1 if value >= 10 else 2 if value >= 0.1 else 4
    return f"{value:.{digits}f}"
