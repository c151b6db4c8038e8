"""The README's Python examples, run as they stand against the real server, whose ports replace the usual ones."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

from chatterbox_engine.launcher.server import TritonServer
from tests.server.front import Front

pytestmark = pytest.mark.server

README = Path(__file__).parents[2] / "README.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_an_example_runs(server: TritonServer, front: Front, tmp_path: Path, number: int) -> None:
    code = EXAMPLES[number].replace("localhost:8000", server.http_url).replace("localhost:8001", server.grpc_url)
    code = code.replace("localhost:8080", front.address)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    for name in re.findall(r'\.(?:save|write_to_file)\("(.*?)"\)', code):
        assert soundfile.info(tmp_path / name).samplerate == 24_000


def test_there_are_examples_for_every_client() -> None:
    assert len(EXAMPLES) >= 3
    joined = "".join(EXAMPLES)
    assert "chatterbox_client" in joined
    assert "tritonclient.http" in joined
    assert "tritonclient.grpc" in joined
    assert "openai" in joined
