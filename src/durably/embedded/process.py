"""The engine as one process uses it, from the first request to its end.

``ProcessEngine`` is the common part of the engines in process: starts by users, by hooks of servers and by requests,
and the behaviour at forks. A node is the process's connection to the engine: see ``EngineNode``.
"""

import asyncio
import contextlib
import datetime as dt
import os
import weakref
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from durably.comm import CommHandler
from durably.engine.core.backoff import dev_backoff, standard_backoff
from durably.engine.model.runs import Run
from durably.engine.model.settings import EngineSettings
from durably.engines import EventRelay
from durably.errors import EngineNotStartedError, EngineStoppingError, Error, TransportError
from durably.io.background_loop import OnAnyLoop, Remote, get_engine_loop
from durably.protocol.call import CheckpointRequest
from durably.protocol.engine_errors import ConfigInvalidError
from durably.protocol.events import EventReceipt
from durably.protocol.headers import trace_headers
from durably.protocol.text import get_logger
from durably.settings import is_test_run

from .calls import EngineCheckpoints, Heartbeat
from .old_objects import old_objects
from .server_start import (
    BackgroundStart,
    Program,
    call_before_threads_end,
    refuse_green_threads,
    this_program,
)
from .worker import AppLoop, LocalWorker

T = TypeVar("T")

TIMEOUT_SECONDS = 30.0
"""Seconds for an answer of the engine."""
POLL_SECONDS = 20.0
"""Seconds that one request waits for the end of a run."""

_logger = get_logger("durably.engine")

_instances: "weakref.WeakSet[ProcessEngine[Any]]" = weakref.WeakSet()
_left_behind: list[object] = []
"""Objects of the parent in a forked child. They are never freed, because only the process that opened a database's
connections may close them."""


class NotReadyError(TransportError):
    """The engine answers, and waits for another process of the app."""


class EngineMovedError(Error):
    """The engine is not, or no longer, behind this leader or connection.

    ``is_unclear``: the request may have been executed.
    """

    def __init__(self, message: str, *, is_unclear: bool) -> None:
        super().__init__(message)
        self.is_unclear = is_unclear


class NodeClosedError(Error):
    """This node was closed or replaced during a request."""


class EngineNode(Protocol):
    """This process's part in the engine. It belongs to the engine's event loop."""

    def start(self) -> None:
        """Start to connect. Requests wait until it is connected."""
        ...

    async def wait_started(self) -> None:
        """Wait for the end of the first attempt to start.

        Raises the error that prevents the start.
        """
        ...

    async def request(self, name: str, arguments: Mapping[str, Any]) -> Any:
        """Execute an operation of ``Engine``.

        Raises its errors, ``NodeClosedError`` and ``TransportError``.
        """
        ...

    @property
    def last_error(self) -> Exception | None:
        """The error that prevents the start, or ``None``."""
        ...

    async def update(self) -> None:
        """Report the functions that this process serves. Logs errors in their options."""
        ...

    async def close(self) -> None:
        """Accept no more calls, and wait for running ones.

        The wait is at most the settings' ``close_grace``.
        """
        ...

    def forget(self) -> None:
        """In a forked child, leave everything to the parent."""
        ...


N = TypeVar("N", bound=EngineNode)


def submit(coroutine: Coroutine[Any, Any, T]) -> Remote[T]:
    """Run a coroutine on the engine's thread.

    The result can be awaited on any other event loop, or waited for in any thread.
    """
    return Remote(get_engine_loop(), coroutine)


