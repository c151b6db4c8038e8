"""Inputs of a batch: rows of every format, and the parts that they are split into."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatterbox_batch.parts import parts_of, split
from chatterbox_batch.rows import Row, make_row
from chatterbox_batch.sources import InputError, read_rows


def rows(path: Path, *ignored: str) -> list[Row]:
    return list(read_rows(str(path), ignored))


def test_jsonl_has_any_input_of_a_request(tmp_path: Path) -> None:
    lines = [
        {"id": 7, "text": "One.", "voice": "anna", "seed": 3, "temperature": 0.5, "lexicon": {"a": "b"}},
        {"text": "Two.", "voice": None},
    ]
    path = tmp_path / "texts.jsonl"
    path.write_text("\n\n".join(json.dumps(line) for line in lines))
    assert rows(path) == [
        Row("7", "One.", {"voice": "anna", "seed": 3, "temperature": 0.5, "lexicon": {"a": "b"}}),
        Row("texts-000003", "Two."),
    ]


def test_csv_has_the_same_types_and_long_texts(tmp_path: Path) -> None:
    path = tmp_path / "texts.csv"
    long = "word " * 40_000
    path.write_text(f'id,text,seed,top_p,lexicon\n007,"Hello, you.",3,0.5,"{{""a"": ""b""}}"\n8,{long},,,\n')
    assert rows(path) == [
        Row("007", "Hello, you.", {"seed": 3, "top_p": 0.5, "lexicon": {"a": "b"}}),
        Row("8", long),
    ]


def test_parquet_with_gaps_keeps_integers_and_clips(tmp_path: Path) -> None:
    path = tmp_path / "texts.parquet"
    table = {"id": ["a", "b"], "text": ["One.", "Two."], "seed": [5.0, None], "reference_audio": [b"RIFF", None]}
    pq.write_table(pa.table(table), path)
    clip = "data:;base64," + base64.b64encode(b"RIFF").decode()
    assert rows(path) == [Row("a", "One.", {"seed": 5, "reference_audio": clip}), Row("b", "Two.")]


def test_a_folder_of_texts_is_named_by_its_files(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "b.txt").write_text("\ufeffTwo.\n", encoding="utf-8")
    (tmp_path / "deep" / "a.txt").write_text("One.")
    (tmp_path / "notes.pdf").write_text("nothing")
    assert [(row.id, row.text) for row in rows(tmp_path)] == [("b", "Two."), ("deep/a", "One.")]


def test_a_uri_is_read_as_a_path_is(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One.")
    assert list(read_rows(f"file://{tmp_path}")) == [Row("a", "One.")]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "line 1 is no JSON"),
        ("[1]", "line 1 is no JSON object"),
        ('{"id": "x"}', "the column 'text' is missing"),
        ('{"text": "One.", "mood": "glad"}', "unknown column 'mood'"),
        ('{"text": "One.", "seed": "many"}', "seed is 'many'; it must be an integer"),
        ('{"text": "\\ud800"}', "surrogates not allowed"),
        ('{"text": "One.", "seed": 9223372036854775808}', "it must be an integer of 64 bits"),
        ('{"text": "One.", "seed": 1.5}', "seed is 1.5; it must be an integer"),
        ('{"text": "One.", "top_p": "high"}', "top_p is 'high'; it must be a number"),
        ('{"text": "One.", "voice": 3}', "voice is 3; it must be a text"),
        ('{"text": "One.", "lexicon": "[]"}', "lexicon is '[]'; it must be a JSON object"),
    ],
)
def test_a_wrong_row_has_an_error_and_the_next_is_read(tmp_path: Path, line: str, complaint: str) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text(line + '\n{"text": "Two."}')
    wrong, right = rows(path)
    assert complaint in wrong.error
    assert right == Row("texts-000002", "Two.")


def test_an_ignored_column_is_left_out() -> None:
    assert make_row({"text": "One.", "mood": "glad"}, "1", ["mood"]) == Row("1", "One.")


def test_the_second_row_of_an_id_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text('{"id": "a", "text": "One."}\n{"id": "a", "text": "Two."}')
    first, second = rows(path)
    assert first == Row("a", "One.")
    assert (second.id, second.error) == ("a (row 2)", "the id 'a' is also that of an earlier row")


def test_a_text_that_is_not_utf8_is_a_row_with_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe")
    (row,) = rows(tmp_path)
    assert row.error.startswith("not UTF-8")


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("none.jsonl", None, "no such file"),
        ("some.pdf", "", "use a file of"),
        ("some.csv", "id,words\n1,2\n", "one of them 'text'"),
    ],
)
def test_an_input_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: str | None, complaint: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=complaint):
        rows(path)


def test_an_empty_folder_and_an_unknown_scheme_are_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file of"):
        rows(tmp_path)
    with pytest.raises(InputError, match="nowhere"):
        list(read_rows("nowhere://bucket/texts.jsonl"))


def pieces(text: str, limit: int) -> list[tuple[str, float]]:
    return [(piece.text, piece.pause) for piece in split(text, limit)]


def test_a_text_is_split_at_paragraphs_first() -> None:
    text = "One one one.\nStill one.\n\nTwo two two.\n\nThree three three."
    assert pieces(text, 40) == [("One one one.\nStill one.\n\nTwo two two.", 0.6), ("Three three three.", 0.0)]


def test_a_long_paragraph_is_split_at_sentences_but_not_after_abbreviations() -> None:
    text = "Then Dr. A. Smith came in. He sat down! Nobody said so."
    assert pieces(text, 27) == [
        ("Then Dr. A. Smith came in.", 0.3),
        ("He sat down!", 0.3),
        ("Nobody said so.", 0.0),
    ]


def test_a_long_sentence_is_split_at_clauses_then_at_spaces_then_anywhere() -> None:
    assert pieces("some words, more words here, end", 20) == [
        ("some words,", 0.15),
        ("more words here, end", 0.0),
    ]
    assert pieces("x" * 25, 10) == [("x" * 10, 0.0), ("x" * 10, 0.0), ("x" * 5, 0.0)]


def test_japanese_is_split_after_its_own_stops() -> None:
    assert [text for text, _ in pieces("\u3042\u3044\u3002\u3046\u3048\u3002\u304a\u304b\u3002", 6)] == [
        "\u3042\u3044\u3002\u3046\u3048\u3002",
        "\u304a\u304b\u3002",
    ]


@given(st.text(alphabet="ab .,!\n\u3002", max_size=400), st.integers(1, 60))
def test_a_split_loses_nothing_and_fits(text: str, limit: int) -> None:
    found = [piece.text for piece in split(text, limit)]
    assert "".join("".join(found).split()) == "".join(text.split())
    assert all(len(piece) <= limit for piece in found)


def test_seeds_are_the_rows_or_derived_and_the_same_in_every_run() -> None:
    text = "One sentence here. Another sentence there."
    given_seed = parts_of(Row("a", text, {"seed": 5}), limit=20)
    assert given_seed[0].seed == 5
    assert len({part.seed for part in given_seed}) == len(given_seed) > 1
    assert parts_of(Row("a", text), limit=20) == parts_of(Row("a", text), limit=20)
    assert parts_of(Row("a", text))[0].seed != parts_of(Row("b", text))[0].seed
    assert parts_of(Row("a", text), seed=1)[0].seed != parts_of(Row("a", text))[0].seed


def test_a_key_changes_with_what_is_said_and_how() -> None:
    def key(**changes: Any) -> str:
        return parts_of(Row(**{"id": "a", "text": "One.", "inputs": {"seed": 1}, **changes}))[0].key

    assert key() == key()
    assert len({key(), key(id="b"), key(text="Two."), key(inputs={"seed": 2}), key(inputs={"voice": "v"})}) == 5


def test_what_has_no_letter_is_no_part_of_its_own() -> None:
    text = "One sentence here.\n\n* * *\n\nAnother sentence."
    assert [part.text for part in parts_of(Row("a", text), limit=18)] == ["One sentence here.", "Another sentence."]
    assert [part.text for part in parts_of(Row("a", "..."))] == ["..."]


def test_ssml_is_never_split() -> None:
    row = Row("a", "<speak>" + "One sentence. " * 30 + "</speak>", {"markup": "auto"})
    assert len(parts_of(row, limit=60)) == 1
