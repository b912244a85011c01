"""Build the site, and follow the links of README and of the pages."""

from __future__ import annotations

import html.parser
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
RAW = "https://raw.githubusercontent.com/napari-seg/napari-seg/main/"
BLOB = "https://github.com/napari-seg/napari-seg/blob/main/"
TARGETS = re.compile(r"\]\(([^)\s]+)\)")


class Fetched(html.parser.HTMLParser):
    """Collect the addresses that a browser fetches by itself when it shows a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        of = dict(attrs)
        is_loaded = tag == "link" and (of.get("rel") or "") not in ("canonical", "next", "prev", "alternate")
        self.addresses += filter(None, [of.get("src"), of.get("href") if is_loaded else None])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the site, built from the pages with every warning as an error."""
    if not (find_spec("material") and find_spec("mkdocstrings_handlers")):
        pytest.skip("mkdocs-material or mkdocstrings is not installed: pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def test_the_site_is_built_without_a_warning(site: Path) -> None:
    for page in ("index.html", "errors/index.html", "reference/python/index.html"):
        assert (site / page).is_file()


def test_the_reference_holds_docstrings_and_options(site: Path) -> None:
    python = (site / "reference" / "python" / "index.html").read_text(encoding="utf-8")
    assert 'id="napari_seg.inference.segment.segment"' in python
    assert "Raises:" in python
    assert "--trust" in (site / "reference" / "command-line" / "index.html").read_text(encoding="utf-8")


def test_a_page_fetches_nothing_from_other_hosts(site: Path) -> None:
    for page in site.rglob("*.html"):
        fetched = Fetched()
        fetched.feed(page.read_text(encoding="utf-8"))
        assert not [address for address in fetched.addresses if re.match(r"(https?:)?//", address)], page
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//", style.read_text(encoding="utf-8")), style


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "SECURITY.md", "monai_bundle/docs/README.md"])
def test_links_of_pages_outside_the_site_lead_to_files(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in TARGETS.findall(text):
        path = target.removeprefix(RAW).removeprefix(BLOB).partition("#")[0]
        if not path.startswith("https:"):
            assert (ROOT / page).parent.joinpath(path).exists(), f"{page} links to {target}, which is not there"
