"""What an engine is made of. `assemble.build` makes the parts from a Config, tests make fakes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from chatterbox_engine.checkpoint.families import Family
from chatterbox_engine.errors import RequestError
from chatterbox_engine.metrics import Served
from chatterbox_engine.synthesis.cores import Cores
from chatterbox_engine.synthesis.finisher import Send
from chatterbox_engine.synthesis.jobs import Chunk
from chatterbox_engine.synthesis.prefixes import Prefixes
from chatterbox_engine.synthesis.scheduler import Scheduler
from chatterbox_engine.synthesis.segments import Segmented
from chatterbox_engine.synthesis.utterances import Utterance
from chatterbox_engine.synthesis.vocoder import Requests
from chatterbox_engine.t3.prompts import Prompt
from chatterbox_engine.text.pipeline import Script
from chatterbox_engine.types import Reading, Samples, SynthesisRequest
from chatterbox_engine.voices.cache import Voice
from chatterbox_engine.voices.library import Found

Report = Callable[[str], None]


class TextSegmenter(Protocol):
    """`segments.Segmenter`."""

    def read(self, request: SynthesisRequest, /) -> Script:
        """What is spoken of the request's text, stage by stage. Raises InvalidRequest."""

    def segments(self, request: SynthesisRequest, /) -> Segmented:
        """The request's segments. Raises InvalidRequest."""


class VoiceFinder(Protocol):
    """`voices.service.Voices`."""

    @property
    def built_in(self) -> Voice | None:
        """The checkpoint's own voice."""

    @property
    def cached(self) -> int:
        """Voices in memory."""

    def start(self, report: Report, /) -> None:
        """Loads the stored voices."""

    def resolve(self, request: SynthesisRequest, /) -> Future[Found]:
        """The request's voice. Its exception is a RequestError."""

    def work_ahead(self) -> None:
        """Loads the encoders and computes new voices in the background, where the settings say so."""

    def stop_ahead(self) -> None:
        """Ends that work; returns once the step under way, which cannot be interrupted, is done."""

    def close(self) -> None:
        """Ends the threads."""


class DrawnTokens(Protocol):
    """Tokens of one launch on their way to the host."""

    def read(self) -> list[list[int]]:
        """The new tokens of each of the launch's utterances, in their order; waits for the device."""

    def readings(self) -> Sequence[Reading]:
        """Where T3 looked in each one's text; empty where no utterance of the launch wanted it. After `read`."""


class StepRunner(Protocol):
    """`t3.runner.Runner`, or `t3.block_runner.BlockRunner` for models that predict a block of tokens at a time."""

    def warm_up(self, report: Report, /) -> None:
        """Makes the first step as fast as the next."""

    def prefill(self, prompts: Sequence[Prompt], prefixes: Sequence[Tensor], /) -> DrawnTokens:
        """Starts utterances; some models draw their first tokens."""

    def decode(self, prompts: Sequence[Prompt], /) -> DrawnTokens:
        """One step of running utterances, which gives each of them new tokens or none."""


class ChunkVocoder(Protocol):
    """`vocoder.Vocoder`."""

    @property
    def idle(self) -> bool:
        """Nothing is queued or being vocoded."""

    def warm_up(self, report: Report, /) -> None:
        """Makes the first batch as fast as the next. On `run`'s thread."""

    def run(
        self,
        requests: Requests,
        /,
        *,
        done: Callable[[Chunk, Samples, float], None],
        failed: Callable[[Chunk, RequestError], None],
    ) -> None:
        """The thread's body."""

    def put(self, chunk: Chunk, /) -> None:
        """Queues a chunk."""

    def close(self) -> None:
        """Ends `run` after what is queued."""


class ChunkFinisher(Protocol):
    """`finisher.Finisher`."""

    def put(
        self, chunk: Chunk, wave: Samples, seconds: float, /, *, send: Send, crashed: Callable[[BaseException], None]
    ) -> None:
        """Queues the waveform of a chunk."""

    def close(self) -> None:
        """Ends the threads after what is queued."""


@dataclass(frozen=True)
class Parts:
    """Each part belongs to the thread that the table in `engine` names; `cores` and `served` hold no state."""

    segmenter: TextSegmenter
    voices: VoiceFinder
    scheduler: Scheduler[Utterance]
    runner: StepRunner
    prefixes: Prefixes
    vocoder: ChunkVocoder
    finisher: ChunkFinisher
    cores: Cores
    served: Served
    family: Family
    stop_token: int
    """T3's, which ends an utterance."""
    aligned: bool
    """The runner can read where T3 looks in the text."""
    usual_peak: float
    """The usual `Reading.peak` of clean speech; 0 where it is not known."""
    device: torch.device
    max_queue: int
    max_batch_queue: int
    request_timeout: float
    """Seconds from a request's arrival to its answer."""
