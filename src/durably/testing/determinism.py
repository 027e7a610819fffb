"""The check that a function is deterministic.

A function that is called again with a run's memos must find the same steps. Each call is repeated several times, and at
other times. That is done for each prefix of the run's memos, and for other orders in which the same steps might have
finished. The calls find steps and execute none. They need no engine.
"""

import datetime as dt
import random
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from http import HTTPStatus
from typing import Any

import msgspec

from durably.comm import CommHandler, CommRequest
from durably.engine.model.runs import RunStatus
from durably.protocol.events import Event
from durably.protocol.headers import DISCOVER, Query
from durably.protocol.opcodes import Op

_REPETITIONS = 8
"""Number of calls with the same memos. More calls find a random choice with a higher probability."""
_TIME_SHIFTS = (dt.timedelta(hours=12), dt.timedelta(days=3, hours=6), dt.timedelta(days=200))

_ADVICE = """\
A function is called again and again from its top, and must find the same steps each time it is called with the same
memos: else steps are run twice, or never."""
_AT_RANDOM = """\
What the function does before that differs from call to call: is anything there random, a uuid, or read from outside
(a database, a file, a global variable)? Do it in a step, whose memo stays:
    chosen = await ctx.step.run("choose", random.choice, candidates)"""
_BY_TIME = """\
The second call was made {shift} later: does the function read the clock? Do it in a step, whose memo stays:
    now = await ctx.step.run("now", time.time)"""
_SINCE = """\
The run itself did otherwise when it was made: is anything before that random, taken from the clock, read from outside?
Do it in a step, whose memo stays. Or has the code changed since?"""


class PastStep(msgspec.Struct, frozen=True):
    """A step that has finished: its hashed id, its own id, and its memo as JSON."""

    hashed_id: str
    name: str
    memo: msgspec.Raw


class Past(msgspec.Struct, frozen=True):
    """A past run; ``steps`` are in the order of their memos."""

    run_id: str
    function_id: str
    events: list[Event]
    steps: list[PastStep]


class ReplayedCall(msgspec.Struct, frozen=True):
    """The result of a call: the steps that it found, or how the function ended.

    ``steps`` are the names of steps without memos, by their hashed ids.
    """

    steps: dict[str, str]
    end: str | None = None

    def is_like(self, other: "ReplayedCall") -> bool:
        return self.steps.keys() == other.steps.keys() and self.end == other.end

    def __str__(self) -> str:
        return self.end or ", ".join(f"step {name!r}" for name in self.steps.values())


RETURNED = "that it returned"
_ops_decoder = msgspec.json.Decoder(list[Op])


def call_body(past: Past, memos: Sequence[PastStep]) -> bytes:
    """The body of a call that discovers steps, with these memos in this order.

    A call that discovers steps executes none (spec §4.4.1).
    """
    ids = [step.hashed_id for step in memos]
    body: dict[str, Any] = {
        "ctx": {
            "run_id": past.run_id,
            "step_id": DISCOVER,
            "disable_immediate_execution": True,
            "stack": {"stack": ids, "current": len(ids)},
        },
        "event": past.events[0],
        "events": past.events,
        "steps": {step.hashed_id: step.memo for step in memos},
    }
    return msgspec.json.encode(body)


async def replay(handler: CommHandler, function_id: str, body: bytes) -> ReplayedCall:
    request = CommRequest(
        body=body,
        headers={},
        query_params={Query.FUNCTION_ID.value: function_id, Query.STEP_ID.value: DISCOVER},
        raw_request=None,
        request_url="test://replay",
        is_connect=True,
    )
    response = await handler.post(request)
    answer = response.body
    if response.status_code == HTTPStatus.OK:
        return ReplayedCall({}, RETURNED)
    if response.status_code != HTTPStatus.PARTIAL_CONTENT:
        return ReplayedCall({}, f"that it raised {msgspec.json.decode(answer)['name']}")
    return ReplayedCall({op.id: _name_of(op) for op in _ops_decoder.decode(answer)})


def _name_of(op: Op) -> str:
    if op.userland is None:
        return op.display_name or op.id
    return f"{op.userland.id}:{op.userland.index}" if op.userland.index else op.userland.id


class NotDeterministicError(AssertionError):
    """A function found other steps when it was called again with the same memos."""


class _Point(msgspec.Struct, frozen=True):
    """A repeated call: its memos and the steps it found."""

    memos: Sequence[PastStep]
    found: ReplayedCall


Choose = Callable[[Sequence[PastStep], Sequence[PastStep]], PastStep | None]
"""Chooses the next memo from the memos so far and the candidates; ``None`` ends the walk."""


