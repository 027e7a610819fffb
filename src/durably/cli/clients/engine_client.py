"""``EngineClient``, the connection of a command to an engine.

``http_client.py`` has engines with an HTTP API, and ``temporal_client.py`` those on a Temporal server.
"""

from collections.abc import Callable, Iterator
from typing import TypeVar

import msgspec

from durably.cli.output.text import CliError
from durably.engine.api.interface import SyncEngine
from durably.engine.model.runs import RunUpdate
from durably.protocol.events import AppSyncBody, Event, EventReceipt

T = TypeVar("T")
TIMEOUT_SECONDS = 30.0
NOT_UNICODE = "the data holds text that is not valid Unicode: half of a surrogate pair"


class AnswerError(CliError):
    """The engine refused. ``status`` is the HTTP status, 0 if it is not known."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class EngineUnreachedError(CliError):
    """No engine answers."""


class EngineClient(SyncEngine):
    """Has the operations of an engine, such as ``client.get_run_sync(run_id)``.

    Raises ``EngineUnreachedError``, and ``AnswerError`` for refusals and for what does not exist.
    """

    def send_event(self, event: Event) -> EventReceipt:
        try:
            body = msgspec.json.encode(event)
        except UnicodeEncodeError:
            raise CliError(NOT_UNICODE) from None
        return self.block(self.receive_events(body))

    def sync_app_at(self, url: str) -> AppSyncBody:
        """Ask the engine to sync the app at a URL.

        The status of an error is 502 if the app does not answer.
        """
        raise NotImplementedError

    def check_ready(self) -> None:
        """Raises an error if the engine does not answer, or does not take events."""
        raise NotImplementedError

    def updates(self, *, function_id: str | None, on_connected: Callable[[], None]) -> Iterator[RunUpdate]:
        """Future changes of runs, until the engine stops.

        ``on_connected`` is called first.
        """
        raise NotImplementedError


def existing(value: T | None) -> T:
    """A result of ``EngineClient``, which raises an error for what does not exist."""
    assert value is not None
    return value
