"""Download files over HTTP: resumed after an interruption, verified before they get their name, stopped at any time.

A file under way lies in a folder for partial files, next to the validator (ETag, or date of change) that the server
gave for it. The next attempt asks for the rest, on the condition that the file has not changed (Range and If-Range). If
it has, or if the server can't tell, the download starts again.

Only http and https are spoken, redirects included, and https is never left for http. No library of the dependencies
does this: pooch does not resume, and huggingface_hub knows one host.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import IO, Any
from urllib.parse import urljoin, urlsplit

from napari_seg.errors import DownloadError, one_line
from napari_seg.formats.atomic import is_disk_full, rename
from napari_seg.version import __version__

ALGORITHMS = ("md5", "sha1", "sha256", "sha512", "git")
"""Algorithms of digests; "git" is the SHA-1 that git gives to a file."""

TIMEOUT_S = 30.0
"""Time after which a silent server counts as gone."""

MAX_ATTEMPTS = 5
"""Attempts at a file whose connection breaks; only those that bring at least a byte are repeated."""

MIN_FREE_BYTES = 2**26
"""Disk space that a download leaves free."""

_CHUNK_BYTES = 1 << 18
_REPORT_SECONDS = 0.2

OnBytes = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all (0 if unknown); it may raise `Cancelled`."""


@dataclass(frozen=True)
class Digest:
    """A digest of a file's content.

    Attributes:
        algorithm: one of `ALGORITHMS`.
        value: hexadecimal digits.
    """

    algorithm: str
    value: str

    @classmethod
    def parse(cls, text: str) -> Digest | None:
        """Return the digest that a text such as "md5:870e..." gives; None if it gives none that can be computed."""
        algorithm, _, value = text.lower().partition(":")
        lengths = {"md5": 32, "sha1": 40, "sha256": 64, "sha512": 128, "git": 40}
        is_digest = re.fullmatch("[0-9a-f]+", value) and len(value) == lengths.get(algorithm)
        return cls(algorithm, value) if is_digest else None

    def fits(self, path: Path) -> bool:
        """Return whether a file has this digest."""
        with path.open("rb") as file:
            if self.algorithm == "git":
                found = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
                while chunk := file.read(_CHUNK_BYTES):
                    found.update(chunk)
            else:
                found = hashlib.file_digest(file, self.algorithm)
        return found.hexdigest() == self.value.lower()


@dataclass(frozen=True)
class RemoteFile:
    """A file to download.

    Attributes:
        url: its address.
        size: its size in bytes; None if unknown.
        digest: its digest; None if unknown.
    """

    url: str
    size: int | None = None
    digest: Digest | None = None


class _Interrupted(Exception):
    """The connection broke."""


def download(remote: RemoteFile, target: Path, partials: Path, on_bytes: OnBytes = lambda done, total: None) -> None:
    """Download a file, unless it is there: a file under its name is complete and verified.

    Args:
        remote: the file.
        target: its path on this machine; its folder is created.
        partials: existing folder for files under way, on the same disk.
        on_bytes: called after each chunk.

    Raises:
        DownloadError: `download.url`, `download.not_found`, `download.denied`, `download.server`, `download.redirect`,
            `download.no_network`; `download.interrupted`, the part is kept; `download.size`, `download.digest`,
            `download.web_page`, it is another file, and the part is removed; `download.disk_full`.
    """
    if target.is_file():
        on_bytes(target.stat().st_size, remote.size or 0)
        return
    part = partials / hashlib.sha256(remote.url.encode()).hexdigest()[:24]
    for attempt in range(MAX_ATTEMPTS):
        before = _size(part)
        try:
            _append(remote, part, on_bytes)
            break
        except _Interrupted as error:
            if attempt == MAX_ATTEMPTS - 1 or _size(part) <= before:
                text = (
                    f"the connection broke while {shown_url(remote.url)} was downloaded; run again to go on from there"
                )
                raise DownloadError("download.interrupted", text) from error
    if remote.digest is not None and not remote.digest.fits(part):
        _remove(part)
        text = f"{shown_url(remote.url)} has another {remote.digest.algorithm} than expected; the download was removed"
        raise DownloadError("download.digest", f"{text}; run again, or do not trust its source")
    target.parent.mkdir(parents=True, exist_ok=True)
    rename(part, target)
    _remove(part)


