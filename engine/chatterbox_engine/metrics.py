"""Counters, gauges and histograms of an engine, and their publication on Triton's metrics page.

The engine knows only the protocol `Metrics`. `TritonMetrics` gets Triton's family class as an argument, so this module
does not import Triton. Setting one metric is a call into another process: 15 to 50 microseconds, and up to 5
milliseconds to reacquire the GIL when another thread is busy (measured on server 2.51). So the engine's threads only
record events, and a separate thread publishes once a second.
"""

from __future__ import annotations

import os
import queue
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from chatterbox_engine.errors import Cancelled, RequestError
from chatterbox_engine.types import GuardEvent

PUBLISH_SECONDS = 1.0

SECONDS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 60.0)
SHORT_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
RATIOS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 5.0)
SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)

COUNTERS = {
    "chatterbox_requests_total": "Requests answered with all of their audio",
    "chatterbox_batch_requests_total": "Those of priority batch among them",
    "chatterbox_audio_seconds_total": "Seconds of audio in these answers",
    "chatterbox_speech_tokens_total": "Speech tokens in these answers",
    "chatterbox_segments_total": "Segments in these answers",
    "chatterbox_cancellations_total": "Requests cancelled by their clients",
    "chatterbox_preemptions_total": "Batch utterances that lost their slot to a live one and start again",
    "chatterbox_retries_total": "Segments that the guard had spoken again",
    "chatterbox_trimmed_seconds_total": "Seconds of speech that the guard cut",
    "chatterbox_t3_steps_total": "Decode steps of T3",
    "chatterbox_t3_step_seconds_total": "Wall time of these steps",
    "chatterbox_t3_step_utterances_total": "Utterances decoded in these steps, summed over the steps",
}

HISTOGRAMS = {
    "chatterbox_ttfa_seconds": ("From a live request's arrival to its first audio", SECONDS),
    "chatterbox_request_seconds": ("From a live request's arrival to all of its audio", SECONDS),
    "chatterbox_queue_seconds": ("A live request's wait for a slot, from when its voice is known", SHORT_SECONDS),
    "chatterbox_rtf_ratio": ("Real-time factor of a live request: wall seconds per second of audio", RATIOS),
    "chatterbox_s3gen_batch_size": ("Utterances, or chunks of streams, vocoded together", SIZES),
    "chatterbox_s3gen_seconds": ("Wall time of one such batch", SHORT_SECONDS),
}

GAUGES = {
    "slots_active": ("chatterbox_slots_active", "Utterances that decode"),
    "slots_free": ("chatterbox_slots_free", "Slots without an utterance"),
    "slots_batch": ("chatterbox_slots_batch", "Utterances of batch requests among those that decode"),
    "utterances_waiting": ("chatterbox_utterances_waiting", "Utterances that wait for a slot"),
    "batch_waiting": ("chatterbox_batch_utterances_waiting", "Utterances of batch requests among those that wait"),
    "requests_active": ("chatterbox_requests_active", "Requests without a complete answer"),
    "kv_positions_used": ("chatterbox_kv_positions_used", "KV cache positions that belong to an utterance"),
    "kv_positions": ("chatterbox_kv_positions", "KV cache positions in all"),
    "voices_cached": ("chatterbox_voices_cached", "Voices kept in memory"),
}
"""Gauges by the field of `Status` that they show."""

VoiceSource = Literal["memory", "store", "encoded"]
"""Source of a voice: in memory, its conditionals in the store, or computed from its clip."""

VOICES = ("chatterbox_voices_total", "Voices of requests, and those brought into memory, by where they came from")
VOICE_SOURCES: tuple[VoiceSource, ...] = get_args(VoiceSource)
"""The values of its label `source`."""

GUARD = ("chatterbox_guard_events_total", "Segments with speech that has gone wrong, by what the guard found")
GUARD_EVENTS: tuple[GuardEvent, ...] = get_args(GuardEvent)
"""The values of its label `event`."""

ERRORS = ("chatterbox_errors_total", "Requests refused or ended without all of their audio, by kind of error")
MEMORY = ("chatterbox_memory_bytes", "Memory of the engine's process: resident on the host, held by torch on the GPU")
MEMORY_KINDS = {"host_bytes": "host", "gpu_bytes": "gpu"}
INFO = ("chatterbox_info", "Always 1; the labels tell what a model serves and which optimisations are active")

