"""Stand-ins for the client's tests: transports that answer at once, and a server that speaks Triton's protocols."""

from __future__ import annotations

import base64
import itertools
import json
import queue
import struct
import threading
from collections.abc import AsyncGenerator, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import np_to_triton_dtype

from chatterbox_client.request import NO_CONTEXT, RequestContext, Tensors

STATS = {"seed": 7, "rtf": 0.25, "tokens": 3, "finish_reason": "stop"}
SAMPLES = np.linspace(-1, 1, 2880, dtype=np.float32)
TOKENS = np.array([5, 6, 7], dtype=np.int32)


def spoken() -> dict[str, npt.NDArray[Any]]:
    """A model's whole answer, as the transports return it."""
    return {
        "audio": SAMPLES[None],
        "sample_rate": np.array([[24_000]], dtype=np.int32),
        "speech_tokens": TOKENS[None],
        "stats": np.array([[json.dumps(STATS).encode()]], dtype=np.object_),
    }


def spoken_chunks() -> list[dict[str, npt.NDArray[Any]]]:
    """A streaming model's responses: the content of `spoken`, one token at a time."""
    size = len(SAMPLES) // len(TOKENS)
    return [
        {
            **spoken(),
            "audio": SAMPLES[None, index * size : (index + 1) * size],
            "speech_tokens": TOKENS[None, index : index + 1],
            "stats": np.array([[json.dumps(STATS if index == 2 else {}).encode()]], dtype=np.object_),
            "chunk_index": np.array([[index]], dtype=np.int32),
            "is_last": np.array([[index == 2]]),
        }
        for index in range(3)
    ]


class FakeTransport:
    """Answers at once and records its requests."""

    def __init__(self, answer: Tensors | Exception | None = None, *, is_ready: bool = True) -> None:
        self.result = spoken() if answer is None else answer
        self.is_ready = is_ready
        self.calls: list[tuple[str, dict[str, Any], tuple[str, ...], float | None]] = []
        self.contexts: list[RequestContext] = []
        self.closed = False

    def infer(
        self,
        model: str,
        tensors: Tensors,
        outputs: Sequence[str],
        timeout: float | None,
        context: RequestContext = NO_CONTEXT,
    ) -> Tensors:
        self.calls.append((model, dict(tensors), tuple(outputs), timeout))
        self.contexts.append(context)
        if isinstance(self.result, Exception):
            raise self.result
        return self.result

    def stream(
        self,
        model: str,
        tensors: Tensors,
        outputs: Sequence[str],
        timeout: float | None,
        context: RequestContext = NO_CONTEXT,
    ) -> Generator[Tensors, None, None]:
        self.calls.append((model, dict(tensors), tuple(outputs), timeout))
        self.contexts.append(context)
        if isinstance(self.result, Exception):
            raise self.result
        yield from spoken_chunks()

    def ready(self, model: str, timeout: float | None) -> bool:
        return self.is_ready

    def metadata(self, model: str, timeout: float | None) -> Mapping[str, Any]:
        return METADATA | {"name": model}

    def close(self) -> None:
        self.closed = True


class FakeAsyncTransport:
    """`FakeTransport`, awaited."""

    def __init__(self, answer: Tensors | Exception | None = None) -> None:
        self.sync = FakeTransport(answer)

    async def infer(
        self,
        model: str,
        tensors: Tensors,
        outputs: Sequence[str],
        timeout: float | None,
        context: RequestContext = NO_CONTEXT,
    ) -> Tensors:
        return self.sync.infer(model, tensors, outputs, timeout, context)

    async def stream(
        self,
        model: str,
        tensors: Tensors,
        outputs: Sequence[str],
        timeout: float | None,
        context: RequestContext = NO_CONTEXT,
    ) -> AsyncGenerator[Tensors, None]:
        for answer in self.sync.stream(model, tensors, outputs, timeout, context):
            yield answer

    async def ready(self, model: str, timeout: float | None) -> bool:
        return self.sync.ready(model, timeout)

    async def metadata(self, model: str, timeout: float | None) -> Mapping[str, Any]:
        return self.sync.metadata(model, timeout)

    async def close(self) -> None:
        self.sync.close()


METADATA: dict[str, Any] = {
    "name": "chatterbox",
    "versions": ["1"],
    "platform": "python",
    "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1, 1]}],
    "outputs": [{"name": "audio", "datatype": "FP32", "shape": [-1, -1]}],
}

