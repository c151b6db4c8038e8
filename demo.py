"""`make demo`: a real server, one sentence over HTTP and one as a gRPC stream, two WAV files."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from chatterbox_client import Audio, Client, concatenate
from chatterbox_engine.errors import ChatterboxError
from chatterbox_engine.launcher.options import ServerOptions
from chatterbox_engine.launcher.server import TritonServer

# Sentences of `tools/demo_voice/lines.py`, which the demo voice was taught.
WHOLE = "Hello there. This speech was made on a small computer."
STREAMED = "Speech comes from this machine, one small piece after another. That is all for now."


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", default="demo", help="folder, Hugging Face id, demo or tiny")
    parser.add_argument("--out", type=Path, default=Path("out"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    log = arguments.out / "demo-server.log"
    # no clip is spoken, and a server that stops waits for what it loads
    environment = {"CHATTERBOX_CHECKPOINT": arguments.checkpoint, "CHATTERBOX_PRELOAD_ENCODERS": "0"}
    options = ServerOptions(environment=environment, log=log)
    print(f"demo: starting a Triton server with the checkpoint {arguments.checkpoint!r}; its log is {log}")
    try:
        with TritonServer(options) as server:
            speak(server.http_url, arguments.out / "demo-http.wav")
            stream(server.grpc_url, arguments.out / "demo-stream.wav")
    except ChatterboxError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    print("demo: the server is stopped")
    if arguments.checkpoint.startswith("tiny"):
        print("demo: its weights are random, so the files hold noise of the right shape, not speech")
    if arguments.checkpoint == "demo":
        print("demo: a miniature, trained for a few hours; the real one: make demo CHECKPOINT=ResembleAI/chatterbox")
    return 0


def speak(url: str, path: Path) -> None:
    """Speaks a line over HTTP into a file and prints what it took."""
    with Client(url, "http") as client:
        audio = client.speak(WHOLE, seed=1)
    audio.save(path)
    print(f"demo: http: {figures(audio)} -> {path}")


def stream(url: str, path: Path) -> None:
    """The same over a gRPC stream, with the time to the first audio as the client saw it, on a warm connection."""
    with Client(url, "grpc") as client:
        client.ready()
        began = time.monotonic()
        chunks = client.stream(STREAMED, seed=1)
        first = next(chunks)
        seconds = time.monotonic() - began
        audio = concatenate([first, *chunks])
    audio.save(path)
    print(f"demo: stream: first audio after {seconds * 1000:.0f} ms, {figures(audio)} -> {path}")


def figures(audio: Audio) -> str:
    return f"{audio.duration:.2f} s of audio in {audio.stats['total_ms'] / 1000:.2f} s, RTF {audio.rtf:.3f}"


if __name__ == "__main__":
    sys.exit(main())
