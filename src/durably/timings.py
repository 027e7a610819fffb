"""Server timings: how long the parts of an answer took, for the ``server-timing`` header."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Timings:
    """Measured parts in the order in which they began. Durations are whole milliseconds."""

    def __init__(self) -> None:
        self._durations: dict[str, float] = {}

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        self._durations.setdefault(name, 0.0)
        try:
            yield
        finally:
            self._durations[name] += time.perf_counter() - start

    def to_header(self) -> str:
        return ", ".join(f"{name};dur={int(seconds * 1000)}" for name, seconds in self._durations.items())
