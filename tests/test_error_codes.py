"""Check that the table of codes holds exactly the codes that the modules use, and that its page is up to date."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from napari_seg import error_codes, errors
from napari_seg.error_codes import AREAS, CODES

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted(
    path
    for package in ("napari_seg", "monai_bundle")
    for path in (ROOT / package).rglob("*.py")
    # the package names its modules, such as cohort.cohort
    if path not in (Path(error_codes.__file__), ROOT / "napari_seg" / "__init__.py")
)
CODE = re.compile(r"[a-z]\w*\.\w+")
FILES = re.compile(r".*\.(json|jsonl|yaml|xml|bin|csv|txt|html|png|pt|pth)")
"""Names of files, which have the form of a code."""
LEFT_OUT = {
    f"cohort.{name}"
    for name in ("excluded", "modality", "no_rule", "not_planned", "renamed", "rule_skips", "series", "slices")
}
"""Codes of scans that a run leaves out."""

CARRIERS = {name for name, value in vars(errors).items() if isinstance(value, type)} | {"Skipped", "Fault"}
"""Classes whose first argument is a code."""


@cache
def used() -> list[tuple[str, str, str]]:
    """Return each code that a module uses as a pattern, the class that carries it ("" if unknown), and its place."""
    return [one for path in MODULES for one in used_in(path)]


def used_in(path: Path) -> Iterator[tuple[str, str, str]]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    carriers = {
        id(argument): getattr(node.func, "id", getattr(node.func, "attr", ""))
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        for argument in [*node.args[:2], *(keyword.value for keyword in node.keywords if keyword.arg == "code")]
    }
    of_strings = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        carrier = carriers.get(id(node), "")
        place = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in of_strings:
            is_code = CODE.fullmatch(node.value) and not FILES.fullmatch(node.value)
            if is_code and (node.value.partition(".")[0] in AREAS or carrier in CARRIERS):
                yield re.escape(node.value), carrier, place
        elif isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else None for part in node.values]
            if parts[0] and parts[0].partition(".")[0] in AREAS and re.fullmatch(r"[a-z]+\.\w*", str(parts[0])):
                yield "".join(r"\w+" if part is None else re.escape(str(part)) for part in parts), carrier, place


def test_each_code_in_use_is_explained_and_each_explained_code_is_in_use() -> None:
    explained: set[str] = set()
    for pattern, _, place in used():
        matching = {code for code in CODES if re.fullmatch(pattern, code)}
        assert matching, f"{place} uses {pattern}, which napari_seg/error_codes.py does not explain"
        explained |= matching
    assert not set(CODES) - explained, "explained, but not in use"


def test_the_kind_of_a_code_is_that_of_its_uses() -> None:
    for pattern, carrier, place in used():
        if carrier not in CARRIERS:
            continue
        kind = {"Notice": "notice", "Skipped": "skip"}.get(carrier, "error")
        for code in CODES:
            if re.fullmatch(pattern, code):
                assert kind in CODES[code].kind.split(", "), f"{place} uses {code} as {kind}"


def test_each_entry_is_complete() -> None:
    for name, code in CODES.items():
        assert name.partition(".")[0] in AREAS, name
        assert set(code.kind.split(", ")) <= {"error", "notice", "skip"}, name
        assert (code.kind == "skip") == (name.startswith("skip.") or name in LEFT_OUT), name
        for text in (code.meaning, code.mend):
            assert text[0].isupper() or text[0] == "`", name
            assert text.endswith("."), name
            assert "|" not in text, name


def test_the_page_is_what_the_script_writes() -> None:
    spec = importlib.util.spec_from_file_location("errors_page", ROOT / "scripts" / "errors_page.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    written = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    assert written == script.page(), "run scripts/errors_page.py"
