"""What the engine tells and what reaches Triton's page, with a family class that only remembers."""

from __future__ import annotations

import re
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from chatterbox_engine.errors import Cancelled, EngineFailed, InvalidRequest, Overloaded
from chatterbox_engine.metrics import COUNTERS, GAUGES, HISTOGRAMS, VOICES, Status, TritonMetrics, VoiceSource
from tests.unit.engine_fakes import WAIT, FakeEngine

STATS = {
    "audio_seconds": 2.0,
    "tokens": 50,
    "segments": 2,
    "ttfa_ms": 300.0,
    "priority": "live",
    "total_ms": 500.0,
    "queue_ms": 20.0,
}
CONTRACT = {"languages": '["en"]', "max_characters": "10"}
ABOUT = {"model": "folder/tiny", "family": "english", "device": "cpu", "optimizations": ["bfloat16", "cuda_graphs"]}

MODEL = "speaker"


class Page:
    """A stand-in for `pb_utils.MetricFamily` and the page behind it."""

    COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.calls = 0
        self.published = threading.Event()
        self.held: weakref.WeakSet[Any] = weakref.WeakSet()

    def __call__(self, *, name: str, description: str, kind: str) -> Any:
        assert f"{name}/kind" not in self.values, f"{name} is made twice"
        self.values[f"{name}/kind"] = kind
        page = self

        class Family:
            def Metric(self, labels: dict[str, str], buckets: Any = None) -> Any:  # noqa: N802, Triton's spelling
                others = dict(labels)
                assert others.pop("model") == MODEL, f"{name} does not tell its model"
                assert others.pop("engine") == "0", f"{name} does not tell its engine"
                metric = Metric(page, name + "".join(f"|{key}={value}" for key, value in others.items()))
                page.held.add(metric)
                return metric

        family = Family()
        self.held.add(family)
        return family

    def __getitem__(self, name: str) -> Any:
        return self.values.get(name)


class Metric:
    def __init__(self, page: Page, name: str) -> None:
        self._page, self._name = page, name
        page.values[name] = None

    def increment(self, value: float) -> None:
        self._put((self._page[self._name] or 0) + value)

    def set(self, value: float) -> None:
        self._put(value)
        self._page.published.set()

    def observe(self, value: float) -> None:
        self._put([*(self._page[self._name] or []), value])

    def _put(self, value: Any) -> None:
        self._page.calls += 1
        self._page.values[self._name] = value


def status(**changes: int) -> Status:
    fields = dict.fromkeys(Status.__dataclass_fields__, 0)
    return Status(**{**fields, **changes})


@pytest.fixture
def page() -> Page:
    return Page()


@pytest.fixture
def metrics(page: Page) -> Iterator[TritonMetrics]:
    made = TritonMetrics(page, MODEL)
    made.start(lambda: status(slots_active=3, host_bytes=1000), ABOUT, CONTRACT)
    yield made
    made.close()


def test_an_answer_is_counted_and_timed(metrics: TritonMetrics, page: Page) -> None:
    metrics.answered({**STATS, "rtf": 0.25})
    metrics.answered({**STATS, "rtf": None})
    metrics.publish()
    assert page["chatterbox_requests_total"] == 2
    assert page["chatterbox_audio_seconds_total"] == 4.0
    assert page["chatterbox_speech_tokens_total"] == 100
    assert page["chatterbox_segments_total"] == 4
    assert page["chatterbox_ttfa_seconds"] == [0.3, 0.3]
    assert page["chatterbox_request_seconds"] == [0.5, 0.5]
    assert page["chatterbox_queue_seconds"] == [0.02, 0.02]
    assert page["chatterbox_rtf_ratio"] == [0.25]


def test_batch_requests_are_counted_and_their_times_left_out(metrics: TritonMetrics, page: Page) -> None:
    metrics.answered({**STATS, "rtf": 0.25, "priority": "batch"})
    metrics.preempted()
    metrics.publish()
    assert (page["chatterbox_requests_total"], page["chatterbox_batch_requests_total"]) == (1, 1)
    assert page["chatterbox_preemptions_total"] == 1
    assert page["chatterbox_ttfa_seconds"] is None
    assert page["chatterbox_queue_seconds"] is None


def test_what_the_guard_did_is_counted(metrics: TritonMetrics, page: Page) -> None:
    metrics.answered({**STATS, "rtf": 0.25})
    metrics.answered({**STATS, "rtf": 0.25, "guard_events": ["tail", "skip"], "retries": 2, "trimmed_seconds": 0.5})
    metrics.publish()
    assert page["chatterbox_guard_events_total|event=tail"] == 1
    assert page["chatterbox_retries_total"] == 2
    assert page["chatterbox_trimmed_seconds_total"] == 0.5
    assert "chatterbox_guard_events_total|event=loop" in page.values


def test_any_number_of_decode_steps_costs_three_calls(metrics: TritonMetrics, page: Page) -> None:
    metrics.publish()
    before = page.calls
    for _ in range(500):
        metrics.stepped(0.01, 4)
    metrics.publish()
    assert page.calls == before + 3
    assert page["chatterbox_t3_steps_total"] == 500
    assert page["chatterbox_t3_step_seconds_total"] == pytest.approx(5.0)
    assert page["chatterbox_t3_step_utterances_total"] == 2000


def test_errors_are_counted_by_kind_and_cancellations_by_themselves(metrics: TritonMetrics, page: Page) -> None:
    for error in (InvalidRequest("a"), InvalidRequest("b"), Cancelled("c")):
        metrics.failed(error)
    metrics.publish()
    assert page["chatterbox_errors_total|kind=InvalidRequest"] == 2
    assert page["chatterbox_errors_total|kind=Cancelled"] == 1
    assert page["chatterbox_cancellations_total"] == 1
    assert "chatterbox_errors_total|kind=EngineFailed" in page.values


