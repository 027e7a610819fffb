"""The processes of ``durably temporal dev``: Temporal's development server, workers, and the app."""

import asyncio
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from durably.protocol.text import reachable
from durably.temporal.errors import find_program

from .child_process import (
    AppFailedError,
    ChildProcess,
    SourceChanges,
    check_port_free,
    free_port,
    restart_on_changes,
    state_directory,
)
from .event_loop import first_failure
from .text import Console

START_SECONDS = 60.0
_PAUSE_SECONDS = 0.05
_APP_SERVER = "durably.cli.app_server"
_FREE_PORT_TRIES = 3

_SERVER_SETTINGS = {"frontend.WorkflowPauseEnabled": "true"}
"""Dynamic configuration of the development server: features that production servers have by default."""


class TemporalDevOptions(msgspec.Struct, frozen=True, kw_only=True):
    """``app`` is ``module:app``, ``workers`` are ``module:temporal``.

    ``manage`` is a Django project's ``manage.py``: its worker and server run instead of them, with ``migrate`` after
    its migrations. ``server`` is the ``host:port`` of a running server. Otherwise one is started, with its state in
    ``database`` and ``namespaces`` beside ``default``. Port 0 takes a free port.
    """

    app: str | None
    workers: tuple[str, ...]
    namespaces: tuple[str, ...] = ()
    manage: Path | None = None
    migrate: bool = False
    host: str = "127.0.0.1"
    app_port: int = 8000
    port: int = 7233
    ui_port: int = 8233
    database: Path | None = None
    server: str | None = None
    reload: bool = True


class TemporalDev:
    """Runs the processes until cancelled.

    Raises ``AppFailedError`` or ``ProgramMissingError`` at the start.
    """

    def __init__(self, options: TemporalDevOptions, console: Console) -> None:
        self._options, self._console = options, console
        self._django_connections: list[DjangoConnection] = []

    async def run(self) -> None:
        options = self._options
        if options.manage is not None:
            self._django_connections = await self._list_django_connections(options.manage)
        if options.server is not None:
            await self._run_children({"TEMPORAL_ADDRESS": options.server})
            return
        server = await self._start_server()
        try:
            self._console.note(f"Temporal at {server.address}, its web UI at {server.ui}, state in {server.database}")
            with first_failure():
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(_fail_at_end(server))
                    tasks.create_task(self._run_children(server.variables))
        finally:
            await server.stop()

    async def _start_server(self) -> "ServerProcess":
        """Start Temporal's server and wait until it accepts connections.

        A free port is looked up before the server binds it, so another program can take it in between. Then
        another port is tried, unless the user chose the port.
        """
        options = self._options
        tries = _FREE_PORT_TRIES if 0 in (options.port, options.ui_port) else 1
        while True:
            tries -= 1
            server = ServerProcess(
                options.host,
                options.port or free_port(options.host),
                options.ui_port or free_port(options.host),
                options.database or state_directory() / "temporal.db",
                self._namespaces(),
            )
            try:
                await server.start()
                await server.answer()
            except AppFailedError:
                await server.stop()
                if not tries:
                    raise
            except BaseException:
                await server.stop()
                raise
            else:
                return server

    def _namespaces(self) -> list[str]:
        """The server's namespaces besides ``default``."""
        of_project = [each.namespace for each in self._django_connections]
        return [each for each in dict.fromkeys([*self._options.namespaces, *of_project]) if each != "default"]

    async def _list_django_connections(self, manage: Path) -> list["DjangoConnection"]:
        """The connections of the project that have workers.

        If the project does not report them, the result is the default connection alone. The worker of the default
        connection then reports the fault, and is started again when the source changes.
        """
        try:
            found = await _django_connections(manage)
        except AppFailedError as error:
            self._console.note(f"{error.message}: only the worker of the default connection is run")
            found = []
        return found or [DjangoConnection(name="default", namespace="default")]

    async def _run_children(self, variables: dict[str, str]) -> None:
        if self._options.manage is not None:
            if self._options.migrate:
                await _migrate(self._options.manage, variables)
            children = self._django(self._options.manage, variables)
        else:
            children = [_worker(each, (), variables) for each in self._options.workers]
            if self._options.app is not None:
                children.append(self._app(self._options.app, variables))
        await _run_children(children, self._console, reload=self._options.reload)

    def _app(self, target: str, variables: dict[str, str]) -> "ServedProcess":
        host, port = self._options.host, self._options.app_port or free_port(self._options.host)
        command = (sys.executable, "-m", _APP_SERVER, target, "--host", host, "--port", str(port))
        return ServedProcess(target, command, variables, host=host, port=port, option="--app-port")

    def _django(self, manage: Path, variables: dict[str, str]) -> list[ChildProcess]:
        host, port = self._options.host, self._options.app_port or free_port(self._options.host)
        server = _manage(manage, "runserver", "--noreload", f"{host}:{port}")
        return [
            *(_django_worker(manage, each, variables) for each in self._django_connections),
            ServedProcess("runserver", server, variables, host=host, port=port, option="--app-port"),
        ]


class DjangoConnection(msgspec.Struct, frozen=True):
    """A connection of a Django project that has workers."""

    name: str
    namespace: str


