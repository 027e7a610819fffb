"""Sends the lines of ``ctx.logger`` to the engine in development.

Lines are collected for a fifth of a second and sent in the background, so a call neither waits for them nor fails
because of them. Lines that cannot be sent are dropped; the app's own log has them.
"""

import asyncio
import contextlib
import contextvars
import datetime as dt
import threading
import time
from functools import partial
from urllib.parse import quote
from weakref import WeakKeyDictionary

import msgspec

from durably.app import App
from durably.io.background_loop import get_background_loop
from durably.io.http_client import AsyncIO, Request, request_with_keys
from durably.protocol.call import LogLine
from durably.run_logger import KeepLine

MAX_LINES = 500
"""Maximum number of lines of one run that are sent at a time. A line reports how many more there were."""
MAX_LINE_LENGTH = 8192
_DELAY_SECONDS = 0.2
_TIMEOUT_SECONDS = 5.0
_ABSENCE_SECONDS = 60.0
"""Seconds without lines after an engine refused them."""


class _Pending(msgspec.Struct):
    """The unsent lines of one run, and the number of dropped lines."""

    lines: list[LogLine] = []
    dropped: int = 0


class LogSender:
    """Sends the lines of an app's runs to its engine."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._lock = threading.Lock()
        self._pending: dict[str, _Pending] = {}
        self._absent_until = 0.0

    def add(self, run_id: str, attempt: int, level: str, message: str, step: str | None) -> None:
        """Collect a line. Safe in any thread."""
        if time.monotonic() < self._absent_until:
            return
        if len(message) > MAX_LINE_LENGTH:
            message = f"{message[:MAX_LINE_LENGTH]}… ({len(message) - MAX_LINE_LENGTH} characters are not kept)"
        line = LogLine(at=dt.datetime.now(dt.UTC), level=level, message=message, step=step, attempt=attempt)
        with self._lock:
            is_first = not self._pending
            pending = self._pending.setdefault(run_id, _Pending())
            if len(pending.lines) < MAX_LINES:
                pending.lines.append(line)
            else:
                pending.dropped += 1
        if is_first:
            # Use an empty context: the lines of all runs must not join this run's trace nor keep its memos.
            contextvars.Context().run(get_background_loop().submit, self._send_later())

    async def _send_later(self) -> None:
        await asyncio.sleep(_DELAY_SECONDS)
        with self._lock:
            pending, self._pending = self._pending, {}
        for run_id, of_run in pending.items():
            with contextlib.suppress(Exception):
                await self._send(run_id, [*of_run.lines, *_note_of_dropped(of_run)])

    async def _send(self, run_id: str, lines: list[LogLine]) -> None:
        app = self._app
        if app.in_process is not None:
            await app.in_process.add_run_logs(run_id, lines, _TIMEOUT_SECONDS)
            return
        url = f"{app.api_origin}/v1/runs/{quote(run_id, safe='')}/logs"
        request = Request("POST", url, app.headers(), msgspec.json.encode({"lines": lines}), _TIMEOUT_SECONDS)
        response = await request_with_keys(AsyncIO(), request, app.signing_keys)
        if response.status >= 300:  # another engine than Durably's, or one in production
            self._absent_until = time.monotonic() + _ABSENCE_SECONDS


_senders: WeakKeyDictionary[App, LogSender] = WeakKeyDictionary()


def line_keeper(app: App, run_id: str, attempt: int) -> KeepLine | None:
    """The function that takes the lines of a call.

    ``None`` unless the app is in development mode, with an engine that keeps them.
    """
    if app.is_production or (app.in_process is not None and not app.in_process.keeps_logs):
        return None
    sender = _senders.get(app)
    if sender is None:
        sender = _senders[app] = LogSender(app)
    return partial(sender.add, run_id, attempt)


def _note_of_dropped(pending: _Pending) -> list[LogLine]:
    if not pending.dropped:
        return []
    message = f"{pending.dropped} more lines are not kept: at most {MAX_LINES} of a run at a time"
    return [LogLine(at=pending.lines[-1].at, level="WARNING", message=message)]
