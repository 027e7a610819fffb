"""Messages and progress that functions report while they run.

They are collected for a moment and sent together in the background: a call does not wait for them before its end.
Messages are not durable. If the engine does not take them, they are dropped: the app logs this, and the listeners get a
``$gap`` message. A replay reports nothing again.
"""

import asyncio
import contextvars
import math
import os
import threading
import time
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary

import msgspec

from durably.app import App
from durably.engine_client import execute
from durably.errors import Error, FunctionConfigInvalidError, NotSupportedError
from durably.execution import Replay
from durably.io.background_loop import Remote, get_background_loop
from durably.io.http_client import IO, AsyncIO
from durably.protocol.channels import GAP_TOPIC, MAX_CHANNEL_NAME_LENGTH, MAX_MESSAGE_BYTES, NewMessage
from durably.protocol.text import is_encodable, printable
from durably.values.outputs import to_json

MAX_PENDING_BYTES = 16 * 1024 * 1024
"""The limit of an app's messages that are not sent yet."""
_MAX_BATCH_BYTES = 512 * 1024
_MAX_BATCH = 1_000
_OVERHEAD_BYTES = 400
_MESSAGES_SECONDS = 0.02
_PROGRESS_SECONDS = 0.2
_LATER_SECONDS = 60.0
"""Seconds before the next progress of a run after an error, such as that of an engine without the operation."""
_MOST_RUNS = 10_000
_TIMEOUT_SECONDS = 5.0
_io = AsyncIO()


class _Sender:
    """Sends the messages and the progress of an app's runs to its engine, on the background loop."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._lock = threading.Lock()
        self._pending: list[NewMessage] = []
        self._size = 0
        self._dropped: dict[str, int] = {}
        """The number of messages that each channel has lost."""
        self._progress: dict[str, tuple[float, str]] = {}
        self._next_at: dict[str, float] = {}
        """When the next progress of a run may be sent."""
        self._sending = asyncio.Lock()
        self._is_waiting = self._progress_waits = False
        self.unsupported: NotSupportedError | None = None

    def publish(self, message: NewMessage) -> None:
        """Collect a message. Safe in any thread."""
        size = len(bytes(message.data)) + _OVERHEAD_BYTES
        with self._lock:
            if self._size + size > MAX_PENDING_BYTES:
                self._dropped[message.channel] = self._dropped.get(message.channel, 0) + 1
                return
            self._pending.append(message)
            self._size += size
            starts, self._is_waiting = not self._is_waiting, True
        if starts:
            self._submit(self._send_messages())

    def set_progress(self, run_id: str, fraction: float, message: str) -> None:
        with self._lock:
            self._progress[run_id] = fraction, message
            starts, self._progress_waits = not self._progress_waits, True
        if starts:
            self._submit(self._send_progress())

    @staticmethod
    def _submit(work: Any) -> None:
        # An empty context: the work serves all runs, and must not join this run's trace nor keep its memos.
        contextvars.Context().run(get_background_loop().submit, work)

    async def _send_messages(self) -> None:
        await asyncio.sleep(_MESSAGES_SECONDS)
        with self._lock:
            self._is_waiting = False
        async with self._sending:
            await self._send_pending()

    async def _send_pending(self) -> None:
        while True:
            with self._lock:
                batch, size = 0, 0
                for message in self._pending[:_MAX_BATCH]:
                    size += len(bytes(message.data)) + _OVERHEAD_BYTES
                    if batch and size > _MAX_BATCH_BYTES:
                        break
                    batch += 1
                messages, self._pending = self._pending[:batch], self._pending[batch:]
                self._size -= sum(len(bytes(message.data)) + _OVERHEAD_BYTES for message in messages)
                dropped, self._dropped = self._dropped, {}
            if not messages and not dropped:
                return
            if dropped:
                number = sum(dropped.values())
                self._app.logger.warning("%d messages of runs were dropped: the engine does not take them", number)
            gaps = [_gap(channel, number) for channel, number in dropped.items()]
            try:
                await execute(self._app, "publish_messages", {"messages": gaps + messages}, _io, _TIMEOUT_SECONDS)
            except NotSupportedError as error:
                self.unsupported = error
            except Error as error:
                self._drop(messages, dropped, error)
                return

    def _drop(self, messages: list[NewMessage], dropped: Mapping[str, int], error: Error) -> None:
        """Count messages that were not sent. The next ones tell their listeners."""
        with self._lock:
            for channel, number in dropped.items():
                self._dropped[channel] = self._dropped.get(channel, 0) + number
            for message in messages:
                self._dropped[message.channel] = self._dropped.get(message.channel, 0) + 1
        self._app.logger.warning("messages of runs are not published: %s", printable(error))

    async def _send_progress(self) -> None:
        """Send the last values, each when the engine has said that the run's next one is due."""
        await asyncio.sleep(_MESSAGES_SECONDS)
        while True:
            async with self._sending:  # A flush must not return before values that are taken here have arrived.
                now = time.monotonic()
                with self._lock:
                    due = {
                        run_id: each for run_id, each in self._progress.items() if self._next_at.get(run_id, 0.0) <= now
                    }
                    for run_id in due:
                        del self._progress[run_id]
                    if not self._progress and not due:
                        self._progress_waits = False
                        return
                await asyncio.gather(*(self._report(run_id, *values) for run_id, values in due.items()))
            await asyncio.sleep(_PROGRESS_SECONDS)

    async def _report(self, run_id: str, fraction: float, message: str) -> None:
        arguments = {"run_id": run_id, "fraction": fraction, "message": message}
        pause = _LATER_SECONDS
        try:
            pause = await execute(self._app, "report_progress", arguments, _io, _TIMEOUT_SECONDS)
        except Error as error:
            self._app.logger.warning("run %s: its progress is not stored: %s", run_id, printable(error))
        if len(self._next_at) >= _MOST_RUNS:
            self._next_at.clear()
        self._next_at[run_id] = time.monotonic() + pause

    async def flush(self, run_id: str) -> None:
        """Send what the run has reported, before its call ends."""
        async with self._sending:
            await self._send_pending()
            with self._lock:
                progress = self._progress.pop(run_id, None)
            if progress is not None:
                await self._report(run_id, *progress)