CODES = {"400": "INVALID_ARGUMENT", "404": "NOT_FOUND", "503": "UNAVAILABLE", "500": "INTERNAL"}
"""A request whose text is one of these HTTP statuses is refused with it, or with its gRPC code."""

TRITONS_OWN = {
    "Request for unknown model: 'chatterbox_stream' is not found": "NOT_FOUND",
    "unexpected inference input 'mood' for model 'chatterbox_stream'": "INVALID_ARGUMENT",
    "GRPC server is shutting down and has stopped accepting new requests.": "UNAVAILABLE",
    "response output count mismatch": None,
}
"""A stream whose text is one of Triton's own messages ends with it; the value is the status that Triton omits."""

Received = dict[str, tuple[str, list[int], bytes]]  # by input name: Triton type, shape, raw content


class FakeServer:
    """Triton's infer, ready and metadata calls over HTTP and gRPC, on free ports.

    The text "hang" is not answered before the server stops. Streams also know "break" (an error after the first chunk),
    "short" (an end before the last) and "endless" (chunks until the client disconnects, which is recorded).
    """

    def __init__(self) -> None:
        self.received: list[Received] = []
        self.json: list[dict[str, Any]] = []  # what streams over HTTP were asked with
        self.metadata: list[dict[str, str]] = []  # of the calls
        self.ids: list[str] = []  # of the requests
        self.stopping = threading.Event()
        self.cancelled: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.http_url = self.grpc_url = ""

    def refusal(self, request: Received) -> str | None:
        """Records a request; returns the HTTP status to refuse it with, or None to answer it."""
        self.received.append(request)
        text = request["text"][2][4:].decode()
        if text == "hang":
            self.stopping.wait()
        return text if text in CODES else None


@contextmanager
def fake_server() -> Iterator[FakeServer]:
    """A running `FakeServer`."""
    fake = FakeServer()
    http = _HttpServer(("127.0.0.1", 0), _HttpHandler)
    http.fake = fake
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    rpc = grpc.server(ThreadPoolExecutor(20))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(_Servicer(fake), rpc)
    fake.http_url = f"127.0.0.1:{http.server_port}"
    fake.grpc_url = f"127.0.0.1:{rpc.add_insecure_port('127.0.0.1:0')}"
    rpc.start()
    try:
        yield fake
    finally:
        fake.stopping.set()
        http.shutdown()
        thread.join()
        http.server_close()
        rpc.stop(0).wait()


class _HttpServer(ThreadingHTTPServer):
    fake: FakeServer
    request_queue_size = 128  # five, the default, drops connections that then come back seconds later


def _content(array: npt.NDArray[Any]) -> bytes:
    if array.dtype != np.object_:
        return array.tobytes()
    return b"".join(struct.pack("<I", len(item)) + item for item in array.reshape(-1))


def _events(text: str) -> Iterator[dict[str, Any]]:
    """The responses of `generate_stream`, in which what has one element is a scalar."""
    chunks = spoken_chunks()
    for number in itertools.count() if text == "endless" else range(2 if text == "short" else 3):
        if text == "break" and number == 1:
            yield {"error": "INTERNAL: the process of the engine has ended"}
            return
        chunk = chunks[min(number, 1) if text == "endless" else number]
        samples = np.round(chunk["audio"] * 32_767).astype("<i2").tobytes()
        yield {
            "model_name": "chatterbox_stream",
            "audio": [],
            "audio_base64": base64.b64encode(samples).decode(),
            "sample_rate": 24_000,
            "speech_tokens": int(chunk["speech_tokens"].item()),
            "stats": chunk["stats"].item().decode(),
            "chunk_index": number,
            "is_last": bool(chunk["is_last"].item()),
        }


