"""The origin of an event: the run that sent it, and the number of runs that led to it. Pure.

Two mistakes create runs endlessly: a function that invokes itself, and functions whose events trigger each other. Both
are stopped by counting the runs that led to an event. Invocations nest, because each run waits for the next, so their
depth has no time limit. A chain of events need not be a mistake: a state machine may send itself the next event each
day for years. So the runs of a chain count for an hour.
"""

import msgspec

CHAIN_PERIOD = 3_600_000
"""Milliseconds for which the runs of a chain count."""
_CHAIN_FACTOR = 10
"""The factor between the maximum depth of invocations and the maximum runs of a chain in that period."""
_ROOM_FOR_HANDLERS = 2
"""Additional runs for events about a run's end, so that failure handlers get the refused run."""


class Origin(msgspec.Struct, frozen=True, array_like=True):
    """The run that sent an event. ``depth`` is the number of invocations around the run that the event starts,
    ``chain`` the number of runs that led to it since ``since`` (milliseconds since the epoch)."""

    run_key: int
    depth: int
    chain: int
    since: int


def origin_of_invocation(run_key: int, before: Origin | None, now: int) -> Origin:
    """The origin of the event by which a run invokes a function. ``before`` is the origin of the run's own event."""
    return _follow(run_key, before, now, depth=1 if before is None else before.depth + 1)


def origin_of_event(run_key: int, before: Origin | None, now: int) -> Origin:
    """The origin of an event that a run sends, or of the event about its end."""
    return _follow(run_key, before, now, depth=0)


def _follow(run_key: int, before: Origin | None, now: int, depth: int) -> Origin:
    if before is None or now - before.since > CHAIN_PERIOD:
        return Origin(run_key, depth, 1, now)
    return Origin(run_key, depth, before.chain + 1, before.since)


def explain_runaway(origin: Origin | None, max_depth: int, *, tells_end: bool) -> str | None:
    """The reason why an event must start no run, or ``None``. ``tells_end``: the event is about another run's end."""
    if origin is None:
        return None
    advice = "if that is not a mistake, raise the engine's limit (`--max-depth`, or `max_depth` in its settings)"
    if origin.depth > max_depth:
        return f"functions that invoke each other may be {max_depth} deep; {advice}"
    most = max_depth * _CHAIN_FACTOR
    if origin.chain > most + (_ROOM_FOR_HANDLERS if tells_end else 0):
        return f"at most {most} runs may start each other within an hour; {advice}"
    return None


def describe_chain(function_ids: list[str], is_whole: bool) -> str:
    """``a → b → a``, from the latest functions of a chain (the last first)."""
    return ("" if is_whole else "… → ") + " → ".join(reversed(function_ids))


def encode_origin(origin: Origin) -> bytes:
    return msgspec.json.encode(origin)


def decode_origin(stored: bytes | None) -> Origin | None:
    return None if stored is None else _decoder.decode(stored)


_decoder = msgspec.json.Decoder(Origin)
