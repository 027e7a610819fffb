"""The user's app, served by a child process: started, stopped, restarted, and asked to sync."""

import asyncio
import contextlib
import sys

from durably.engine.http.discovery import AppDiscovery, AppUnreachedError, NoAppError
from durably.protocol.text import reachable
from durably.settings import development_variables

from .app_server import EXIT_REPORTED
from .child_process import AppFailedError, ChildProcess
from .development import check_port_free

USUAL_PATHS = ("/api/inngest", "/x/inngest", "/")
"""Where apps are looked for: the default of every SDK, an older one, and that of DigitalOcean functions."""
START_SECONDS = 60.0
_PAUSE_SECONDS = 0.05
_PROGRAM = "durably.cli.app_server"


class AppProcess(ChildProcess):
    """Serves ``target``, which is ``module:app``; ``engine_origin`` is the engine that the app uses."""

    def __init__(self, target: str, *, host: str, port: int, path: str | None, engine_origin: str) -> None:
        command = (sys.executable, "-m", _PROGRAM, target, "--host", host, "--port", str(port))
        super().__init__(target, command, development_variables(engine_origin), purpose="serves")
        self._host, self._port = host, port
        self._urls = [f"{self.origin}{each}" for each in ([path] if path else USUAL_PATHS)]

    @property
    def origin(self) -> str:
        return f"http://{reachable(self._host)}:{self._port}"

    async def start(self) -> None:
        """Raises ``AppFailedError`` where the port is taken."""
        check_port_free(self._host, self._port)
        await super().start()

    async def sync(self, discovery: AppDiscovery) -> str:
        """Wait until the app answers, and have it sync. Answers with its URL.

        Raises ``AppFailedError`` where it ended or never answers, ``SyncFailedError``.
        """
        try:
            async with asyncio.timeout(START_SECONDS):
                while True:
                    with contextlib.suppress(AppUnreachedError):
                        return await self._sync_first(discovery)
                    self.check_alive()
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
            f"{self.target} answers, but serves no functions at {tried}:\n"
            "mount them with serve(), and name the path with --app-path if it is another"
        )


async def check_importable(target: str) -> None:
    """Raises ``AppFailedError`` where there is no such app."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", _PROGRAM, target, "--check")
    if await process.wait() == EXIT_REPORTED:
        raise AppFailedError("")
