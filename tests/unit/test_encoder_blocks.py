"""The encoder's scores by distance, seen by key."""

from __future__ import annotations

import pytest
import torch

from chatterbox_engine.s3gen.encoder import _by_key


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 129), (2, 2), (20, 50), (128, 128)])
def test_a_key_is_found_at_its_distance(queries: int, keys: int) -> None:
    scores = torch.randn(2, 3, queries, keys + queries - 1)
    query, key = torch.arange(queries)[:, None], torch.arange(keys)
    assert torch.equal(_by_key(scores, keys), scores[:, :, query, queries - 1 - query + key])
