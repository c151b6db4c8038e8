"""Where a request's time goes, by Triton's timestamps."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bench.server import Sample, parts, read_traces

MS = 1_000_000


def stamps(number: int, model: str, **moments: int) -> list[dict[str, Any]]:
    """A request as Triton writes it: each timestamp an entry of its own, the model's name among them."""
    entries = [{"id": number, "timestamps": [{"name": name, "ns": at * MS}]} for name, at in moments.items()]
    return [*entries[:1], {"id": number, "model_name": model, "model_version": 1}, *entries[1:]]


def test_the_parts_of_a_request_add_up_to_all_but_the_engine_s_time() -> None:
    one = stamps(1, "chatterbox", REQUEST_START=11, COMPUTE_START=12, INFER_RESPONSE_COMPLETE=46)
    other = stamps(2, "chatterbox", REQUEST_START=91, COMPUTE_START=92, INFER_RESPONSE_COMPLETE=96)
    front = stamps(3, "chatterbox_stream", REQUEST_START=12, COMPUTE_START=13, INFER_RESPONSE_COMPLETE=14)
    traces = read_traces(json.dumps(one + other + front), "chatterbox")
    sample = Sample(called=10 * MS, answered=50 * MS, engine=30.0)
    assert parts(sample, traces) == {"to_triton": 1.0, "queue": 1.0, "model": 4.0, "back": 4.0}
    assert sum(parts(sample, traces).values()) == pytest.approx(sample.overhead)
