"""Runs of a batch with a speaker of fakes: files, manifest, joins, failures, and what a second run speaks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile

from chatterbox_batch.folder import Folder
from chatterbox_batch.parts import Part, parts_of
from chatterbox_batch.progress import Progress
from chatterbox_batch.records import WORK, Record, Records, file_name
from chatterbox_batch.rows import Row
from chatterbox_batch.speakers import RETRIES, ServerSpeaker, SpeechFailed
from chatterbox_batch.worker import Worker
from chatterbox_client import Client, ConnectionFailed, InvalidRequest, Unavailable
from chatterbox_gateway.output import FORMATS, Output
from tests.unit.batch_fakes import RATE, FakeSpeaker, Local, manifest, speak
from tests.unit.client_fakes import SAMPLES, FakeTransport

LONG = "The first sentence of this text. The second sentence of this text. The third sentence of this text."


def table(folder: Path, *rows: dict[str, Any]) -> str:
    path = folder / "texts.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_every_row_becomes_a_file_and_a_row_of_the_manifest(tmp_path: Path) -> None:
    source = table(tmp_path, {"id": "a", "text": "Hello.", "seed": 5, "voice": "anna"}, {"id": "b/c", "text": "Bye."})
    speaker, out = FakeSpeaker(), tmp_path / "out"
    summary = speak(source, out, speaker)
    assert (summary.rows, summary.failed) == (2, 0)
    assert speaker.calls[0] == ("Hello.", {"voice": "anna", "seed": 5})
    rows = manifest(out)
    assert rows["a"] == {"id": "a", "file": "a.wav", "seconds": 0.006, "seed": 5, "rtf": 0.25, "error": None}
    samples, rate = soundfile.read(out / rows["a"]["file"])
    assert (rate, len(samples)) == (RATE, 144)
    assert (out / rows["b/c"]["file"]).is_file()
    assert not list((out / WORK).iterdir())


def test_a_long_row_is_joined_with_pauses_and_without_clicks(tmp_path: Path) -> None:
    source, out, speaker = table(tmp_path, {"id": "a", "text": LONG, "seed": 1}), tmp_path / "out", FakeSpeaker()
    speak(source, out, speaker, limit=40)
    parts = parts_of(Row("a", LONG, {"seed": 1}), limit=40)
    assert [(text, inputs["seed"]) for text, inputs in speaker.calls] == [(part.text, part.seed) for part in parts]
    samples, rate = soundfile.read(out / "a.wav", dtype="int16")
    row = manifest(out)["a"]
    assert row["seed"] == 1
    assert row["seconds"] == pytest.approx(len(samples) / rate)
    first, pause = len(parts[0].text) * RATE // 1000, round(0.3 * RATE)
    assert not samples[first : first + pause].any()
    assert abs(int(samples[first - 1])) < 200
    assert abs(int(samples[first + pause])) < 200
    assert not list((out / WORK).iterdir())


@pytest.mark.parametrize("form", FORMATS)
def test_files_have_any_format_of_the_gateway(tmp_path: Path, form: str) -> None:
    source = table(tmp_path, {"id": "a", "text": "Hello there."}, {"id": "b", "text": LONG})
    speak(source, tmp_path / "out", FakeSpeaker(), Output(form))
    for name in ("a", "b"):
        file = tmp_path / "out" / f"{name}.{form}"
        assert file.stat().st_size
        if form in ("mp3", "opus", "aac", "flac", "wav"):
            with av.open(str(file)) as container:
                assert container.streams.audio[0].codec_context.channels == 1


def test_a_failed_row_is_a_row_with_an_error_and_the_others_are_spoken(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "text": "This will fail."},
        {"id": "b", "text": LONG.replace("third", "fail")},
        {"id": "c", "text": "Fine."},
        {"id": "d", "text": "Fine.", "mood": "glad"},
    ]
    summary = speak(table(tmp_path, *rows), tmp_path / "out", FakeSpeaker(), limit=40)
    assert (summary.rows, summary.failed) == (4, 3)
    found = manifest(tmp_path / "out")
    assert found["a"]["error"] == "it failed"
    assert found["a"]["file"] is None
    assert found["b"]["error"] == "part 3 of 3: it failed"
    assert found["c"]["error"] is None
    assert "unknown column 'mood'" in found["d"]["error"]


def test_what_the_manifest_has_is_not_spoken_again(tmp_path: Path) -> None:
    source, out = table(tmp_path, {"id": "a", "text": "Hello."}, {"id": "b", "text": "This will fail."}), tmp_path / "o"
    speak(source, out, FakeSpeaker())
    source = table(tmp_path, {"id": "a", "text": "Hello."}, {"id": "b", "text": "Mended."}, {"id": "c", "text": "New."})
    speaker = FakeSpeaker()
    speak(source, out, speaker)
    assert [text for text, _ in speaker.calls] == ["New."]
    assert manifest(out)["b"]["error"] == "it failed"


def test_failed_rows_are_spoken_again_on_request_but_not_their_good_parts(tmp_path: Path) -> None:
    class Better(FakeSpeaker):
        def speak(self, text: str, inputs: Any) -> Any:
            return super().speak(text.replace("fail", "pass"), inputs)

    out = tmp_path / "out"
    source = table(tmp_path, {"id": "a", "text": "Fine."}, {"id": "b", "text": LONG.replace("third", "fail")})
    speak(source, out, FakeSpeaker(), limit=40)
    speaker = Better()
    speak(source, out, speaker, limit=40, retry_failed=True)
    assert [text for text, _ in speaker.calls] == ["The pass sentence of this text."]
    assert manifest(out)["b"]["error"] is None
    assert not list((out / WORK).iterdir())


def test_good_parts_of_failed_rows_outlast_a_run_that_does_not_retry_them(tmp_path: Path) -> None:
    rows = [{"id": "a", "text": "Fine."}, {"id": "b", "text": LONG.replace("third", "fail")}]
    out, again = tmp_path / "out", FakeSpeaker()
    speak(table(tmp_path, *rows), out, FakeSpeaker(), limit=40)
    speak(table(tmp_path, *rows, {"id": "c", "text": "New."}), out, again, limit=40)
    assert [text for text, _ in again.calls] == ["New."]
    speaker = FakeSpeaker()
    speak(table(tmp_path, *rows), out, speaker, limit=40, retry_failed=True)
    assert [text for text, _ in speaker.calls] == ["The fail sentence of this text."]


def test_good_parts_of_a_failed_row_that_has_changed_are_deleted(tmp_path: Path) -> None:
    out = tmp_path / "out"
    speak(table(tmp_path, {"id": "a", "text": LONG.replace("third", "fail")}), out, FakeSpeaker(), limit=40)
    assert len(list((out / WORK).iterdir())) == 4  # the audio and the record of two parts
    speak(table(tmp_path, {"id": "a", "text": "Changed."}), out, FakeSpeaker(), limit=40)
    assert not list((out / WORK).iterdir())


@pytest.mark.parametrize("killed_after", range(8))
def test_a_killed_run_loses_at_most_the_part_under_way(tmp_path: Path, killed_after: int) -> None:
    rows = [
        {"id": "a", "text": "Hello."},
        {"id": "b", "text": LONG},
        {"id": "c", "text": "Bye."},
        {"id": "d", "text": LONG},
    ]
    source, out, whole = table(tmp_path, *rows), tmp_path / "out", tmp_path / "whole"
    first, second = FakeSpeaker(stop_after=killed_after), FakeSpeaker()
    with pytest.raises(KeyboardInterrupt):
        speak(source, out, first, limit=40)
    speak(source, out, second, limit=40)
    assert len(first.calls) == killed_after
    assert len(first.calls) + len(second.calls) == 8
    speak(source, whole, FakeSpeaker(), limit=40)
    assert manifest(out) == manifest(whole)
    for row in manifest(out).values():
        assert (out / row["file"]).read_bytes() == (whole / row["file"]).read_bytes()


class Forgetful(Local):
    """Its process ends before the driver has seen the records; one of them was never spoken."""

    def speak(self, pending: Iterable[Part], make_worker: Callable[[], Worker]) -> Iterable[Record]:
        spoken = [make_worker().speak(part) for part in pending if part.id != "b"]
        return spoken[:1]


def test_a_part_that_nothing_came_back_of_is_a_failure_that_a_second_run_mends(tmp_path: Path) -> None:
    source, out = table(tmp_path, {"id": "a", "text": "One."}, {"id": "b", "text": "Two."}), tmp_path / "out"
    summary = speak(source, out, FakeSpeaker(), executor=Forgetful)
    assert (summary.rows, summary.failed) == (2, 1)
    assert "ended, at every attempt" in manifest(out)["b"]["error"]
    speak(source, out, FakeSpeaker(), retry_failed=True)
    assert manifest(out)["b"]["error"] is None


def test_a_driver_that_died_leaves_records_which_the_next_one_takes(tmp_path: Path) -> None:
    source, out = table(tmp_path, {"id": "a", "text": "One."}, {"id": "b", "text": LONG}), tmp_path / "out"
    records, speaker = Records(Folder(str(out))), FakeSpeaker()
    worker = Worker(speaker, records, Output("wav"))
    for part in [*parts_of(Row("a", "One."), limit=40), *parts_of(Row("b", LONG), limit=40)]:
        worker.speak(part)
    again = FakeSpeaker()
    assert speak(source, out, again, limit=40).rows == 2
    assert not again.calls
    assert set(manifest(out)) == {"a", "b"}


def test_records_of_a_row_that_has_changed_are_deleted_and_it_is_spoken_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    records = Records(Folder(str(out)))
    (part,) = parts_of(Row("a", "Before."))
    Worker(FakeSpeaker(), records, Output("wav")).speak(part)
    speaker = FakeSpeaker()
    speak(table(tmp_path, {"id": "a", "text": "After."}), out, speaker)
    assert [text for text, _ in speaker.calls] == ["After."]
    assert records.keys() == set()


def test_a_part_that_has_a_record_is_not_spoken_again_by_another_worker(tmp_path: Path) -> None:
    records, speaker = Records(Folder(str(tmp_path))), FakeSpeaker()
    (part,) = parts_of(Row("a", "Hello."))
    assert Worker(speaker, records, Output("wav")).speak(part) == Worker(speaker, records, Output("wav")).speak(part)
    assert len(speaker.calls) == 1


def test_the_manifest_grows_while_the_run_goes_on(tmp_path: Path) -> None:
    rows = [{"id": str(number), "text": "One."} for number in range(700)]
    source, out = table(tmp_path, *rows), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        speak(source, out, FakeSpeaker(stop_after=600))
    assert len(manifest(out)) == 600
    assert speak(source, out, FakeSpeaker()).rows == 100
    assert len(manifest(out)) == 700


def test_names_of_files_are_safe_and_differ() -> None:
    assert file_name("chapter-01", "mp3") == "chapter-01.mp3"
    odd = ["../a", "a/b", "a_b ", ".hidden", "\u00e4", "", "x" * 300]
    names = [file_name(id, "wav") for id in odd]
    assert len(set(names)) == len(odd)
    assert not [name for name in names if "/" in name or name.startswith(".") or len(name) > 120]


def test_progress_has_rate_and_time_left() -> None:
    now = [0.0]
    lines: list[str] = []
    progress = Progress(4, 400, lines.append, interval=10.0, clock=lambda: now[0])
    record = Record("a", "k", 0, 1, 100, 0.0, 0, seconds=20.0)
    now[0] = 5.0
    progress.add(record)
    assert not lines
    assert progress.line() == "1 of 4 parts"
    now[0] = 10.0
    progress.add(record)
    now[0] = 15.0
    progress.add(Record("b", "k", 0, 1, 100, 0.0, 0, error="it failed"))
    assert lines == ["2 of 4 parts, 4.0 x real time, 0.2 parts/s, 0:00:10 left"]
    assert progress.line() == "3 of 4 parts, 1 failed, 2.0 x real time, 0.2 parts/s, 0:00:05 left"


class Busy(FakeTransport):
    """Refuses some requests."""

    def __init__(self, *refusals: Exception) -> None:
        super().__init__()
        self.refusals = list(refusals)

    def infer(self, *call: Any, **more: Any) -> Any:
        answer = super().infer(*call, **more)
        if self.refusals:
            raise self.refusals.pop(0)
        return answer


def server(*transports: FakeTransport) -> tuple[ServerSpeaker, list[float]]:
    slept: list[float] = []
    return ServerSpeaker([Client(transport=transport) for transport in transports], slept.append), slept


def test_a_request_that_no_server_could_take_is_sent_again_to_the_next() -> None:
    first, second = Busy(Unavailable("full"), Unavailable("full")), Busy(ConnectionFailed("gone"))
    speaker, slept = server(first, second)
    np.testing.assert_array_equal(speaker.speak("Hello.", {"seed": 1}).samples, SAMPLES)
    assert slept == [1.0, 2.0]
    assert (len(first.calls), len(second.calls)) == (1, 2)


def test_a_wrong_request_is_not_sent_again() -> None:
    transport = Busy(InvalidRequest("no such thing"))
    speaker, slept = server(transport)
    with pytest.raises(SpeechFailed, match="no such thing"):
        speaker.speak("Hello.", {})
    assert not slept


def test_a_server_that_stays_away_is_a_failure_in_the_end() -> None:
    speaker, slept = server(Busy(*[ConnectionFailed("gone")] * 20))
    with pytest.raises(SpeechFailed, match="gone"):
        speaker.speak("Hello.", {})
    assert slept == list(RETRIES)


def test_requests_have_the_priority_batch_unless_a_row_says_otherwise() -> None:
    transport = FakeTransport()
    speaker, _ = server(transport)
    speaker.speak("Hello.", {"seed": 1})
    speaker.speak("Hello.", {"seed": 1, "priority": "live"})
    assert [call[1]["priority"].item() for call in transport.calls] == [b"batch", b"live"]


def test_what_a_killed_writer_left_is_deleted(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / WORK).mkdir(parents=True)
    for name in ("a.wav.1-2.partial", f"{WORK}/k.json.1-2.partial"):
        (out / name).write_text("half")
    speak(table(tmp_path, {"id": "a", "text": "One."}), out, FakeSpeaker())
    assert sorted(path.name for path in out.rglob("*") if path.is_file()) == ["a.wav", "manifest.parquet"]


def test_an_error_that_nobody_foresaw_is_a_row_with_an_error(tmp_path: Path) -> None:
    class Broken(FakeSpeaker):
        def speak(self, text: str, inputs: Any) -> Any:
            raise MemoryError("no more")

    speak(table(tmp_path, {"id": "a", "text": "One."}), tmp_path / "out", Broken())
    assert manifest(tmp_path / "out")["a"]["error"] == "MemoryError: no more"


def test_a_clip_is_read_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "clip.wav").write_bytes(b"RIFF")
    rows = [
        {"id": "a", "text": "One.", "reference_audio": f"file://{tmp_path}/clip.wav"},
        {"id": "b", "text": "Two.", "reference_audio": "data:;base64,UklGRg=="},
        {"id": "c", "text": "Three.", "reference_audio": str(tmp_path / "none.wav")},
        {"id": "d", "text": "Four.", "reference_audio": "clip.wav"},
    ]
    speaker = FakeSpeaker()
    speak(table(tmp_path, *rows), tmp_path / "out", speaker)
    assert [inputs["reference_audio"] for _, inputs in speaker.calls] == [b"RIFF", b"data:;base64,UklGRg==", b"RIFF"]
    assert "none.wav" in manifest(tmp_path / "out")["c"]["error"]
