"""Characters over the chunks of their sentence."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from chatterbox_gateway.alignment import Alignment

SENTENCES = st.lists(
    st.tuples(st.text("ab .", min_size=1, max_size=60), st.lists(st.floats(0.01, 3), min_size=1, max_size=6)),
    max_size=5,
)


@given(SENTENCES)
def test_all_characters_are_placed_once_in_order_within_the_audio(sentences: list[tuple[str, list[float]]]) -> None:
    alignment, placed, clock = Alignment(), "", 0
    for number, (sentence, chunks) in enumerate(sentences):
        for index, seconds in enumerate(chunks):
            silence = 0.3 if number and not index else 0.0
            last = index == len(chunks) - 1
            aligned = alignment.place(sentence, number, silence=silence, seconds=seconds, is_last=last)
            if aligned is not None:
                placed += aligned.chars
                assert aligned.since == clock
                assert list(aligned.bounds) == sorted(aligned.bounds)
                assert aligned.bounds[0] >= clock
                assert len(aligned.bounds) == len(aligned.chars) + 1
                clock = aligned.bounds[-1]
                assert clock == round(alignment.seconds * 1_000)
    assert placed == "".join(f"{' '.join(sentence.split())} " for sentence, _ in sentences)
    words = alignment.words()
    assert [word.word for word in words] == placed.split()
    times = [time for word in words for time in (word.start, word.end)]
    assert times == sorted(times)


def test_a_chunk_gets_characters_at_the_speed_of_the_sentences_before() -> None:
    alignment = Alignment()
    first = alignment.place("a" * 30, 0, silence=0, seconds=1, is_last=False)
    assert first is not None
    assert first.chars == "a" * 15
    alignment.place("a" * 30, 0, silence=0, seconds=2.1, is_last=True)
    second = alignment.place("b" * 30, 1, silence=0.3, seconds=1, is_last=False)
    assert second is not None
    assert (second.chars, second.bounds[0]) == ("b" * 10, 3_400)
