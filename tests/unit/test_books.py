"""Books: chapters of EPUB, Markdown and plain text; loudness on synthetic audio; the M4B and its marks."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyloudnorm
import pytest
from PIL import Image
from typer.testing import CliRunner

from chatterbox_batch.books import Block, Book, BookError, Chapter, epub
from chatterbox_batch.books.files import read_book
from chatterbox_batch.books.loudness import PRESETS, LufsMeter, RmsMeter, Target, levelled
from chatterbox_batch.books.m4b import peak_of, write_m4b
from chatterbox_batch.books.narration import Binding, Narration, Pauses, bind
from chatterbox_batch.books.texts import from_markdown, from_text
from chatterbox_batch.cli_book import book_app
from chatterbox_batch.folder import Folder
from chatterbox_batch.sources import read_rows
from chatterbox_client import Audio
from chatterbox_gateway.output import Output
from tests.unit.batch_fakes import FakeSpeaker, speak

RATE = 24_000

CONTAINER = '<container><rootfiles><rootfile full-path="OPS/book.opf"/></rootfiles></container>'
PACKAGE = """
<package xmlns="http://www.idpf.org/2007/opf" xmlns:dc="http://purl.org/dc/elements/1.1/"><metadata>
<dc:title>The Tale</dc:title><dc:creator>A. Writer</dc:creator><dc:language>en-GB</dc:language></metadata><manifest>
<item id="a" href="text/a%20file.xhtml" media-type="application/xhtml+xml"/>
<item id="b" href="text/b.xhtml" media-type="application/xhtml+xml"/>
<item id="c" href="text/c.xhtml" media-type="application/xhtml+xml"/>
<item id="cover" href="cover.jpg" media-type="image/jpeg" properties="cover-image"/>%s</manifest>
<spine><itemref idref="a"/><itemref idref="b"/><itemref idref="c" linear="no"/></spine></package>"""
NAV = """<html xmlns:epub="http://www.idpf.org/2007/ops"><body><nav epub:type="toc"><ol>
<li><a href="text/a%20file.xhtml">One</a><ol><li><a href="text/a%20file.xhtml#deep">Deep</a></li></ol></li>
<li><a href="text/b.xhtml">Two &amp; more</a></li><li><a href="text/b.xhtml#late">Three</a></li></ol></nav></body>
</html>"""
NCX = """<ncx xmlns="http://www.daisy.org/z3986/2005/ncx/"><navMap>
<navPoint><navLabel><text>One</text></navLabel><content src="text/a%20file.xhtml"/></navPoint>
<navPoint><navLabel><text>Two</text></navLabel><content src="text/b.xhtml"/></navPoint></navMap></ncx>"""
NAV_ITEM = '<item id="nav" href="nav.xhtml" media-type="application/xhtml+xml" properties="nav"/>'
PAGES = {
    "OPS/text/a file.xhtml": "<head><title>x</title></head><h1>One</h1><p>First <i>words</i>&#8217;s<br/>end.</p>",
    "OPS/text/b.xhtml": "<h2>Two</h2><p>Second.</p><p>***</p><script>no()</script><h2 id='late'>Three</h2><p>Last.</p>",
    "OPS/text/c.xhtml": "<p>An advertisement.</p>",
}


def picture(form: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (200, 30, 30)).save(buffer, form)
    return buffer.getvalue()


def make_epub(item: str = "", files: dict[str, str] | None = None) -> io.BytesIO:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("META-INF/container.xml", CONTAINER)
        archive.writestr("OPS/book.opf", PACKAGE.replace("%s", item))
        archive.writestr("OPS/cover.jpg", picture())
        for name, content in {**PAGES, **(files or {})}.items():
            archive.writestr(name, content)
    buffer.seek(0)
    return buffer


def titles(book: Book) -> list[tuple[str, list[str]]]:
    return [(chapter.title, [block.text for block in chapter.blocks]) for chapter in book.chapters]


def test_an_epub_has_the_chapters_of_its_contents_also_inside_of_documents() -> None:
    book = epub.read(make_epub(NAV_ITEM, {"OPS/nav.xhtml": NAV}))
    assert titles(book) == [
        ("One", ["One", "First words\u2019s end."]),
        ("Two & more", ["Two", "Second."]),
        ("Three", ["Three", "Last."]),
    ]
    assert (book.title, book.author, book.language, book.cover) == ("The Tale", "A. Writer", "en", picture())
    assert book.chapters[0].blocks[0].heading


def test_an_epub_2_has_the_chapters_of_its_ncx() -> None:
    item = '<item id="ncx" href="toc.ncx" media-type="application/x-dtbncx+xml"/>'
    book = epub.read(make_epub(item, {"OPS/toc.ncx": NCX}))
    assert [title for title, _ in titles(book)] == ["One", "Two"]


def test_an_epub_without_contents_has_a_chapter_for_each_document() -> None:
    assert [title for title, _ in titles(epub.read(make_epub()))] == ["One", "Two"]


def test_an_epub_is_rows_of_a_batch(tmp_path: Path) -> None:
    (tmp_path / "tale.epub").write_bytes(make_epub().getvalue())
    assert [(row.id, row.text) for row in read_rows(str(tmp_path / "tale.epub"))] == [
        ("tale-001", "One\n\nFirst words\u2019s end."),
        ("tale-002", "Two\n\nSecond.\n\nThree\n\nLast."),
    ]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (io.BytesIO(b"no archive"), "not an EPUB"),
        (make_epub(files={"OPS/text/a file.xhtml": "", "OPS/nav.xhtml": "<x>"}, item=NAV_ITEM), "not an EPUB"),
        (make_epub(files={"META-INF/encryption.xml": "", "META-INF/rights.xml": ""}), "encrypted"),
        (make_epub(files=dict.fromkeys(PAGES, "<p> </p>")), "no text"),
    ],
)
def test_an_epub_that_cannot_be_read_is_refused(content: io.BytesIO, complaint: str) -> None:
    with pytest.raises(BookError, match=complaint):
        epub.read(content)


def test_markdown_has_chapters_at_the_highest_level_of_several_headings() -> None:
    text = "# The Tale\n\nBefore.\n\n## One\n\n...\n\nSome *words*\nhere. ![x](y)\n\n"
    text += "### Deep\n\n- item\n\n## Two `a`\n\nLast."
    book = from_markdown(text, "file")
    assert book.title == "The Tale"
    assert titles(book) == [
        ("The Tale", ["The Tale", "Before."]),
        ("One", ["One", "Some words here.", "Deep", "item"]),
        ("Two a", ["Two a", "Last."]),
    ]


def test_plain_text_has_chapters_at_its_headings() -> None:
    text = (
        "THE TALE\n\nBy somebody.\n\nCHAPTER I\n\nThe Beginning Of It\n\nIt was\na day. AND SO.\n\nChapter 2: Night\n\n"
        "All slept.\n\nIII.\n\nEnd.\n\nEPILOGUE\n\nMore."
    )
    assert [title for title, _ in titles(from_text(text, "file"))] == [
        "THE TALE",
        "CHAPTER I",
        "Chapter 2: Night",
        "III.",
        "EPILOGUE",
    ]
    assert titles(from_text("CHAPTER ONE\n\nTHE BOX\n\nWords.", "f")) == [
        ("CHAPTER ONE THE BOX", ["CHAPTER ONE", "THE BOX", "Words."])
    ]
    assert titles(from_text("Only words.\n\n***\n\nMore words.", "file")) == [("file", ["Only words.", "More words."])]


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.txt", b" \n", "no text"),
        ("a.md", b"", "no text"),
        ("a.txt", b"\xff", "not UTF-8"),
        ("a.pdf", b"", "use a file"),
    ],
)
def test_a_file_that_is_no_book_is_refused(tmp_path: Path, name: str, content: bytes, complaint: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BookError, match=complaint):
        read_book(tmp_path / name)


def speechlike(seconds: float, level: float, seed: int = 0) -> np.ndarray:
    """Noise in syllables, with peaks far above its mean."""
    count = round(seconds * RATE)
    noise = np.random.default_rng(seed).laplace(size=count)
    syllables = np.clip(np.sin(np.arange(count) / RATE * 2 * np.pi * 3), 0, 1)
    return (level * noise * syllables).astype(np.float32)


def dB(value: float) -> float:  # noqa: N802
    return 20 * float(np.log10(value))


@pytest.mark.parametrize("level", [0.002, 0.02, 0.3])
def test_acx_is_reached_from_quiet_and_from_loud_audio(level: float) -> None:
    audio = np.clip(speechlike(6, level), -1, 1)
    pieces = np.array_split(audio, 37)
    result = np.concatenate(list(levelled(lambda: pieces, RATE, PRESETS["acx"])))
    assert len(result) == len(audio)
    assert -23 < dB(float(np.sqrt(np.mean(np.square(result))))) < -18
    assert dB(float(np.abs(result).max())) <= -3.0 + 1e-3


def test_the_limiter_keeps_the_time_of_what_it_limits() -> None:
    audio = speechlike(4, 0.05)
    result = np.concatenate(list(levelled(lambda: [audio], RATE, Target("rms", -30.0, -3.0))))
    correlation = [float(np.dot(audio[1000:90_000], result[1000 + shift : 90_000 + shift])) for shift in range(-3, 4)]
    assert int(np.argmax(correlation)) == 3


def test_a_loudness_in_lufs_is_reached() -> None:
    audio = speechlike(32, 0.01)
    result = np.concatenate(list(levelled(lambda: np.array_split(audio, 50), RATE, Target("lufs", -18.0, -1.0))))
    assert pyloudnorm.Meter(RATE).integrated_loudness(result.astype(np.float64)) == pytest.approx(-18, abs=0.3)


def test_loudness_in_windows_is_that_of_the_whole() -> None:
    audio = np.concatenate([speechlike(31, 0.05), np.zeros(5 * RATE, np.float32), speechlike(31, 0.03, 1)])
    meter = LufsMeter(RATE)
    for piece in np.array_split(audio, 333):
        meter.add(piece)
    assert meter.level() == pytest.approx(pyloudnorm.Meter(RATE).integrated_loudness(audio.astype(np.float64)), abs=0.1)


def test_silence_stays_silence() -> None:
    silence = np.zeros(RATE, np.float32)
    for target in PRESETS.values():
        assert not np.concatenate(list(levelled(lambda: [silence], RATE, target))).any()
    assert RmsMeter(RATE).level() == -np.inf


def decoded(path: Path) -> tuple[np.ndarray, int]:
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray()[0] for frame in container.decode(audio=0)]
        return np.concatenate(frames), container.streams.audio[0].rate


def test_an_m4b_has_marks_tags_and_cover(tmp_path: Path) -> None:
    path = tmp_path / "book.m4b"
    audio = speechlike(3, 0.1)
    chapters = [("One", 1.0), ("Zwei \u00e4", 2.0)]
    for form in ("JPEG", "PNG"):
        tags = {"title": "The Tale", "artist": "A. Writer"}
        write_m4b(path, [audio], RATE, chapters, bit_rate=64_000, tags=tags, cover=picture(form))
        with av.open(str(path)) as container:
            assert container.metadata["title"] == "The Tale"
            assert container.metadata["major_brand"] == "M4B "
            marks = [(mark["metadata"]["title"], mark["start"], mark["end"]) for mark in container.chapters()]
            assert marks == [("One", 0, 1000), ("Zwei \u00e4", 1000, 3000)]
            (covered,) = container.streams.video
            assert covered.disposition.name == "attached_pic"
    assert list(tmp_path.iterdir()) == [path]


def test_a_cover_that_is_no_picture_is_refused_and_no_file_is_left(tmp_path: Path) -> None:
    with pytest.raises(BookError, match="no picture"):
        write_m4b(tmp_path / "b.m4b", [], RATE, [], bit_rate=64_000, tags={}, cover=b"no picture")
    assert not list(tmp_path.iterdir())


STORY = Book(
    "Tale",
    (
        Chapter("One", (Block("One", heading=True), Block("x" * 400), Block("y" * 300))),
        Chapter("Two", (Block("Two", heading=True), Block("z " * 400))),
    ),
)
BINDING = Binding(Pauses(1.0, 0.5, 2.0), PRESETS["acx"], 44_100, 96_000)


def test_a_book_has_its_pauses_where_they_belong_and_its_joins_are_silent(tmp_path: Path) -> None:
    narration = Narration(STORY, limit=300)
    speak(narration, tmp_path / "work", FakeSpeaker(), Output("flac"))
    path = tmp_path / "book.m4b"
    seconds = bind(narration, Folder(str(tmp_path / "work")), path, BINDING)
    lengths = [0.75 + 0.003 + 1.0 + 0.4 + 0.5 + 0.3 + 2.0, 0.75 + 0.003 + 1.0 + 0.799 + 2.0]
    assert seconds == pytest.approx(sum(lengths), abs=0.05)
    samples, rate = decoded(path)
    assert rate == 44_100
    assert len(samples) / rate == pytest.approx(seconds, abs=0.1)
    with av.open(str(path)) as container:
        starts = [mark["start"] / 1000 for mark in container.chapters()]
    assert starts == pytest.approx([0, lengths[0]], abs=0.02)
    for start in starts:
        heading = start + 0.753
        for silent in (start + 0.1, heading + 0.15, heading + 0.8):
            at = round(silent * rate)
            assert np.abs(samples[at : at + rate // 20]).max() < 1e-3


def test_peaks_of_the_encoded_file_are_below_the_limit_for_noise_too(tmp_path: Path) -> None:
    class Noisy(FakeSpeaker):
        def speak(self, text: str, inputs: Any) -> Audio:
            noise = np.random.default_rng(inputs["seed"]).laplace(0, 0.1, RATE).astype(np.float32)
            return Audio(np.clip(noise, -1, 1), RATE, np.zeros(1, np.int32), {"rtf": 0.25})

    narration = Narration(Book("Tale", (Chapter("One", (Block("noise"),)),)))
    speak(narration, tmp_path / "work", Noisy(), Output("flac"))
    path = tmp_path / "book.m4b"
    bind(narration, Folder(str(tmp_path / "work")), path, Binding(target=PRESETS["acx"], bit_rate=48_000))
    assert peak_of(path) <= -3.0
    assert sorted(it.name for it in tmp_path.iterdir()) == ["book.m4b", "work"]


def test_a_changed_paragraph_is_spoken_again_and_no_other(tmp_path: Path) -> None:
    speak(Narration(STORY), tmp_path / "work", FakeSpeaker(), Output("flac"))
    changed = Book("Tale", (STORY.chapters[0], Chapter("Two", (STORY.chapters[1].blocks[0], Block("new")))))
    speaker = FakeSpeaker()
    speak(Narration(changed), tmp_path / "work", speaker, Output("flac"))
    assert [text for text, _ in speaker.calls] == ["new"]


def test_equal_paragraphs_are_spoken_each_for_itself() -> None:
    book = Book("Tale", (Chapter("One", (Block("Yes."), Block("Yes."))),))
    first, second = Narration(book).parts()
    assert first.id != second.id
    assert first.seed != second.seed


def test_a_book_of_which_something_failed_is_not_bound(tmp_path: Path) -> None:
    book = Book("Tale", (Chapter("One", (Block("Fine."), Block("This will fail."))),))
    speak(Narration(book), tmp_path / "work", FakeSpeaker(), Output("flac"))
    with pytest.raises(BookError, match="1 of 2 paragraphs failed, the first with: it failed"):
        bind(Narration(book), Folder(str(tmp_path / "work")), tmp_path / "book.m4b", BINDING)
    assert not (tmp_path / "book.m4b").exists()


def run(*arguments: str) -> Iterator[Any]:
    return CliRunner().invoke(book_app, list(arguments))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["none.txt"], "none.txt"),
        (["{file}", "-o", "book.mp3"], "use the extension .m4b"),
        (["{file}", "-o", "no/such/book.m4b"], "no such folder"),
        (["{file}", "--loudness", "loud"], "is none of acx"),
        (["{file}", "--loudness", "3"], "give -60 to 0"),
        (["{file}", "--input", "mood=glad"], "unknown column 'mood'"),
        (["{file}", "--input", "voice"], "give NAME=VALUE"),
        (["{file}", "--input", "text=Other."], "the texts are the book's"),
        (["{file}", "--loudness", "none", "--peak", "-3"], "nothing is limited"),
        (["{file}", "--checkpoint", "tiny", "--url", "localhost:8001"], "not both"),
    ],
)
def test_wrong_usage_has_status_2_and_says_what_is_wrong(tmp_path: Path, arguments: list[str], complaint: str) -> None:
    file = tmp_path / "tale.txt"
    file.write_text("Words.")
    done: Any = run(*(argument.format(file=file) for argument in arguments))
    assert done.exit_code == 2
    assert complaint in re.sub(r"[\s\u2502]+", " ", done.stderr)
