"""Models that are unloaded when nobody uses them, and loaded for the next request."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from chatterbox_client import Unavailable
from chatterbox_gateway.idle import IdleModels, TritonControl
from tests.unit.client_fakes import FakeAsyncTransport
from tests.unit.gateway_fakes import SPEECH, client_within, gateway_of

UNLOADED = ["unload chatterbox_stream", "unload chatterbox"]
LOADED = ["load chatterbox", "load chatterbox_stream"]


class Server:
    """One whose models are controlled, and the clock."""

    def __init__(self, *, loaded: bool = True) -> None:
        self.now = 0.0
        self.calls: list[str] = []
        self.error: OSError | None = None
        self.activity = 0.0
        self.gate = asyncio.Event()
        self.gate.set()
        self.models = IdleModels(
            self, ["chatterbox"], 60.0, loaded=self.loaded, active=self.active, clock=lambda: self.now
        )
        self._loaded = loaded

    async def load(self, model: str) -> None:
        await self._do("load", model)

    async def unload(self, model: str) -> None:
        await self._do("unload", model)

    async def _do(self, what: str, model: str) -> None:
        self.calls.append(f"{what} {model}")
        await self.gate.wait()
        if self.error is not None:
            raise self.error

    async def loaded(self) -> bool:
        return self._loaded

    async def active(self) -> float:
        return self.activity

    async def look_after(self, seconds: float) -> None:
        self.now += seconds
        await self.models.look()


async def use(server: Server) -> None:
    async with server.models.used():
        pass


def test_idle_models_are_unloaded_once_and_loaded_for_the_next_request() -> None:
    async def main() -> None:
        server = Server()
        await use(server)
        await server.look_after(59.0)
        assert server.calls == []
        for _ in range(2):
            await server.look_after(1.0)
            assert (server.calls, server.models.asleep) == (UNLOADED, True)
        await use(server)
        assert (server.calls, server.models.asleep) == ([*UNLOADED, *LOADED], False)

    asyncio.run(main())


def test_a_request_under_way_keeps_them() -> None:
    async def main() -> None:
        server = Server()
        async with server.models.used():
            await server.look_after(600.0)
        await server.look_after(59.0)
        assert server.calls == []

    asyncio.run(main())


def test_requests_that_do_not_come_through_the_gateway_keep_them_too() -> None:
    async def main() -> None:
        server = Server()
        server.activity = 1.0
        await server.look_after(600.0)
        server.activity = math.inf
        for _ in range(2):
            await server.look_after(600.0)
        server.activity = 2.0
        await server.look_after(1.0)
        await server.look_after(59.0)
        assert server.calls == []
        await server.look_after(1.0)
        assert server.calls == UNLOADED

    asyncio.run(main())


def test_what_the_gateways_own_requests_add_to_the_servers_count_postpones_nothing() -> None:
    async def main() -> None:
        server = Server()
        await use(server)
        server.activity = 1.0
        await server.look_after(60.0)
        assert server.calls == UNLOADED

    asyncio.run(main())


def test_requests_that_come_together_load_them_once_even_if_one_is_cancelled() -> None:
    async def main() -> None:
        server = Server(loaded=False)
        server.gate.clear()
        first, second = (asyncio.create_task(use(server)) for _ in range(2))
        while not server.calls:
            await asyncio.sleep(0)
        first.cancel()
        server.gate.set()
        await second
        assert server.calls == LOADED

    asyncio.run(main())


def test_models_that_cannot_be_loaded_are_unavailable_and_tried_again() -> None:
    async def main() -> None:
        server = Server(loaded=False)
        server.error = OSError("Triton answers 400: no memory")
        with pytest.raises(Unavailable, match="the model could not be loaded: Triton answers 400: no memory"):
            await use(server)
        server.error = None
        await use(server)
        assert server.calls == ["load chatterbox", *LOADED]

    asyncio.run(main())


def test_models_that_cannot_be_unloaded_serve_on() -> None:
    async def main() -> None:
        server = Server()
        await use(server)
        server.error = OSError("refused")
        await server.look_after(60.0)
        assert not server.models.asleep
        await use(server)
        assert server.calls == UNLOADED[:1]

    asyncio.run(main())


class Triton(BaseHTTPRequestHandler):
    """Refuses the model `broken`."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        paths.append(f"{self.path} {self.headers['token']}")
        text = b"no such model" if "broken" in self.path else b""
        self.send_response(400 if text else 200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *_args: object) -> None:
        pass


paths: list[str] = []


@contextmanager
def triton() -> Iterator[str]:
    paths.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Triton) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def test_tritons_api_is_used_with_the_headers_that_it_asks_for() -> None:
    async def main(url: str) -> None:
        control = TritonControl(url, {"token": "secret"})
        await control.load("turbo")
        await control.unload("turbo")
        with pytest.raises(OSError, match="Triton answers 400: no such model"):
            await control.load("broken")

    with triton() as url:
        asyncio.run(main(url))
    assert paths[:2] == ["/v2/repository/models/turbo/load secret", "/v2/repository/models/turbo/unload secret"]


class Sleeping(FakeAsyncTransport):
    """A server whose models are not loaded when the gateway starts."""

    async def ready(self, model: str, timeout: float | None) -> bool:
        return False


def test_a_gateway_loads_the_models_for_its_first_request() -> None:
    async def main(url: str) -> None:
        gateway = gateway_of(Sleeping(), models=["chatterbox"], idle_unload=60.0, control_url=url)
        async with client_within(gateway) as client:
            assert (await client.get("/health")).status_code == 503
            for stream in (True, False):
                answer = await client.post("/v1/audio/speech", json={**SPEECH, "stream": stream})
                assert answer.status_code == 200

    with triton() as url:
        asyncio.run(main(url))
    assert [path.split()[0].rpartition("models/")[2] for path in paths] == ["chatterbox/load", "chatterbox_stream/load"]


def test_a_gateway_whose_models_cannot_be_loaded_says_so() -> None:
    async def main(url: str) -> None:
        gateway = gateway_of(Sleeping(), models=["broken"], idle_unload=60.0, control_url=url)
        async with client_within(gateway) as client:
            answer = await client.post("/v1/audio/speech", json={**SPEECH, "model": "broken", "voice": None})
            assert answer.status_code == 503
            assert "could not be loaded: Triton answers 400: no such model" in answer.json()["error"]["message"]

    with triton() as url:
        asyncio.run(main(url))
