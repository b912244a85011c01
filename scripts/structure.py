"""Print the size and the structure of the package: files, lines, functions, import circles, floors, word counts.

usage: python scripts/structure.py [CHECKOUT]
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable
from pathlib import Path

PACKAGE = "napari_seg"

Graph = dict[str, set[str]]
"""Module -> the modules of the package that it imports, imports inside functions and under TYPE_CHECKING included."""

OLD_WORDS = ("told", "asked", "anew", "beside", "apart", "foresee", "foreseen", "MOST_", "sure")
"""Everyday words where the field has a term of its own; counted in names, docstrings, comments and messages."""


def read_modules(checkout: Path) -> dict[str, Path]:
    """Return module name -> file of the package `napari_seg` in a checkout."""
    return {
        ".".join(path.relative_to(checkout).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted((checkout / PACKAGE).rglob("*.py"))
    }


def imported_names(path: Path) -> set[str]:
    """Return the dotted names that a file imports anywhere; the package uses absolute imports only."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def import_graph(modules: dict[str, Path]) -> Graph:
    """Return which module of the package imports which."""

    def module_of(name: str) -> str:
        while name and name not in modules:
            name = name.rpartition(".")[0]
        return name

    return {
        module: {found for name in imported_names(path) if (found := module_of(name)) not in ("", module)}
        for module, path in modules.items()
    }


def components(graph: Graph) -> list[set[str]]:
    """Return the strongly connected components, each after those that it imports (Tarjan 1972, doi:10.1137/0201010)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[set[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in sorted(graph[module]):
            if other not in index:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], index[other])
        if low[module] == index[module]:
            at = stack.index(module)
            found.append(set(stack[at:]))
            del stack[at:]

    for module in sorted(graph):
        if module not in index:
            visit(module)
    return found


def circles(graph: Graph) -> list[list[str]]:
    """Return the groups of modules that import each other in a circle."""
    return [sorted(group) for group in components(graph) if len(group) > 1]


def floors(graph: Graph, room: str = PACKAGE) -> int:
    """Return the length of the longest chain of imports among the modules of a room; a circle counts as one module."""
    height: dict[str, int] = {}
    for group in components(graph):
        below = {other for module in group for other in graph[module]} - group
        # a chain that leaves the room and comes back does not count
        within = any(module == room or module.startswith(f"{room}.") for module in group)
        tallest = max((height[other] for other in below if other in height), default=0)
        if within:
            height |= dict.fromkeys(group, tallest + 1)
    return max(height.values(), default=0)


def count_words(paths: Iterable[Path], words: Iterable[str] = OLD_WORDS) -> dict[str, int]:
    """Return how often each word occurs in files, in names, docstrings, comments and messages."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in paths)
    # an underscore separates the words of a name; a word that ends with one is the beginning of a name
    return {
        word: len(re.findall(rf"(?<![A-Za-z]){re.escape(word)}{'' if word.endswith('_') else '(?![A-Za-z])'}", text))
        for word in words
    }


def main(checkout: Path) -> None:
    """Print the figures of a checkout."""
    modules = read_modules(checkout)
    graph = import_graph(modules)
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in modules.values()]
    functions = sum(isinstance(node, ast.FunctionDef) for tree in trees for node in ast.walk(tree))
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in modules.values())
    print(f"{len(modules)} files, {lines} lines, {functions} functions")
    found = circles(graph)
    print(f"{len(found)} circles", *(", ".join(circle) for circle in found), sep="\n  ")
    rooms = sorted({module.split(".")[1] for module in modules if module.count(".") > 1})
    print("floors ", ", ".join(f"{room} {floors(graph, f'{PACKAGE}.{room}')}" for room in rooms))
    files = [*modules.values(), *sorted((checkout / "monai_bundle").rglob("*.py"))]
    print("words  ", ", ".join(f"{word} {count}" for word, count in count_words(files).items()))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1])
