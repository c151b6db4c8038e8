"""When chunks are due and how they fit together, for every length and policy."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatterbox_engine.synthesis.join import join
from chatterbox_engine.synthesis.streaming import (
    CONTEXT,
    LARGEST,
    LOOKAHEAD,
    OVERLAP,
    ChunkPolicy,
    Cursor,
    Joiner,
    Span,
    crossfade,
)
from chatterbox_engine.types import SAMPLES_PER_TOKEN, Samples

policies = st.builds(ChunkPolicy, first=st.integers(1, LARGEST), chunk=st.integers(1, LARGEST))
lengths = st.integers(0, 1000)
PROMPT = 250  # tokens of the longest voice prompt: ten seconds


def chunked(policy: ChunkPolicy, segments: list[int], seen: list[int] | None = None) -> list[Span]:
    """All spans of a stream; `seen` says how many tokens there are each time that the cursor is asked."""
    cursor, spans = Cursor(policy), list[Span]()
    while cursor.segment < len(segments):
        total = segments[cursor.segment]
        steps = range(total + 1) if seen is None else [*(min(total, it) for it in seen), total]
        for tokens in steps:
            segment = cursor.segment
            if (span := cursor.take(tokens, complete=tokens == total)) is not None:
                spans.append(span)
            if cursor.segment != segment:
                break
    return spans


def wave_of(tokens: int) -> Samples:
    return np.sin(np.arange(tokens * SAMPLES_PER_TOKEN) / 30).astype(np.float32)


def window(wave: Samples, span: Span) -> Samples:
    return wave[span.start * SAMPLES_PER_TOKEN : span.stop * SAMPLES_PER_TOKEN]


@given(policy=policies, tokens=lengths)
@settings(deadline=None)
def test_chunks_cover_an_utterance_once_in_order_and_the_last_says_so(policy: ChunkPolicy, tokens: int) -> None:
    spans = chunked(policy, [tokens])
    assert [span.begin for span in spans] == [0, *(span.end for span in spans[:-1])]
    assert spans[-1].end == tokens
    assert [span.last for span in spans] == [False] * (len(spans) - 1) + [True]
    for number, span in enumerate(spans):
        assert 0 <= span.start <= span.begin <= span.end <= span.stop <= tokens
        assert span.begin - span.start == min(CONTEXT, span.begin)
        assert span.stop - span.end == (0 if span.last else LOOKAHEAD)
        assert span.last or span.end - span.begin == policy.size(number)


@given(policy=policies, tokens=lengths, seen=st.lists(st.integers(0, 1000)).map(sorted))
@settings(deadline=None)
def test_chunks_do_not_depend_on_when_the_cursor_is_asked(policy: ChunkPolicy, tokens: int, seen: list[int]) -> None:
    spans = chunked(policy, [tokens], seen=[*seen, *[tokens] * 1000])
    assert spans == chunked(policy, [tokens])


@given(policy=policies, segments=st.lists(lengths, min_size=1, max_size=4), pause=st.floats(0, 0.3))
@settings(deadline=None, max_examples=50)
def test_chunks_of_one_waveform_add_up_to_what_join_makes_of_it(
    policy: ChunkPolicy, segments: list[int], pause: float
) -> None:
    waves = [wave_of(tokens) for tokens in segments]
    pauses = [pause] * len(segments)
    cursor, joiner, parts = Cursor(policy), Joiner(pauses), list[Samples]()
    while (segment := cursor.segment) < len(segments):
        span = cursor.take(segments[segment], complete=True)
        assert span is not None
        parts.append(joiner.add(window(waves[segment], span), span))
    np.testing.assert_allclose(np.concatenate(parts), join(waves, pauses), atol=1e-6)


@pytest.mark.parametrize("tokens", [0, 1, 2, 13, 1000])
def test_one_chunk_is_the_utterance_untouched(tokens: int) -> None:
    wave = wave_of(tokens)
    np.testing.assert_array_equal(Joiner([0.0]).add(wave, Span.whole(tokens)), wave)


def test_the_first_chunk_is_due_after_its_tokens_and_the_lookahead() -> None:
    cursor = Cursor(ChunkPolicy(first=5))
    assert [cursor.take(tokens, complete=False) for tokens in range(5 + LOOKAHEAD)] == [None] * (5 + LOOKAHEAD)
    assert cursor.take(5 + LOOKAHEAD, complete=False) == Span(0, 0, 5, 5 + LOOKAHEAD, last=False)


def test_sizes_grow_to_the_largest() -> None:
    sizes = [ChunkPolicy(first=4, chunk=1).size(number) for number in range(2000)]
    assert sizes[:4] == [4, 1, 3, 9]
    assert set(sizes[10:]) == {LARGEST}


@pytest.mark.parametrize("tokens", [250, 500, 1000, 4000])
def test_a_stream_costs_at_most_twice_the_frames_of_the_whole_answer(tokens: int) -> None:
    computed = sum(PROMPT + span.tokens for span in chunked(ChunkPolicy(), [tokens]))
    assert computed <= (2 if tokens >= 1000 else 3) * (PROMPT + tokens)


def test_playback_does_not_starve_when_tokens_come_at_four_times_real_time() -> None:
    policy, ready, played = ChunkPolicy(), 0.0, 0.0
    for number in range(8):
        tokens = sum(policy.size(n) for n in range(number + 1)) + LOOKAHEAD
        ready = tokens / (4 * 25) + 0.1  # decoded, then 100 ms in the vocoder
        assert number == 0 or ready <= played, f"chunk {number}"
        played = max(ready, played) + policy.size(number) / 25


def test_a_crossfade_goes_from_one_to_the_other_and_keeps_what_both_share() -> None:
    before, after = np.ones(OVERLAP, dtype=np.float32), np.zeros(2 * OVERLAP, dtype=np.float32)
    faded = crossfade(before, after)
    assert len(faded) == 2 * OVERLAP
    assert faded[0] == 1
    assert (np.diff(faded[:OVERLAP]) < 0).all()
    assert faded[OVERLAP:].max() == 0
    np.testing.assert_allclose(crossfade(before, np.ones(OVERLAP, dtype=np.float32)), 1, atol=1e-6)


def test_what_the_front_needs_loads_no_torch() -> None:
    program = (
        "import sys, chatterbox_engine.synthesis.streaming;"
        "import chatterbox_engine.serving.wire, chatterbox_engine.serving.reply;"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
