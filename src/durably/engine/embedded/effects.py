"""What a committed unit of work asks of the world outside the database: values, carried from the writer's
thread to the event loop. Times are milliseconds since the epoch."""

from collections.abc import Sequence

import msgspec

from durably.engine.head import Call
from durably.engine.inputs import MakeRequest

from .registry import Function
from .updates import Note


class CallAt(msgspec.Struct, frozen=True):
    """A call to make when it is due."""

    run_key: int
    call: Call


class TimerAt(msgspec.Struct, frozen=True):
    """A sleep or wait to end when it is due."""

    run_key: int
    step_id: str
    due: int


class RequestAt(msgspec.Struct, frozen=True):
    """A request to make when it is due, for a step that fetches or infers."""

    run_key: int
    request: MakeRequest


class Synced(msgspec.Struct, frozen=True):
    """The functions that an app has from now on."""

    app_id: str
    functions: Sequence[Function]


class Effects:
    """``ended`` are the keys of runs that have ended."""

    __slots__ = ("calls", "ended", "notes", "requests", "synced", "timers")

    def __init__(self) -> None:
        self.calls: list[CallAt] = []
        self.timers: list[TimerAt] = []
        self.requests: list[RequestAt] = []
        self.ended: list[int] = []
        self.synced: list[Synced] = []
        self.notes: list[Note] = []
