"""Caches of voices and of other results, and conditionals as bytes."""

from __future__ import annotations

import torch

from chatterbox_engine.voices.cache import Memo, Voice, VoiceCache
from chatterbox_engine.voices.conditionals import from_bytes, to_bytes
from tests.unit.voice_desk import SIZE, conditionals


def test_the_cache_counts_bytes_and_drops_the_least_recently_used() -> None:
    cache = VoiceCache(2 * SIZE)
    for key in ("a", "b", "a"):
        cache.put(Voice(key, conditionals(1.0)))
    assert (cache.bytes, cache.full) == (2 * SIZE, False)
    cache.get("a")
    cache.put(Voice("c", conditionals(1.0)))
    assert (cache.get("b"), cache.full, cache.bytes) == (None, True, 2 * SIZE)
    assert cache.get("a") is not None


def test_computed_results_are_kept_by_their_size_and_the_least_recently_used_one_goes() -> None:
    memo: Memo[str] = Memo(5, len)
    made: list[str] = []

    def get(key: str) -> str:
        def compute() -> str:
            made.append(key)
            return key

        return memo.get(key, compute)

    assert [get(key) for key in ("aa", "bb", "aa", "cc", "aa", "bb")] == ["aa", "bb", "aa", "cc", "aa", "bb"]
    assert made == ["aa", "bb", "cc", "bb"]
    assert get("larger") == get("larger") == "larger"  # more than fit
    assert made[4:] == ["larger", "larger"]


def test_conditionals_survive_the_store_exactly() -> None:
    voice = conditionals(0.123)
    copy = from_bytes(to_bytes(voice))
    for one, other in (
        (voice.t3.speaker, copy.t3.speaker),
        (voice.t3.prompt_tokens, copy.t3.prompt_tokens),
        (voice.s3gen.prompt_tokens, copy.s3gen.prompt_tokens),
        (voice.s3gen.prompt_mel, copy.s3gen.prompt_mel),
        (voice.s3gen.embedding, copy.s3gen.embedding),
    ):
        assert torch.equal(one, other)
        assert one.dtype == other.dtype
    assert copy.exaggeration == voice.exaggeration
