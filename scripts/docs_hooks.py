"""Fill the command line's help into its page while mkdocs builds the site."""

from __future__ import annotations

import contextlib
import io
import re
from typing import Any

from napari_seg.cli.main import main


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace each `<!-- help: COMMAND -->` of a page by what `napari-seg COMMAND --help` prints."""
    return re.sub(r"<!-- help: ([\w ]+) -->", lambda found: f"```text\n{help_of(found[1])}```", markdown)


def help_of(command: str) -> str:
    """Return what `napari-seg COMMAND --help` prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main([*command.split(), "--help"])
    return printed.getvalue()
