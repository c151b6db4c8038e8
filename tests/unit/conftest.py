"""Fixtures of several units' tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from tests.unit.voice_desk import Desk


@pytest.fixture
def threads_kept() -> Iterator[None]:
    """For a test that sets torch's number of threads: later threads begin with the number that was set last."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def open_desk(url: str) -> Iterator[Callable[..., Desk]]:
    opened: list[Desk] = []

    def open_one(store: str = url, **options: Any) -> Desk:
        opened.append(Desk(store, **options))
        return opened[-1]

    yield open_one
    for desk in opened:
        desk.encoder.gate.set()
        desk.voices.close()


@pytest.fixture
def desk(open_desk: Callable[..., Desk]) -> Desk:
    return open_desk().start()
