"""numpy to `tritonclient` and back; its HTTP and gRPC modules have the same classes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from chatterbox_client.errors import ChatterboxClientError, ConnectionFailed, Timeout, from_status
from chatterbox_client.request import Tensors

_STATUS = re.compile(
    "(CANCELLED|UNKNOWN|INVALID_ARGUMENT|DEADLINE_EXCEEDED|NOT_FOUND|PERMISSION_DENIED|RESOURCE_EXHAUSTED"
    "|FAILED_PRECONDITION|ABORTED|UNIMPLEMENTED|INTERNAL|UNAVAILABLE|UNAUTHENTICATED): (.*)",
    re.DOTALL,
)

_TRITONS_OWN = (
    ("Request for unknown model", "NOT_FOUND"),
    ("unexpected inference input", "INVALID_ARGUMENT"),
    ("stopped accepting", "UNAVAILABLE"),
)
"""What Triton itself says of a request, and the status that it gives a call which is no stream."""


def call_arguments(triton: Any, tensors: Tensors, outputs: Sequence[str]) -> dict[str, Any]:
    """`inputs` and `outputs` for `infer` of the module `triton`; over HTTP both travel as binary data."""
    inputs = []
    for name, array in tensors.items():
        tensor = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    return {"inputs": inputs, "outputs": [triton.InferRequestedOutput(name) for name in outputs]}


def answer(result: Any, outputs: Sequence[str]) -> Tensors:
    """The outputs that an `InferResult` holds, by name."""
    arrays = {name: result.as_numpy(name) for name in outputs}
    return {name: array for name, array in arrays.items() if array is not None}


def typed(error: InferenceServerException) -> ChatterboxClientError:
    """Our error for `tritonclient`'s."""
    return from_status(error.message(), error.status())


def refused(message: str, status: str | None = None) -> ChatterboxClientError:
    """Our error for a stream's message, which the server's model begins with its status: "NOT_FOUND: ...".

    `status` is what came with it, if anything did; what the message says wins.
    """
    if coded := _STATUS.fullmatch(message):
        return from_status(coded[2], coded[1])
    return from_status(message, next((code for words, code in _TRITONS_OWN if words in message), status))


def timed_out(url: str, timeout: float | None) -> Timeout:
    """The error for a call that got no answer; without a limit of ours it was the system's."""
    within = "in time" if timeout is None else f"within {timeout:g} s"
    return Timeout(f"{url}: no answer {within}")


def unreachable(url: str, protocol: str, reason: object) -> ConnectionFailed:
    """The error for a server that was not reached, or that speaks something else there."""
    other, port = {"http": ("gRPC", ":8001"), "grpc": ("HTTP", ":8000")}[protocol]
    hint = f" (this asks for {protocol}, and {port[1:]} is usually the port of {other})" if url.endswith(port) else ""
    return ConnectionFailed(f"{url}: {reason}{hint}")
