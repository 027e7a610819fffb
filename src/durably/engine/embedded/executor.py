"""Making the calls that are due: as many at a time as allowed, each with what the run has stored by then."""

import asyncio
import functools
import logging
import sqlite3
from collections import deque

from durably.engine.answers import Answer, failed
from durably.engine.errors import DatabaseLostError, DatabaseUnavailableError, EngineClosedError, StaleCallError

from . import work
from .bodies import CallData, build_body
from .caller import Caller
from .canonical import canonical_json
from .clock import Clock
from .effects import CallAt
from .journal import Journal
from .queries import pending_input, read_batch
from .reader import Reader
from .store import read_head

_READ_AGAIN_SECONDS = 1.0

_logger = logging.getLogger("durably.engine")


class Executor:
    """``canonicalise`` is set where calls are signed, but not all that is stored is canonical."""

    def __init__(
        self, caller: Caller, reader: Reader, journal: Journal, clock: Clock, *, max_calls: int, canonicalise: bool
    ) -> None:
        self._caller = caller
        self._reader = reader
        self._journal = journal
        self._clock = clock
        self._max_calls = max_calls
        self._canonicalise = canonicalise
        self._ready: deque[CallAt] = deque()
        self._under_way: dict[tuple[int, int], asyncio.Task[None]] = {}
        self._started: dict[int, int] = {}
        self._is_closing = False

    def make(self, calls: list[CallAt]) -> None:
        """Make calls now, or as soon as others have come to their end."""
        self._ready.extend(calls)
        self._pump()

    def is_under_way(self, run_key: int, generation: int) -> bool:
        return (run_key, generation) in self._under_way

    def first_call_at(self, run_key: int) -> int | None:
        """When the run's first call was made, while that is not stored yet."""
        return self._started.get(run_key)

    async def close(self, grace_seconds: float) -> None:
        """Make no more calls, and wait for those under way. What has not ended by then is given up on: the run has
        it outstanding, so it is made again when the engine starts."""
        self._is_closing = True
        self._ready.clear()
        tasks = list(self._under_way.values())
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=grace_seconds)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _pump(self) -> None:
        while self._ready and len(self._under_way) < self._max_calls and not self._is_closing:
            due = self._ready.popleft()
            key = (due.run_key, due.call.generation)
            if key in self._under_way:
                continue
            self._clock.hold()
            task = asyncio.get_running_loop().create_task(self._make(due))
            self._under_way[key] = task
            task.add_done_callback(functools.partial(self._finished, key))

    def _finished(self, key: tuple[int, int], task: asyncio.Task[None]) -> None:
        del self._under_way[key]
        self._started.pop(key[0], None)
        if not task.cancelled() and (error := task.exception()) is not None:
            _logger.error("a call could not be carried out: %s", error, exc_info=error)
        self._pump()
        self._clock.release()

    async def _make(self, due: CallAt) -> None:
        try:
            data = await self._read(due)
            if data is not None:
                await self._store(due, data, await self._call(due, data))
        except (StaleCallError, EngineClosedError, DatabaseLostError):
            # Somebody gave up on the call meanwhile; or it is made again when the engine starts.
            return
        except Exception as error:
            _logger.exception("a call could not be carried out, so its run fails")
            await self._journal.enter_surely(work.fail(due.run_key, error))

    async def _store(self, due: CallAt, data: CallData, answer: Answer) -> None:
        try:
            await self._journal.enter_surely(work.answer(due, answer))
        except (StaleCallError, EngineClosedError, DatabaseLostError):
            raise
        except Exception:
            # An answer that cannot be stored costs an attempt, not the run.
            _logger.exception("an answer of run %s could not be stored", data.run_id)
            unusable = failed("AnswerUnusableError", "the app's answer could not be stored; see the engine's log")
            await self._journal.enter_surely(work.answer(due, unusable))

    async def _read(self, due: CallAt) -> CallData | None:
        """What the call is to tell; ``None`` where there is no need for it any more."""
        while True:
            try:
                return await self._reader.read(
                    lambda connection: read_call(connection, due.run_key, due.call.generation)
                )
            except EngineClosedError:
                return None
            except DatabaseUnavailableError as error:
                _logger.error("%s; trying again in %s s", error, _READ_AGAIN_SECONDS)
                await asyncio.sleep(_READ_AGAIN_SECONDS)

    async def _call(self, due: CallAt, data: CallData) -> Answer:
        function = self._journal.registry.find(data.function_id)
        if function is None:
            return failed("FunctionNotFoundError", f"no app has synced the function {data.function_id!r}")
        self._started.setdefault(due.run_key, self._clock.now())
        try:
            return await self._caller.call(function, data, self._build(data))
        except Exception as error:
            _logger.exception("a call of run %s could not be made", data.run_id)
            return failed("CallFailedError", f"the call could not be made: {type(error).__name__}: {error}")

    def _build(self, data: CallData) -> bytes:
        body = build_body(data)
        return canonical_json(body) if self._canonicalise else body


def read_call(connection: sqlite3.Connection, run_key: int, generation: int) -> CallData | None:
    """What a call tells its app; ``None`` where it is not outstanding any more. Raises ``DatabaseCorruptError``."""
    row = connection.execute(
        "SELECT heads.head, heads.step_input, runs.id, runs.function_id, runs.is_batch, events.body FROM heads "
        "JOIN runs ON runs.key = heads.run_key JOIN events ON events.key = runs.event_key WHERE heads.run_key = ?",
        (run_key,),
    ).fetchone()
    if row is None:
        return None
    encoded, step_input, run_id, function_id, is_batch, event = row
    head = read_head(encoded)
    call = head.call(generation)
    if call is None:
        return None
    memos = connection.execute("SELECT seq, step_id, memo FROM memos WHERE run_key = ?", (run_key,)).fetchall()
    memos.sort()
    return CallData(
        run_id=run_id,
        function_id=function_id,
        call=call,
        max_attempts=head.max_attempts,
        disable_immediate=head.disable_immediate,
        events=read_batch(connection, run_key) if is_batch else [event],
        memos=[(step_id, memo) for _, step_id, memo in memos],
        step_input=None if step_input is None else pending_input(step_input, {step_id for _, step_id, _ in memos}),
    )
