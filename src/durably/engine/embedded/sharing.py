"""Telling apart what one answer says to the calls that shared its request. Pure."""

from collections.abc import Iterator, Sequence

import msgspec

from durably.engine.answers import Answer, Asked, Unreached

from .effects import CallAt


def answers_of(calls: Sequence[CallAt], answer: Answer) -> Iterator[tuple[CallAt, Answer | None]]:
    """Each call's part of the answer, the first call's first; ``None`` for one to be made again, as if it had not been.

    The first call is that which an app knows of if it does not know that others share the request: whatever does not
    clearly belong to another is for it.
    """
    first, others = calls[0], calls[1:]
    if not isinstance(answer, Asked):
        yield first, answer
        yield from ((other, answer if isinstance(answer, Unreached) else None) for other in others)
        return
    ids = {other.call.step_id for other in others}
    parts = [[op for op in answer.ops if op.id not in ids]]
    parts += [[op for op in answer.ops if op.id == other.call.step_id] for other in others]
    answers_nothing = not any(parts)
    for due, ops in zip(calls, parts, strict=True):
        is_answered = ops or (due is first and answers_nothing)
        yield due, msgspec.structs.replace(answer, ops=ops) if is_answered else None
