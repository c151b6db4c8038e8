"""Who gets in: through the real Triton, with the launcher's defaults and with what opens them."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from chatterbox_client import Client, InvalidRequest
from chatterbox_engine.launcher import ServerOptions, TritonServer
from chatterbox_engine.launcher.access import KEY_HEADER, PROTOCOLS
from chatterbox_engine.launcher.regions import SHARED_MEMORY
from tests.clips import encoded, tone
from tests.server.conftest import VOICE_KEY
from tests.server.front import Front

pytestmark = pytest.mark.server

ECHO = Path(__file__).parent / "fixtures" / "echo"
EVIL = {"Origin": "https://evil.example"}
ALLOWED = {"Origin": "https://app.example"}

CLOSED: dict[str, tuple[tuple[str, str], Callable[[Any], Any]]] = {
    "shared-memory": (("GET", "/v2/systemsharedmemory/status"), lambda it: it.get_system_shared_memory_status()),
    "trace": (("GET", "/v2/trace/setting"), lambda it: it.get_trace_settings()),
    "logging": (("GET", "/v2/logging"), lambda it: it.get_log_settings()),
    "model-repository": (("POST", "/v2/repository/index"), lambda it: it.get_model_repository_index()),
}


def answers(server: TritonServer, protocol: str, key: str | None = None) -> tuple[bool, bool]:
    """Whether a protocol is answered over HTTP and over gRPC."""
    (method, path), call = CLOSED[protocol]
    headers = {KEY_HEADER: key} if key else {}
    with contextlib.closing(http.client.HTTPConnection(server.http_url)) as connection:
        connection.request(method, path, "{}" if method == "POST" else None, headers)
        status = connection.getresponse().status
    assert status in (200, 403)
    metadata = {f"triton-grpc-protocol-{KEY_HEADER}": key} if key else {}
    with tritonclient.grpc.InferenceServerClient(server.grpc_url) as client:
        try:
            call(_WithHeaders(client, metadata))
        except InferenceServerException as error:
            return status == 200, error.status() != "StatusCode.UNAVAILABLE"
    return status == 200, True


class _WithHeaders:
    """A client of tritonclient each of whose calls has these headers."""

    def __init__(self, client: Any, headers: dict[str, str]) -> None:
        self._client, self._headers = client, headers

    def __getattr__(self, name: str) -> Any:
        return lambda: getattr(self._client, name)(headers=self._headers)


def echo(server: TritonServer, headers: dict[str, str] | None = None) -> Any:
    value = tritonclient.http.InferInput("value", [1, 1], "FP32")
    value.set_data_from_numpy(np.array([[2.5]], dtype=np.float32))
    with tritonclient.http.InferenceServerClient(server.http_url) as client:
        return client.infer("echo", [value], headers=headers).as_numpy("value").item()


def test_protocols_that_users_do_not_need_are_closed_and_the_others_work(server: TritonServer) -> None:
    assert {protocol: answers(server, protocol) for protocol in PROTOCOLS} == dict.fromkeys(PROTOCOLS, (False, False))
    for module, url in ((tritonclient.http, server.http_url), (tritonclient.grpc, server.grpc_url)):
        with module.InferenceServerClient(url) as client:
            assert client.is_server_live()
            assert client.is_model_ready("chatterbox")
            client.get_server_metadata()
            client.get_model_metadata("chatterbox")
            client.get_model_config("chatterbox")
            client.get_inference_statistics()
            with pytest.raises(InferenceServerException, match="restricted"):
                client.register_system_shared_memory("mine", "/chatterbox_0", 64)


def test_a_name_that_no_header_can_have_opens_nothing(server: TritonServer) -> None:
    command = psutil.Process(server.stub_pids[0]).parent()
    assert command is not None
    restrictions = [part for part in command.cmdline() if part.startswith("--http-restricted-api=")]
    [restriction] = [part for part in restrictions if "logging" in part]
    name, _, value = restriction.partition(":")[2].partition("=")
    host, port = server.http_url.split(":")
    for sent in (value, value.strip(), value.replace("\n", "\r\n "), value.replace("\n", "\n ")):
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(
                f"GET /v2/logging HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{name}: {sent}\r\n\r\n".encode()
            )
            with connection.makefile("rb") as answer:
                assert b" 200 " not in answer.readline()


def test_the_server_listens_on_this_machine_alone(server: TritonServer) -> None:
    process = psutil.Process(server.stub_pids[0]).parent()
    assert process is not None
    listening = [
        entry.laddr.ip.removeprefix("::ffff:")
        for entry in process.net_connections("tcp")
        if entry.status == psutil.CONN_LISTEN
    ]
    assert (len(listening), set(listening)) == (3, {"127.0.0.1"})


def test_what_the_server_writes_is_its_user_s_alone(server: TritonServer) -> None:
    assert server.shared_memory_bytes() > 0
    assert not list(SHARED_MEMORY.glob(f"chatterbox_*_{os.getpid()}_*")), (
        "a region has a name by which it can be opened"
    )
    assert not stat.S_IMODE(Path(os.environ["CHATTERBOX_VOICE_STORE"]).stat().st_mode) & 0o077


def test_a_key_and_switches_open_what_they_say(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("s3cret/+=\n")
    given = ["--grpc-restricted-protocol", "model-repository,statistics:mine=1", "--http-header-forward-pattern=x-.*"]
    options = ServerOptions(
        model_repository=ECHO,
        opened=["logging", "trace"],
        key_file=tmp_path / "key",
        arguments=given,
        log=tmp_path / "log",
    )
    with TritonServer(options) as server:
        assert answers(server, "logging") == answers(server, "logging", "s3cret") == (False, False)
        assert answers(server, "logging", "s3cret/+=") == answers(server, "trace", "s3cret/+=") == (True, True)
        assert answers(server, "shared-memory", "s3cret/+=") == (False, False)
        with pytest.raises(InferenceServerException, match=KEY_HEADER):
            echo(server)
        assert echo(server, {KEY_HEADER: "s3cret/+="}) == 2.5
        shown = [Path(f"/proc/{process.pid}/cmdline") for process in psutil.Process().children(recursive=True)]
        assert not any("s3cret" in path.read_text() for path in shown)
    with TritonServer(ServerOptions(model_repository=ECHO, opened=PROTOCOLS, log=tmp_path / "log")) as server:
        assert {answers(server, protocol) for protocol in PROTOCOLS} == {(True, True)}
        assert echo(server) == 2.5


def infer(url: str, model: str, headers: dict[str, str], parameters: Any = None, **values: str) -> httpx.Response:
    inputs = [{"name": name, "shape": [1, 1], "datatype": "BYTES", "data": [value]} for name, value in values.items()]
    body = json.dumps({"parameters": parameters or {}, "inputs": inputs})
    # as a page sends it: of a type for which a browser does not ask before
    headers = {"Content-Type": "text/plain", **headers}
    return httpx.post(f"http://{url}/v2/models/{model}/infer", content=body, headers=headers, timeout=120)


@pytest.fixture(scope="module")
def open_to_app(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server that the pages of one origin may use."""
    environment = {"CHATTERBOX_CHECKPOINT": str(tiny_path), "CHATTERBOX_ALLOWED_ORIGINS": ALLOWED["Origin"]}
    log = tmp_path_factory.mktemp("allowed") / "triton.log"
    with TritonServer(ServerOptions(environment=environment, log=log)) as running:
        yield running


