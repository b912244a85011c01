"""A web server on this machine that fails in the ways that servers do."""

from __future__ import annotations

import http.server
import json
import threading
from contextlib import suppress
from typing import Any


class Web:
    """Serves content by path, and notes each request.

    Attributes:
        files: path -> content.
        types: path -> content type.
        tags: path -> ETag; by default one that changes with the content; "" for none.
        redirects: path -> address.
        statuses: path -> status.
        lengths: path -> a false Content-Length.
        links: path -> value of the header Link.
        cut_after: path -> bytes after which the connection breaks, once.
        ranges: whether parts can be requested.
        conditions: whether If-Range is honoured.
        requests: (path, Range, bytes to send) of each request.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.types: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.redirects: dict[str, str] = {}
        self.statuses: dict[str, int] = {}
        self.lengths: dict[str, int] = {}
        self.links: dict[str, str] = {}
        self.cut_after: dict[str, int] = {}
        self.ranges = True
        self.conditions = True
        self.requests: list[tuple[str, str, int]] = []
        web = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                web.answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def paths(self) -> list[str]:
        return [path for path, _, _ in self.requests]

    def put_json(self, path: str, content: object) -> None:
        self.files[path] = json.dumps(content).encode()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        path, asked = handler.path, handler.headers.get("Range", "")

        def head(status: int, headers: dict[str, str]) -> None:
            handler.send_response(status)
            for name, value in headers.items():
                handler.send_header(name, value)
            handler.end_headers()

        if path in self.redirects:
            self.requests.append((path, asked, 0))
            return head(302, {"Location": self.redirects[path], "Content-Length": "0"})
        if path in self.statuses or path not in self.files:
            self.requests.append((path, asked, 0))
            return head(self.statuses.get(path, 404), {"Content-Length": "0"})
        content = self.files[path]
        tag = self.tags.get(path, f'"{hash(content)}"')
        headers = {"Content-Type": self.types.get(path, "application/octet-stream")}
        headers |= {"ETag": tag} if tag else {}
        headers |= {"Link": self.links[path]} if path in self.links else {}
        start, end, status = 0, len(content), 200
        if asked and self.ranges and (not self.conditions or handler.headers.get("If-Range", tag) == tag):
            first, last = asked.removeprefix("bytes=").split("-")
            start, status = int(first) if first else max(0, len(content) - int(last)), 206
            end = min(len(content), int(last) + 1) if first and last else end
            if start >= len(content):
                self.requests.append((path, asked, 0))
                return head(416, {"Content-Length": "0"})
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
        body = content[start:end]
        sent = body[: self.cut_after.pop(path, len(body))]
        self.requests.append((path, asked, len(sent)))
        with suppress(ConnectionError):  # the client may have read enough
            head(status, headers | {"Content-Length": str(self.lengths.get(path, len(body)))})
            handler.wfile.write(sent)
        handler.close_connection = True
        return None
