"""One gRPC stream per request, for threads and for asyncio.

Uses the protocol's stub directly: `tritonclient` has one stream per client, reads it on its own thread, and leaks a
thread when a stream is cancelled. Here a stream is an iterator; closing it cancels the request.

An error ends a stream as a message, which the server's model begins with its status: "NOT_FOUND: ...". Triton has a
header, `triton_grpc_error`, that makes it a gRPC status; but then Triton uses the stream's state after handing it to
another thread, which may have freed it (`WriteGRPCErrorResponse` in its src/grpc/infer_handler.h, 2.51 to 2.73), and
the whole server crashes with SIGSEGV: about once in several thousand refused streams.

A stream that is cancelled between its last response and its end is never freed by Triton (2.51), nor are its inputs. So
the last response is returned only after the stream has ended. This adds no delay, because Triton sends both together.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from typing import Any

import grpc
import grpc.aio
from tritonclient.grpc import InferResult, service_pb2, service_pb2_grpc
from tritonclient.utils import np_to_triton_dtype, serialize_byte_tensor

from chatterbox_client.errors import ChatterboxClientError, from_status
from chatterbox_client.request import NO_CONTEXT, RequestContext, Tensors
from chatterbox_client.transports import convert

OPTIONS: list[tuple[str, str | int]] = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.lb_policy_name", "round_robin"),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.http2.lookahead_bytes", 16 << 20),
]
"""Of every channel. A name or a list of several addresses is several servers, which take calls in turn as long as they
can be reached: gRPC's own default sends all calls to the first. One that refuses connections is tried again every two
seconds: by default it is after up to two minutes. What a slow reader has not read waits here, up to 16 MiB (three
minutes of audio), not in the server, which may be told to stop."""


def metadata(headers: Mapping[str, str]) -> dict[str, str]:
    """Headers as gRPC's metadata: in lower case, and once more by the names under which Triton looks for the keys of
    protocols that it restricts, so that the same headers serve HTTP and gRPC."""
    lower = {name.lower(): value for name, value in headers.items()}
    return {f"triton-grpc-protocol-{name}": value for name, value in lower.items()} | lower


class StreamChannel:
    """A channel that any number of threads stream over."""

    def __init__(self, url: str, metadata: Mapping[str, str], *, secure: bool = False) -> None:
        self._metadata = tuple(metadata.items())
        self._channel = _open(grpc, url, secure=secure)
        self._start = service_pb2_grpc.GRPCInferenceServiceStub(self._channel).ModelStreamInfer

    def stream(
        self,
        model: str,
        tensors: Tensors,
        outputs: Sequence[str],
        timeout: float | None,
        context: RequestContext = NO_CONTEXT,
    ) -> Generator[Tensors, None, None]:
        """The responses' outputs. Raises the typed error of the status that ends the stream."""
        request = _request(model, tensors, outputs, context.request_id)
        accompanying = (*self._metadata, *metadata(context.headers).items())
        call = self._start(iter([request]), metadata=accompanying, timeout=timeout)
        refusal, last = "", None
        try:
            for response in call:  # behind an error too, so that Triton ends the stream itself
                if response.error_message:
                    refusal = response.error_message
                    continue
                answer = convert.answer(InferResult(response.infer_response), outputs)
                if _is_last(answer):
                    last = answer
                else:
                    yield answer
            if last is not None:
                yield last
        except grpc.RpcError as error:
            if not refusal:  # else the refusal explains why the rest is missing
                # without its traceback: that refers to the error again, and to the channel, until it is collected
                raise _typed(error) from error.with_traceback(None)
        finally:
            call.cancel()  # of what is left, when the caller has had enough
        if refusal:
            raise convert.refused(refusal)

    def close(self) -> None:
        """Ends the channel and all its streams."""
        self._channel.close()


class AsyncStreamChannel:
    """`StreamChannel` for asyncio; belongs to the event loop in which it was created."""

    def __init__(self, url: str, metadata: Mapping[str, str], *, secure: bool = False) -> None:
        self._metadata = tuple(metadata.items())
        self._channel = _open(grpc.aio, url, secure=secure)
        self._start = service_pb2_grpc.GRPCInferenceServiceStub(self._channel).ModelStreamInfer

    async def stream(
        self,
        model: str,
        tensors: Tensors,
        outputs: Sequence[str],
        timeout: float | None,
        context: RequestContext = NO_CONTEXT,
    ) -> AsyncGenerator[Tensors, None]:
        """See `StreamChannel.stream`."""
        request = _request(model, tensors, outputs, context.request_id)
        accompanying = (*self._metadata, *metadata(context.headers).items())
        call = self._start(iter([request]), metadata=accompanying, timeout=timeout)
        refusal, last = "", None
        try:
            # behind an error too, so that Triton ends the stream itself
            while (response := await read_message(call)) is not grpc.aio.EOF:
                if response.error_message:
                    refusal = response.error_message
                    continue
                answer = convert.answer(InferResult(response.infer_response), outputs)
                if _is_last(answer):
                    last = answer
                else:
                    yield answer
            if last is not None:
                yield last
        except grpc.RpcError as error:
            if not refusal:  # else the refusal explains why the rest is missing
                # without its traceback: that refers to the error again, and to the channel, until it is collected
                raise _typed(error) from error.with_traceback(None)
        finally:
            call.cancel()
        if refusal:
            raise convert.refused(refusal)

    async def close(self) -> None:
        """See `StreamChannel.close`."""
        await self._channel.close()


async def read_message(call: Any) -> Any:
    """The call's next message, or `grpc.aio.EOF`.

    Cancelling a pending read with the task that awaits it leaks memory (grpcio 1.85: 10 to 25 kB for each stream
    cancelled this way). So the call is cancelled instead, which ends the read.
    """
    reading = asyncio.ensure_future(call.read())
    try:
        return await asyncio.shield(reading)
    except asyncio.CancelledError:
        call.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        raise


def _open(module: Any, url: str, *, secure: bool) -> Any:
    if secure:
        return module.secure_channel(url, grpc.ssl_channel_credentials(), options=OPTIONS)
    return module.insecure_channel(url, options=OPTIONS)


def _request(model: str, tensors: Tensors, outputs: Sequence[str], request_id: str) -> Any:
    request = service_pb2.ModelInferRequest(model_name=model, id=request_id)
    for name, array in tensors.items():
        request.inputs.add(name=name, datatype=np_to_triton_dtype(array.dtype), shape=array.shape)
        is_bytes = array.dtype == object
        request.raw_input_contents.append(serialize_byte_tensor(array).item() if is_bytes else array.tobytes())
    for name in outputs:
        request.outputs.add(name=name)
    return request


def _is_last(answer: Tensors) -> bool:
    flag = answer.get("is_last")
    return flag is not None and bool(flag.item())


def _typed(error: Any) -> ChatterboxClientError:
    return from_status(error.details() or str(error.code()), str(error.code()))
