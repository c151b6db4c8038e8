"""What is done ahead of requests, so that none of them waits for it: the encoders are loaded, and voices that are new
in the store, whoever wrote them, are computed. Imports no torch."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

from chatterbox_engine.errors import Unavailable

SECONDS = 2.0
"""Between two looks into the store. One costs a query of two indexes."""


class VoiceWatch:
    """A thread that looks for new voices. Its callables wait until what they asked of the encoder's thread is done, so
    a request that comes meanwhile waits for one batch at most."""

    def __init__(
        self,
        *,
        load: Callable[[], None],
        find: Callable[[], Mapping[str, str]],
        compute: Callable[[Sequence[str]], None],
        batch: int,
        seconds: float = SECONDS,
    ) -> None:
        """load: makes the encoders; find: the voices that nobody has computed, name to content hash, compute:
        computes at most `batch` of them. Both may raise Unavailable."""
        self._load, self._find, self._compute = load, find, compute
        self._batch = batch
        self._seconds = seconds
        self._tried: set[str] = set()
        """Hashes of clips, of which a bad one stays uncomputed."""
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="voice-watch", daemon=True)

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def close(self) -> None:
        """Ends the thread after what it waits for."""
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        self._load()
        while not self._closing.wait(self._seconds):
            for names in self._batches():
                if self._closing.is_set():
                    return
                with contextlib.suppress(Unavailable):  # then these wait for a request
                    self._compute(names)

    def _batches(self) -> Iterator[list[str]]:
        try:
            found = self._find()
        except Unavailable:
            return  # the store tells the log
        new = {key: name for name, key in found.items() if key not in self._tried}
        self._tried |= set(new)
        names = list(new.values())
        for start in range(0, len(names), self._batch):
            yield names[start : start + self._batch]
