"""Batches and books for real: Ray on two local nodes, engines of their own, a Triton server; killed and resumed.

How far a run is, the tests see by the records of its parts.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
import pytest
import soundfile

from chatterbox_batch.folder import Folder
from chatterbox_batch.records import WORK, Records
from chatterbox_batch.speakers import EngineSpeaker
from chatterbox_engine.launcher.server import TritonServer
from tests.server.conftest import client_of

pytestmark = [pytest.mark.server, pytest.mark.full, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
CHATTERBOX = Path(sys.executable).with_name("chatterbox")
FABLES = Path(__file__).with_name("fables.txt")

SHORT = 0.4
"""Seconds of a segment's audio: random weights seldom end by themselves."""

TWO_NODES = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3})
cluster.add_node(num_cpus=3)
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""

STREAMED = """
import json, sys, threading
from pathlib import Path
import numpy as np, psutil
from chatterbox_batch import pipeline
from chatterbox_batch.folder import Folder
from chatterbox_batch.plan import TablePlan
from chatterbox_batch.records import Records
from chatterbox_batch.run import Job, run
from chatterbox_batch.worker import Worker
from chatterbox_client import Audio
from chatterbox_gateway.output import Output

class Noise:
    '''Twenty seconds for every text.'''
    def speak(self, text, inputs):
        samples = np.random.default_rng(inputs["seed"]).uniform(-0.5, 0.5, 480_000).astype(np.float32)
        return Audio(samples, 24_000, np.zeros(1, np.int32), {"rtf": 0.1, "seed": inputs["seed"]})

class Make:
    def __call__(self):
        return Worker(Noise(), records, Output("ulaw"))

source, out = sys.argv[1:]
records, peaks, done = Records(Folder(out)), {}, threading.Event()

def watch():
    me = psutil.Process()
    while not done.wait(0.5):
        total = 0
        for process in [me, *me.children(recursive=True)]:
            try:
                memory = process.memory_info()
                total += memory.rss - memory.shared
            except psutil.NoSuchProcess:
                pass
        rows = sum(1 for _ in Path(out).glob("*.ulaw"))
        peaks[rows // 500] = max(peaks.get(rows // 500, 0), total)

threading.Thread(target=watch, daemon=True).start()
job = Job(TablePlan(source), records, Output("ulaw"))
resources = pipeline.Resources(concurrency=4, own_engine=False)
summary = run(job, lambda: pipeline.cluster(None, resources), Make(), lambda line: print(line, file=sys.stderr))
done.set()
print(json.dumps({"rows": summary.rows, "failed": summary.failed, "peaks": peaks}))
"""


def environment() -> dict[str, str]:
    """Workers find the tests' modules, and are not slower than what else the machine does."""
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": paths, "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}


@dataclass(frozen=True)
class Nodes:
    """Two Ray nodes of this machine."""

    address: str
    process: psutil.Process

    def actors(self) -> list[psutil.Process]:
        """The processes of the actors that speak."""
        inside = self.process.children(recursive=True)
        return [it for it in inside if "ray::MapWorker" in " ".join(it.cmdline())]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """Two running Ray nodes."""
    command = [sys.executable, "-c", TWO_NODES]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment(), **pipes) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        line = next(line for line in running.stdout if re.match(r"[\d.]+:\d+$", line))
        yield Nodes(line.strip(), psutil.Process(running.pid))
        running.stdin.close()


def command(*arguments: str | Path) -> list[str]:
    return [str(CHATTERBOX), *map(str, arguments)]


def finish(*arguments: str | Path) -> str:
    """Runs the command to its end; returns what it says."""
    done = subprocess.run(command(*arguments), env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4_000:]
    return done.stderr


