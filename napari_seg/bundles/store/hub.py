"""Download a repository of Hugging Face at one commit, each file verified.

The environment variable HF_ENDPOINT names another host, such as a mirror, as for Hugging Face's own programs.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from napari_seg.bundles.spec import METADATA
from napari_seg.bundles.store.download import Digest, RemoteFile, download, fetch_bytes, shown_url
from napari_seg.bundles.store.licence import MAX_LICENCE_BYTES, Licence, is_licence_file, read_licence
from napari_seg.bundles.store.limits import MAX_BYTES, MAX_FILES, check_name, is_spare, too_large
from napari_seg.errors import DownloadError, StoreError
from napari_seg.progress import Progress

MAX_LISTING_BYTES = 2**23
"""Size limit of a page of a listing."""

MAX_PAGES = 50


def fetch_repository(
    repository: str,
    revision: str,
    files: Path,
    partials: Path,
    ask: Callable[[Licence], None],
    progress: Progress,
) -> str:
    """Download a repository, its licence first; return its commit.

    Args:
        repository: owner and name.
        revision: branch, tag or commit.
        files: folder for the files; what an earlier call left of the same commit is kept.
        partials: existing folder for files under way.
        ask: called with the licence before anything else is downloaded; it raises if the user declines.
        progress: called with the bytes done and in all.

    Raises:
        StoreError: `store.no_bundle`, it is no bundle; `store.unsafe`; `store.too_large`; or what `ask` raises.
        DownloadError: see `download.download`.
    """
    host = os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"
    api = f"{host}/api/models/{repository}"
    content, _ = fetch_bytes(f"{api}/revision/{quote(revision, safe='')}", MAX_LISTING_BYTES)
    commit = _parsed(content, dict, host).get("sha")
    if not isinstance(commit, str) or not re.fullmatch("[0-9a-f]{40}", commit):
        raise _unknown_answer(host)
    listed = _listed(f"{api}/tree/{commit}?recursive=true", f"{host}/{repository}/resolve/{commit}")
    if METADATA.as_posix() not in listed:
        text = f"{repository} at {urlsplit(host).hostname} holds no {METADATA.as_posix()}; expected a MONAI bundle"
        raise StoreError("store.no_bundle", text)
    note = partials / "commit"
    if not note.is_file() or note.read_text() != commit:
        shutil.rmtree(files, ignore_errors=True)  # they are of another commit
        note.write_text(commit)
    files.mkdir(exist_ok=True)
    for name, remote in listed.items():
        if is_licence_file(name) and (remote.size or 0) <= MAX_LICENCE_BYTES:
            download(remote, files / name, partials)
    ask(read_licence(files, repository.rpartition("/")[2]))
    total = sum(remote.size or 0 for remote in listed.values())
    before = 0

    def report(done: int, _: int) -> None:
        progress("downloading", before + done, total)

    for name, remote in listed.items():
        download(remote, files / name, partials, report)
        before += remote.size or 0
    return commit


def _listed(url: str, base: str) -> dict[str, RemoteFile]:
    """Return the files of a listing by their paths, small ones first, without hidden and spare ones."""
    listed: dict[str, RemoteFile] = {}
    for _ in range(MAX_PAGES):
        content, url = fetch_bytes(url, MAX_LISTING_BYTES)
        for one in _parsed(content, list, base):
            try:
                if one["type"] != "file":
                    continue
                digest = f"sha256:{one['lfs']['oid']}" if one.get("lfs") else f"git:{one.get('oid')}"
                name, size = one["path"], int(one["size"])
                check_name(name)
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                raise _unknown_answer(base) from error
            if name.startswith(".") or "/." in name:
                continue
            listed[name] = RemoteFile(f"{base}/{quote(name)}", max(size, 0), Digest.parse(digest))
        if len(listed) > MAX_FILES or sum(one.size or 0 for one in listed.values()) > MAX_BYTES:
            raise too_large(base)
        if not url:
            break
    if len({name.casefold() for name in listed}) < len(listed):
        text = (
            f"{shown_url(base)} has files whose names differ in upper and lower case only; not every system keeps both"
        )
        raise StoreError("store.unsafe", text)
    kept = {name: remote for name, remote in listed.items() if not is_spare(name, listed)}
    return dict(sorted(kept.items(), key=lambda item: item[1].size or 0))


def _parsed(content: bytes, kind: type, url: str) -> Any:
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _unknown_answer(url) from error
    if not isinstance(answer, kind):
        raise _unknown_answer(url)
    return answer


def _unknown_answer(url: str) -> DownloadError:
    text = f"{urlsplit(url).hostname} gave an answer that is no listing of a model; check HF_ENDPOINT, or try again"
    return DownloadError("download.server", text)