CONTRACT = ("chatterbox_contract", "Always 1; the labels tell what requests may choose, lists and objects as JSON")

ERROR_KINDS = (RequestError.__name__, *sorted(kind.__name__ for kind in RequestError.__subclasses__()))
"""The values of the label `kind`: a fixed set, which bounds the cardinality."""


@dataclass(frozen=True)
class Status:
    """A snapshot of an engine's state."""

    slots_active: int
    slots_free: int
    slots_batch: int
    utterances_waiting: int
    batch_waiting: int
    requests_active: int
    kv_positions_used: int
    kv_positions: int
    voices_cached: int
    host_bytes: int
    gpu_bytes: int


@dataclass(frozen=True)
class Served:
    """What an engine serves and how, and the GPU memory that it holds."""

    constant: Mapping[str, Any]
    """Entries of every answer's statistics that never change; `optimizations` is one."""
    gpu_bytes: Callable[[], int]

    @property
    def about(self) -> dict[str, Any]:
        """As in every response's statistics."""
        active, used = self.constant.get("optimizations", []), round(self.gpu_bytes() / 1e6, 1)
        return {**self.constant, "optimizations_active": active, "gpu_memory_used_mb": used}


class Metrics(Protocol):
    """The events that the engine reports. Every method is thread-safe and returns at once."""

    def voiced(self, source: VoiceSource) -> None:
        """A voice was found for a request, or loaded into memory."""

    def stepped(self, seconds: float, utterances: int) -> None:
        """T3 made one decode step."""

    def preempted(self) -> None:
        """A batch utterance lost its slot to a live one."""

    def vocoded(self, seconds: float, chunks: int) -> None:
        """S3Gen made the waveforms of one batch."""

    def answered(self, stats: Mapping[str, Any]) -> None:
        """A request has all of its audio; `stats` are those of its answer."""

    def failed(self, error: RequestError) -> None:
        """A request was refused, or ended without all of its audio."""


class NoMetrics:
    """Ignores all events."""

    def preempted(self) -> None:
        """See `Metrics`."""

    def voiced(self, source: VoiceSource) -> None:
        """See `Metrics`."""

    def stepped(self, seconds: float, utterances: int) -> None:
        """See `Metrics`."""

    def vocoded(self, seconds: float, chunks: int) -> None:
        """See `Metrics`."""

    def answered(self, stats: Mapping[str, Any]) -> None:
        """See `Metrics`."""

    def failed(self, error: RequestError) -> None:
        """See `Metrics`."""


