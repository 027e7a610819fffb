"""Recording the functions of ``durably`` that one input passes, in all threads.

Forwarding costs time and makes code hard to follow, so tests limit the number of functions on the common paths.
"""

import sys
import threading
from collections import Counter
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any, NamedTuple

_PACKAGE = "/src/durably/"
_COMPREHENSIONS = ("<listcomp>", "<dictcomp>", "<setcomp>")
"""Code objects only before Python 3.12."""


class Function(NamedTuple):
    """``module`` is the path of its file below ``src/durably``."""

    module: str
    name: str


class CallPath:
    """The functions that were called, and how often."""

    def __init__(self) -> None:
        self.calls: dict[Function, int] = {}

    @property
    def modules(self) -> set[str]:
        return {function.module for function in self.calls}

    def __str__(self) -> str:
        lines = [f"{count:4} {function.module}:{function.name}" for function, count in self.calls.items()]
        return "\n".join([f"{len(self.calls)} functions in {len(self.modules)} modules", *lines])


def usual_path(paths: Sequence[CallPath]) -> CallPath:
    """The functions of several recordings of the same input, with their calls in all of them.

    The last functions of a path may be called in another thread after its recording has ended. They are in the next
    one, so a function counts if it is in a third of the recordings.
    """
    recordings, calls = Counter[Function](), Counter[Function]()
    for path in paths:
        recordings.update(path.calls.keys())
        calls.update(path.calls)
    usual = CallPath()
    usual.calls = {function: count for function, count in calls.items() if 3 * recordings[function] >= len(paths)}
    return usual


class Tracer:
    """Traces this thread, and threads that start within the context.

    Enter it before the code under test starts its threads. Calls are recorded between ``start`` and ``stop``, which
    any thread may call::

        with Tracer() as tracer:
            engine = ...
            tracer.start()
            ...
            path = tracer.stop()
        assert len(path.calls) <= 60, str(path)

    Other work of the same process is recorded too. Record several times, and use ``usual_path``.
    """

    def __init__(self) -> None:
        self._path: CallPath | None = None

    def __enter__(self) -> "Tracer":
        threading.setprofile(self._profile)
        sys.setprofile(self._profile)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._path = None
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]  # the stub lacks None

    def start(self) -> None:
        self._path = CallPath()

    def stop(self) -> CallPath:
        path, self._path = self._path, None
        assert path is not None, "nothing is recorded"
        return path

    def _profile(self, frame: FrameType, event: str, _: Any) -> None:
        path = self._path
        if path is None or event != "call":
            return
        code = frame.f_code
        _, is_ours, module = code.co_filename.rpartition(_PACKAGE)
        if is_ours and code.co_name not in _COMPREHENSIONS:
            function = Function(module, code.co_qualname)
            path.calls[function] = path.calls.get(function, 0) + 1