class _HttpHandler(BaseHTTPRequestHandler):
    server: _HttpServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._send(200, b"" if self.path.endswith("/ready") else json.dumps(METADATA).encode())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.endswith("/generate_stream"):
            self._stream(json.loads(body))
            return
        start = int(self.headers["Inference-Header-Content-Length"])
        header = json.loads(body[:start])
        self._note(header.get("id", ""))
        received: Received = {}
        for tensor in header["inputs"]:
            size = tensor["parameters"]["binary_data_size"]
            received[tensor["name"]] = (tensor["datatype"], tensor["shape"], body[start : start + size])
            start += size
        if status := self.server.fake.refusal(received):
            self._send(int(status), json.dumps({"error": f"refused with {status}"}).encode())
        else:
            self._answer([output["name"] for output in header["outputs"] if output["parameters"]["binary_data"]])

    def _note(self, request: str) -> None:
        self.server.fake.ids.append(request)
        self.server.fake.metadata.append({name.lower(): value for name, value in self.headers.items()})

    def _stream(self, inputs: dict[str, Any]) -> None:
        self.server.fake.json.append(inputs)
        self._note(inputs.get("id", ""))
        text = inputs["text"]
        if text == "hang":
            self.server.fake.stopping.wait()
        if text in CODES or text in TRITONS_OWN:
            message = f"{CODES[text]}: refused with {text}" if text in CODES else text
            self._send(400, f"data: {json.dumps({'error': message})}\n\n".encode())
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for event in _events(text):
                data = f"data: {json.dumps(event)}\n\n".encode()
                self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
            self.wfile.write(b"0\r\n\r\n")
        finally:
            self.server.fake.cancelled.put(text)

    def _answer(self, names: list[str]) -> None:
        arrays = {name: spoken()[name] for name in names}
        contents = {name: _content(array) for name, array in arrays.items()}
        outputs = [
            {
                "name": name,
                "datatype": np_to_triton_dtype(array.dtype),
                "shape": list(array.shape),
                "parameters": {"binary_data_size": len(contents[name])},
            }
            for name, array in arrays.items()
        ]
        header = json.dumps({"model_name": "chatterbox", "model_version": "1", "outputs": outputs}).encode()
        self._send(200, header + b"".join(contents.values()), len(header))

    def _send(self, status: int, body: bytes, header_length: int | None = None) -> None:
        self.send_response(status)
        if header_length is not None:
            self.send_header("Inference-Header-Content-Length", str(header_length))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def handle(self) -> None:
        with suppress(ConnectionError):  # the client disconnected first: the timeout tests
            super().handle()


class _Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    def __init__(self, fake: FakeServer) -> None:
        self._fake = fake

    def ServerLive(self, request: Any, context: Any) -> Any:  # noqa: N802
        return service_pb2.ServerLiveResponse(live=True)

    def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return service_pb2.ModelReadyResponse(ready=True)

    def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        return service_pb2.ModelMetadataResponse(**METADATA)

    def ModelStreamInfer(self, requests: Any, context: Any) -> Any:  # noqa: N802
        request = next(requests)
        text = request.raw_input_contents[0][4:].decode()
        context.add_callback(lambda: self._fake.cancelled.put(text))
        self._fake.ids.append(request.id)
        self._fake.metadata.append(dict(context.invocation_metadata()))
        if status := self._fake.refusal(_received(request)):
            yield _stream_error(f"{CODES[status]}: refused with {status}")
            return
        if text in TRITONS_OWN:
            yield _stream_error(text)
            return
        chunks = spoken_chunks()
        for number in itertools.count() if text == "endless" else range(2 if text == "short" else 3):
            if text == "break" and number == 1:
                yield _stream_error("INTERNAL: the process of the engine has ended")
                context.abort(grpc.StatusCode.UNAVAILABLE, "the server went with it")
            if not context.is_active():
                return
            response = _response(request, chunks[min(number, 1) if text == "endless" else number])
            yield service_pb2.ModelStreamInferResponse(infer_response=response)

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._fake.ids.append(request.id)
        self._fake.metadata.append(dict(context.invocation_metadata()))
        self._refuse(request, context)
        return _response(request, spoken())

    def _refuse(self, request: Any, context: Any) -> None:
        if status := self._fake.refusal(_received(request)):
            context.abort(grpc.StatusCode[CODES[status]], f"refused with {status}")


def _received(request: Any) -> Received:
    return {
        tensor.name: (tensor.datatype, list(tensor.shape), content)
        for tensor, content in zip(request.inputs, request.raw_input_contents, strict=True)
    }


def _stream_error(message: str) -> Any:
    return service_pb2.ModelStreamInferResponse(error_message=message)


def _response(request: Any, outputs: Tensors) -> Any:
    response = service_pb2.ModelInferResponse(model_name=request.model_name, model_version="1")
    for output in request.outputs:
        array = outputs[output.name]
        response.outputs.add(name=output.name, datatype=np_to_triton_dtype(array.dtype), shape=array.shape)
        response.raw_output_contents.append(_content(array))
    return response