class DeterminismCheck:
    """The check of one run of a function that ``handler`` serves.

    ``orders`` is the number of other orders of its memos that are checked.
    """

    def __init__(self, handler: CommHandler, past: Past, status: RunStatus, *, orders: int) -> None:
        self._handler = handler
        self._past = past
        self._status = status
        self._orders = orders
        self._points: dict[tuple[str, ...], _Point] = {}

    async def run(self) -> None:
        """Check the run's history and its other orders.

        Raises ``NotDeterministicError``, which names the step.
        """
        await self._walk(self._next_in_history)
        for seed in range(self._orders if self._is_parallel() else 0):
            await self._walk(partial(_choose_any, random.Random(seed)))

    async def _walk(self, choose: Choose) -> None:
        """Add the memos one by one, and record which steps the function finds."""
        memos: list[PastStep] = []
        known: set[str] = set()
        while True:
            found = await self._find(memos)
            known |= found.steps.keys()
            taken = {step.hashed_id for step in memos}
            candidates = [step for step in self._past.steps if step.hashed_id in known and step.hashed_id not in taken]
            chosen = choose(memos, [] if found.end else candidates)
            if chosen is None:
                return
            memos.append(chosen)

    def _next_in_history(self, memos: Sequence[PastStep], candidates: Sequence[PastStep]) -> PastStep | None:
        """The run's own next step, which the function must have found."""
        found = self._points[_key(memos)].found
        if len(memos) == len(self._past.steps):
            self._check_end(memos, found)
            return None
        expected = self._past.steps[len(memos)]
        if expected in candidates:
            return expected
        if found.end and any(expected.hashed_id in point.found.steps for point in self._points.values()):
            return None  # it lost a race, and finished later
        raise self._failure(memos, f"the run had step {expected.name!r} next", f"it found {found}", _SINCE)

    def _check_end(self, memos: Sequence[PastStep], found: ReplayedCall) -> None:
        if self._status is RunStatus.COMPLETED and found.end != RETURNED:
            raise self._failure(memos, "the run returned", f"it found {found}", _SINCE)
        if self._status is RunStatus.FAILED and found.end == RETURNED:
            raise self._failure(memos, "the run failed", f"it found {found}", _SINCE)

    def _is_parallel(self) -> bool:
        """Whether the run's steps could have finished in another order."""
        return any(len(point.found.steps) > 1 for point in self._points.values())

    async def _find(self, memos: Sequence[PastStep]) -> ReplayedCall:
        """The steps that the function finds in each call with these memos."""
        key = _key(memos)
        if key in self._points:
            return self._points[key].found
        body = call_body(self._past, memos)
        first = await self._replay(body, None)
        for _ in range(_REPETITIONS - 1):
            self._compare(memos, first, await self._replay(body, None), _AT_RANDOM)
        for shift in _TIME_SHIFTS:
            self._compare(memos, first, await self._replay(body, shift), _BY_TIME.format(shift=shift))
        self._points[key] = _Point(tuple(memos), first)
        return first

    async def _replay(self, body: bytes, shift: dt.timedelta | None) -> ReplayedCall:
        with nullcontext() if shift is None else _shifted(shift):
            return await replay(self._handler, self._past.function_id, body)

    def _compare(self, memos: Sequence[PastStep], first: ReplayedCall, second: ReplayedCall, cause: str) -> None:
        if not first.is_like(second):
            raise self._failure(
                memos, f"it found {first}", f"called again with the same memos, it found {second}", cause
            )

    def _failure(self, memos: Sequence[PastStep], first: str, second: str, cause: str) -> NotDeterministicError:
        names = ", ".join(repr(step.name) for step in memos)
        given = f"the memos of {len(memos)} step{'s' * (len(memos) > 1)} ({names})" if memos else "no memo yet"
        return NotDeterministicError(
            f"function {self._past.function_id!r} is not deterministic.\n"
            f"  With {given},\n    {first};\n    {second}.\n\n{cause}\n\n{_ADVICE}"
        )


def _choose_any(chance: random.Random, memos: Sequence[PastStep], candidates: Sequence[PastStep]) -> PastStep | None:
    return chance.choice(candidates) if candidates else None


def _key(memos: Sequence[PastStep]) -> tuple[str, ...]:
    return tuple(step.hashed_id for step in memos)


def _shifted(shift: dt.timedelta) -> Any:
    try:
        import time_machine
    except ImportError as error:
        raise ImportError('checking determinism needs time-machine: pip install "durably[testing]"') from error
    return time_machine.travel(dt.datetime.now(dt.UTC) + shift, tick=True)