def _gap(channel: str, number: int) -> NewMessage:
    reason = f"the app could not publish {number} messages"
    return NewMessage(channel, GAP_TOPIC, msgspec.Raw(msgspec.json.encode({"reason": reason})))


_senders: WeakKeyDictionary[App, _Sender] = WeakKeyDictionary()


class CallReports:
    """What one call has published and not yet sent."""

    def __init__(self, app: App, run_id: str) -> None:
        self._app, self.run_id = app, run_id
        self._sender: _Sender | None = None
        self._is_sent = True

    def sender(self) -> _Sender:
        """The sender, for something to report."""
        if self._sender is None:
            self._sender = _senders.get(self._app)
            if self._sender is None:
                self._sender = _senders[self._app] = _Sender(self._app)
        self._is_sent = False
        return self._sender

    async def flush(self, io: IO) -> None:
        """Wait until the engine has what the call has published.

        Raises ``NotSupportedError`` if the engine keeps no messages.
        """
        if self._is_sent or self._sender is None:
            return
        self._is_sent = True
        await io.resolve(Remote(get_background_loop().loop, self._sender.flush(self.run_id)))
        if self._sender.unsupported is not None:
            raise self._sender.unsupported


class RunPublisher:
    """Publishes for one call of a function, unless it replays memos."""

    def __init__(self, reports: CallReports, replay: Replay) -> None:
        self._reports, self._replay = reports, replay
        self.run_id = reports.run_id

    def publish(self, topic: str, data: Any, channel: str | None) -> None:
        """See ``durably.publish``."""
        for kind, name in (("topic", topic), ("channel", channel)):
            if name is not None and (not isinstance(name, str) or not 0 < len(name) <= MAX_CHANNEL_NAME_LENGTH):
                raise FunctionConfigInvalidError(
                    f"publish: the {kind} must be a string of 1 to {MAX_CHANNEL_NAME_LENGTH} characters, not {name!r}"
                )
            if name is not None and not is_encodable(name):
                raise FunctionConfigInvalidError(
                    f"publish: the {kind} {name!r} has half of a surrogate pair, which UTF-8 cannot encode: write "
                    "os.fsencode(name).decode(errors='replace') for the name of a file"
                )
        if topic.startswith("$"):
            raise FunctionConfigInvalidError(f"publish: the topic {topic!r} is the engine's: topics begin without $")
        if self._replay.is_replaying:
            return
        sender = self._reports.sender()
        if sender.unsupported is not None:
            raise sender.unsupported
        encoded, _ = to_json(data, f"publish({topic!r})")
        if len(encoded) > MAX_MESSAGE_BYTES:
            raise FunctionConfigInvalidError(
                f"publish({topic!r}): the data has {len(encoded)} bytes as JSON; a message has at most "
                f"{MAX_MESSAGE_BYTES}. Store large data, and publish where it is"
            )
        sender.publish(NewMessage(channel or self._reports.run_id, topic, msgspec.Raw(encoded)))

    def progress(self, fraction: float, message: str) -> None:
        """See ``Context.progress``."""
        if not isinstance(fraction, int | float) or not 0 <= fraction <= 1 or math.isnan(fraction):
            raise FunctionConfigInvalidError(f"ctx.progress takes a fraction from 0 to 1, not {fraction!r}")
        if not self._replay.is_replaying:
            text = str(message).encode(errors="replace").decode()  # names of files may have halves of surrogate pairs
            self._reports.sender().set_progress(self._reports.run_id, float(fraction), text)


running_publisher: ContextVar[RunPublisher | None] = ContextVar("durably_publisher", default=None)
"""That of the call whose function, or step's handler, is running."""


def _forget() -> None:
    """Reset after a fork: the child, such as one of a process pool, has none of its parent's threads, which send."""
    _senders.clear()
    running_publisher.set(None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def publish(topic: str, data: Any, *, channel: str | None = None) -> None:
    """Publish a message for those who listen to the run now, such as a token of a model or a line of a log.

    Call it in the handler of a step, or in a function. It does not wait: messages are sent in the background, and
    before the call ends. They are kept in memory, at most the newest 1,000 of a run, and are not durable.

    - ``topic``: A name, without ``$`` at its beginning.
    - ``data``: A JSON value of at most 512 KiB.
    - ``channel``: Another channel than the run's own, such as one that several runs publish to.

    Raises ``RuntimeError`` outside of runs and in processes that a handler starts, and ``NotSupportedError`` if the
    engine keeps no messages.
    """
    if (publisher := running_publisher.get()) is None:
        raise RuntimeError(
            f"durably.publish({topic!r}) is called outside of a run: call it in the handler of a step, or in a "
            "function, and not in a process that these start"
        )
    publisher.publish(topic, data, channel)