def wait_for(running: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    while not condition():
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.wait(0.1)
            pytest.fail(running.stderr.read()[-4_000:] if running.stderr else "the command has ended")


def records(out: Path) -> set[str]:
    """The records of parts."""
    return {path.name for path in (out / WORK).glob("*.json")}


def manifest(out: Path) -> dict[str, dict[str, Any]]:
    rows = list(Records(Folder(str(out))).manifest())
    found = {row["id"]: row for row in rows}
    assert len(found) == len(rows), "an id is there twice"
    return found


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_500_texts_on_two_nodes_survive_the_death_of_an_actor_and_of_the_driver(
    nodes: Nodes, tiny_path: Path, tmp_path: Path
) -> None:
    rows = [
        {"id": f"row-{number}", "text": f"This is the text of row {number}.", "seed": number, "max_seconds": SHORT}
        for number in range(500)
    ]
    source, out = write_rows(tmp_path / "texts.jsonl", rows), tmp_path / "out"
    arguments = ("batch", source, out, "--checkpoint", tiny_path, "--address", nodes.address, "--actors", "2")
    limits = ("--concurrency", "8")
    pipes: dict[str, Any] = {"stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command(*arguments, *limits), env=environment(), **pipes) as driver:
        wait_for(driver, lambda: len(records(out)) >= 60)
        victim = nodes.actors()[0]
        victim.kill()
        spoken = len(records(out))
        wait_for(driver, lambda: len(records(out)) >= spoken + 60)
        assert victim.pid not in {actor.pid for actor in nodes.actors()}
        driver.kill()
    before = records(out)
    spoken_before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.wav")}
    assert 120 <= len(before) < 500
    said = finish(*arguments, *limits)
    (left,) = re.findall(r"(\d+) parts to speak", said)
    assert int(left) <= 500 - len(before)
    found = manifest(out)
    assert set(found) == {row["id"] for row in rows}
    assert not [row for row in found.values() if row["error"]]
    assert not list((out / WORK).iterdir())
    written = {path.name: path.stat().st_mtime_ns for path in out.glob("*.wav")}
    assert len(written) == 500
    again = [name for name, when in spoken_before.items() if written[name] != when]
    assert len(again) <= len(spoken_before) - len(before), "what had a record was spoken again"
    engine = EngineSpeaker(str(tiny_path))
    for row in rows[::10]:
        alone = engine.speak(row["text"], {"seed": row["seed"], "max_seconds": SHORT})
        samples, _ = soundfile.read(out / found[row["id"]]["file"], dtype="float32")
        np.testing.assert_allclose(samples, alone.samples, atol=1e-4)


def test_texts_through_a_running_server_are_its_answers(server: TritonServer, tmp_path: Path) -> None:
    rows = [
        {"id": f"row-{number}", "text": f"Text number {number}.", "seed": number, "max_seconds": SHORT}
        for number in range(20)
    ]
    rows.append({"id": "wrong", "text": "Hello.", "voice": "nobody"})
    source, out = write_rows(tmp_path / "texts.jsonl", rows), tmp_path / "out"
    arguments = command("batch", source, out, "--url", server.grpc_url, "--format", "flac")
    done = subprocess.run(arguments, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr[-4_000:]
    assert "1 rows have an error" in done.stderr
    found = manifest(out)
    assert "nobody" in found.pop("wrong")["error"]
    with client_of(server) as client:
        for row in rows[:20:5]:
            alone = client.speak(row["text"], seed=row["seed"], max_seconds=SHORT)
            samples, _ = soundfile.read(out / found[row["id"]]["file"], dtype="float32")
            np.testing.assert_allclose(samples, alone.samples, atol=1e-4)


def test_a_checkpoint_that_cannot_be_loaded_ends_the_command_and_is_named(nodes: Nodes, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "texts.jsonl", [{"text": "Hello."}])
    arguments = command("batch", source, tmp_path / "out", "--checkpoint", tmp_path, "--address", nodes.address)
    done = subprocess.run(arguments, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert str(tmp_path) in done.stderr.splitlines()[-1]
    assert not manifest(tmp_path / "out")


def test_memory_does_not_grow_with_5000_rows_and_28_hours_of_audio(tmp_path: Path) -> None:
    rows = [{"id": f"row-{number}", "text": "Twenty seconds.", "seed": number} for number in range(5_000)]
    source, out = write_rows(tmp_path / "texts.jsonl", rows), tmp_path / "out"
    program = [sys.executable, "-c", STREAMED, str(source), str(out)]
    done = subprocess.run(program, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4_000:]
    result = json.loads(done.stdout.splitlines()[-1])
    print(result)
    assert (result["rows"], result["failed"]) == (5_000, 0)
    assert len(manifest(out)) == 5_000
    peaks = {int(part): peak for part, peak in result["peaks"].items()}
    early = max(peak for part, peak in peaks.items() if part <= 1)
    late = max(peak for part, peak in peaks.items() if part >= 2)
    assert late < early + (200 << 20), peaks  # all samples are 9.6 GB


def test_a_book_of_35000_characters_has_its_chapters_and_silent_joins(
    nodes: Nodes, tiny_path: Path, tmp_path: Path
) -> None:
    text = FABLES.read_text(encoding="utf-8")
    source, path = tmp_path / "fables.md", tmp_path / "fables.m4b"
    fables = re.sub(r"^([A-Z ]+)$", r"### \1", text, flags=re.MULTILINE)
    repeats = -(-35_000 // len(text))
    source.write_text("\n\n".join(f"# Book {number}\n\n{fables}" for number in range(1, repeats + 1)), encoding="utf-8")
    arguments = ("book", source, "-o", path, "--checkpoint", tiny_path, "--address", nodes.address, "--keep-parts")
    limits = ("--input", f"max_seconds={SHORT}", "--concurrency", "8", "--actors", "2")
    work = tmp_path / "fables.m4b.parts"
    pipes: dict[str, Any] = {"stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command(*arguments, *limits), env=environment(), **pipes) as driver:
        wait_for(driver, lambda: len(records(work)) >= 20)
        driver.send_signal(signal.SIGKILL)
    assert not path.exists()
    said = finish(*arguments, *limits)
    (left,) = re.findall(r"(\d+) parts to speak", said)
    files = manifest(work)
    assert int(left) <= len(files) - 20
    with av.open(str(path)) as container:
        marks = [(mark["metadata"]["title"], mark["start"] / 1000, mark["end"] / 1000) for mark in container.chapters()]
        samples = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
        rate = container.streams.audio[0].rate
    assert [title for title, _, _ in marks] == [f"Book {number}" for number in range(1, repeats + 1)]
    assert marks[-1][2] == pytest.approx(len(samples) / rate, abs=0.1)
    for _, start, end in marks:
        chapter = samples[round(start * rate) : round(end * rate)]
        loudness = 20 * np.log10(np.sqrt(np.mean(np.square(chapter))))
        assert -23 < loudness < -18
        assert np.abs(chapter).max() < 10 ** (-3 / 20)
        assert np.abs(chapter[: rate // 2]).max() < 1e-3  # the lead, and the end of the chapter
        assert np.abs(chapter[-rate:-2000]).max() < 1e-3
        assert quiet_runs(chapter, rate) >= text.count("\n\n")


def quiet_runs(samples: np.ndarray[Any, Any], rate: int) -> int:
    """Stretches of silence of at least 0.4 s."""
    frame = rate // 100
    blocks = np.abs(samples[: len(samples) // frame * frame].reshape(-1, frame)).max(axis=1) < 1e-3
    runs = np.diff(np.flatnonzero(np.diff(np.concatenate([[0], blocks.astype(int), [0]]))))[::2]
    return int((runs >= 40).sum())
