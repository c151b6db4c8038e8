"""Fixtures of several units' tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def threads_kept() -> Iterator[None]:
    """For a test that sets torch's number of threads: later threads begin with the number that was set last."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
