"""One line of the log for each request that ends, as text or JSON. Imports no torch."""

from __future__ import annotations

import json
import textwrap
import time
from typing import Any

from chatterbox_engine.serving.codec import Tensors

_REASON, _ID = 300, 64
"""Maximum characters of an error and of a request's id."""

_FIELDS = ("voice", "characters", "segments", "audio_seconds", "queue_ms", "ttfa_ms", "total_ms", "rtf")
"""Of an answer's statistics."""


class RequestLog:
    """Writes the lines of one model. Text goes through Triton's log; a line of JSON stands alone on stdout, where
    Triton's log would quote it."""

    def __init__(self, pb_utils: Any, model: str, form: str) -> None:
        """pb_utils: Triton's module, which exists only inside a model's process; form: `off`, `text` or `json`."""
        self._logger, self._model, self._form = pb_utils.Logger, model, form

    def answered(self, request: str, outputs: Tensors) -> None:
        """outputs: of the last response; those of speech have `stats`."""
        if self._form == "off":
            return
        stats = json.loads(outputs["stats"].item()) if "stats" in outputs else {}
        self._write(request, "OK", {name: stats[name] for name in _FIELDS if name in stats})

    def failed(self, request: str, status: str, reason: str) -> None:
        """status: of gRPC, as in NOT_FOUND."""
        if self._form != "off":
            self._write(request, status, {"reason": textwrap.shorten(reason, _REASON, placeholder=" ...")})

    def _write(self, request: str, status: str, fields: dict[str, Any]) -> None:
        if self._form == "json":
            head = {"time": round(time.time(), 3), "model": self._model, "request": request[:_ID], "status": status}
            print(json.dumps({**head, **fields}), flush=True)
            return
        shown = fields.get("reason") or " ".join(f"{name}={value}" for name, value in fields.items())
        write = self._logger.log_info if status in ("OK", "CANCELLED") else self._logger.log_warn
        write(f"{self._model}: request {request[:_ID]!r} ends with {status}: {shown or 'done'}")