def test_infer_is_not_for_pages_of_other_origins(server: TritonServer, open_to_app: TritonServer) -> None:
    for url, refused in ((server.http_url, [EVIL, ALLOWED]), (open_to_app.http_url, [EVIL])):
        for headers in (*refused, {"Origin": "null"}, {"oRiGiN": "https://evil.example"}):
            for model, values in (
                ("chatterbox", {"text": "Hello."}),
                ("chatterbox_voices", {"action": "list"}),
                ("chatterbox_voices", {"action": "delete", "voice": "anna", "key": VOICE_KEY}),
            ):
                forged = {"Origin": ALLOWED["Origin"]}
                for parameters in ({}, forged):
                    answer = infer(url, model, headers, parameters, **values)
                    assert (answer.status_code, "may not use" in answer.text) == (400, True), answer.text
        for headers in ({}, *([ALLOWED] if len(refused) == 1 else [])):
            assert infer(url, "chatterbox_voices", headers, action="list").status_code == 200
            assert infer(url, "chatterbox", headers, text="Hello.").status_code == 200


def test_no_request_without_the_key_changes_a_voice(server: TritonServer) -> None:
    with Client(server.http_url) as client:
        client.voices.add("kept", encoded(tone(1.0)))
        try:
            for action in ({"action": "delete"}, {"action": "add", "audio": "x"}):
                for key in ({}, {"key": ""}, {"key": "guess"}):
                    for method in ("generate", "generate_stream", "infer"):
                        values = {**action, "voice": "kept", **key}
                        if method == "infer":
                            answer = infer(server.http_url, "chatterbox_voices", {}, **values)
                        else:
                            url = f"http://{server.http_url}/v2/models/chatterbox_voices/{method}"
                            answer = httpx.post(url, content=json.dumps(values), headers=EVIL)
                        assert "key" in answer.text
            assert client.voices.get("kept").name == "kept"
            for url, protocol in ((server.http_url, "http"), (server.grpc_url, "grpc")):
                other = Client(url, protocol, voice_key="guess")  # type: ignore[arg-type]
                with other, pytest.raises(InvalidRequest, match="the key is wrong"):
                    other.voices.delete("kept")
        finally:
            client.voices.delete("kept")


