"""ElevenLabs' sockets: contexts, flushes, ends, interruptions."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.unit.socket_fakes import MULTI, PAUSE, SECONDS, SINGLE, Reciter, connected, recited, running


def chars(messages: list[dict[str, Any]]) -> str:
    return "".join("".join(message["alignment"]["chars"]) for message in messages if message.get("alignment"))


def test_a_text_in_pieces_is_spoken_sentence_by_sentence() -> None:
    async def main() -> None:
        transport = Reciter()
        async with running(transport) as (_, session), connected(session, SINGLE + "&seed=7") as client:
            for piece in (" ", "Hello Dr", ". Smith.", " Pi is 3", ".14. ", "Is", " it?"):
                await client.send(text=piece)
            await client.send(text="")
            audio, messages = await client.until_final()
            assert transport.spoken == ["Hello Dr. Smith.", "Pi is 3.14.", "Is it?"]
            assert audio == PAUSE.join(recited(text) for text in transport.spoken)
            assert chars(messages) == "Hello Dr. Smith. Pi is 3.14. Is it? "
            assert [tensors["seed"].item() for tensors in transport.requests] == [7, 7, 7]
            assert {tensors["voice"].item() for tensors in transport.requests} == {b"anna"}
            final = messages[-1]
            assert (final["isFinal"], final["interrupted"]) == (True, False)
            assert final["sent_seconds"] == pytest.approx(3 * SECONDS + 0.6)
            assert [word["word"] for word in final["words"]] == [
                "Hello",
                "Dr.",
                "Smith.",
                "Pi",
                "is",
                "3.14.",
                "Is",
                "it?",
            ]
            assert await client.receive() == {"closed": 1000}

    asyncio.run(main())


def test_sentences_of_a_context_share_a_seed_that_is_drawn() -> None:
    async def main() -> None:
        transport = Reciter()
        async with running(transport) as (_, session), connected(session, SINGLE) as client:
            await client.send(text="One. Two. ")
            await client.send(text="")
            await client.until_final()
            assert len({tensors["seed"].item() for tensors in transport.requests}) == 1

    asyncio.run(main())


def test_the_next_sentence_decodes_while_one_is_heard() -> None:
    async def main() -> None:
        transport = Reciter("One.", "Two.")
        async with running(transport) as (_, session), connected(session) as client:
            await client.send(text="One. Two. Three. Four", context_id="a")
            await transport.until("One.", "Two.")
            transport.gates["Two."].set()
            await transport.until("One.")
            assert transport.spoken == ["One.", "Two."]
            transport.gates["One."].set()
            await client.send(flush=True, context_id="a")
            await client.send(close_context=True, context_id="a")
            audio, _ = await client.until_final()
            assert audio == PAUSE.join(recited(text) for text in ("One.", "Two.", "Three.", "Four"))

    asyncio.run(main())


@pytest.mark.parametrize("absolute", [False, True])
def test_times_restart_in_every_message_unless_alignment_is_synchronous(absolute: bool) -> None:
    async def main() -> None:
        path = MULTI + "&sync_alignment=true" if absolute else MULTI
        async with running(Reciter()) as (_, session), connected(session, path) as client:
            await client.send(
                text="A first sentence that has some length. The second one is no longer. ", context_id="a"
            )
            await client.send(flush=True, context_id="a")
            await client.send(close_context=True, context_id="a")
            _, messages = await client.until_final()
            clock, starts = 0, []
            for message in messages:
                alignment = message.get("alignment")
                if alignment:
                    assert len(alignment["chars"]) == len(alignment["charStartTimesMs"])
                    base = 0 if absolute else clock
                    starts += [base + start for start in alignment["charStartTimesMs"]]
                    clock = starts[-1] + alignment["charDurationsMs"][-1]
            assert starts == sorted(starts)
            assert clock == round(1_000 * messages[-1]["sent_seconds"])

    asyncio.run(main())


def test_a_context_that_is_closed_in_the_middle_stops_at_once() -> None:
    async def main() -> None:
        transport = Reciter("One is long.", "Two is too.")
        async with running(transport) as (_, session), connected(session) as client:
            await client.send(text="One is long. Two is too. Three ", context_id="a")
            first = await client.receive()
            assert first["contextId"] == first["context_id"] == "a"
            await client.send(close_context=True, context_id="a")
            final = await client.receive()
            assert (final["isFinal"], final["interrupted"], final["contextId"]) == (True, True, "a")
            assert final["sent_seconds"] == pytest.approx(0.04)
            assert final["words"][0] == {"word": "O", "start": 0.0, "end": 0.04}
            await transport.until()
            assert sorted(transport.cancelled) == ["One is long.", "Two is too."]
            await client.send(close_context=True, context_id="a")  # again: no error
            await client.send(text="New. ", context_id="a", flush=True)
            assert (await client.receive())["audio"]

    asyncio.run(main())


def test_a_flushed_context_that_is_closed_is_spoken_to_its_end_and_closed_again_stops() -> None:
    async def main() -> None:
        transport = Reciter("One.", "Two.")
        async with running(transport) as (_, session), connected(session) as client:
            for name, text in (("a", "One."), ("b", "Two.")):
                await client.send(text=text, context_id=name)
                await client.send(text="", flush=True, context_id=name)
                await client.send(text="", context_id=name)  # a keep-alive
                await client.send(close_context=True, context_id=name)
                assert (await client.receive())["contextId"] == name
            transport.gates["One."].set()
            audio, messages = await client.until_final()
            assert audio == recited("One.")[1_920:]
            assert messages[-1]["interrupted"] is False
            await client.send(close_context=True, context_id="b")
            _, messages = await client.until_final()
            assert messages[-1]["interrupted"] is True
            await transport.until()
            assert transport.cancelled == ["Two."]

    asyncio.run(main())


def test_contexts_of_a_socket_are_independent() -> None:
    async def main() -> None:
        transport = Reciter("One.")
        async with running(transport) as (_, session), connected(session) as client:
            await client.send(text="One. ", flush=True, context_id="a")
            assert (await client.receive())["contextId"] == "a"
            await client.send(text="Two. ", flush=True, context_id="b")
            await client.send(flush=True, context_id="b")
            await client.send(close_context=True, context_id="b")
            audio, messages = await client.until_final()
            assert audio == recited("Two.")
            assert {message["contextId"] for message in messages} == {"b"}

    asyncio.run(main())


def test_close_socket_finishes_the_contexts_and_closes() -> None:
    async def main() -> None:
        async with running(Reciter()) as (_, session), connected(session) as client:
            await client.send(text="One", context_id="a")
            await client.send(close_socket=True)
            audio, _ = await client.until_final()
            assert audio == recited("One")
            assert await client.receive() == {"closed": 1000}

    asyncio.run(main())


def test_a_schedule_collects_whole_sentences() -> None:
    async def main() -> None:
        transport = Reciter()
        async with running(transport) as (_, session), connected(session, SINGLE) as client:
            config = {"chunk_length_schedule": [20, 50]}
            await client.send(text=" ", generation_config=config)
            for piece in ("One one. Two two. Three three. ", "Four four. Five five. ", "Six"):
                await client.send(text=piece)
            await client.send(text=" ", try_trigger_generation=True)
            await client.send(text="")
            await client.until_final()
            assert transport.spoken == ["One one. Two two. Three three.", "Four four. Five five.", "Six"]

    asyncio.run(main())


def test_in_auto_mode_a_message_that_ends_a_sentence_is_spoken_at_once() -> None:
    async def main() -> None:
        transport = Reciter()
        async with running(transport) as (_, session), connected(session, f"{MULTI}&auto_mode=true") as client:
            await client.send(text=" ", context_id="a")
            await client.send(text="Hello Dr. Smith.", context_id="a")  # as Pipecat does: no space, no flush
            assert (await client.receive())["audio"]
            await client.send(text="How are you?", context_id="a")
            await client.send(text="We meet at 5 p.m.", context_id="a")
            await client.send(text="Until then.", context_id="a")
            await client.send(flush=True, context_id="a")
            await client.send(close_context=True, context_id="a")
            await client.until_final()
            assert transport.spoken == ["Hello Dr. Smith.", "How are you?", "We meet at 5 p.m.", "Until then."]

    asyncio.run(main())


def test_what_has_nothing_to_speak_is_skipped() -> None:
    async def main() -> None:
        transport = Reciter()
        async with running(transport) as (_, session), connected(session, SINGLE) as client:
            await client.send(text="Well. ", flush=True)
            await client.send(text="\N{WAVING HAND SIGN} ", flush=True)
            await client.send(text="Yes.", flush=True)
            await client.send(text="")
            audio, _ = await client.until_final()
            assert audio == recited("Well.") + PAUSE + recited("Yes.")

    asyncio.run(main())


def test_voice_settings_and_the_query_are_translated() -> None:
    async def main() -> None:
        transport = Reciter()
        path = "/v1/text-to-speech/hpp4J3VqNfWAUOO0d1Us/multi-stream-input?output_format=pcm_24000"
        query = "&model_id=eleven_turbo_v2_5&language_code=en&auto_mode=1"
        query += "&apply_text_normalization=on&enable_ssml_parsing=true"
        async with running(transport) as (_, session), connected(session, path + query) as client:
            settings = {"stability": 0.5, "similarity_boost": 0.75, "style": 0.0, "speed": 2, "use_speaker_boost": True}
            await client.send(text=" ", context_id="a", voice_settings=settings)
            await client.send(text="Hello there.", context_id="a", flush=True)
            await client.send(flush=True, context_id="a")
            await client.send(close_context=True, context_id="a")
            audio, _ = await client.until_final()
            assert len(audio) == len(recited("")) // 2
            [tensors] = transport.requests
            values = {name: tensor.item() for name, tensor in tensors.items()}
            assert "voice" not in values
            assert values["temperature"] == pytest.approx(0.8)
            assert values["cfg_weight"] == pytest.approx(0.5)
            assert values["exaggeration"] == pytest.approx(0.5)
            assert (values["language"], values["text_normalization"], values["markup"]) == (b"en", b"spoken", b"auto")

    asyncio.run(main())


@pytest.mark.parametrize(
    ("output_format", "magic"),
    [
        ("mp3_44100_128", (b"ID3", b"\xff\xfb")),
        ("mp3_22050_32", (b"ID3", b"\xff\xf3")),
        ("opus_48000_64", (b"OggS",)),
        ("ulaw_8000", (b"",)),
        ("alaw_8000", (b"",)),
        ("pcm_16000", (b"",)),
    ],
)
def test_formats(output_format: str, magic: tuple[bytes, ...]) -> None:
    async def main() -> None:
        path = f"/v1/text-to-speech/anna/stream-input?output_format={output_format}"
        async with running(Reciter()) as (_, session), connected(session, path) as client:
            await client.send(text="Hello there.")
            await client.send(text="")
            audio, _ = await client.until_final()
            assert audio.startswith(magic)
            expected = {"ulaw_8000": 960, "alaw_8000": 960, "pcm_16000": 3_840}
            assert len(audio) == expected.get(output_format, len(audio))

    asyncio.run(main())
