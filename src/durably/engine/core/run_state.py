"""The state of a run, from which the machine decides the next step; the origins of events; the engine's policy."""

import datetime as dt
from collections.abc import Callable

import msgspec

from durably.protocol.events import RunStatus as RunStatus
from durably.protocol.headers import DISCOVER
from durably.protocol.limits import (
    DEFAULT_LONG_TIMEOUT,
    MAX_DEFERRED,
    MAX_DEFERRED_BYTES,
    MAX_DEPTH,
    MAX_EVENT_NAME_LENGTH,
    MAX_RUN_STATE_BYTES,
    MAX_STEP_OUTPUT_BYTES,
    MAX_STEPS,
    MAX_WAIT,
)
from durably.protocol.opcodes import Opcode

MACHINE_VERSION = 1
"""The version of stored states. Raise it if the machine would continue an older state differently."""


class Call(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """An outstanding call, to be made at ``due`` or under way since.

    - ``due``: Milliseconds since the epoch.
    - ``step_id``: The planned step that it targets, or ``DISCOVER``.
    - ``generation``: Its lease. An answer with another one is stale.
    - ``attempt``: Counts from 0.
    - ``unreached``: The number of consecutive times that it did not reach the app.
    - ``race``: The parallel mode of the targeted step.
    - ``memos_seen``: The lowest number of memos that this discovery, or the one that planned this call, saw.
    - ``error``: The reason why the previous attempt failed.
    """

    generation: int
    due: int
    step_id: str = DISCOVER
    name: str = ""
    attempt: int = 0
    unreached: int = 0
    race: bool = False
    memos_seen: int = 0
    error: str = ""

    @property
    def is_discovery(self) -> bool:
        return self.step_id == DISCOVER

    def is_made(self, now: int) -> bool:
        """Whether the call is under way or about to be.

        This is true of all calls but postponed retries. A call that was never postponed is made even if the clock was
        set back and shows an earlier time than ``due``.
        """
        return self.due <= now or not self.error


class Wait(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """An outstanding step that waits for something other than a call, by its ``op``.

    Only requests use ``generation``, ``attempt`` and ``needs_op``. The content of a request is not stored, so after a
    restart the step ``needs_op``: the app must report it again.
    """

    step_id: str
    op: Opcode
    name: str = ""
    race: bool = False
    generation: int = 0
    attempt: int = 0
    needs_op: bool = False


class Deferred(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A function that the run has deferred.

    It starts when the run has ended, if it still ``is_abortable``. ``size`` is the size of its data in bytes. The data
    is stored separately from the run state.
    """

    step_id: str
    size: int = 0
    is_abortable: bool = True


class RunState(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """The state of a run, with its outstanding calls and waits.

    ``generation`` is the last one used. ``discover_again``: discovery was requested while one was under way. ``memos``
    and ``bytes`` are the number and size of the run's memos, for the protocol's limits.
    """

    version: int
    status: RunStatus
    max_attempts: int
    generation: int = 0
    calls: tuple[Call, ...] = ()
    waits: tuple[Wait, ...] = ()
    discover_again: bool = False
    disable_immediate: bool = False
    memos: int = 0
    bytes: int = 0
    defers: tuple[Deferred, ...] = ()

    def call(self, generation: int) -> Call | None:
        for call in self.calls:
            if call.generation == generation:
                return call
        return None


encode_run_state: Callable[[RunState], bytes] = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(RunState)


def decode_run_state(stored: bytes) -> RunState:
    """Decode a state. Raises ``msgspec.ValidationError`` or ``msgspec.DecodeError``."""
    return _decoder.decode(stored)


CHAIN_PERIOD = 3_600_000
"""Milliseconds for which the runs of a chain count."""
_CHAIN_FACTOR = 10
"""The factor between the maximum depth of invocations and the maximum runs of a chain in that period."""
_ROOM_FOR_HANDLERS = 2
"""Additional runs for events about a run's end, so that failure handlers get the refused run."""


class Origin(msgspec.Struct, frozen=True, array_like=True):
    """The run that sent an event.

    ``depth`` is the number of invocations around the run that the event starts. ``chain`` is the number of runs that
    led to it since ``since`` (milliseconds since the epoch).
    """

    run_key: int
    depth: int
    chain: int
    since: int


def origin_of(run_key: int, before: Origin | None, now: int, *, is_invocation: bool = False) -> Origin:
    """The origin of an event that a run sends, or of the event about its end.

    ``before`` is the origin of the run's own event. ``is_invocation``: the run invokes a function by the event.
    """
    depth = 0 if not is_invocation else 1 if before is None else before.depth + 1
    if before is None or now - before.since > CHAIN_PERIOD:
        return Origin(run_key, depth, 1, now)
    return Origin(run_key, depth, before.chain + 1, before.since)


def explain_runaway(origin: Origin | None, max_depth: int, *, is_run_end: bool) -> str | None:
    """The reason why an event must start no run, or ``None``.

    ``is_run_end``: the event reports another run's end.
    """
    if origin is None:
        return None
    advice = "if this is intended, raise the engine's limit (`--max-depth`, or `max_depth` in its settings)"
    if origin.depth > max_depth:
        return f"functions that invoke each other may be {max_depth} deep; {advice}"
    most = max_depth * _CHAIN_FACTOR
    if origin.chain > most + (_ROOM_FOR_HANDLERS if is_run_end else 0):
        return f"at most {most} runs may start each other within an hour; {advice}"
    return None


def describe_chain(function_ids: list[str], is_whole: bool) -> str:
    """``a → b → a``, from the latest functions of a chain (the last first)."""
    return ("" if is_whole else "… → ") + " → ".join(reversed(function_ids))


encode_origin: Callable[[Origin], bytes] = msgspec.json.Encoder().encode


def decode_origin(stored: bytes | None) -> Origin | None:
    return None if stored is None else _origin_decoder.decode(stored)


_origin_decoder = msgspec.json.Decoder(Origin)


class Policy(msgspec.Struct, frozen=True):
    """The engine's settings that decide about runs. Times are milliseconds.

    - ``retry_delay``: The delay after the given attempt (from 0) failed.
    - ``unreached_delay``: The delay after the given number of consecutive calls (from 0) did not reach the app.
    - ``max_steps``: The maximum number of steps of a run.
    - ``max_depth``: The maximum depth of invocations.
    - ``max_wait``: The longest sleep or wait.
    - ``default_timeout``: The timeout of an invocation or a wait for a signal without one.
    """

    retry_delay: Callable[[int], int]
    unreached_delay: Callable[[int], int]
    max_steps: int = MAX_STEPS
    max_depth: int = MAX_DEPTH
    max_step_output_bytes: int = MAX_STEP_OUTPUT_BYTES
    max_run_state_bytes: int = MAX_RUN_STATE_BYTES
    max_deferred: int = MAX_DEFERRED
    max_deferred_bytes: int = MAX_DEFERRED_BYTES
    max_event_name_length: int = MAX_EVENT_NAME_LENGTH
    max_wait: dt.timedelta = MAX_WAIT
    default_timeout: dt.timedelta = DEFAULT_LONG_TIMEOUT