def test_without_a_key_in_its_settings_a_server_changes_no_voice(tmp_path: Path) -> None:
    environment = {"CHATTERBOX_VOICE_KEY": "", "CHATTERBOX_VOICE_STORE": str(tmp_path / "voices.sqlite")}
    options = ServerOptions(models=["chatterbox_voices"], environment=environment, log=tmp_path / "log")
    with TritonServer(options) as server, Client(server.http_url) as client:
        assert client.voices.list() == []
        for change in (lambda: client.voices.add("anna", encoded(tone(1.0))), lambda: client.voices.delete("anna")):
            with pytest.raises(InvalidRequest, match="CHATTERBOX_VOICE_KEY is not set"):
                change()


def test_the_gateway_changes_voices_with_the_key_and_not_for_other_sites(server: TritonServer, tmp_path: Path) -> None:
    form: Any = {"data": {"name": "formed"}, "files": {"audio_sample": encoded(tone(1.0))}}
    options = ["--change-voices", "--cors", ALLOWED["Origin"]]
    with Front(server.grpc_url, tmp_path / "log", options) as front, Client(server.http_url) as client:
        url = f"http://{front.address}/v1/audio"
        for headers in (EVIL, {"Origin": "null"}):
            assert httpx.post(f"{url}/voices", headers=headers, **form).status_code == 403
            assert httpx.post(f"{url}/speech", json={"input": "Hello."}, headers=headers).status_code == 403
        assert "formed" not in [voice.name for voice in client.voices.list()]
        for headers in ({}, ALLOWED, {"Origin": f"http://{front.address}"}):
            assert httpx.post(f"{url}/voices", headers=headers, **form).status_code == 200
            assert httpx.delete(f"{url}/voices/formed", headers=headers).status_code == 200


@pytest.mark.full
def test_large_requests_leave_little_behind_and_one_that_is_too_large_is_an_error(tmp_path: Path) -> None:
    """Of voices that nobody may change: what a stranger can send."""
    options = ServerOptions(models=["chatterbox_voices"], log=tmp_path / "log")
    with TritonServer(options) as server:
        process = psutil.Process(server.stub_pids[0]).parent()
        assert process is not None
        before = process.memory_info()

        def send(megabytes: int) -> str:
            inputs = []
            for name, content in (("action", b"add"), ("audio", b"x" * (megabytes << 20))):
                inputs.append(tritonclient.grpc.InferInput(name, [1, 1], "BYTES"))
                inputs[-1].set_data_from_numpy(np.array([[content]], dtype=np.object_))
            with (
                tritonclient.grpc.InferenceServerClient(server.grpc_url) as client,
                pytest.raises(InferenceServerException) as caught,
            ):
                client.infer("chatterbox_voices", inputs)
            return str(caught.value.message())

        for _ in range(5):
            assert "key" in send(100)
        after = process.memory_info()
        kept = (after.rss - after.shared) - (before.rss - before.shared)
        assert kept < 300 << 20, f"{kept / 1e6:.0f} MB of five requests"
        assert server.shared_memory_bytes() < 128 << 20
        bound = min(512 << 20, os.statvfs(SHARED_MEMORY).f_blocks * os.statvfs(SHARED_MEMORY).f_frsize // 2)
        refused = send((bound >> 20) + 1)
        names = re.findall(r"chatterbox_\d\w+", refused)
        assert not any((SHARED_MEMORY / name).exists() for name in names), "a name that leads nowhere"
        assert server.shared_memory_bytes() <= bound
        with Client(server.http_url) as client:
            client.voices.list()
