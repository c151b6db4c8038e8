"""A batch from and to an object store: a real S3 server on loopback, spoken by fakes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyarrow import fs

from chatterbox_batch.folder import Folder, read_file
from chatterbox_batch.records import Records
from tests.unit.batch_fakes import FakeSpeaker, speak

pytestmark = [pytest.mark.server, pytest.mark.full, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The query of a URI on a running S3 server, in an environment of its own."""
    folder = tmp_path_factory.mktemp("moto")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    install = [folder / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", "moto[s3,server]==5.2.*"]
    subprocess.run(install, check=True)
    command = [folder / "bin" / "moto_server", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        line = next(line for line in server.stderr if "Running on" in line)
        port = line.rstrip().rpartition(":")[2]
        yield f"region=us-east-1&endpoint_override=http%3A%2F%2F127.0.0.1%3A{port}&allow_bucket_creation=true"
        server.terminate()


def test_a_batch_from_and_to_an_object_store_is_resumed(store: str, tmp_path: Path) -> None:
    source, out = f"s3://key:secret@texts/deep/in.jsonl?{store}", f"s3://key:secret@texts/out?{store}"
    texts = {f"row-{number}": f"Text number {number}. " * (6 if number % 3 == 0 else 1) for number in range(10)}
    rows = [{"id": name, "text": text, "reference_audio": "clip.wav"} for name, text in texts.items()]
    inside = Folder(f"s3://key:secret@texts/deep?{store}")
    inside.write("in.jsonl", "\n".join(map(json.dumps, rows)).encode())
    inside.write("clip.wav", b"RIFF")
    first, second = FakeSpeaker(stop_after=7), FakeSpeaker()
    with pytest.raises(KeyboardInterrupt):
        speak(source, out, first)
    assert speak(source, out, second).failed == 0
    assert len(first.calls) == 7
    assert len(second.calls) == 7
    assert {inputs["reference_audio"] for _, inputs in second.calls} == {b"RIFF"}
    manifest = list(Records(Folder(out)).manifest())
    assert sorted(row["id"] for row in manifest) == sorted(texts)
    files, path = fs.FileSystem.from_uri(out)
    listed = files.get_file_info(fs.FileSelector(path, recursive=True))
    assert {info.base_name for info in listed if info.is_file} == {row["file"] for row in manifest} | {
        "manifest.parquet"
    }
    assert read_file(f"s3://key:secret@texts/out/row-0.wav?{store}").startswith(b"RIFF")
