"""The streaming front's links to all instances of the model that owns the engines. Imports no torch."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

from chatterbox_engine.errors import Unavailable
from chatterbox_engine.serving.codec import Tensors
from chatterbox_engine.serving.wire import Link, Receive


class Links:
    """Opens each stream at the engine with the fewest utterances."""

    def __init__(
        self, path: Callable[[int], Path], *, wait_seconds: float = 60.0, report: Callable[[str], None]
    ) -> None:
        """Connects and waits until all engines accept streams. path: of an instance's socket, by its index.

        Raises what `Link` does.
        """
        first = Link(path(0), wait_seconds=wait_seconds, report=report)
        others = (Link(path(index), wait_seconds=wait_seconds, report=report) for index in range(1, first.instances))
        self._links = [first, *others]

    def open(self, tensors: Tensors, receive: Receive) -> Callable[[], None]:
        """Begins a stream. Returns what cancels it. Raises what `Link.open` does."""
        loads = [(load, index) for index, link in enumerate(self._links) if (load := link.utterances) is not None]
        if not loads:
            raise Unavailable("the model that owns the engine is not loaded")
        link = self._links[min(loads)[1]]
        return partial(link.cancel, link.open(tensors, receive))

    def drain(self, seconds: float, drained: Callable[[], None]) -> None:
        """Calls `drained` once no stream is open at any engine."""
        lock, busy = threading.Lock(), set(self._links)

        def one(link: Link) -> None:
            with lock:
                busy.discard(link)
                if busy:
                    return
            drained()

        for link in self._links:
            link.drain(seconds, partial(one, link))

    def close(self) -> None:
        """Closes the connections; open streams fail."""
        for link in self._links:
            link.close()
