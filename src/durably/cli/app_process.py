"""The user's app, served by a child process: started, stopped, started anew, and asked to sync."""

import asyncio
import contextlib
import os
import signal
import socket
import sys

from durably.engine.embedded.api.discovery import AppDiscovery, AppUnreachedError, NoAppError
from durably.engine.embedded.api.server import describe_os_error, reachable
from durably.protocol.errors import Error

from .app_server import EXIT_REPORTED, GRACE_SECONDS

USUAL_PATHS = ("/api/inngest", "/x/inngest", "/")
"""Where apps are looked for: the default of every SDK, an older one, and that of DigitalOcean functions."""
START_SECONDS = 60.0
_PAUSE_SECONDS = 0.05
_PROGRAM = "durably.cli.app_server"


class AppFailedError(Error):
    """The app ended, or does not answer. The message is empty where the child process has said why."""


class AppProcess:
    """``target`` is ``module:app``, ``engine_origin`` what the app is told to talk to."""

    def __init__(self, target: str, *, host: str, port: int, path: str | None, engine_origin: str) -> None:
        self.target = target
        self._host, self._port = host, port
        self._urls = [f"{self.origin}{each}" for each in ([path] if path else USUAL_PATHS)]
        self._environment = os.environ | {"INNGEST_DEV": engine_origin}
        self._process: asyncio.subprocess.Process | None = None

    @property
    def origin(self) -> str:
        return f"http://{reachable(self._host)}:{self._port}"

    async def start(self) -> None:
        """Raises ``AppFailedError`` where the port is taken."""
        check_port_free(self._host, self._port)
        command = ("-m", _PROGRAM, self.target, "--host", self._host, "--port", str(self._port))
        self._process = await asyncio.create_subprocess_exec(sys.executable, *command, env=self._environment)

    async def sync(self, discovery: AppDiscovery) -> str:
        """Wait until the app answers, and have it sync. Answers with its URL.

        Raises ``AppFailedError`` where it ended or never answers, ``SyncFailedError``.
        """
        try:
            async with asyncio.timeout(START_SECONDS):
                while True:
                    with contextlib.suppress(AppUnreachedError):
                        return await self._sync_first(discovery)
                    self._check_alive()
                    await asyncio.sleep(_PAUSE_SECONDS)
        except TimeoutError:
            raise AppFailedError(
                f"{self.target} does not answer at {self.origin} after {START_SECONDS:.0f} s"
            ) from None

    async def _sync_first(self, discovery: AppDiscovery) -> str:
        for url in self._urls:
            with contextlib.suppress(NoAppError):
                await discovery.sync(url)
                return url
        tried = ", ".join(self._urls)
        raise AppFailedError(
            f"{self.target} answers, but serves no functions at {tried}\n"
            "Mount them with serve(), and name the path with --app-path if it is another."
        )

    def _check_alive(self) -> None:
        assert self._process is not None
        if self._process.returncode is not None:
            raise AppFailedError(self._describe_end(self._process.returncode))

    async def wait(self) -> str:
        """Wait until the process ends; says how it did, empty where it has said so itself."""
        assert self._process is not None
        return self._describe_end(await self._process.wait())

    def _describe_end(self, status: int) -> str:
        if status == EXIT_REPORTED:
            return ""
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        return f"the process that serves {self.target} ended with {how}"

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


async def check_importable(target: str) -> None:
    """Raises ``AppFailedError`` where there is no such app."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", _PROGRAM, target, "--check")
    if await process.wait() == EXIT_REPORTED:
        raise AppFailedError("")


def check_port_free(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        raise AppFailedError(
            f"port {port} of {host} is taken ({describe_os_error(error)}); choose another for the app with --app-port"
        ) from None


def free_port(host: str) -> int:
    """A port that nothing listens at now."""
    with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        return int(listener.getsockname()[1])
