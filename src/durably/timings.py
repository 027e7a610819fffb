"""Server timings: how long the parts of an answer took, for the ``server-timing`` header."""

import time


class Timings:
    """Measured parts in the order in which they began. Durations are whole milliseconds."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    def measure(self, name: str) -> "Part":
        """Measure a ``with`` block; what blocks of one name took is added up."""
        self._seconds.setdefault(name, 0.0)
        return Part(self._seconds, name)

    def begin(self, name: str) -> float:
        """``measure`` without a ``with`` block: pass the result to ``end``."""
        self._seconds.setdefault(name, 0.0)
        return time.perf_counter()

    def end(self, name: str, began: float) -> None:
        self._seconds[name] += time.perf_counter() - began

    def to_header(self) -> str:
        return ", ".join([f"{name};dur={int(seconds * 1000)}" for name, seconds in self._seconds.items()])


class Part:
    """One measurement. A class, as generators make slow context managers and every call has several."""

    __slots__ = ("_name", "_seconds", "_start")

    def __init__(self, seconds: dict[str, float], name: str) -> None:
        self._seconds = seconds
        self._name = name

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._seconds[self._name] += time.perf_counter() - self._start
