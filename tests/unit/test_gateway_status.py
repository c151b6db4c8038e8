"""What the gateway reads from the servers' metrics pages."""

from __future__ import annotations

import asyncio

import pytest

from chatterbox_gateway.server_status import ServerStatus
from tests.unit.test_gateway_classic import metrics_pages

WAITING = "chatterbox_utterances_waiting"


def waiting(status: ServerStatus) -> float | None:
    return asyncio.run(status.read("chatterbox")).number(WAITING)


def test_a_name_with_several_addresses_is_several_servers_whose_numbers_add_up() -> None:
    with metrics_pages(f'{WAITING}{{model="chatterbox"}} 3\n') as [url]:
        port = url.rpartition(":")[2]
        asked = []

        def resolve(host: str) -> list[str]:
            asked.append(host)
            return ["127.0.0.1", "127.0.0.1"]

        assert waiting(ServerStatus([f"servers.test:{port}"], resolve)) == 6
        assert asked == ["servers.test"]


@pytest.mark.parametrize("addresses", [[], ["192.0.2.1"]])
def test_a_name_with_one_address_is_read_by_its_name(addresses: list[str]) -> None:
    with metrics_pages(f'{WAITING}{{model="chatterbox"}} 3\n') as [url]:
        assert waiting(ServerStatus([url], lambda _host: addresses)) == 3
        assert waiting(ServerStatus([f"http://{url}/"], lambda _host: addresses)) == 3


def test_a_name_that_cannot_be_resolved_and_a_page_behind_tls_keep_their_names() -> None:
    def refuse(host: str) -> list[str]:
        assert host != "localhost", "an https page's name must not be resolved here"
        raise OSError("no such name")

    with metrics_pages(f'{WAITING}{{model="chatterbox"}} 3\n') as [url]:
        assert waiting(ServerStatus([url], refuse)) == 3
        assert waiting(ServerStatus([f"https://localhost:{url.rpartition(':')[2]}"], refuse)) is None
