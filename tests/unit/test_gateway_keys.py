"""Keys of the gateway and their limits."""

from __future__ import annotations

import asyncio

import pytest

from chatterbox_gateway.errors import Refusal
from chatterbox_gateway.keys import Caller, Keys, Limits
from tests.unit.client_fakes import FakeAsyncTransport
from tests.unit.gateway_fakes import SPEECH, call, client_within, gateway_of
from tests.unit.test_gateway_draining import Gated


class Clock:
    """Goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def speak(caller: Caller, characters: int) -> None:
    with caller.speaking(characters):
        pass


def retry_after(caller: Caller, characters: int) -> int:
    with pytest.raises(Refusal) as caught:
        speak(caller, characters)
    assert caught.value.status == 429
    return int(caught.value.headers["Retry-After"])


def test_characters_come_back_steadily() -> None:
    clock = Clock()
    caller = Caller("anna", Limits(characters=60), clock)
    speak(caller, 40)
    assert retry_after(caller, 30) == 10
    clock.now = 9.9
    assert retry_after(caller, 30) == 1
    clock.now = 10.0
    speak(caller, 30)
    clock.now = 1_000.0  # a pause does not save more than a minute's
    speak(caller, 60)
    assert retry_after(caller, 1) == 1


def test_a_long_text_needs_a_whole_minute_and_is_paid_for() -> None:
    clock = Clock()
    caller = Caller("anna", Limits(characters=60), clock)
    speak(caller, 120)
    clock.now = 60.0
    assert retry_after(caller, 1) == 1
    clock.now = 61.0
    speak(caller, 1)


def test_a_request_that_is_refused_costs_nothing() -> None:
    caller = Caller("anna", Limits(requests=1, characters=60), Clock())
    with caller.speaking(30):
        assert retry_after(caller, 30) == 1
    speak(caller, 30)


def test_keys_are_named_by_their_place_if_by_nothing_else() -> None:
    for wrong in (["anna:one", ""], ["anna:"], [":one"], ["anna:one", "anna:two"], ["one", "key1:two"]):
        with pytest.raises(ValueError, match=r"empty|stands twice"):
            Keys(wrong, Limits())


def test_each_key_has_its_own_limit_of_requests() -> None:
    async def main() -> None:
        transport = Gated()
        gateway = gateway_of(transport, keys=["anna:one", "berta:two"], limits=Limits(requests=1))
        anna, berta = ({"Authorization": f"Bearer {key}"} for key in ("one", "two"))
        async with client_within(gateway) as client:
            whole = {**SPEECH, "stream": False}
            first = asyncio.create_task(client.post("/v1/audio/speech", json=whole, headers=anna))
            await transport.asked.wait()
            refused = await client.post("/v1/audio/speech", json=whole, headers=anna)
            assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
            assert "1 requests of this key are under way" in refused.json()["error"]["message"]
            assert (await client.get("/v1/models", headers=anna)).status_code == 200
            second = asyncio.create_task(client.post("/v1/audio/speech", json=whole, headers=berta))
            transport.gate.set()
            assert [(await task).status_code for task in (first, second)] == [200, 200]
            assert (await client.post("/v1/audio/speech", json=whole, headers=anna)).status_code == 200

    asyncio.run(main())


def test_a_stream_is_refused_before_it_begins_too() -> None:
    gateway = gateway_of(FakeAsyncTransport(), limits=Limits(characters=6))
    assert call(gateway, "POST", "/v1/audio/speech", json=SPEECH).status_code == 200
    for path, body in (("/v1/audio/speech", SPEECH), ("/generate", {"text": "Hello."})):
        refused = call(gateway, "POST", path, json=body)
        assert (refused.status_code, int(refused.headers["Retry-After"]) > 50) == (429, True)


def test_a_keys_requests_may_all_be_batch_work() -> None:
    transport = FakeAsyncTransport()
    gateway = gateway_of(transport, keys=["anna:one", "berta:two"], batch_keys=["berta"])
    for key, sent in (("one", {}), ("one", {"priority": "batch"}), ("two", {}), ("two", {"stream": False})):
        bearer = {"Authorization": f"Bearer {key}"}
        assert call(gateway, "POST", "/v1/audio/speech", json=SPEECH | sent, headers=bearer).status_code == 200
    priorities = [
        tensors["priority"].item() if "priority" in tensors else None for _, tensors, _, _ in transport.sync.calls
    ]
    assert priorities == [None, b"batch", b"batch", b"batch"]
    bearer = {"Authorization": "Bearer two"}
    refused = call(gateway, "POST", "/v1/audio/speech", json={**SPEECH, "priority": "live"}, headers=bearer)
    assert refused.status_code == 403
    assert "this key speaks with priority batch only" in refused.json()["error"]["message"]
