"""Voices: what computing one from its clip costs, where the time goes and what it takes from decoding, and how fast
stored ones are there.

On a CPU with the threads that the server gives a network, half of the cores. Both sides run upstream's encoders with
the same random weights; upstream reads its clip from a file.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.report import Report, Row, say, seconds, synchronize
from bench.t3 import full_size_checkpoint, make_runner, step_seconds
from chatterbox_engine.assemble import encoder_batch
from chatterbox_engine.checkpoint.checkpoint import Checkpoint
from chatterbox_engine.hardware import choose_dtypes, share_of_cores
from chatterbox_engine.kernels.device import own_stream
from chatterbox_engine.t3.llama import T3
from chatterbox_engine.types import Conditionals, ReferenceClip, SynthesisRequest
from chatterbox_engine.voices.clips import ClipLimits, read_clip
from chatterbox_engine.voices.conditionals import to_bytes
from chatterbox_engine.voices.library import PREPARATION
from chatterbox_engine.voices.reference import ReferenceEncoder
from chatterbox_engine.voices.service import Voices
from chatterbox_engine.voices.store import VoiceStore, content_hash
from tests.clips import encoded, tone
from tests.fidelity import upstream
from tests.postgres import Postgres, find_binaries

RATE = 44_100
SECONDS = (6.0, 10.0, 30.0)
BATCHES = (1, 2, 4, 8)
TOGETHER = 10.0
STORED, NEW = 200, 10
LOOK_UPS = 200
UTTERANCES, STEPS = 4, 100
IDENTITY = "bench"


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(share_of_cores(0))
    checkpoint = full_size_checkpoint()
    theirs, encoder = upstream.tts(checkpoint, t3_module=False), ReferenceEncoder(checkpoint, device)
    theirs.device = str(device)
    theirs.s3gen.to(device)
    theirs.ve.to(device)
    report = Report("voices")
    compute(report, encoder, theirs)
    batches(report, encoder)
    beside_decoding(report, encoder, checkpoint, device)
    with tempfile.TemporaryDirectory() as folder, databases(Path(folder)) as urls:
        for name, url in urls.items():
            stored(report, name, url, encoder, device)
    report.write(draw)


def compute(report: Report, encoder: ReferenceEncoder, theirs: Any) -> None:
    """One clip after the other, and how much of that is outside of the networks."""
    for length in SECONDS:
        clip = encoded(tone(length, RATE), RATE)
        with tempfile.NamedTemporaryFile(suffix=".wav") as file, network_seconds(encoder) as inside:
            Path(file.name).write_bytes(clip)
            ours = seconds(lambda clip=clip: encode(encoder, clip))  # type: ignore[misc]
            inside.clear()
            began = time.perf_counter()
            encode(encoder, clip)
            outside = time.perf_counter() - began - sum(inside)
            upstreams = seconds(lambda name=file.name: prepare(theirs, name))  # type: ignore[misc]
        report.add(
            f"a clip of {length:g} s",
            ours=1 / ours,
            upstream=1 / upstreams,
            unit="clips/s",
            ms=1000 * ours,
            outside_networks_ms=1000 * outside,
        )


def encode(encoder: ReferenceEncoder, clip: bytes) -> Conditionals:
    (voice,) = encoder.encode([prepared(encoder, clip)])
    return voice


def prepared(encoder: ReferenceEncoder, clip: bytes) -> ReferenceClip:
    return encoder.prepare(*read_clip(clip, ClipLimits()))


@torch.no_grad()
def prepare(theirs: Any, path: str) -> None:
    theirs.prepare_conditionals(path)


@contextmanager
def network_seconds(encoder: ReferenceEncoder) -> Iterator[list[float]]:
    """Collects the wall time of every pass through a network: all else is resampling, features and copies."""
    taken: list[float] = []
    began = 0.0

    def before(*_: object) -> None:
        nonlocal began
        synchronize()
        began = time.perf_counter()

    def after(*_: object) -> None:
        synchronize()
        taken.append(time.perf_counter() - began)

    speaker = encoder._speaker
    networks = (encoder._tokenizer.encoder, encoder._voice.lstm, speaker.head, speaker.xvector)
    hooks = [
        hook for it in networks for hook in (it.register_forward_pre_hook(before), it.register_forward_hook(after))
    ]
    yield taken
    for hook in hooks:
        hook.remove()


def batches(report: Report, encoder: ReferenceEncoder) -> None:
    """Several clips together, all but decoding and resampling them."""
    alone = 0.0
    for batch in BATCHES:
        clips = [prepared(encoder, encoded(tone(TOGETHER, RATE, pitch=100 + row), RATE)) for row in range(batch)]
        each = seconds(lambda clips=clips: encoder.encode(clips), repeat=3) / batch  # type: ignore[misc]
        alone = alone or each
        report.add(
            f"networks, {batch} clips of {TOGETHER:g} s at once",
            ours=1 / each,
            upstream=None,
            unit="clips/s",
            ms=1000 * each,
            of_alone=alone / each,
        )


def beside_decoding(report: Report, encoder: ReferenceEncoder, checkpoint: Checkpoint, device: torch.device) -> None:
    """T3's steps alone, and while the encoders work on a thread of their own as in the server."""
    dtype, _ = choose_dtypes("auto", device, say)
    model = T3.from_state_dict(checkpoint.t3_state(), checkpoint.dims.t3, device=device, dtype=dtype)
    runner = make_runner(model, UTTERANCES)
    clip = encoded(tone(10.0, RATE), RATE)
    alone, _ = step_seconds(runner, checkpoint, UTTERANCES, STEPS)
    ended = threading.Event()

    def encode_on() -> int:
        count = 0
        while not ended.is_set():
            encode(encoder, clip)
            count += 1
        return count

    with ThreadPoolExecutor(1, initializer=partial(own_stream, device)) as pool:
        encodings = pool.submit(encode_on)
        beside, _ = step_seconds(runner, checkpoint, UTTERANCES, STEPS)
        ended.set()
        say(f"voices: {encodings.result()} clips encoded meanwhile")
    for case, took in ((f"T3, {UTTERANCES} utterances", alone), ("the same while clips are encoded", beside)):
        report.add(case, ours=UTTERANCES / took, upstream=None, unit="tokens/s", ms=1000 * took, of_alone=alone / took)


