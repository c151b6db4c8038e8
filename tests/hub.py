"""A Hugging Face hub with one repository, on this machine: the parts of its protocol that a download needs."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789" * 4


@dataclass
class Hub:
    """Serves a folder's files as `owner/name`."""

    folder: Path
    broken: set[str] = field(default_factory=set)
    """Files whose first download ends in the middle."""
    revisions: set[str] = field(default_factory=set)
    """What was asked for."""
    ranges: dict[str, str] = field(default_factory=dict)
    """Where downloads went on, by file."""
    url: str = ""

    @contextmanager
    def running(self) -> Iterator[Hub]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                hub.answer(self, body=False)

            def do_GET(self) -> None:
                hub.answer(self, body=True)

            def log_message(self, format: str, *args: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    def answer(self, to: BaseHTTPRequestHandler, *, body: bool) -> None:
        path = to.path.partition("?")[0]
        if match := re.fullmatch(r"/api/models/owner/name/revision/(.+)", path):
            self.revisions.add(match[1])
            files = [{"rfilename": file.name} for file in sorted(self.folder.iterdir())]
            self._send(to, 200, json.dumps({"id": "owner/name", "sha": COMMIT, "siblings": files}).encode(), body)
        elif match := re.fullmatch(r"/api/models/owner/name/tree/(.+)", path):
            tree = [
                {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": _etag(file)}
                for file in sorted(self.folder.iterdir())
            ]
            self._send(to, 200, json.dumps(tree).encode(), body)
        elif match := re.fullmatch(rf"/owner/name/resolve/{COMMIT}/(.+)", path):
            self._send_file(to, self.folder / match[1], body)
        else:
            self._send(to, 404, b"{}", body)

    def _send_file(self, to: BaseHTTPRequestHandler, file: Path, body: bool) -> None:
        data, start = file.read_bytes(), 0
        headers = {"ETag": f'"{_etag(file)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if body and (asked := to.headers.get("Range")):
            self.ranges[file.name] = asked
            start = int(asked.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        cut = body and file.name in self.broken
        self.broken -= {file.name} if cut else set()
        self._send(to, 206 if start else 200, data[start:], body, headers, len(data) // 2 if cut else None)

    def _send(
        self,
        to: BaseHTTPRequestHandler,
        status: int,
        data: bytes,
        body: bool,
        headers: dict[str, str] | None = None,
        cut: int | None = None,
    ) -> None:
        to.send_response(status)
        for name, value in (headers or {}).items():
            to.send_header(name, value)
        to.send_header("Content-Length", str(len(data)))
        to.end_headers()
        if body:
            to.wfile.write(data[:cut])
        to.close_connection = cut is not None


def _etag(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
