"""Write benchmarks.json with all numbers, and benchmarks.md with tables of them."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

HEAD = """# Benchmarks

Written by `scripts/benchmark.py`, which describes how it measures. All numbers are in
[benchmarks.json](benchmarks.json).
"""


def describe_machine(about: dict, device: str = "cpu") -> str:
    """Return a sentence on the machine and the versions."""
    where = about["gpu"] if device == "cuda" else f"{about['cores']} cores of {about['processor']}"
    versions = ", ".join(f"{package} {version}" for package, version in about["versions"].items())
    return (
        f"Machine: {where}, {about['memory_gib']} GiB, {about['system']}, Python {about['python']},\n"
        f"{versions}; load before the run {about['load_before']:.1f}."
    )


def describe_spread(values: dict[str, float]) -> str:
    """Return a median with minimum and maximum, to three digits."""
    return f"{values['median']:.3g} ({values['least']:.3g}-{values['greatest']:.3g})"


def paragraph(*sentences: str) -> list[str]:
    """Return the lines of a paragraph and an empty one."""
    return [*textwrap.wrap(" ".join(sentences), 120, break_long_words=False, break_on_hyphens=False), ""]


def table(head: Sequence[str], rows: Iterable[Sequence[object]], numbers: bool = False) -> list[str]:
    """Return the lines of a Markdown table, aligned to the right if it holds numbers."""
    lines = [head, ["---:" if numbers else "---"] * len(head), *rows]
    text = [f"| {' | '.join(map(str, line))} |" for line in lines]
    text[1] = text[1].replace(" ", "")
    return text


def write_report(folder: Path, section: str, figures: dict, describers: Mapping[str, Callable[[dict], str]]) -> None:
    """Replace a section's numbers in benchmarks.json, and write benchmarks.md from all sections.

    Args:
        folder: the folder of both files.
        section: the section's name.
        figures: the numbers as `measure` returned them, fit for JSON.
        describers: the function that describes each section, in the report's order.
    """
    path = folder / "benchmarks.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    known[section] = figures
    path.write_text(json.dumps(known, indent=1) + "\n")
    texts = [describe(known[name]) for name, describe in describers.items() if name in known]
    (folder / "benchmarks.md").write_text("\n".join([HEAD, *texts]))
