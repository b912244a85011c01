"""`napari-seg bundles`: list the available models and the structures that they segment."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from napari_seg.bundles.spec import Bundle


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "bundles",
        help="list the available models and the structures that they segment",
        description="Lists the shipped bundle and the bundles in the folders given by the environment variable "
        "NAPARI_SEG_BUNDLES. No code of a bundle is run.",
    )
    parser.add_argument("--json", action="store_true", help="print a list of objects instead of text")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from napari_seg.bundles.spec import MAX_TEXT, find_bundles
    from napari_seg.errors import one_line

    bundles, faults = find_bundles()
    for fault in faults:
        print(f"napari-seg: {fault}", file=sys.stderr)
    if arguments.json:
        print(json.dumps([_as_dict(bundle) for bundle in bundles], indent=2))
        return 0
    for bundle in bundles:
        print(f"{bundle.name}  {bundle.version}   {bundle.modality}   {'trusted' if bundle.trusted else 'not trusted'}")
        print(f"  {bundle.description}")
        print(f"  segments: {', '.join(segment.name for segment in bundle.segments)}")
        print(f"  folder: {one_line(bundle.root, MAX_TEXT)}")
    return 0


def _as_dict(bundle: Bundle) -> dict[str, object]:
    return {
        "name": bundle.name,
        "version": bundle.version,
        "description": bundle.description,
        "modality": bundle.modality,
        "trusted": bundle.trusted,
        "segments": [{"label": s.label, "name": s.name} for s in bundle.segments],
        "folder": str(bundle.root),
    }
