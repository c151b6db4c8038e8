"""The voices that the users speak with: the built-in one, and a few that are added for the time of the test."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from chatterbox_client import ChatterboxClientError, Client, InvalidRequest, NotFound, ServerError, Unavailable
from loadtest.texts import SENTENCES

BUILT_IN = "default"
ADDED = 3
CLIP_SECONDS = 8.0
"""Turbo and Nano want five at least."""


@contextlib.contextmanager
def provided(client: Client, report: Callable[[str], None]) -> Iterator[Sequence[str]]:
    """Names of voices that have been spoken with once, so that no user waits until a clip is encoded.

    The clips are spoken by the server itself, in the one voice that is surely there. A server that keeps no voices, or
    not for everybody, has that voice alone. Raises ChatterboxClientError when it does not speak.
    """
    prefix = f"loadtest-{uuid.uuid4().hex[:8]}"  # another load test on the same store has names of its own
    names = [BUILT_IN]
    with contextlib.ExitStack() as cleanup:
        for number in range(1, ADDED + 1):
            name, clip = f"{prefix}-{number}", _clip(client, number)
            try:
                client.voices.add(name, clip)
            except (InvalidRequest, NotFound, ServerError, Unavailable) as error:
                report(f"no voice can be added ({error}): the users have {len(names)}")
                break
            cleanup.callback(_remove, client, name, report)
            audio = client.speak(SENTENCES[0], voice=name, max_seconds=1.0)
            report(f"voice {number} of {ADDED} added and ready after {audio.stats['voice_ms'] / 1000:.1f} s")
            names.append(name)
        yield names


def _clip(client: Client, number: int) -> bytes:
    spoken = client.speak(SENTENCES[number], seed=number, max_seconds=CLIP_SECONDS)
    samples = np.resize(spoken.samples, round(CLIP_SECONDS * spoken.sample_rate))  # said again until it is long enough
    return replace(spoken, samples=samples).to_bytes("wav")


def _remove(client: Client, name: str, report: Callable[[str], None]) -> None:
    try:
        client.voices.delete(name)
    except ChatterboxClientError as error:
        report(f"the voice {name} stays in the server's store: {error}")