class TritonMetrics:
    """Collects the engine's events and publishes them, with its status, on Triton's metrics page.

    Between `start` and `close` a thread publishes every second; `close` publishes the rest. Every metric has the labels
    `model`, as Triton's own have, and `engine`, the number of the model's instance (`instance` is Prometheus's own
    label): the engines of a server share one page, and metrics with equal names and labels would be merged.
    """

    def __init__(self, family: Any, model: str, engine: int = 0) -> None:
        """`family` is `pb_utils.MetricFamily`, `model` the name of the Triton model."""
        self._events: queue.SimpleQueue[tuple[str, float]] = queue.SimpleQueue()
        self._families = _Families(family, model, engine)
        counters, gauges = self._families.counter, self._families.gauge
        self._counters = {name: counters(name, text) for name, text in COUNTERS.items()}
        self._counters |= {kind: counters(*ERRORS, kind=kind) for kind in ERROR_KINDS}
        self._counters |= {source: counters(*VOICES, source=source) for source in VOICE_SOURCES}
        self._counters |= {event: counters(*GUARD, event=event) for event in GUARD_EVENTS}
        self._histograms = {name: self._families.histogram(name, *rest) for name, rest in HISTOGRAMS.items()}
        self._gauges = {name: gauges(*rest) for name, rest in GAUGES.items()}
        self._gauges |= {name: gauges(*MEMORY, kind=kind) for name, kind in MEMORY_KINDS.items()}
        self._shown: dict[str, float] = {}
        self._ended = threading.Event()

    def start(self, status: Callable[[], Status], about: Mapping[str, Any], contract: Mapping[str, str]) -> None:
        """Starts to publish; the labels of `chatterbox_info` come from `about`, the engine's own, those of
        `chatterbox_contract` are `contract`."""
        self._status = status
        active = ",".join(about["optimizations"])
        served = {"checkpoint": about["model"], "family": about["family"], "device": about["device"]}
        self._info = self._families.gauge(*INFO, **served, optimizations=active)
        self._contract = self._families.gauge(*CONTRACT, **contract)
        for constant in (self._info, self._contract):
            constant.set(1)
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Publishes the rest, ends the thread and removes the metrics."""
        self._ended.set()
        self._thread.join()
        self.publish()
        # the model's process would remove them at exit, after the state that this needs is freed (SIGSEGV)
        for made in (self._counters, self._gauges, self._histograms):
            made.clear()
        del self._info, self._contract, self._families

    def voiced(self, source: VoiceSource) -> None:
        """See `Metrics`."""
        self._events.put((source, 1))

    def stepped(self, seconds: float, utterances: int) -> None:
        """See `Metrics`."""
        self._events.put(("chatterbox_t3_steps_total", 1))
        self._events.put(("chatterbox_t3_step_seconds_total", seconds))
        self._events.put(("chatterbox_t3_step_utterances_total", utterances))

    def preempted(self) -> None:
        """See `Metrics`."""
        self._events.put(("chatterbox_preemptions_total", 1))

    def vocoded(self, seconds: float, chunks: int) -> None:
        """See `Metrics`."""
        self._events.put(("chatterbox_s3gen_batch_size", chunks))
        self._events.put(("chatterbox_s3gen_seconds", seconds))

    def answered(self, stats: Mapping[str, Any]) -> None:
        """See `Metrics`."""
        self._events.put(("chatterbox_requests_total", 1))
        self._events.put(("chatterbox_audio_seconds_total", stats["audio_seconds"]))
        self._events.put(("chatterbox_speech_tokens_total", stats["tokens"]))
        self._events.put(("chatterbox_segments_total", stats["segments"]))
        for event in stats.get("guard_events", ()):
            self._events.put((event, 1))
        if "retries" in stats:
            self._events.put(("chatterbox_retries_total", stats["retries"]))
            self._events.put(("chatterbox_trimmed_seconds_total", stats["trimmed_seconds"]))
        if stats["priority"] == "batch":
            self._events.put(("chatterbox_batch_requests_total", 1))
            return  # nobody waits for it, so its times say nothing about the service
        self._events.put(("chatterbox_ttfa_seconds", stats["ttfa_ms"] / 1000))
        self._events.put(("chatterbox_request_seconds", stats["total_ms"] / 1000))
        self._events.put(("chatterbox_queue_seconds", stats["queue_ms"] / 1000))
        if stats["rtf"] is not None:
            self._events.put(("chatterbox_rtf_ratio", stats["rtf"]))

    def failed(self, error: RequestError) -> None:
        """See `Metrics`."""
        self._events.put((type(error).__name__, 1))
        if isinstance(error, Cancelled):
            self._events.put(("chatterbox_cancellations_total", 1))

    def publish(self) -> None:
        """Updates the page."""
        sums: defaultdict[str, float] = defaultdict(float)
        for _ in range(self._events.qsize()):
            name, value = self._events.get_nowait()
            if name in self._histograms:
                self._histograms[name].observe(value)
            else:
                sums[name] += value
        for name, amount in sums.items():
            self._counters[name].increment(amount)
        now = asdict(self._status())
        for name, value in now.items():
            if self._shown.get(name) != value:
                self._gauges[name].set(value)
        self._shown = now

    def _run(self) -> None:
        while not self._ended.wait(PUBLISH_SECONDS):
            self.publish()


class _Families:
    """Makes a model's metrics, one family for each name."""

    def __init__(self, family: Any, model: str, engine: int) -> None:
        self._class = family
        self._labels = {"model": model, "engine": str(engine)}
        self._made: dict[str, Any] = {}  # kept: Triton drops a family or metric without references

    def counter(self, name: str, text: str, **labels: str) -> Any:
        return self._family(name, text, self._class.COUNTER).Metric(labels=self._labels | labels)

    def gauge(self, name: str, text: str, **labels: str) -> Any:
        return self._family(name, text, self._class.GAUGE).Metric(labels=self._labels | labels)

    def histogram(self, name: str, text: str, bounds: Sequence[float]) -> Any:
        return self._family(name, text, self._class.HISTOGRAM).Metric(labels=self._labels, buckets=list(bounds))

    def _family(self, name: str, text: str, kind: Any) -> Any:
        if name not in self._made:
            self._made[name] = self._class(name=name, description=text, kind=kind)
        return self._made[name]


def resident_bytes() -> int:
    """Memory of this process on the host."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
