"""The engine as one process sees it: its part in it, from the first that it asks to its end.

It answers the client and the adapters (``durably.in_process``). Everything starts in the process that uses it: after
a fork the child begins anew. Importing this module imports no engine; starting one does.
"""

import asyncio
import atexit
import contextlib
import os
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from durably.errors import TransportError
from durably.portal import await_on, get_portal

from .errors import MemberClosedError
from .green_threads import refuse_green_threads
from .queries import TIMEOUT_SECONDS
from .serving import Loader, Loading

if TYPE_CHECKING:
    from durably.comm import CommHandler
    from durably.engine.embedded import EngineSettings
    from durably.protocol.checkpoint import CheckpointRequest
    from durably.protocol.events import EventReceipt

    from .member import Member

_BEATS_PER_LEASE = 10
_AFTER_FORK_SECONDS = 0.1
"""How long a forked worker has until functions may begin to run in it: servers drop privileges first."""

_instances: "weakref.WeakSet[ProcessEngine]" = weakref.WeakSet()
_left_behind: list[object] = []
"""What a forked child has of its parent's. It is not touched any more, not even by the garbage collector: closing a
database's connections is for the process that opened them."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What ``Embedded`` was given."""

    path: Path
    max_calls: int
    lease_seconds: float
    kills_stopped_owner: bool
    settings: "EngineSettings | None"


