"""A child process that runs the user's code: started, watched, stopped, restarted."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence

from durably.protocol.errors import Error

from .app_server import EXIT_REPORTED, GRACE_SECONDS


class AppFailedError(Error):
    """The app ended, or does not answer. The message is empty where the child process has said why."""


class ChildProcess:
    """``target`` is the ``module:name`` that it runs, ``purpose`` says what for, as in "the process that serves it".

    ``command`` is the program and its arguments, ``variables`` are added to the environment.
    """

    def __init__(self, target: str, command: Sequence[str], variables: Mapping[str, str], *, purpose: str) -> None:
        self.target = target
        self._command = command
        self._environment = {**os.environ, **variables}
        self._purpose = purpose
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(*self._command, env=self._environment)

    def check_alive(self) -> None:
        """Raises ``AppFailedError``."""
        assert self._process is not None
        if self._process.returncode is not None:
            raise AppFailedError(self._describe_end(self._process.returncode))

    async def wait(self) -> str:
        """Wait until the process ends; says how it did, empty where it has said so itself."""
        assert self._process is not None
        return self._describe_end(await self._process.wait())

    async def finish(self) -> None:
        """Wait until the process has done its work. Raises ``AppFailedError`` where it has not."""
        assert self._process is not None
        if status := await self._process.wait():
            raise AppFailedError(self._describe_end(status))

    def _describe_end(self, status: int) -> str:
        if status == EXIT_REPORTED:
            return ""
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        return f"the process that {self._purpose} {self.target} ended with {how}"

    async def stop(self) -> None:
        """End the process: it may finish what is under way for a moment, and is killed after that."""
        if self._process is None or self._process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            await asyncio.wait_for(self._process.wait(), GRACE_SECONDS + 1)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
