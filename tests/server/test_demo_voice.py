"""The demo voice through a real server: a recogniser finds the words.

A wrong position, a lost chunk or a bad join passes every check of shapes; here it costs words. Bounds are word error
rates of a recogniser of general English on sentences that the voice was not trained on: what it reached when it was
made (its README) and a margin for other processors' rounding, which changes what is drawn. What wrong positions, a
missing BOS and guidance of the wrong sign do to the tokens is in tests/fidelity/test_t3.py.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest

import chatterbox_engine
from chatterbox_client import Chunk, Client, InvalidRequest
from chatterbox_client.sentences import Sentences
from chatterbox_engine.launcher.server import ServerOptions, TritonServer
from chatterbox_engine.types import SAMPLE_RATE
from demo import STREAMED, WHOLE
from tests.server.front import Front
from tools.demo_voice.held_out import SENTENCES as HELD_OUT
from tools.demo_voice.lines import PAGE
from tools.demo_voice.recogniser import Recogniser, error_rate

pytestmark = pytest.mark.server

SENTENCES = [*HELD_OUT[:8], *HELD_OUT[-8:]]
"""Half of them with a word that is in no training text."""
PROSE = PAGE[: PAGE.index("\n\n", 700)]
"""Three segments or more."""
DEMO_BOUND = 0.3
BOUND = 0.4
PAGE_BOUND = 0.5
"""Of segments of up to 300 characters."""
SAME = 0.22
"""Between two ways to the same words."""
CLIP = Path(chatterbox_engine.__file__).parent / "demo_voice" / "bass.flac"

Hear = Callable[[np.ndarray], list[str]]


@pytest.fixture(scope="module")
def hear() -> Hear:
    recogniser = Recogniser()
    return lambda samples: recogniser.words(samples, SAMPLE_RATE)


@pytest.fixture(scope="module")
def demo_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    log = tmp_path_factory.mktemp("demo") / "triton.log"
    with TritonServer(ServerOptions(environment={"CHATTERBOX_CHECKPOINT": "demo"}, log=log)) as running:
        yield running


def speak(server: TritonServer, text: str, **options: Any) -> np.ndarray:
    with Client(server.http_url, "http", timeout=280) as client:
        return client.speak(text, seed=1, **options).samples


def stream(server: TritonServer, text: str) -> list[Chunk]:
    with Client(server.grpc_url, "grpc", timeout=280) as client:
        return list(client.stream(text, seed=1))


def joined(chunks: list[Chunk]) -> np.ndarray:
    return np.concatenate([chunk.samples for chunk in chunks])


def compare(words: list[list[str]], heard: list[list[str]]) -> float:
    """How much of what is heard differs from other words that were heard."""
    return error_rate([" ".join(each) for each in words], heard)


LINES = [WHOLE, STREAMED]


@pytest.fixture(scope="module")
def alone(demo_server: TritonServer, hear: Hear) -> list[list[str]]:
    """What is heard of the demo's lines, each spoken whole."""
    return [hear(speak(demo_server, text)) for text in LINES]


def test_the_demos_own_lines_are_understood(alone: list[list[str]]) -> None:
    found = error_rate(LINES, alone)
    assert found <= DEMO_BOUND, f"word error rate {found:.3f}: {alone}"


def test_a_time_of_the_day_is_understood(demo_server: TritonServer, hear: Hear) -> None:
    """In one of two lines: the voice is a miniature."""
    lines = ("She came home at 10:30, and he was late.", "The train leaves at 10:30 in the morning.")
    heard = [" ".join(hear(speak(demo_server, line, text_normalization="spoken"))) for line in lines]
    assert any("ten thirty" in words for words in heard), heard


MUTATIONS: dict[str, Callable[[list[Chunk]], list[Chunk]]] = {
    "skipped": lambda chunks: [*chunks[:1], *chunks[2:]],
    "swapped": lambda chunks: [*chunks[:1], chunks[2], chunks[1], *chunks[3:]],
    "repeated": lambda chunks: [*chunks, *chunks[-2:]],
}


@pytest.mark.full
def test_a_stream_is_as_well_understood_and_chunks_that_are_lost_or_out_of_order_are_noticed(
    demo_server: TritonServer, hear: Hear, alone: list[list[str]]
) -> None:
    streams = [stream(demo_server, text) for text in LINES]
    heard = [hear(joined(chunks)) for chunks in streams]
    found = compare(alone, heard)
    assert found <= SAME, f"{found:.3f} of the words differ: {heard}"
    for name, mutation in MUTATIONS.items():
        found = compare(alone, [hear(joined(mutation(chunks))) for chunks in streams])
        assert found > 1.15 * SAME, f"{name}: {found:.3f} of the words differ"


