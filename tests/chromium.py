"""A real browser for the tests: Debian's Chromium, which shows one page and is ended when the page says it is done."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

WAIT = 240.0
"""Seconds for the page to be done: a browser starts slowly beside other tests."""


def find() -> str | None:
    """The browser's program."""
    return shutil.which("chromium")


def install() -> None:
    """Debian's package, as root."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update"], ["apt-get", "install", "--yes", "--no-install-recommends", "chromium"]):
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)


class Site:
    """A web site of one page, on a free port of 127.0.0.1. The page ends with a POST to `/done`, which is kept."""

    def __init__(self, host: str) -> None:
        """host: its name in its address, `127.0.0.1` or `localhost`."""
        self.page = ""
        self.said = ""
        self.done = threading.Event()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.origin = f"http://{host}:{self._http.server_port}"

    @contextmanager
    def served(self) -> Iterator[None]:
        """While the block runs."""
        thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield
        finally:
            self._http.shutdown()
            thread.join()
            self._http.server_close()

    def visit(self, browser: str, page: str) -> str:
        """Shows a page in the browser until it is done. Returns what it says then."""
        self.page = page
        self.done.clear()
        with self.served(), tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
            options = ["--headless", "--disable-gpu", "--no-first-run", f"--user-data-dir={profile}"]
            options += ["--no-sandbox"] if os.getuid() == 0 else []
            quiet = subprocess.DEVNULL
            with subprocess.Popen([browser, *options, self.origin], stdout=quiet, stderr=quiet) as process:
                try:
                    assert self.done.wait(WAIT), "the page is not done"
                finally:
                    process.terminate()
        return self.said


def _handler(site: Site) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(site.page if self.path == "/" else "")

        def do_POST(self) -> None:
            site.said = self.rfile.read(int(self.headers["Content-Length"])).decode()
            self._answer("")
            site.done.set()

        def _answer(self, body: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body.encode())))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler
