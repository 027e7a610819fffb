"""Processes that measure or serve, each alone in its own, so that nothing one does is counted against another.

A child is a module of this package that is sent questions, each a line of JSON, and answers each with another. Its
standard output belongs to that; what peers print goes to the log beside the benchmark's files. All of
them run on uvloop, as web servers do.
"""

import asyncio
import contextlib
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import uvloop

Answerer = Callable[[dict[str, Any]], Awaitable[Any]]

_ANSWER_SECONDS = 300.0
_STOP_SECONDS = 30.0
_TICKS = os.sysconf("SC_CLK_TCK")


class ChildFailedError(Exception):
    """A child ended instead of answering; its log says why."""


class Child:
    """``python -m MODULE ARGUMENTS``, started when made. Ends when closed, or when the benchmark does."""

    def __init__(self, module: str, directory: Path, *arguments: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._module, self._log = module, directory / "log"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, str(directory), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        self.ready: Any = self._answer()

    def ask(self, **question: Any) -> Any:
        """Raises ``ChildFailedError``."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], _ANSWER_SECONDS)[0]:
            raise ChildFailedError(f"{self._module} has not answered for {_ANSWER_SECONDS} s; its log is {self._log}")
        line = self._process.stdout.readline()
        if not line:
            last = self._log.read_text(errors="replace")[-2000:]
            raise ChildFailedError(f"{self._module} ended with {self._process.wait()}; its log's end: {last}")
        return json.loads(line)

    @property
    def pid(self) -> int:
        return self._process.pid

    def rss(self) -> int:
        """Resident bytes, those of shared libraries included."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def cpu_seconds(self) -> float:
        return cpu_seconds_of(self.pid)

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def cpu_seconds_of(pid: int) -> float:
    """The CPU time of a process, with all of its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def family_cpu_seconds() -> float:
    """The CPU time of this process and its children."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return time.process_time() + sum(cpu_seconds_of(int(pid)) for pid in children)


def serve(open_child: Callable[[Path, list[str]], AbstractAsyncContextManager[tuple[Any, Answerer]]]) -> None:
    """The child's side: open it with its directory and arguments, say that it is ready, answer until asked no more.

    ``open_child`` yields what to say first, and what answers questions.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(answer: Any) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    uvloop.run(_serve(open_child(Path(sys.argv[1]), sys.argv[2:]), say))


async def _serve(opened: AbstractAsyncContextManager[tuple[Any, Answerer]], say: Callable[[Any], None]) -> None:
    async with opened as (ready, answer):
        say(ready)
        async for question in _questions():
            say(await answer(question))


async def _questions() -> AsyncIterator[dict[str, Any]]:
    loop, lines = asyncio.get_running_loop(), asyncio.Queue[str]()

    def read() -> None:
        for line in sys.stdin:
            loop.call_soon_threadsafe(lines.put_nowait, line)
        loop.call_soon_threadsafe(lines.put_nowait, "")

    threading.Thread(target=read, daemon=True).start()
    while line := await lines.get():
        yield json.loads(line)
