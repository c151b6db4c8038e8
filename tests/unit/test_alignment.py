"""Characters over the chunks of their sentence."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from chatterbox_client.audio import Word
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
    assert placed == "".join(f"{sentence.strip()} " for sentence, _ in sentences)
    words = alignment.words()
    assert [word.word for word in words] == placed.split()
    times = [time for word in words for time in (word.start, word.end)]
    assert times == sorted(times)


def test_word_times_of_the_server_place_the_characters() -> None:
    alignment = Alignment()
    alignment.place("Hm.", 0, silence=0, seconds=0.5, is_last=True)
    words = [Word("One", 0.1, 0.4, (0, 3)), Word("two,", 0.5, 0.9, (4, 8)), Word("six.", 1.0, 1.2, (9, 13))]
    first = alignment.place("One two, six.", 1, silence=0.3, seconds=1.0, is_last=False, words=words[:2])
    assert first is not None
    assert (first.chars, first.since) == ("One two,", 500)
    assert first.bounds == (900, 1_000, 1_100, 1_200, 1_300, 1_400, 1_500, 1_600, 1_700)
    last = alignment.place("One two, six.", 1, silence=0, seconds=0.5, is_last=True, words=words[2:])
    assert last is not None
    assert (last.chars, last.since) == (" six. ", 1_700)
    assert last.bounds == (1_700, 1_800, 1_850, 1_900, 1_950, 2_000, 2_300)
    assert [(word.word, word.start, word.end) for word in alignment.words()[1:]] == [
        ("One", 0.9, 1.2),
        ("two,", 1.3, 1.7),
        ("six.", 1.8, 2.0),
    ]


def test_word_times_of_faster_speech_are_nearer() -> None:
    words = [Word("One", 0.2, 0.6, (0, 3))]
    aligned = Alignment().place("One", 0, silence=0, seconds=0.5, is_last=True, words=words, speed=2.0)
    assert aligned is not None
    assert aligned.bounds == (100, 166, 233, 300, 500)


def test_a_chunk_gets_characters_at_the_speed_of_the_sentences_before() -> None:
    alignment = Alignment()
    first = alignment.place("a" * 30, 0, silence=0, seconds=1, is_last=False)
    assert first is not None
    assert first.chars == "a" * 15
    alignment.place("a" * 30, 0, silence=0, seconds=2.1, is_last=True)
    second = alignment.place("b" * 30, 1, silence=0.3, seconds=1, is_last=False)
    assert second is not None
    assert (second.chars, second.bounds[0]) == ("b" * 10, 3_400)
