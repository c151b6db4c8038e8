"""OpenAI's client for Node.js, unmodified, on the gateway."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.server.front import Front

pytestmark = [pytest.mark.server, pytest.mark.full]

PACKAGE = "openai@7.59.0"

PROGRAM = """
import OpenAI from "openai";
const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
const speech = { model: "tts-1", voice: "alloy", input: "Hello from Node.", instructions: "Speak calmly." };
const pcm = await client.audio.speech.create({ ...speech, response_format: "pcm", speed: 1.5 });
let streamed = 0, pieces = 0;
for await (const piece of pcm.body) { streamed += piece.length; pieces += 1; }
const mp3 = Buffer.from(await (await client.audio.speech.create(speech)).arrayBuffer());
const events = await client.audio.speech.create({ ...speech, response_format: "pcm", stream_format: "sse" });
const types = (await events.text()).split("\\n\\n").filter(Boolean).map((line) => JSON.parse(line.slice(6)).type);
const models = [];
for await (const model of client.models.list()) models.push(model.id);
const failures = [];
for (const wrong of [{ speed: 9 }, { model: "nope" }, { voice: "nobody" }, { input: "" }]) {
  try { await client.audio.speech.create({ ...speech, ...wrong }); failures.push("none"); }
  catch (error) { failures.push([error.constructor.name, error.status, error.error.message]); }
}
const warning = pcm.headers.get("warning");
console.log(JSON.stringify({ streamed, pieces, mp3: mp3.toString("hex", 0, 3), types, models, failures, warning }));
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the client installed."""
    if shutil.which("npm") is None:
        why = "npm is not installed"
        assert not os.environ.get("CI"), why
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("node")
    subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund", PACKAGE], cwd=folder, check=True)
    (folder / "speak.mjs").write_text(PROGRAM)
    return folder


@pytest.mark.timeout(600)
def test_the_client_for_node_speaks_and_gets_its_own_errors(folder: Path, front: Front) -> None:
    command = ["node", "speak.mjs", f"http://{front.address}/v1"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    assert told["streamed"] > 10_000
    assert told["streamed"] % 2 == 0
    assert told["pieces"] > 1
    assert told["mp3"][:2] in ("ff", "49"), "a frame, or a tag before it"
    assert told["types"][-1] == "speech.audio.done"
    assert set(told["types"][:-1]) == {"speech.audio.delta"}
    assert told["models"] == ["chatterbox"]
    assert "instructions" in told["warning"]
    assert [failure[:2] for failure in told["failures"]] == [
        ["BadRequestError", 400],
        ["NotFoundError", 404],
        ["NotFoundError", 404],
        ["BadRequestError", 400],
    ]
    assert all(failure[2] for failure in told["failures"])
