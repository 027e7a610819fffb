"""The apps of an engine: served in a child process, or separate and synced.

``AppProcess`` serves an app in a child process. ``keep_synced`` syncs with a separate app.
"""

import asyncio
import contextlib
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Callable, Mapping, Sequence

from durably.engine.api.http.discovery import AppDiscovery, AppUnreachedError, NoAppError
from durably.protocol.engine_errors import EngineError
from durably.protocol.text import reachable, redact_url
from durably.settings import development_variables

from .child_process import AppFailedError, ChildProcess, check_port_free
from .guard import EXIT_REPORTED, EXPLANATION

USUAL_PATHS = ("/api/inngest", "/x/inngest", "/")
"""Usual paths of endpoints: the default of all SDKs, a former default, and that of DigitalOcean functions."""
START_SECONDS = 60.0
_PAUSE_SECONDS = 0.05
_PROGRAM = "durably.cli.processes.app_server"


class AppProcess(ChildProcess):
    """A child process that serves ``target``, a ``module:app``.

    ``engine_origin`` is the engine for the app.
    """

    def __init__(self, target: str, *, host: str, port: int, path: str | None, engine_origin: str) -> None:
        command = (sys.executable, "-m", _PROGRAM, target, "--host", host, "--port", str(port))
        super().__init__(target, command, development_variables(engine_origin), purpose="serves")
        self._host, self._port = host, port
        self._urls = [f"{self.origin}{each}" for each in ([path] if path else USUAL_PATHS)]

    @property
    def origin(self) -> str:
        return f"http://{reachable(self._host)}:{self._port}"

    async def start(self) -> None:
        """Raises ``AppFailedError`` if the port is taken."""
        check_port_free(self._host, self._port)
        await super().start()

    async def sync(self, discovery: AppDiscovery) -> str:
        """Wait until the app answers, and sync with it. Returns its URL.

        Raises ``AppFailedError`` if it ended or does not answer, and ``SyncFailedError``.
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
        if explanation := await self._explain():
            raise AppFailedError(explanation)
        tried = ", ".join(self._urls)
        raise AppFailedError(
            f"{self.target} answers, but serves no functions at {tried}:\n"
            "mount them with serve(), and name the path with --app-path if it is another"
        )

    async def _explain(self) -> str:
        """The reason why the app has no endpoint; empty if it is not known.

        Another process imports the app, because this one must not.
        """
        command = (*self._command, "--explain")
        _, output = await _run(command, self._environment, stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL)
        lines = output.decode(errors="replace").splitlines()
        return lines[-1].removeprefix(EXPLANATION) if lines and lines[-1].startswith(EXPLANATION) else ""


async def check_importable(target: str, engine_origin: str) -> None:
    """Import the app as its process would with that engine.

    Raises ``AppFailedError`` if there is no such app.
    """
    environment = {**os.environ, **development_variables(engine_origin)}
    status, _ = await _run((sys.executable, "-m", _PROGRAM, target, "--check"), environment)
    if status == EXIT_REPORTED:
        raise AppFailedError("")


async def _run(
    command: Sequence[str],
    environment: Mapping[str, str] | None = None,
    *,
    stdin: int | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
) -> tuple[int | None, bytes]:
    """The exit status of a command, and its output if ``stdout`` is a pipe.

    A cancelled command is killed.
    """
    process = await asyncio.create_subprocess_exec(*command, env=environment, stdin=stdin, stdout=stdout, stderr=stderr)
    try:
        output, _ = await process.communicate()
        return process.returncode, output
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


UNREACHED_PAUSE_SECONDS = 1.0


async def keep_synced(
    url: str, discovery: AppDiscovery, *, interval: float, say: Callable[[str], None], warn: Callable[[str], None]
) -> None:
    """Sync with the app at ``url`` every ``interval`` seconds.

    If ``interval`` is 0, stop at the first success. Reports each problem once, and its end.
    """
    known: str | None = None
    while True:
        problem, pause = None, interval
        try:
            await discovery.sync(url)
        except EngineError as error:
            problem = error.message
            pause = UNREACHED_PAUSE_SECONDS if isinstance(error, AppUnreachedError) else interval
        if problem and problem != known:
            warn(f"{problem}; waiting for it")
        elif known and not problem:
            say(f"the app at {redact_url(url)} answers")
        known = problem
        if not problem and not interval:
            return
        await asyncio.sleep(pause or UNREACHED_PAUSE_SECONDS)