class ProcessEngine(Generic[N]):
    """Base class of ``InProcessEngine`` classes: starts, stops and forks.

    - ``name``: the engine in messages, like "the engine on shop.db".
    - ``max_calls``: the maximum number of concurrent calls of this process.
    - ``longest_gap``: see ``Heartbeat``, in seconds.

    A process that does not serve can make requests: it stores events, and runs no functions. It begins to serve after
    ``start``, after a hook of its framework, with its first request, or with the first event that it sends. In a test
    run only ``start`` starts anything. These do not start it again while it ends: a function, a request during a stop,
    or a send after the end of its server.
    """

    def __init__(self, name: str, settings: EngineSettings | None, max_calls: int, longest_gap: float) -> None:
        self.name = name
        self._settings = settings
        self._max_calls, self._longest_gap = max_calls, longest_gap
        self._handlers: dict[str, CommHandler] = {}
        self._relays: list[EventRelay] = []
        self._stops_at_exit = False
        self._reset()
        _instances.add(self)

    def _reset(self) -> None:
        self._app_loop = AppLoop()
        self._node: N | None = None
        self._is_serving = False
        self._was_started_by_user = False
        self._server_ended = False
        self._process_ends = False
        self._closing: asyncio.Task[None] | None = None
        self._waits_for_lifespan = False
        self._background_start: BackgroundStart | None = None
        self._has_warned = False
        self._starting: asyncio.Task[None] | None = None
        self._excludes_old_objects = False

    async def start(self) -> None:
        """See ``Embedded.start``."""
        self._was_started_by_user = True
        try:
            await self._start_on(asyncio.get_running_loop())
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """See ``Embedded.stop``."""
        self._was_started_by_user = False
        await submit(self._stop())

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Block this thread until the coroutine has ended on the engine's thread."""
        return submit(coroutine).result()

    def request(self, operation: str, arguments: Mapping[str, Any], timeout: float | None) -> Remote[Any]:
        """Execute an operation of ``Engine``; ``timeout`` is seconds.

        Raises the engine's errors, ``TransportError``, and ``EngineNotStartedError`` in a test run.
        """
        self._refuse_in_test_run()
        return submit(self._request(operation, arguments, timeout))

    # InProcessEngine

    def send_events(
        self, body: bytes, seed: str, timeout: float, sender: str | None, traceparent: str | None
    ) -> OnAnyLoop[EventReceipt]:
        arguments = {"body": body, "seed": seed, "sender": sender, **trace_headers(traceparent)}
        return OnAnyLoop(get_engine_loop(), lambda: self._send_events(arguments, timeout))

    @property
    def keeps_logs(self) -> bool:
        return True

    def execute(self, operation: str, arguments: Mapping[str, Any], timeout: float) -> Remote[Any]:
        return self.request(operation, arguments, timeout)

    def wait_for_run(self, run_id: str, timeout: float | None) -> Remote[Run]:
        self._refuse_in_test_run()
        return submit(self._wait_for_run(run_id, timeout))

    @property
    def shared_secrets(self) -> Sequence[bytes]:
        return ()

    def refuse_to_block(self) -> None:
        """Do nothing: any thread of the app may wait, because the engine has its own."""

    @property
    def runs_relays(self) -> bool:
        return True

    def add_relay(self, relay: EventRelay) -> None:
        self._relays.append(relay)
        if self._is_serving:
            relay.start(self._may_relay)

    def _may_relay(self) -> bool:
        """Whether this process is the one that runs the relays."""
        return self._is_serving

    def add_handler(self, handler: CommHandler) -> None:
        app_id = handler.client.app_id
        if (before := self._handlers.get(app_id)) is not None and not handler.function_ids & before.function_ids:
            dropped = ", ".join(repr(function.id) for function in before.functions)
            if dropped:
                _logger.warning(
                    "%s calls the functions of the last serve of the app %r: it no longer calls %s. Give all "
                    "functions of an app to one serve",
                    self.name,
                    app_id,
                    dropped,
                )
        self._handlers[app_id] = handler
        if self._is_serving and self._node is not None:
            submit(self._node.update())

    @contextlib.asynccontextmanager
    async def running_with_server(self) -> AsyncIterator[None]:
        if self._is_test_run():
            yield
            return
        try:
            await self._start_on(asyncio.get_running_loop())
            try:
                yield
            finally:
                self._server_ended = True
        finally:
            self._waits_for_lifespan = False
            await self.stop()

    def expect_start(self) -> None:
        self._waits_for_lifespan = True

    def start_with_server(self) -> None:
        if this_program() is Program.SERVER and not self._is_test_run():
            self._check_place()
            self._background_start = BackgroundStart(self.start_with_request)

    def start_with_request(self, loop: asyncio.AbstractEventLoop | None = None) -> bool:
        if self._is_serving and (loop is None or self._app_loop.is_usable):
            return not self._was_started_by_user
        if self._is_stopping or self._process_ends or self._is_test_run():
            return False
        self._server_ended = False
        if loop is not None:
            self._app_loop.loop = loop
        if not self._is_serving:
            submit(self._start_in_background())
        return not self._was_started_by_user

    # on any event loop

    async def _send_events(self, arguments: Mapping[str, Any], timeout: float) -> EventReceipt:
        self._refuse_in_test_run()
        receipt = await self._send_directly(arguments)
        return await submit(self._send_through_node(arguments, timeout)) if receipt is None else receipt

    async def _send_directly(self, arguments: Mapping[str, Any]) -> EventReceipt | None:
        """Send without the engine's event loop. Returns ``None`` if that is impossible."""
        return None

    async def _checkpoint(self, run_id: str, request: CheckpointRequest) -> None:
        """Commit steps of a function, from any event loop.

        Waits without a limit while there is no leader. Raises ``EngineStoppingError`` if the node is closed or closes:
        a sync function cannot be stopped, and may still run.
        """
        if (node := self._node) is None:
            raise EngineStoppingError("the engine has been stopped in this process")
        arguments = {"run_id": run_id, "request": request}
        try:
            await submit(node.request("checkpoint", arguments))
        except NodeClosedError:
            raise EngineStoppingError("the engine has been stopped in this process") from None

    # on the engine's thread

    async def _start_on(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start. Raises the error that prevents the start.

        A refused function is the app's mistake: the traceback of the engine's own code would hide the message.
        """
        self._app_loop.loop = loop
        self._server_ended = False
        try:
            await submit(self._start())
        except ConfigInvalidError as error:
            raise error.with_traceback(None) from None

    async def _start(self) -> None:
        """Start. Raises the error that prevents the start."""
        self._end_background_start()
        self._waits_for_lifespan = False
        node = self._node
        if not self._is_serving or node is None:
            self._is_serving = True
            node = await self._replace_node()
            for relay in self._relays:
                relay.start(self._may_relay)
            if not is_test_run():
                self._excludes_old_objects = True
                old_objects.exclude()
        await node.wait_started()

    async def _start_in_background(self) -> None:
        """Start in the background: the node logs errors, and tries again."""
        try:
            await self._start()
        except NodeClosedError:
            pass  # The process stops.
        except Exception:
            if self._node is None:
                _logger.exception("%s cannot start in process %d", self.name, os.getpid())

    async def _replace_node(self) -> N:
        before, node = self._node, self._prepare_node()
        self._node = node
        try:
            if before is not None:
                await before.close()
        finally:
            node.start()
        return node

    async def _stop(self) -> None:
        self._end_background_start()
        for relay in self._relays:  # before the node, through which they send
            await asyncio.to_thread(relay.stop)
        node, self._node, self._is_serving = self._node, None, False
        if self._excludes_old_objects:
            self._excludes_old_objects = False
            old_objects.include()
        if node is not None:
            self._closing = asyncio.create_task(self._close(node, self._closing))
        if self._closing is not None:  # A cancelled stop still closes the node.
            await asyncio.shield(self._closing)

    async def _close(self, node: N, before: asyncio.Task[None] | None) -> None:
        await node.close()
        if before is not None:
            await asyncio.wait({before})

    @property
    def _is_stopping(self) -> bool:
        return self._closing is not None and not self._closing.done()

    async def _request(self, operation: str, arguments: Mapping[str, Any], timeout: float | None) -> Any:
        node: N | None = None
        try:
            async with asyncio.timeout(timeout):
                while True:
                    if self._node is None and operation == "read_messages" and "reader" in arguments:
                        # A process's reader began when there was a node. It must not start a stopped engine again.
                        raise EngineStoppingError(f"{self.name} has been stopped in this process")
                    node = self._node or await self._replace_node()
                    with contextlib.suppress(NodeClosedError):  # replaced during the request
                        return await node.request(operation, arguments)
        except TimeoutError:
            error = None if node is None else node.last_error
            if isinstance(error, NotReadyError):
                raise TransportError(f"{self.name} has not taken a request within {timeout:g} s: {error}") from None
            reason = f": {error}" if error else ""
            raise TransportError(f"{self.name} did not answer within {timeout:g} s{reason}") from None

    async def _wait_for_run(self, run_id: str, timeout: float | None) -> Run:
        """Wait in portions, so that the leader forgets a waiter in another process that has given up."""
        try:
            async with asyncio.timeout(timeout):
                while True:
                    run: Run = await self._request("wait_for_run", {"run_id": run_id, "within": POLL_SECONDS}, None)
                    if run.status.has_ended:
                        return run
        except TimeoutError:
            raise TimeoutError(f"run {run_id} has not ended within {timeout:g} s") from None

    async def _send_through_node(self, arguments: Mapping[str, Any], timeout: float) -> EventReceipt:
        """Send events through the node, which is started if necessary.

        Acknowledged events must run, so a process with functions starts with the first event that it sends.
        """
        if not self._is_serving and arguments["sender"] is None and self._starts_with_send:
            self._starting = asyncio.create_task(self._start_in_background())
            await asyncio.sleep(0)
        receipt: EventReceipt = await self._request("receive_events", arguments, timeout)
        if not self._runs_functions and not self._has_warned:
            self._has_warned = True
            if await self._warn_if_nothing_runs():  # So no function has a trigger for these events.
                return msgspec.structs.replace(receipt, unmatched={})
        return receipt

    async def _warn_if_nothing_runs(self) -> bool:
        """Warn the sender of an event if no process runs functions.

        Returns whether the engine has no functions at all.
        """
        return False

    @property
    def function_ids(self) -> list[str]:
        return [function_id for handler in self._handlers.values() for function_id in handler.function_ids]

    # inside

    def _is_test_run(self) -> bool:
        return not self._was_started_by_user and is_test_run()

    def _refuse_in_test_run(self) -> None:
        if self._is_test_run():
            raise EngineNotStartedError(
                f"{self._test_run_text}: test functions with TestEngine (from durably.testing), or call start() of the "
                "engine to run a real one in the tests"
            )

    @property
    def _has_functions(self) -> bool:
        return any(handler.function_ids for handler in self._handlers.values())

    @property
    def _runs_functions(self) -> bool:
        return self._is_serving and self._has_functions

    @property
    def _starts_with_send(self) -> bool:
        ends = self._is_stopping or self._server_ended or self._process_ends or self._waits_for_lifespan
        return self._has_functions and not ends and this_program() is not Program.COMMAND

    def _prepare_node(self) -> N:
        refuse_green_threads()
        if not self._stops_at_exit:
            self._stops_at_exit = True
            try:
                call_before_threads_end(self._stop_at_exit)
            except RuntimeError:  # The main thread has ended.
                self._process_ends = True
        if self._process_ends and not self._is_stopping and self._needs_threads:
            raise TransportError(
                f"{self.name} cannot start: the main thread of this process has ended. Let it wait for the threads "
                "that send events"
            )
        heartbeat = Heartbeat(self._longest_gap)
        checkpoints = EngineCheckpoints(self._checkpoint, self.run, heartbeat)
        settings = self._engine_settings()
        handlers = self._handlers if self._takes_calls else {}
        worker = LocalWorker(handlers, self._max_calls, checkpoints, heartbeat, self._app_loop, settings.clock)
        return self._make_node(worker, settings)

    @property
    def _takes_calls(self) -> bool:
        """Whether this process runs functions."""
        return self._is_serving

    @property
    def _needs_threads(self) -> bool:
        """Whether a node needs thread pools, which end with the main thread."""
        return True

    def _check_place(self) -> None:
        """Raises the error that will prevent every start.

        So the server does not start without its engine.
        """

    def _make_node(self, worker: LocalWorker, settings: EngineSettings) -> N:
        raise NotImplementedError

    @property
    def _test_run_text(self) -> str:
        """The beginning of the error for requests in a test run."""
        raise NotImplementedError

    def _engine_settings(self) -> EngineSettings:
        settings = self._settings
        modes = {handler.client.is_production for handler in self._handlers.values()}
        if settings is not None:
            if True in modes and settings.backoff is dev_backoff:  # The default: other settings were given.
                settings = msgspec.structs.replace(settings, backoff=standard_backoff)
        else:
            settings = EngineSettings(
                backoff=standard_backoff if True in modes else dev_backoff,
                close_grace=dt.timedelta(seconds=20 if True in modes else 5),
                # Not in a process without functions: the settings of the others are unknown.
                allow_private_addresses=modes == {False},
            )
        traced = [handler.client.tracing for handler in self._handlers.values() if handler.client.tracing is not None]
        if traced and settings.tracing is None:
            settings = msgspec.structs.replace(settings, tracing=traced[0].for_engine())
        return settings

    def _stop_at_exit(self) -> None:
        """Stop at the exit of the process, if the server has no hook for its end."""
        self._process_ends = True
        if self._node is None and not self._is_stopping:
            return
        grace = self._engine_settings().close_grace.total_seconds()
        with contextlib.suppress(Exception):
            asyncio.run_coroutine_threadsafe(self._stop(), get_engine_loop()).result(grace + 2)

    # forks

    def _before_fork(self) -> None:
        """Leave the start to the children of a process that loads the app and then forks."""
        if self._background_start is not None:
            self._background_start.cancel()

    def _end_background_start(self) -> None:
        if self._background_start is not None:
            self._background_start.cancel()
            self._background_start = None

    def _after_fork_in_child(self) -> None:
        node, starts = self._node, self._background_start is not None
        if self._excludes_old_objects:
            old_objects.include()
        self._reset()
        for relay in self._relays:
            relay.forget()
        if node is not None:
            self._note_fork(node)
            node.forget()
            _left_behind.append(node)
        if starts:
            self.start_with_server()

    def _note_fork(self, node: N) -> None:
        """Replace the parent's ``node``."""


def names_of_engines() -> list[str]:
    """The engines of this process, like "the engine on shop.db"."""
    return sorted({engine.name for engine in list(_instances)})


def _before_fork() -> None:
    for engine in list(_instances):
        engine._before_fork()


def _after_fork_in_child() -> None:
    for engine in list(_instances):
        engine._after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork_in_child)
