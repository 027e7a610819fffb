"""Child processes that run the user's code, among them apps that are served."""

import asyncio
import contextlib
import os
import random
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import watchfiles

from durably.protocol.errors import Error
from durably.protocol.text import describe_os_error, reachable
from durably.settings import development_variables

from .app_server import EXIT_REPORTED, GRACE_SECONDS, PARENT_VARIABLE
from .text import Console

if TYPE_CHECKING:
    from durably.engine.api.http.syncs import AppDiscovery

T = TypeVar("T")
STATE_DIRECTORY = Path(".durably")
USUAL_PATHS = ("/api/inngest", "/x/inngest", "/")
"""Usual paths of endpoints: the default of all SDKs, a former default, and that of DigitalOcean functions."""
START_SECONDS = 60.0
_PAUSE_SECONDS = 0.05


class AppFailedError(Error):
    """The app ended, or does not answer.

    The message is empty if the child process has printed the reason.
    """


class ChildProcess:
    """A child process that runs ``target``, a ``module:name``.

    ``command`` is the program and its arguments. ``variables`` are added to the environment. ``purpose`` is a verb:
    "the process that serves it".
    """

    def __init__(self, target: str, command: Sequence[str], variables: Mapping[str, str], *, purpose: str) -> None:
        self.target = target
        self._command = command
        self._environment = {**os.environ, **variables, PARENT_VARIABLE: str(os.getpid())}
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
        """Wait until the process ends, and return a text that says how.

        The text is empty if the process has printed its error.
        """
        assert self._process is not None
        return self._describe_end(await self._process.wait())

    async def fail_at_end(self, *, may_succeed: bool = False) -> None:
        """Wait until the process ends. Raises ``AppFailedError``; with ``may_succeed``, for a failure only."""
        assert self._process is not None
        status = await self._process.wait()
        if status or not may_succeed:
            raise AppFailedError(self._describe_end(status))

    def _describe_end(self, status: int) -> str:
        if status == EXIT_REPORTED:
            return ""
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        return f"the process that {self._purpose} {self.target} ended with {how}"

    async def stop(self) -> None:
        """End the process with SIGTERM, and kill it after a grace period."""
        if self._process is None or self._process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            await asyncio.wait_for(self._process.wait(), GRACE_SECONDS + 1)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


def _family_of(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def free_port(host: str) -> int:
    """A free port for a program that is started next.

    It is below the range of ports for outgoing connections, which could take it before the program does.
    """
    while True:
        port = random.randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server((host, port), family=_family_of(host)):
            return port


def state_directory() -> Path:
    """``.durably``, with a ``.gitignore`` that excludes it from version control."""
    STATE_DIRECTORY.mkdir(exist_ok=True)
    ignore = STATE_DIRECTORY / ".gitignore"
    if not ignore.exists():
        ignore.write_text("*\n")
    return STATE_DIRECTORY


class SourceChanges:
    """Python files below a directory that have changed since ``start``, in batches."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._batches: asyncio.Queue[set[str]] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._collect())

    async def _collect(self) -> None:
        async for changes in watchfiles.awatch(self._directory, watch_filter=watchfiles.PythonFilter()):
            self._batches.put_nowait({path for _, path in changes})

    async def next(self) -> set[str]:
        return await self._batches.get()

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task


async def restart_on_changes(
    app: ChildProcess, changes: SourceChanges, console: Console, report_up: Callable[[], Awaitable[None]]
) -> None:
    """Restart the app at each change of the source, until cancelled.

    Reports an app that does not start or ends, and waits for the next change. ``report_up`` waits until the app is up,
    and reports it.
    """

    async def watch(*, is_started: bool) -> None:
        try:
            if not is_started:
                await app.start()
                await report_up()
            reason = await app.wait()
        except Error as error:
            reason = " ".join(error.message.splitlines()) or f"{app.target} did not start"
        console.warn(f"{reason}; waiting for a change")

    running = asyncio.create_task(watch(is_started=True))
    try:
        while True:
            names = sorted({Path(path).name for path in await changes.next()})
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running
            console.note(f"{names[0] if len(names) == 1 else f'{len(names)} files'} changed, restarting {app.target}")
            await app.stop()
            running = asyncio.create_task(watch(is_started=False))
    finally:
        running.cancel()


class ServedProcess(ChildProcess):
    """A child process that listens at a port. It is up when it accepts connections there.

    ``option`` chooses another port.
    """

    def __init__(
        self,
        target: str,
        command: Sequence[str],
        variables: Mapping[str, str],
        *,
        host: str,
        port: int,
        option: str = "--app-port",
    ) -> None:
        super().__init__(target, command, variables, purpose="serves")
        self.host, self.port = reachable(host), port
        self._listens_at, self._option = host, option

    @property
    def origin(self) -> str:
        return f"http://{self.host}:{self.port}"

    async def start(self) -> None:
        """Raises ``AppFailedError`` if the port is taken."""
        try:
            socket.create_server((self._listens_at, self.port), family=_family_of(self._listens_at)).close()
        except OSError as error:
            raise AppFailedError(
                f"port {self.port} of {self._listens_at} is taken ({describe_os_error(error)}); choose another with "
                f"{self._option}"
            ) from None
        await super().start()

    async def wait_until(self, is_up: Callable[[], Awaitable[T | None]]) -> T:
        """The first result of ``is_up`` that is not ``None``.

        Raises ``AppFailedError`` if the process ends before, or after ``START_SECONDS``.
        """
        try:
            async with asyncio.timeout(START_SECONDS):
                while (found := await is_up()) is None:
                    self.check_alive()
                    await asyncio.sleep(_PAUSE_SECONDS)
                return found
        except TimeoutError:
            raise AppFailedError(
                f"{self.target} does not answer at {self.origin} after {START_SECONDS:.0f} s"
            ) from None

    async def wait_connectable(self) -> None:
        """Wait until the process accepts connections. Raises the errors of ``wait_until``."""

        async def connect() -> bool | None:
            try:
                _, writer = await asyncio.open_connection(self.host, self.port)
            except OSError:
                return None
            writer.close()
            return True

        await self.wait_until(connect)


def app_server_command(target: str, host: str, port: int) -> tuple[str, ...]:
    return (sys.executable, "-m", "durably.cli.app_server", target, "--host", host, "--port", str(port))


class AppProcess(ServedProcess):
    """A child process that serves ``target``, a ``module:app``.

    ``engine_origin`` is the engine for the app. ``path`` is that of its endpoint, if it is not a usual one.
    """

    def __init__(self, target: str, *, host: str, port: int, path: str | None, engine_origin: str) -> None:
        command, variables = app_server_command(target, host, port), development_variables(engine_origin)
        super().__init__(target, command, variables, host=host, port=port)
        self._urls = [f"{self.origin}{each}" for each in ([path] if path else USUAL_PATHS)]

    async def sync(self, discovery: "AppDiscovery") -> str:
        """Wait until the app answers, and sync with it. Returns its URL.

        Raises ``AppFailedError`` if it ended or does not answer, and ``SyncFailedError``.
        """
        from durably.engine.api.http.syncs import AppUnreachedError, NoAppError  # They need the extra ``engine``.

        async def sync_first() -> str | None:
            for url in self._urls:
                try:
                    await discovery.sync(url)
                except NoAppError:
                    continue
                except AppUnreachedError:
                    return None
                return url
            raise AppFailedError(
                f"{self.target} answers, but serves no functions at {', '.join(self._urls)}:\n"
                "mount them with serve(), and name the path with --app-path if it is another"
            )

        return await self.wait_until(sync_first)
