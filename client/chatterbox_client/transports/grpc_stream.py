"""One gRPC stream per request, for threads and for asyncio.

Straight on the protocol's stub: `tritonclient` has one stream per client, reads it on a thread of its own, and leaves
another one behind when a stream is cancelled. Here a stream is an iterator; closing it cancels the request.

Triton (2.51) can end with SIGSEGV when a connection is closed right behind a stream that it has refused: after 4,300 of
them by four processes. A question on the same connection before it is closed lets Triton finish, nearly always: none in
20,000.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from typing import Any

import grpc
import grpc.aio
from tritonclient.grpc import InferResult, service_pb2, service_pb2_grpc
from tritonclient.utils import np_to_triton_dtype, serialize_byte_tensor

from chatterbox_client.errors import ChatterboxClientError, from_status
from chatterbox_client.request import Tensors
from chatterbox_client.transports import convert

_OPTIONS = [("grpc.max_receive_message_length", -1)]
_METADATA = (("triton_grpc_error", "true"),)  # errors as statuses with their code, instead of messages without

_SETTLE_SECONDS = 1.0


class StreamChannel:
    """A channel that any number of threads stream over."""

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        self._metadata = (*_METADATA, *headers.items())
        self._channel = grpc.insecure_channel(url, options=_OPTIONS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._refused = False

    def stream(
        self, model: str, tensors: Tensors, outputs: Sequence[str], timeout: float | None
    ) -> Generator[Tensors, None, None]:
        """The responses' outputs. Raises the typed error of the status that ends the stream."""
        call = self._stub.ModelStreamInfer(
            iter([_request(model, tensors, outputs)]), metadata=self._metadata, timeout=timeout
        )
        try:
            for response in call:
                yield convert.answer(InferResult(response.infer_response), outputs)
        except grpc.RpcError as error:
            self._refused = True
            raise _typed(error) from error
        finally:
            call.cancel()  # of what is left, when the caller has had enough

    def close(self) -> None:
        """Ends the channel and all its streams."""
        if self._refused:
            with contextlib.suppress(grpc.RpcError):  # a server that is gone needs no time
                self._stub.ServerLive(service_pb2.ServerLiveRequest(), metadata=self._metadata, timeout=_SETTLE_SECONDS)
        self._channel.close()


class AsyncStreamChannel:
    """The same for asyncio; belongs to the event loop in which it was made."""

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        self._metadata = (*_METADATA, *headers.items())
        self._channel = grpc.aio.insecure_channel(url, options=_OPTIONS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._refused = False

    async def stream(
        self, model: str, tensors: Tensors, outputs: Sequence[str], timeout: float | None
    ) -> AsyncGenerator[Tensors, None]:
        """See `StreamChannel.stream`."""
        call = self._stub.ModelStreamInfer(
            iter([_request(model, tensors, outputs)]), metadata=self._metadata, timeout=timeout
        )
        try:
            async for response in call:
                yield convert.answer(InferResult(response.infer_response), outputs)
        except grpc.RpcError as error:
            self._refused = True
            raise _typed(error) from error
        finally:
            call.cancel()

    async def close(self) -> None:
        """See `StreamChannel.close`."""
        if self._refused:
            with contextlib.suppress(grpc.RpcError):
                live = self._stub.ServerLive
                await live(service_pb2.ServerLiveRequest(), metadata=self._metadata, timeout=_SETTLE_SECONDS)
        await self._channel.close()


def _request(model: str, tensors: Tensors, outputs: Sequence[str]) -> Any:
    request = service_pb2.ModelInferRequest(model_name=model)
    for name, array in tensors.items():
        request.inputs.add(name=name, datatype=np_to_triton_dtype(array.dtype), shape=array.shape)
        is_bytes = array.dtype == object
        request.raw_input_contents.append(serialize_byte_tensor(array).item() if is_bytes else array.tobytes())
    for name in outputs:
        request.outputs.add(name=name)
    return request


def _typed(error: Any) -> ChatterboxClientError:
    return from_status(error.details() or str(error.code()), str(error.code()))