def fetch_bytes(url: str, max_bytes: int) -> tuple[bytes, str]:
    """Return a short answer of a server, and the address of the next page if there is one.

    Raises:
        DownloadError: as for `download`.
    """
    with _open(url, {}) as response:
        try:
            content = response.read(max_bytes + 1)
        except (OSError, http.client.HTTPException) as error:
            raise DownloadError(
                "download.interrupted", f"the connection to {shown_url(url)} broke; run again"
            ) from error
        link = re.search(r'<([^<>]+)>;\s*rel="?next"?', response.headers.get("Link", ""))
    if len(content) > max_bytes:
        raise DownloadError("download.size", f"the answer of {shown_url(url)} is larger than {max_bytes // 2**10} KiB")
    return content, urljoin(url, link[1]) if link else ""


def fetch_range(url: str, start: int | None, count: int) -> tuple[bytes, int] | None:
    """Return a part of a file, and the size of the file; None if the server sends whole files only.

    Args:
        url: its address.
        start: first byte; None: the last `count` bytes.
        count: number of bytes.

    Raises:
        DownloadError: as for `download`.
    """
    with _open(
        url, {"Range": f"bytes=-{count}" if start is None else f"bytes={start}-{start + count - 1}"}
    ) as response:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        if response.status != 206 or found is None or (start is not None and int(found[1]) != start):
            return None
        try:
            return response.read(count), int(found[2])
        except (OSError, http.client.HTTPException) as error:
            raise DownloadError(
                "download.interrupted", f"the connection to {shown_url(url)} broke; run again"
            ) from error


def _append(remote: RemoteFile, part: Path, on_bytes: OnBytes) -> None:
    """Download what a part lacks."""
    have, (validator, promised) = _size(part), _noted(part)
    if have and remote.size == have:  # killed after the last byte
        return
    headers = {"Accept-Encoding": "identity"}
    if have and (validator or remote.digest is not None):
        headers["Range"] = f"bytes={have}-"
        if validator:
            headers["If-Range"] = validator
    with _open(remote.url, headers) as response:
        if response.status == 416:
            if validator and have == promised:  # killed after the last byte
                return None
            _remove(part)  # it is no beginning of the file
            return _append(remote, part, on_bytes)
        is_rest = response.status == 206
        if is_rest and validator and _validator_in(response.headers) not in ("", validator):  # If-Range is not honoured
            _remove(part)
            return _append(remote, part, on_bytes)
        if is_rest and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            raise DownloadError("download.server", f"{shown_url(remote.url)} sent another part than the requested one")
        have = have if is_rest else 0
        length = response.headers.get("Content-Length", "")
        total = have + int(length) if length.isdigit() else remote.size
        if remote.size not in (None, total):
            _remove(part)
            raise _wrong_size(remote, total)
        if response.headers.get_content_type() == "text/html" and not remote.url.lower().endswith((".html", ".htm")):
            text = (
                f"{shown_url(remote.url)} is a web page, not a file; download it in a browser, or choose another source"
            )
            raise DownloadError("download.web_page", text)
        room = shutil.disk_usage(part.parent).free - MIN_FREE_BYTES + (0 if is_rest else _size(part))
        if room < (total or 0) - have:
            raise _disk_full(remote, total or 0)
        try:
            _note(part, response.headers, total)
            with part.open("ab" if is_rest else "wb") as file:
                _receive(response, file, remote, have, total, room, on_bytes)
        except OSError as error:
            if is_disk_full(error):
                raise _disk_full(remote, total or 0) from error
            raise
    if remote.size not in (None, _size(part)):
        _remove(part)
        raise _wrong_size(remote, None)