async def _django_connections(manage: Path) -> list[DjangoConnection]:
    """The connections to Temporal that a Django project lists.

    Raises ``AppFailedError`` if the project cannot list them. The reason is on its stderr.
    """
    command = (sys.executable, str(manage), "run_temporal_worker", "--list-connections")
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    try:
        if process.returncode:
            raise ValueError(f"exit status {process.returncode}")
        return msgspec.json.decode((output.splitlines() or [b""])[-1], type=list[DjangoConnection])
    except ValueError as error:
        raise AppFailedError(f"{manage} does not list the connections to Temporal ({error})") from error


def _django_worker(manage: Path, connection: DjangoConnection, variables: dict[str, str]) -> ChildProcess:
    arguments = ("run_temporal_worker", "--grace", "1", "--no-connection-notes", "--connection", connection.name)
    title = "run_temporal_worker"
    if connection.name != "default":
        title = f"run_temporal_worker --connection {connection.name}"
    return ChildProcess(title, _manage(manage, *arguments), variables, purpose="does")


class ServedProcess(ChildProcess):
    """A child process that listens at a port.

    It is up when it accepts connections there.
    """

    def __init__(
        self, target: str, command: Sequence[str], variables: dict[str, str], *, host: str, port: int, option: str
    ) -> None:
        super().__init__(target, command, variables, purpose="serves")
        self.host, self.port = reachable(host), port
        self._option = option

    async def start(self) -> None:
        check_port_free(self.host, self.port, option=self._option)
        await super().start()

    async def answer(self) -> None:
        """Wait until the process accepts connections.

        Raises ``AppFailedError`` if it ends before, or does not accept them within ``START_SECONDS``.
        """
        try:
            async with asyncio.timeout(START_SECONDS):
                while not await self._accepts():
                    self.check_alive()
                    await asyncio.sleep(_PAUSE_SECONDS)
        except TimeoutError:
            seconds = f"{START_SECONDS:.0f} s"
            raise AppFailedError(f"{self.target} does not answer at {self.host}:{self.port} after {seconds}") from None

    async def _accepts(self) -> bool:
        try:
            _, writer = await asyncio.open_connection(self.host, self.port)
        except OSError:
            return False
        writer.close()
        return True


class ServerProcess(ServedProcess):
    """Temporal's development server."""

    def __init__(self, host: str, port: int, ui_port: int, database: Path, namespaces: Sequence[str]) -> None:
        self.database = database
        arguments = ["server", "start-dev", "--ip", host, "--port", str(port), "--ui-port", str(ui_port)]
        arguments += ["--db-filename", str(database), "--log-level", "error"]
        for name, value in _SERVER_SETTINGS.items():
            arguments += ["--dynamic-config-value", f"{name}={value}"]
        arguments += [part for namespace in namespaces for part in ("--namespace", namespace)]
        command = (sys.executable, "-m", "durably.cli.guard", str(find_program("temporal")), *arguments)
        super().__init__("Temporal", command, {}, host=host, port=port, option="--port, or use what runs with --server")
        self.address = f"{self.host}:{port}"
        self.ui = f"http://{self.host}:{ui_port}"
        self.variables = {"TEMPORAL_ADDRESS": self.address, "TEMPORAL_UI_URL": self.ui}
        """For the app and its workers."""


def _manage(manage: Path, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "durably.cli.guard", sys.executable, str(manage), *arguments)


async def _migrate(manage: Path, variables: dict[str, str]) -> None:
    process = ChildProcess("migrate", _manage(manage, "migrate"), variables, purpose="does")
    try:
        await process.start()
        await process.finish()
    finally:
        await process.stop()


def _worker(target: str, options: Sequence[str], variables: dict[str, str]) -> ChildProcess:
    command = ("-m", "durably.cli", "temporal", "worker", target, "--guarded", "--grace", "1", *options)
    return ChildProcess(target, (sys.executable, *command), variables, purpose="runs the workers of")


async def run_reloaded_worker(target: str, options: Sequence[str]) -> None:
    """Run ``durably temporal worker --reload`` until cancelled."""
    await _run_children([_worker(target, options, {})], Console(), reload=True)


async def _run_children(children: Sequence[ChildProcess], console: Console, *, reload: bool) -> None:
    async with contextlib.AsyncExitStack() as cleanup:
        with first_failure():
            async with asyncio.TaskGroup() as tasks:
                for child in children:
                    cleanup.push_async_callback(child.stop)
                    changes = SourceChanges(Path.cwd())
                    if reload:  # From before the child reads its source.
                        changes.start()
                        cleanup.push_async_callback(changes.stop)
                    await child.start()
                    tasks.create_task(_keep(child, changes, console, reload=reload))


async def _keep(child: ChildProcess, changes: SourceChanges, console: Console, *, reload: bool) -> None:
    async def report_up() -> None:
        if isinstance(child, ServedProcess):
            await child.answer()
            console.note(f"{child.target} is up at http://{child.host}:{child.port}")

    await report_up()
    if not reload:
        await _fail_at_end(child)
    await restart_on_changes(child, changes, console, report_up)


async def _fail_at_end(child: ChildProcess) -> None:
    raise AppFailedError(await child.wait())
