"""The processes that are killed: an engine and its app, each at an address of its own that it comes back to."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import aiohttp

from ..waiting import async_eventually

Request = Callable[[str], AbstractAsyncContextManager[aiohttp.ClientResponse]]
ROOT = Path(__file__).parents[2]


class Victim:
    """A process that can be brought down and comes up again. What it says is kept in ``log``.

    ``module`` is its program, by default that of its name beside this one.
    """

    def __init__(self, name: str, log: Path, *arguments: str, module: str | None = None, **environment: str) -> None:
        self.name, self.log = name, log
        self._command = [sys.executable, "-m", module or f"tests.crash.{name}_process", *arguments]
        self._environment = {
            key: value for key, value in os.environ.items() if not key.startswith(("DURABLY_", "INNGEST_"))
        }
        self._environment |= environment
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, cwd=ROOT, env=self._environment, stdout=log, stderr=subprocess.STDOUT
            )

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        self.wait()

    def wait(self) -> int:
        """Its exit status, once it has ended."""
        assert self._process is not None
        return self._process.wait(timeout=60)


async def until_succeeded(request: Request, url: str) -> None:
    """Repeat a request until its status is 200. To put something to the app has it sync."""

    async def has_succeeded() -> bool:
        async with request(url) as response:
            return response.status == 200

    await async_eventually(has_succeeded, f"{url} answers with 200", ignore=(aiohttp.ClientError, TimeoutError))