def _receive(
    response: Any, file: IO[bytes], remote: RemoteFile, done: int, total: int | None, room: int, on_bytes: OnBytes
) -> None:
    """Write the body of a response into a file; what has come stays there, whatever is raised."""
    end = done + room
    on_bytes(done, total or 0)
    reported, reported_at = done, time.monotonic()
    while True:
        try:
            chunk = response.read1(_CHUNK_BYTES)  # what is there: a slow server does not hold up `Cancelled`
        except (OSError, http.client.HTTPException) as error:
            raise _Interrupted from error
        if not chunk:
            break
        done += len(chunk)
        if done > (total if total is not None else end):
            raise _wrong_size(remote, done) if total is not None else _disk_full(remote, done)
        file.write(chunk)
        if done - reported >= _CHUNK_BYTES or time.monotonic() - reported_at >= _REPORT_SECONDS:
            on_bytes(done, total or 0)
            reported, reported_at = done, time.monotonic()
    if total is not None and done < total:
        raise _Interrupted
    on_bytes(done, total or 0)


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        leaves_https = urlsplit(req.full_url).scheme == "https" != urlsplit(newurl).scheme
        if not _is_web(newurl) or leaves_https:
            fp.close()
            raise _unsafe_redirect(req.full_url)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(url: str, headers: dict[str, str]) -> Any:
    if not _is_web(url):
        raise DownloadError("download.url", f"can't download from {one_line(url, 200)!r}; expected http:// or https://")
    opener = urllib.request.OpenerDirector()
    for handler in (  # unlike `build_opener`, none for files and FTP
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        _Redirects,
    ):
        opener.add_handler(handler())
    request = urllib.request.Request(url, headers={"User-Agent": f"napari-seg/{__version__}", **headers})
    try:
        return opener.open(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == 416 and "Range" in headers:
            return error
        error.close()
        raise _refusal(url, error.code) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        cause = one_line(getattr(error, "reason", error) or type(error).__name__, 200)
        text = f"can't reach {urlsplit(url).hostname} ({cause}); check the connection and any proxy, then run again"
        raise DownloadError("download.no_network", text) from error


def _refusal(url: str, status: int) -> DownloadError:
    """Return the error for a status of HTTP."""
    shown = shown_url(url)
    if status in (404, 410):
        text = f"{shown} does not exist (status {status}); check its name and version"
        return DownloadError("download.not_found", text)
    if status in (401, 403, 407):
        text = f"{shown} can't be read without an account, or does not exist (status {status})"
        return DownloadError("download.denied", f"{text}; download it in a browser, and add the file or folder")
    if 300 <= status < 400:
        return _unsafe_redirect(url)
    return DownloadError("download.server", f"{shown} answered with status {status}; try again later")


def _unsafe_redirect(url: str) -> DownloadError:
    text = f"{shown_url(url)} redirects in a circle, or to an address that is not safe; expected https"
    return DownloadError("download.redirect", text)


def _wrong_size(remote: RemoteFile, found: int | None) -> DownloadError:
    text = f"{shown_url(remote.url)} has {found or 'another number of'} bytes; expected {remote.size}"
    return DownloadError("download.size", f"{text}; the download was removed; run again, or do not trust its source")


def _disk_full(remote: RemoteFile, size: int) -> DownloadError:
    text = f"there is no room on the disk for {shown_url(remote.url)} ({size / 1e6:.1f} MB); free some and run again"
    return DownloadError("download.disk_full", text)


def _is_web(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and url.isprintable() and " " not in url
    except ValueError:
        return False


def shown_url(url: str) -> str:
    """Return an address for messages and records, without its query and account, which may be secret."""
    parts = urlsplit(url)
    return one_line(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}", 300)


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _noted(part: Path) -> tuple[str, int | None]:
    """Return the validator and the size of the file that a part belongs to, as far as the server gave them."""
    try:
        noted = json.loads(part.with_suffix(".json").read_text(encoding="utf-8"))
        return str(noted["validator"]), noted["size"]
    except (OSError, ValueError, KeyError, TypeError):
        return "", None


def _note(part: Path, headers: Message, size: int | None) -> None:
    """Note what the server says of the version and the size of a file."""
    noted = {"validator": _validator_in(headers), "size": size}
    part.with_suffix(".json").write_text(json.dumps(noted), encoding="utf-8")


def _validator_in(headers: Message) -> str:
    """Return the strong ETag or the date of the last change; "" if there is neither."""
    tag = headers.get("ETag", "")
    return headers.get("Last-Modified", "") if not tag or tag.startswith("W/") else tag


def _remove(part: Path) -> None:
    for path in (part, part.with_suffix(".json")):
        with suppress(OSError):
            path.unlink(missing_ok=True)