@contextmanager
def databases(folder: Path) -> Iterator[dict[str, str]]:
    """SQLite, and PostgreSQL where it is installed."""
    urls = {"SQLite": str(folder / "voices.sqlite")}
    binaries = find_binaries()
    if binaries is None:
        say("bench: no PostgreSQL is installed")
        yield urls
        return
    server = Postgres(binaries)
    server.start()
    try:
        yield urls | {"PostgreSQL": server.url}
    finally:
        server.stop()
        server.remove()


def stored(report: Report, name: str, url: str, encoder: ReferenceEncoder, device: torch.device) -> None:
    """Starts with many voices that are computed, and with some that nobody has computed yet, and looks names up."""
    clips = [encoded(tone(10.0, pitch=90 + number)) for number in range(STORED + NEW)]
    computed = to_bytes(encode(encoder, clips[0]))
    store = VoiceStore(url)
    for number, clip in enumerate(clips[:STORED]):
        store.add(f"voice{number}", clip)
        store.put_conditionals(content_hash(clip), f"{IDENTITY}/{PREPARATION}", computed)
    voices, took = started(url, encoder, device)
    report.add(f"{STORED} computed voices, {name}", ours=STORED / took, upstream=None, unit="voices/s", ms=1000 * took)
    look_ups = seconds(lambda: [look_up(voices, f"voice{number % STORED}") for number in range(LOOK_UPS)])
    voices.close()
    report.add(f"a look-up, {name}", ours=LOOK_UPS / look_ups, upstream=None, unit="1/s", ms=1000 * look_ups / LOOK_UPS)
    for number in range(STORED):
        store.delete(f"voice{number}")
    for number, clip in enumerate(clips[STORED:]):
        store.add(f"new{number}", clip)
    store.close()
    voices, took = started(url, encoder, device)
    voices.close()
    report.add(f"{NEW} new voices, {name}", ours=NEW / took, upstream=None, unit="voices/s", ms=1000 * took)


def started(url: str, encoder: ReferenceEncoder, device: torch.device) -> tuple[Voices, float]:
    voices = Voices(
        built_in=None,
        identity=IDENTITY,
        store=VoiceStore(url),
        make_encoder=lambda: encoder,
        limits=ClipLimits(),
        cache_bytes=512 << 20,
        encoder_batch=encoder_batch(device),
    )
    began = time.perf_counter()
    voices.start(say)
    return voices, time.perf_counter() - began


def look_up(voices: Voices, name: str) -> None:
    voices.resolve(SynthesisRequest("Hello.", 1, voice=name)).result()


def draw(axes: Any, rows: Sequence[Row]) -> None:
    """What batches gain."""
    axes.plot(BATCHES, [row["ours"] for row in rows if row["case"].endswith("at once")], "o-")
    axes.set_xlabel("clips at once")
    axes.set_ylabel("clips a second, prepared before")
