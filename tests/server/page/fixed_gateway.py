"""A gateway of fixed answers for tests of the page: it speaks tones, and does what a test tells it."""

from __future__ import annotations

import base64
import contextlib
import json
import math
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

PAGE = Path(__file__).parents[3] / "gateway" / "chatterbox_gateway" / "page"
RATE = 24_000
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


def _number(default: float, low: float, high: float, *, integer: bool = False) -> dict[str, Any]:
    return {"default": default, "minimum": low, "maximum": high, "integer": integer}


INFO: dict[str, Any] = {
    "model_type": "english",
    "parameters": {
        "exaggeration": _number(0.5, 0, 2),
        "cfg_weight": _number(0.5, 0, 3),
        "temperature": _number(0.8, 0, 5),
        "top_p": _number(1.0, 0, 1),
        "min_p": _number(0.05, 0, 1),
        "repetition_penalty": _number(1.2, 0, 10),
        "speed": _number(1.0, 0.25, 4),
    },
    "presets": {
        "upstream": {},
        "calm": {"exaggeration": 0.3, "cfg_weight": 0.6, "temperature": 0.6},
        "happy": {"exaggeration": 0.7, "cfg_weight": 0.4, "temperature": 0.8},
        "dramatic": {"exaggeration": 0.8, "cfg_weight": 0.3, "temperature": 0.8},
    },
    "languages": ["en"],
    "language": "en",
    "max_characters": 10_000,
    "change_voices": True,
}


@dataclass
class FixedGateway:
    """Runs between `__enter__` and `__exit__`. The fields may be changed at any time.

    The page is at `address`, below a path as behind a proxy.
    """

    info: dict[str, Any] = field(default_factory=lambda: dict(INFO))
    models: list[str] = field(default_factory=lambda: ["chatterbox"])
    key: str = ""
    """The API key that requests need; empty: none."""
    refusal: tuple[int, str] | None = None
    """Status and message of every request to speak."""
    breaks: bool = False
    """Whether streams break off after their first half second."""
    spoken: list[dict[str, Any]] = field(default_factory=list)
    """Bodies of the requests to speak; without those that are refused because there are no words."""
    words: list[dict[str, Any]] = field(default_factory=list)
    """What streams say of their words, if anything."""
    voices: list[str] = field(default_factory=lambda: ["default", "anna"])
    released: threading.Event = field(default_factory=threading.Event)
    """Streams wait for it after their first half second."""
    disconnected: threading.Event = field(default_factory=threading.Event)
    """A client closed its connection before its stream had ended."""

    connections: list[socket.socket] = field(default_factory=list)

    def __enter__(self) -> FixedGateway:
        self.released.set()
        self._http = _Server(self)
        self.address = f"http://127.0.0.1:{self._http.server_port}/speech/"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.released.set()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()
        for connection in self.connections:  # which browsers keep open
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def tone(seed: int, seconds: float = 1.5) -> bytes:
    """16-bit samples with the swell of syllables."""
    time = np.arange(int(seconds * RATE)) / RATE
    swell = 0.15 + 0.85 * np.abs(np.sin(math.pi * 2.1 * time + seed)) * np.abs(np.sin(math.pi * 0.45 * time + 0.6))
    wave = 0.5 * swell * np.sin(2 * math.pi * (120 + seed % 80) * time)
    return np.int16(wave * 32_767).tobytes()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, gateway: FixedGateway) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.gateway = gateway


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.server.gateway.connections.append(self.connection)

    def do_GET(self) -> None:
        path = self.path.removeprefix("/speech").split("?")[0]
        answers: dict[str, Any] = {
            "/health": {"status": "ok"},
            "/model/info": self.server.gateway.info,
            "/v1/models": {"data": [{"id": name} for name in self.server.gateway.models]},
            "/v1/audio/voices": {"voices": [{"id": name} for name in self.server.gateway.voices]},
            "/status": {"slots_active": 3, "slots_free": 61, "queue": 0, "rtf_mean": 0.12},
        }
        if path in answers:
            if path == "/health" or self._is_allowed():
                self._answer(200, json.dumps(answers[path]).encode())
            return
        file = PAGE / ("index.html" if path == "/" else path.removeprefix("/page/"))
        if file.is_file():
            self._answer(200, file.read_bytes(), TYPES[file.suffix])
        else:
            self._refuse(404, f"there is no {path}")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if not self._is_allowed():
            return
        if self.path.endswith("/v1/audio/voices"):
            self.server.gateway.voices.append("bea")
            assert b'name="name"\r\n\r\nbea\r\n' in body
            self._answer(200, b"{}")
            return
        request = json.loads(body)
        if request.get("word_times") and not self.server.gateway.words:
            self._refuse(400, "word_times: which attention heads of this checkpoint follow the text is not known")
            return
        self.server.gateway.spoken.append(request)
        if self.server.gateway.refusal:
            self._refuse(*self.server.gateway.refusal)
        elif request["response_format"] == "pcm":
            self._stream(request["seed"])
        else:
            self._answer(200, b"ID3 not really", "audio/mpeg")

    def do_DELETE(self) -> None:
        self.server.gateway.voices.remove(self.path.rpartition("/")[2])
        self._answer(200, b"{}")

    def _is_allowed(self) -> bool:
        if self.server.gateway.key and self.headers.get("Authorization") != f"Bearer {self.server.gateway.key}":
            self._refuse(401, "the API key is missing or wrong")
            return False
        return True

    def _stream(self, seed: int) -> None:
        self.send_response(200)
        words = self.server.gateway.words
        self.send_header("Content-Type", "text/event-stream" if words else "audio/pcm")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for piece in _events(_pieces(tone(seed)), words) if words else _pieces(tone(seed)):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                self.wfile.flush()
                self._wait()
                if self.server.gateway.breaks:
                    self.close_connection = True
                    return
            self.wfile.write(b"0\r\n\r\n")
        except ConnectionError:
            self.server.gateway.disconnected.set()

    def _wait(self) -> None:
        """Until the test lets the stream go on, or the client disconnects."""
        self.connection.settimeout(0.05)
        while not self.server.gateway.released.is_set():
            try:
                if not self.connection.recv(1):
                    raise ConnectionError
            except TimeoutError:
                continue

    def _refuse(self, status: int, message: str) -> None:
        self._answer(status, json.dumps({"error": {"message": message}}).encode())

    def _answer(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def _events(pieces: Iterator[bytes], words: list[dict[str, Any]]) -> Iterator[bytes]:
    """The words before the audio, and the last event in two parts."""
    events: list[dict[str, Any]] = [{"type": "speech.audio.words", "words": words}]
    events += [{"type": "speech.audio.delta", "audio": base64.b64encode(piece).decode()} for piece in pieces]
    lines = [f"data: {json.dumps(event)}\n\n".encode() for event in [*events, {"type": "speech.audio.done"}]]
    yield from [b"".join(lines[:2]), *lines[2:-1], lines[-1][:9], lines[-1][9:]]


def _pieces(samples: bytes) -> Iterator[bytes]:
    """Half a second, then the rest in pieces of an odd number of bytes."""
    yield samples[:RATE]
    for start in range(RATE, len(samples), 9_999):
        yield samples[start : start + 9_999]