@pytest.mark.full
def test_sentences_it_never_heard_are_understood_alone_and_sixteen_at_once(
    demo_server: TritonServer, hear: Hear
) -> None:
    alone = [hear(speak(demo_server, text)) for text in SENTENCES]
    found = error_rate(SENTENCES, alone)
    assert found <= BOUND, f"word error rate {found:.3f}: {alone}"
    with ThreadPoolExecutor(len(SENTENCES)) as together:
        heard = [*map(hear, together.map(lambda text: speak(demo_server, text), SENTENCES))]
    found = compare(alone, heard)
    assert found <= SAME, f"{found:.3f} of the words differ"


def heard_from(environment: dict[str, str], folder: Path, texts: list[str], hear: Hear) -> list[list[str]]:
    """What is heard of a server of its own."""
    environment = {"CHATTERBOX_CHECKPOINT": "demo", **environment}
    with TritonServer(ServerOptions(environment=environment, log=folder / "triton.log")) as server:
        return [hear(speak(server, text)) for text in texts]


@pytest.mark.full
def test_a_page_of_several_segments_is_understood(demo_server: TritonServer, hear: Hear) -> None:
    heard = [hear(speak(demo_server, PROSE))]
    found = error_rate([PROSE], heard)
    assert found <= PAGE_BOUND, f"word error rate {found:.3f}: {heard}"


@pytest.mark.full
@pytest.mark.timeout(1800)  # a processor without bfloat16 emulates it: five minutes, more beside other work
def test_bfloat16_is_as_well_understood(hear: Hear, tmp_path: Path) -> None:
    heard = heard_from({"CHATTERBOX_DTYPE": "bfloat16"}, tmp_path, SENTENCES[:8], hear)
    found = error_rate(SENTENCES[:8], heard)
    assert found <= BOUND, f"word error rate {found:.3f}: {heard}"


def test_a_word_that_nobody_knows_comes_out_as_something(demo_server: TritonServer) -> None:
    samples = speak(demo_server, "Zyzzyva quokka xylophone!", max_seconds=6.0)
    assert np.isfinite(samples).all()
    assert 0 < len(samples) <= 6.0 * SAMPLE_RATE


def test_other_alphabets_are_refused(demo_server: TritonServer) -> None:
    with pytest.raises(InvalidRequest, match="cannot speak '日', '本', '語'"):
        speak(demo_server, "This is 日本語.")


def test_an_agents_socket_has_the_times_of_its_words(demo_server: TritonServer, tmp_path: Path) -> None:
    path = "/v1/text-to-speech/default/stream-input?output_format=pcm_24000&seed=1&sync_alignment=true"

    async def main(front: Front) -> list[dict[str, Any]]:
        async with aiohttp.ClientSession(f"http://{front.address}") as session, session.ws_connect(path) as socket:
            for text in (f"{WHOLE} ", ""):
                await socket.send_json({"text": text})
            messages = [await socket.receive_json(timeout=280)]
            while not messages[-1]["isFinal"]:
                messages.append(await socket.receive_json(timeout=280))
            return messages

    with Front(demo_server.grpc_url, tmp_path / "front.log") as front:
        messages = asyncio.run(main(front))
    first = next(iter(Sentences("en").push(f"{WHOLE} A")), WHOLE).strip()
    with Client(demo_server.http_url, "http", timeout=280) as client:
        words = client.speak(first, seed=1, word_times=True, text_normalization="plain").words
    told = messages[-1]["words"]
    assert [word["word"] for word in told] == WHOLE.split()
    for word, expected in zip(told, words, strict=False):
        assert (word["start"], word["end"]) == pytest.approx((expected.start, expected.end), abs=0.001)
    shown = [message["alignment"] for message in messages if message["audio"] and message["alignment"]]
    chars = "".join(char for each in shown for char in each["chars"])
    starts = [start for each in shown for start in each["charStartTimesMs"]]
    assert chars == f"{WHOLE} "
    assert starts == sorted(starts)
    for found, word in zip(re.finditer(r"\S+", chars), told, strict=True):
        assert starts[found.start()] == pytest.approx(1_000 * word["start"], abs=1)


@pytest.mark.full
def test_its_other_voice_is_cloned_from_a_clip(demo_server: TritonServer) -> None:
    own = pitch(speak(demo_server, SENTENCES[0]))
    other = pitch(speak(demo_server, SENTENCES[0], reference_audio=CLIP))
    assert other < 0.8 * own, f"{own:.0f} Hz and {other:.0f} Hz"


def pitch(samples: np.ndarray) -> float:
    """Median F0 of the voiced part, Hz."""
    import pyworld

    f0, _ = pyworld.dio(samples.astype(np.float64), SAMPLE_RATE, f0_floor=60, f0_ceil=400)
    return float(np.median(f0[f0 > 0]))
