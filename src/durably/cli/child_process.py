"""Child processes that run the user's code, among them apps that are served."""

import asyncio
import contextlib
import os
import random
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import watchfiles

from durably.protocol.engine_errors import EngineError
from durably.protocol.errors import Error
from durably.protocol.text import describe_os_error, reachable, redact_url
from durably.settings import development_variables

from .guard import EXIT_REPORTED, EXPLANATION, GRACE_SECONDS, PARENT_VARIABLE
from .text import Console

if TYPE_CHECKING:
    from durably.engine.api.http.syncs import AppDiscovery


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

    async def finish(self) -> None:
        """Wait until the process ends. Raises ``AppFailedError`` for a failure."""
        assert self._process is not None
        if status := await self._process.wait():
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


STATE_DIRECTORY = Path(".durably")


def check_port_free(host: str, port: int, *, option: str = "--app-port") -> None:
    """Raises ``AppFailedError``, which names the option for another port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        raise AppFailedError(
            f"port {port} of {host} is taken ({describe_os_error(error)}); choose another with {option}"
        ) from None


def free_port(host: str) -> int:
    """A free port for a program that is started next.

    It is below the range of ports for outgoing connections, which could take it before the program does.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    while True:
        port = random.randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server((host, port), family=family):
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
    running = asyncio.create_task(_report_end(app, console))
    try:
        while True:
            paths = await changes.next()
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running
            console.note(f"{_list_files(paths)} changed, restarting {app.target}")
            await app.stop()
            running = asyncio.create_task(_start(app, console, report_up))
    finally:
        running.cancel()


async def _start(app: ChildProcess, console: Console, report_up: Callable[[], Awaitable[None]]) -> None:
    try:
        await app.start()
        await report_up()
    except Error as error:
        reason = " ".join(error.message.splitlines()) or f"{app.target} did not start"
        console.warn(f"{reason}; waiting for a change")
        return
    await _report_end(app, console)


async def _report_end(app: ChildProcess, console: Console) -> None:
    console.warn(f"{await app.wait()}; waiting for a change")


def _list_files(paths: Iterable[str]) -> str:
    names = sorted({Path(path).name for path in paths})
    return names[0] if len(names) == 1 else f"{len(names)} files"


USUAL_PATHS = ("/api/inngest", "/x/inngest", "/")
"""Usual paths of endpoints: the default of all SDKs, a former default, and that of DigitalOcean functions."""
START_SECONDS = 60.0
_PAUSE_SECONDS = 0.05
_PROGRAM = "durably.cli.app_server"


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

    async def sync(self, discovery: "AppDiscovery") -> str:
        """Wait until the app answers, and sync with it. Returns its URL.

        Raises ``AppFailedError`` if it ended or does not answer, and ``SyncFailedError``.
        """
        from durably.engine.api.http.syncs import AppUnreachedError  # It needs the extra ``engine``.

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

    async def _sync_first(self, discovery: "AppDiscovery") -> str:
        from durably.engine.api.http.syncs import NoAppError

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
    url: str, discovery: "AppDiscovery", *, interval: float, say: Callable[[str], None], warn: Callable[[str], None]
) -> None:
    """Sync with the app at ``url`` every ``interval`` seconds.

    If ``interval`` is 0, stop at the first success. Reports each problem once, and its end.
    """
    from durably.engine.api.http.syncs import AppUnreachedError

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