class ProcessEngine:
    """An ``InProcessEngine``."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._handlers: dict[str, CommHandler] = {}
        self._stops_at_exit = False
        self._may_own = True
        self._reset()
        _instances.add(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._member: Member | None = None
        self._is_serving = False
        self._starts_after_fork = False
        self._starting: threading.Thread | asyncio.Task[None] | None = None

    async def start(self) -> None:
        """See ``Embedded.start``."""
        try:
            await self._start(asyncio.get_running_loop())
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """See ``Embedded.stop``."""
        with self._lock:
            member, self._member, self._is_serving, self._starting = self._member, None, False, None
        if member is not None and not member.loop.is_closed():
            await await_on(member.loop, member.close())

    async def ask(self, operation: str, *arguments: Any, timeout: float | None = TIMEOUT_SECONDS) -> Any:
        """Ask the engine for one of ``durably.embedded.operations``; ``timeout`` is seconds.

        A process that has not started asks all the same, and takes no calls. Raises what the engine does, and
        ``TransportError``.
        """
        member = None
        try:
            async with asyncio.timeout(timeout):
                while True:
                    member = self._any_member()
                    with contextlib.suppress(MemberClosedError):  # started anew meanwhile
                        return await await_on(member.loop, member.ask(operation, arguments))
        except TimeoutError:
            reason = f": {member.trouble}" if member is not None and member.trouble else ""
            raise TransportError(
                f"the engine on {self._options.path} did not answer within {timeout:g} s{reason}"
            ) from None

    # InProcessEngine

    async def send_events(self, body: bytes, seed: str, timeout: float, sender: str | None) -> "EventReceipt":
        receipt: EventReceipt = await self.ask("send_events", msgspec.Raw(body), seed, sender, timeout=timeout)
        return receipt

    async def fetch_part(self, run_id: str, part: str) -> bytes | None:
        found = await self.ask("fetch_part", run_id, part)
        return None if found is None or bytes(found) == b"null" else bytes(found)

    def refuse_to_block(self) -> None:
        member = self._member
        if member is not None and asyncio._get_running_loop() is member.loop:
            raise RuntimeError(
                "the engine runs on this thread's event loop, and cannot answer while it is blocked: await instead "
                "(client.send in place of client.send_sync, say)"
            )

    def add_handler(self, handler: "CommHandler") -> None:
        self._handlers[handler.client.app_id] = handler
        with self._lock:
            member = self._member if self._is_serving else None
        if member is not None:
            asyncio.run_coroutine_threadsafe(member.update(), member.loop)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        await self.start()
        try:
            yield
        finally:
            await self.stop()

    def start_when_served(self) -> None:
        loading = Loading()
        if loading.loader is Loader.PRELOADER:
            self._starts_after_fork = True
        elif loading.loader is Loader.SERVER:
            self._start_after(loading.wait_done)

    def ensure_started(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        if self._is_serving or self._starting is not None:
            return
        if loop is None:
            self._start_after(lambda: None)
        else:
            self._starting = loop.create_task(self._start_anyhow(loop))

    # inside

    async def _checkpoint(self, run_id: str, request: "CheckpointRequest") -> None:
        """A sync function cannot be stopped with its process's part in the engine: its steps are nobody's then. While
        there is no owner it waits, however long: there is nobody else to tell."""
        member = self._member
        try:
            if member is not None:
                await await_on(member.loop, member.ask("checkpoint", (run_id, request)))
                return
        except MemberClosedError:
            pass
        raise TransportError("the engine has been stopped in this process")

    def _start_after(self, wait: Callable[[], None]) -> None:
        """In the background, once ``wait`` returns."""

        def start() -> None:
            wait()
            portal = get_portal()
            portal.run(self._start_anyhow(portal.loop))

        with self._lock:
            if self._is_serving or self._starting is not None:
                return
            self._starting = thread = threading.Thread(target=start, name="durably-start", daemon=True)
        thread.start()

    async def _start_anyhow(self, loop: asyncio.AbstractEventLoop) -> None:
        """For nobody who waits: the member says in the log what is wrong, and goes on trying."""
        with contextlib.suppress(Exception):
            await self._start(loop)

    async def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        member = self._make_member(loop, takes_calls=True)
        with self._lock:
            if self._is_serving:
                return
            before, self._member, self._is_serving = self._member, member, True
        if before is not None:
            await await_on(before.loop, before.close())
        member.start()
        await member.wait_placed()

    def _any_member(self) -> "Member":
        """This process's; before it has started, one that only asks."""
        with self._lock:
            if self._member is None or self._member.loop.is_closed():
                loop = get_portal().loop
                self._member = self._make_member(loop, takes_calls=False)
                loop.call_soon_threadsafe(self._member.start)
            return self._member

    def _make_member(self, loop: asyncio.AbstractEventLoop, *, takes_calls: bool) -> "Member":
        from .checkpoints import EngineCheckpoints
        from .link import Timing
        from .member import Member
        from .pulse import Pulse
        from .worker import LocalWorker

        refuse_green_threads()
        if not self._stops_at_exit:
            # Before the thread pools end, which atexit is too late for.
            getattr(threading, "_register_atexit", atexit.register)(self._stop_at_exit)
            self._stops_at_exit = True
        pulse = Pulse(longest_gap=self._options.lease_seconds / 2)
        checkpoints = EngineCheckpoints(self._checkpoint, pulse)
        worker = LocalWorker(self._handlers if takes_calls else {}, self._options.max_calls, checkpoints, pulse)
        timing = Timing(self._options.lease_seconds, self._options.lease_seconds / _BEATS_PER_LEASE)
        return Member(
            self._options.path,
            self._engine_settings(),
            worker,
            timing,
            loop,
            may_own=self._may_own,
            kills_stopped_owner=self._options.kills_stopped_owner,
        )

    def _engine_settings(self) -> "EngineSettings":
        from durably.engine.backoff import dev_backoff, standard_backoff
        from durably.engine.embedded import EngineSettings

        if self._options.settings is not None:
            return self._options.settings
        modes = {handler.client.is_production for handler in self._handlers.values()}
        return EngineSettings(
            backoff=standard_backoff if True in modes else dev_backoff,
            allow_private_addresses=modes == {False},  # not in a process without functions: the others' are unknown
        )

    def _stop_at_exit(self) -> None:
        """Where no server tells of its end, the process's own is it."""
        member = self._member
        if member is None or not member.loop.is_running():
            return
        grace = self._engine_settings().close_grace.total_seconds()
        with contextlib.suppress(Exception):
            asyncio.run_coroutine_threadsafe(self.stop(), member.loop).result(grace + 1)

    def _begin_anew(self) -> None:
        """In a forked child."""
        member, starts = self._member, self._starts_after_fork
        self._reset()
        if member is not None:
            self._may_own = self._may_own and not member.holds_database
            member.forget()
            _left_behind.append(member)
        if starts:
            self._start_after(lambda: time.sleep(_AFTER_FORK_SECONDS))


def _begin_all_anew() -> None:
    for engine in list(_instances):
        engine._begin_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_all_anew)