def test_voices_are_counted_by_where_they_came_from(metrics: TritonMetrics, page: Page) -> None:
    metrics.voiced("encoded")
    for _ in range(2):
        metrics.voiced("memory")
    metrics.publish()
    assert page["chatterbox_voices_total|source=encoded"] == 1
    assert page["chatterbox_voices_total|source=memory"] == 2
    assert "chatterbox_voices_total|source=store" in page.values


def test_gauges_are_set_only_when_they_change(metrics: TritonMetrics, page: Page) -> None:
    metrics.publish()
    before = page.calls
    metrics.publish()
    assert page.calls == before
    assert page["chatterbox_slots_active"] == 3
    assert page["chatterbox_memory_bytes|kind=host"] == 1000


def test_what_is_served_is_told_in_labels(metrics: TritonMetrics, page: Page) -> None:
    labels = "checkpoint=folder/tiny|family=english|device=cpu|optimizations=bfloat16,cuda_graphs"
    assert page[f"chatterbox_info|{labels}"] == 1


def test_what_requests_may_choose_is_told_in_labels(metrics: TritonMetrics, page: Page) -> None:
    assert page['chatterbox_contract|languages=["en"]|max_characters=10'] == 1


def test_closing_publishes_what_is_left_and_takes_the_metrics_back(page: Page) -> None:
    made = TritonMetrics(page, MODEL)
    made.start(status, ABOUT, CONTRACT)
    made.vocoded(0.5, 7)
    assert len(page.held) > 20
    made.close()
    assert not page.held, "Triton's process for the model would take them back when it no longer can"
    assert page["chatterbox_s3gen_batch_size"] == [7]
    assert page["chatterbox_s3gen_seconds"] == [0.5]


def test_it_publishes_by_itself(metrics: TritonMetrics, page: Page) -> None:
    page.published.clear()
    metrics._shown.clear()
    assert page.published.wait(WAIT)


def test_names_and_units_follow_prometheus_conventions() -> None:
    for name in (*COUNTERS, VOICES[0]):
        assert re.fullmatch(r"chatterbox_[a-z0-9_]+_total", name)
    for name in (*HISTOGRAMS, *(name for name, _ in GAUGES.values())):
        assert re.fullmatch(r"chatterbox_[a-z0-9_]+", name)
        assert not re.search(r"_(ms|milliseconds|total|count|sum|bucket)$", name)
    for _, bounds in HISTOGRAMS.values():
        assert list(bounds) == sorted(set(bounds))


class Told:
    """Remembers what an engine tells."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.batches: list[int] = []
        self.answers: list[Any] = []
        self.sources: list[VoiceSource] = []
        self.errors: list[str] = []

    def voiced(self, source: VoiceSource) -> None:
        self.sources.append(source)

    def stepped(self, seconds: float, utterances: int) -> None:
        assert seconds >= 0
        self.steps.append(utterances)

    def vocoded(self, seconds: float, chunks: int) -> None:
        assert seconds >= 0
        self.batches.append(chunks)

    def answered(self, stats: Any) -> None:
        self.answers.append(stats)

    def failed(self, error: Exception) -> None:
        self.errors.append(type(error).__name__)


def test_the_engine_tells_every_step_batch_and_answer() -> None:
    told = Told()
    with FakeEngine(metrics=told) as fake:
        fake.submit("Hello there.")
        fake.answers.take()
    assert told.steps == [1] * 13  # twelve tokens and the stop; the first came with the prompt, one step is too many
    assert told.batches == [1]
    assert [stats["tokens"] for stats in told.answers] == [12]
    assert {"real_time_factor", "inference_speedup", "gpu_memory_used_mb", "optimizations_active"} <= set(
        told.answers[0]
    )
    assert told.errors == []


def test_the_engine_tells_every_failure() -> None:
    told = Told()
    with FakeEngine(metrics=told) as fake:
        fake.runner.gate.clear()
        number = fake.submit("x" * 200)
        fake.submit()
        fake.engine.cancel(number)
        fake.runner.error = ValueError("broken part")
        fake.runner.gate.set()
        fake.answers.take_all(2)
        fake.failures.get(timeout=WAIT)
    assert told.errors == [Cancelled.__name__, EngineFailed.__name__]


def test_the_engine_s_status_tells_slots_queue_and_cache() -> None:
    with FakeEngine(max_slots=1) as fake:
        idle = fake.engine.status()
        fake.runner.gate.clear()
        fake.submit("x" * 200)
        fake.submit("x" * 200)
        assert fake.runner.started.wait(WAIT)
        busy = fake.engine.status()
        fake.runner.gate.set()
        fake.answers.take_all(2)
    assert (idle.slots_active, idle.slots_free, idle.kv_positions_used) == (0, 1, 0)
    assert (busy.slots_active, busy.slots_free, busy.requests_active) == (1, 0, 2)
    assert 0 < busy.kv_positions_used < busy.kv_positions
    assert busy.host_bytes > 1 << 20
    assert busy.gpu_bytes == 0


def test_overload_is_refused_by_the_engine_and_told_by_its_caller() -> None:
    told = Told()
    with FakeEngine(max_queue=1, metrics=told) as fake:
        fake.runner.gate.clear()
        fake.submit()
        with pytest.raises(Overloaded):
            fake.submit()
        fake.runner.gate.set()
        fake.answers.take()
    assert told.errors == []
