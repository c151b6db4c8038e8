"""The load test's own arithmetic, without Locust (which patches every module that it finds) and without a server."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chatterbox_client import Audio
from loadtest import report, summary
from loadtest.__main__ import call, find_problems
from loadtest.pages import Pages, parse
from loadtest.processes import Usage, growth
from loadtest.records import Record, WrongAudio, check
from loadtest.scenarios import SCENARIOS, Scenario, Stage

MIXED = SCENARIOS["mixed"]

PAGE = """# HELP nv_inference_request_success Number of successful inference requests
# TYPE nv_inference_request_success counter
nv_inference_request_success{model="chatterbox",version="1"} 12
nv_inference_request_success{model="other, one",version="1"} 3
wait_seconds_bucket{le="0.5"} 4
wait_seconds_bucket{le="+Inf"} 9
up 1e+00
"""


def pages(requests: float = 0.0, audio_seconds: float | None = None) -> Pages:
    seconds = 2.0 * requests if audio_seconds is None else audio_seconds
    page = f'nv_inference_request_success{{model="chatterbox"}} {requests}\nchatterbox_audio_seconds_total {seconds}'
    return Pages(parse(page), {})


def audio(samples: Any = None, *, tokens: int = 10, seed: int = 7, segments: int = 1, rate: int = 24_000) -> Audio:
    if samples is None:
        samples = np.full(960 * tokens, 0.1, dtype=np.float32)
    return Audio(samples, rate, np.zeros(tokens, dtype=np.int32), {"seed": seed, "segments": segments, "queue_ms": 0})


def record(began: float = 0.0, latency: float = 1.0, **changes: Any) -> Record:
    fields = {"protocol": "http", "kind": "prompt", "voice": "default", "ttfa": latency, "audio_seconds": 2.0}
    return Record(began=began, latency=latency, **{**fields, **changes})


def usage(at: float, **changes: int) -> Usage:
    return Usage(**{"at": at, "rss": 1 << 30, "threads": 50, "files": 80, "shared_memory": 1 << 20, **changes})


def test_a_locust_that_does_not_end_is_killed_and_a_problem() -> None:
    code = call([sys.executable, "-c", "import time; time.sleep(60)"], 0.2)
    problems = find_problems(code, {"failed": 0, "cancelled": 0, "requests": 1}, [], MIXED, alone=False)
    assert problems == ["Locust ended with exit code -9"]
    assert call([sys.executable, "-c", "raise SystemExit(3)"], None) == 3


def test_every_scenario_reaches_all_its_users_and_then_ends() -> None:
    for scenario in SCENARIOS.values():
        assert max(stage.users(32) for stage in scenario.stages) == 32
        assert min(stage.users(1) for stage in scenario.stages) == 1
        assert scenario.stage_at(0.0) == 0
        assert scenario.stage_at(scenario.seconds - 0.001) == len(scenario.stages) - 1
        assert scenario.stage_at(scenario.seconds + 0.001) is None


def test_a_scenario_keeps_its_shape_in_another_length() -> None:
    stretched = Scenario("", (Stage(10, 0.5), Stage(30, 1))).lasting(80)
    assert [(stage.seconds, stage.share) for stage in stretched.stages] == [(20, 0.5), (60, 1)]


def test_good_audio_passes() -> None:
    check(audio(), seed=7, max_seconds=30)
    check(audio(np.full(960 * 10 + 4800, 0.1, dtype=np.float32), segments=2), seed=7, max_seconds=30)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (audio(np.zeros(0, dtype=np.float32), tokens=0), "0 samples"),
        (audio(np.zeros(9600, dtype=np.float32)), "silence"),
        (audio(np.full(9600, np.nan, dtype=np.float32)), "between -1 and 1"),
        (audio(np.full(9600, 1.5, dtype=np.float32)), "between -1 and 1"),
        (audio(np.full(9599, 0.1, dtype=np.float32)), "9599 samples of 10"),
        (audio(rate=16_000), "16000"),
        (audio(seed=8), "the seed is 8, not 7"),
        (audio(tokens=1000), "at most 30"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_audio_is_found(wrong: Audio, message: str) -> None:
    with pytest.raises(WrongAudio, match=message):
        check(wrong, seed=7, max_seconds=30)


def test_a_metrics_page_is_read_with_labels_and_buckets() -> None:
    page = Pages(parse(PAGE), {})
    assert page.total("nv_inference_request_success") == 15
    assert page.total("nv_inference_request_success", model="other, one") == 3
    assert page.total("up") == 1
    assert page.buckets("wait_seconds") == {"0.5": 4, "+Inf": 9}


def test_requests_belong_to_the_stage_they_began_in() -> None:
    scenario = Scenario("", (Stage(10, 0.5), Stage(10, 1)))
    records = [record(100 + began) for began in (0, 5, 12, 19.5)]
    rows = summary.summarise(scenario, 4, records, 100.0, pages(), pages(4))["stages"]
    assert [(row["users"], row["requests"]) for row in rows] == [(2, 2), (4, 2)]


def test_percentiles_leave_failures_out_and_errors_are_counted() -> None:
    records = [record(latency=n) for n in (1.0, 2.0, 3.0)] + [record(latency=99.0, error="boom")] * 2
    figures = summary.summarise(MIXED, 4, records, 0.0, pages(), pages(3))
    assert (figures["requests"], figures["failed"], figures["errors"]) == (5, 2, {"boom": 2})
    assert figures["protocols"]["http"]["latency"]["p50"] == 2.0
    assert figures["protocols"]["http"]["rtf"]["p50"] == 1.0


def test_counts_that_differ_from_the_server_s_are_a_problem() -> None:
    right = summary.summarise(MIXED, 4, [record()], 0.0, pages(5), pages(6))
    wrong = summary.summarise(MIXED, 4, [record()], 0.0, pages(5), pages(7, 12))
    short = summary.summarise(MIXED, 4, [record()], 0.0, pages(5), pages(6, 11.5))
    assert find_problems(0, right, [], MIXED, alone=True) == []
    assert find_problems(0, wrong, [], MIXED, alone=True) == ["users got 1 answers, Triton counted 2"]
    assert find_problems(0, wrong, [], MIXED, alone=False) == []
    assert "2.00 s of audio, the server sent 1.50" in find_problems(0, short, [], MIXED, alone=True)[0]


def test_failures_an_empty_test_and_locust_s_own_failure_are_problems() -> None:
    scenario = MIXED
    failed = summary.summarise(scenario, 4, [record(), record(error="boom")], 0.0, pages(), pages(1))
    nothing = summary.summarise(scenario, 4, [], 0.0, pages(), pages())
    good = summary.summarise(scenario, 4, [record()], 0.0, pages(), pages(1))
    assert "1 of 2 requests failed" in find_problems(1, failed, [], MIXED, alone=True)[0]
    assert find_problems(0, nothing, [], MIXED, alone=True) == ["no request was answered"]
    assert find_problems(3, good, [], MIXED, alone=True) == ["Locust ended with exit code 3"]


def test_clients_that_leave_are_no_failures_and_their_counts_are_not_compared() -> None:
    leaving = SCENARIOS["leaving"]
    records = [record(), record(cancelled=True), record(error="boom")]
    figures = summary.summarise(leaving, 4, records, 0.0, pages(), pages(2))
    assert (figures["requests"], figures["cancelled"], figures["failed"]) == (3, 1, 1)
    assert figures["protocols"]["http"]["requests"] == 1
    problems = find_problems(0, figures, [], leaving, alone=True)
    assert ["1 of 3 requests failed" in problems[0], "too short" in problems[1], len(problems)] == [True, True, 2]


def test_a_soak_has_settled_after_a_minute_and_after_two_hundred_answers() -> None:
    assert summary.settled([record(100 + n / 10) for n in range(300)], 160) == 160
    assert summary.settled([record(100 + n) for n in range(300)], 160) == 300
    assert summary.settled([record(100 + n) for n in range(199)], 160) is None


def test_growth_compares_the_ends_of_the_time_after_settling() -> None:
    usages = [usage(at, threads=10 if at < 60 else 20 + at // 60) for at in range(260)]
    assert growth(usages, 60)["threads"] == (21.0, 23.5)
    assert growth(usages[:105], 60) == {}


@pytest.mark.parametrize("name", ["rss", "threads", "files", "shared_memory"])
@pytest.mark.parametrize("scenario", ["soak", "leaving"])
def test_a_leak_of_any_resource_is_found_in_a_soak(name: str, scenario: str) -> None:
    soak = SCENARIOS[scenario].soak
    assert soak is not None
    steady = [usage(at) for at in range(600)]
    leaking = [usage(at, **{name: getattr(usage(0), name) + at * (1 << 20)}) for at in range(600)]
    assert summary.leaks(steady, 60, soak.growth) == []
    assert [leak.split()[0] for leak in summary.leaks(leaking, 60, soak.growth)] == [name]
    assert "too short" in summary.leaks(leaking, None, soak.growth)[0]
    assert "too short" in summary.leaks(leaking, 560, soak.growth)[0]


def test_the_report_has_a_page_a_json_file_and_all_its_pictures(tmp_path: Path) -> None:
    records = [record(began / 10, 1 + began % 7 / 10, protocol="grpc" if began % 2 else "http") for began in range(90)]
    records.append(record(error="ServerError: a | b"))
    figures = summary.summarise(MIXED, 8, records, 0.0, pages(), pages(90))
    about = {"scenario": "mixed", "verdict": "failed", "problems": ["1 of 91 requests failed"], "users": 8}
    page = report.write(tmp_path / "it", about, figures, records, [(0.0, 1), (5.0, 8)], [usage(at) for at in range(99)])
    text = page.read_text()
    pictures = {line.split("(")[1].rstrip(")") for line in text.splitlines() if line.startswith("![")}
    assert pictures == {file.name for file in page.parent.glob("*.png")}
    assert {
        "concurrency.png",
        "ttfa.png",
        "throughput.png",
        "batches.png",
        "queue.png",
        "rss.png",
        "shared_memory.png",
    } <= pictures
    assert "1 of 91 requests failed" in text
    assert "| ServerError: a / b | 1 |" in text
    content = json.loads((page.parent / "report.json").read_text())
    assert (content["verdict"], len(content["records"]), len(content["processes"])) == ("failed", 91, 99)


def test_a_report_of_a_test_without_a_single_answer_is_written(tmp_path: Path) -> None:
    figures = summary.summarise(MIXED, 8, [], 0.0, pages(), pages())
    about = {"scenario": "mixed", "verdict": "failed", "problems": ["no request was answered"]}
    assert report.write(tmp_path, about, figures, [], [], []).exists()
