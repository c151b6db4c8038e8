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
    assert (first.chars, first.since) == ("One two, ", 500)
    assert first.bounds == (900, 1_000, 1_100, 1_200, 1_300, 1_433, 1_566, 1_700, 1_700, 1_700)
    last = alignment.place("One two, six.", 1, silence=0, seconds=0.5, is_last=True, words=words[2:])
    assert last is not None
    assert (last.chars, last.since) == ("six. ", 1_700)
    assert last.bounds == (1_800, 1_866, 1_933, 2_000, 2_150, 2_300)
    assert [(word.word, word.start, word.end) for word in alignment.words()[1:]] == [
        ("One", 0.9, 1.2),
        ("two,", 1.3, 1.7),
        ("six.", 1.8, 2.0),
    ]


def test_what_is_between_words_fills_the_time_between_them() -> None:
    words = [Word('"Hi",', 0.1, 0.3, (0, 5)), Word("-", 0.4, 0.4, (6, 7)), Word("you", 0.7, 1.0, (7, 10))]
    aligned = Alignment().place('"Hi", -you', 0, silence=0, seconds=1.0, is_last=True, words=words)
    assert aligned is not None
    assert aligned.bounds == (0, 100, 200, 300, 333, 366, 400, 700, 800, 900, 1_000, 1_000)


TIMED = st.lists(
    st.tuples(st.text("ab.\N{CJK UNIFIED IDEOGRAPH-4E00}-", min_size=1, max_size=6), st.text(" \n", max_size=2))
)


@given(st.lists(TIMED, max_size=3), st.data())
def test_characters_of_timed_words_are_placed_once_in_order_within_the_audio(
    sentences: list[list[tuple[str, str]]], data: st.DataObject
) -> None:
    alignment, placed, clock, sent = Alignment(), "", 0, list[str]()
    for number, parts in enumerate(sentences):
        sentence = "".join(word + blank for word, blank in parts)
        chunks = data.draw(st.lists(st.floats(0.01, 2), min_size=1, max_size=5))
        count = 2 * len(parts)
        times = sorted(data.draw(st.lists(st.floats(0, sum(chunks)), min_size=count, max_size=count)))
        words, at, heard = list[Word](), 0, 0.0
        for index, (word, blank) in enumerate(parts):
            words.append(Word(word, times[2 * index], times[2 * index + 1], (at, at + len(word))))
            at += len(word + blank)
        for index, seconds in enumerate(chunks):
            heard, last = heard + seconds, index == len(chunks) - 1
            ended = [word for word in words if last or word.end <= heard]
            del words[: len(ended)]
            sent += [word.word for word in ended]
            silence = 0.3 if number and not index else 0.0
            aligned = alignment.place(sentence, number, silence=silence, seconds=seconds, is_last=last, words=ended)
            if aligned is not None:
                placed += aligned.chars
                assert aligned.since == clock
                assert clock <= aligned.bounds[0]
                assert list(aligned.bounds) == sorted(aligned.bounds)
                assert len(aligned.bounds) == len(aligned.chars) + 1
                clock = aligned.bounds[-1]
                assert clock <= round(alignment.seconds * 1_000)
    texts = ["".join(word + blank for word, blank in parts) for parts in sentences]
    assert placed.split(" ") == "".join(f"{text.strip()} " for text in texts).replace("\n", " ").split(" ")
    assert [word.word for word in alignment.words()] == sent


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
