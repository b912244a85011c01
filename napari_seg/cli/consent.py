"""`--trust`: the user's consent to a bundle's code, and what it allows in words."""

from __future__ import annotations

import argparse
import sys
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from napari_seg.bundles.spec import Bundle


def add_trust_option(parser: argparse.ArgumentParser, text: str) -> None:
    """Add `--trust`, and its earlier name, to a command.

    Args:
        parser: parser of the command.
        text: help text.
    """
    parser.add_argument("--trust", action="store_true", help=text)
    parser.add_argument("--trust-bundle", dest="trust", action="store_true", help=argparse.SUPPRESS)


def give_consent(bundle: Bundle) -> Bundle:
    """Remember the consent to a bundle's content and print what it allows; return the bundle that may run.

    Nothing is remembered for a bundle that runs without consent.

    Args:
        bundle: bundle that the user named together with `--trust`.

    Raises:
        BundleError: its content can't be consented to, because it lies outside its folder, for example.
    """
    from napari_seg.bundles.content import MAX_LINES, code_lines, files_of
    from napari_seg.bundles.read import with_inner
    from napari_seg.bundles.trust import check_consent, remember
    from napari_seg.bundles.ways import way_of
    from napari_seg.errors import BundleError, one_line

    with suppress(BundleError):
        for each in with_inner(bundle):
            check_consent(each)
        return bundle
    reasons = [reason for each in with_inner(bundle) for reason in way_of(each).reasons]
    lines, count = code_lines(bundle), len(files_of(bundle.root))
    try:
        digest, memory = remember(bundle), "until it changes"
    except OSError as error:
        digest, memory = "", f"for this run only, because the store can't be written ({error.strerror})"
        bundle = replace(bundle, trusted=True)
    place = f" (sha256 {digest}, {count} files)" if digest else f" ({count} files)"
    folder = one_line(bundle.root, 1000)
    print(f"napari-seg: you allow the bundle in {folder} to run its code{place}, {memory}:", file=sys.stderr)
    for reason in reasons:
        print(f"  because {one_line(reason, 1000)}", file=sys.stderr)
    used = [line for line in lines if line.is_used]
    for line in used:
        print(f"  {line.place}: {line.text}{'  ' * bool(line.text)}({line.why})", file=sys.stderr)
    if len(used) < len(lines):
        files = ", ".join(dict.fromkeys(line.file for line in lines if not line.is_used))
        print(f"  and {len(lines) - len(used)} lines that a segmentation does not read ({files})", file=sys.stderr)
    if len(lines) >= MAX_LINES:
        print(f"  and more: the list ends after {MAX_LINES} lines; read the files of the folder", file=sys.stderr)
    return bundle
