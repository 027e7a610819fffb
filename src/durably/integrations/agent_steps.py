"""What durable agents of several libraries share: steps of the running function, approvals, and errors of models."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager

import msgspec

from durably.errors import FunctionConfigInvalidError, NonRetriableError, RetryAfterError
from durably.execution import in_step
from durably.experimental import step_context
from durably.functions.publishing import publish
from durably.protocol.channels import MAX_MESSAGE_BYTES
from durably.protocol.durations import Duration
from durably.protocol.text import keep_ends
from durably.questions import Question
from durably.steps import Step


@dataclasses.dataclass
class Approval:
    """The answer to the question whether a tool may be called. The model reads the ``reason`` of a denial."""

    approved: bool
    reason: str = ""


_MAX_PROMPT = 4000
"""Characters of a tool call that are shown to those who approve it."""


async def ask_for_approvals(steps: Step, questions: Mapping[str, str], timeout: Duration | None) -> list[Approval]:
    """Receive the answers to questions, all at once. ``questions`` maps their names to their prompts."""

    async def ask(name: str, prompt: str) -> Approval:
        prompt = keep_ends(prompt, _MAX_PROMPT)  # What is left out must be known to those who approve.
        question: Question[Approval] | None
        if timeout is None:
            question = await steps.receive(name, type=Approval, prompt=prompt)
        else:
            question = await steps.receive(name, type=Approval, prompt=prompt, timeout=timeout)
        if question is None:
            return Approval(False, "Nobody has approved this tool call in time.")
        await question.reply()
        return question.data

    return await asyncio.gather(*(ask(name, prompt) for name, prompt in questions.items()))


def current_steps(what: str) -> Step | None:
    """The steps of the running function; ``None`` outside of one, and in a step's handler.

    Raises ``FunctionConfigInvalidError`` in a sync function. It says that ``what`` runs there.
    """
    steps = step_context.get(None)
    if steps is None or in_step.get() is not None:
        return None
    if not isinstance(steps, Step):
        raise FunctionConfigInvalidError(f"{what} runs in a sync function: make the function `async def`")
    return steps


def publish_event(topic: str, event: bytes, kind: Mapping[str, str]) -> None:
    """Publish an event of an agent, given as JSON; only its ``kind`` and its size if it is too large for a message."""
    if len(event) > MAX_MESSAGE_BYTES:
        publish(topic, {**kind, "omitted_bytes": len(event)})
    else:
        publish(topic, msgspec.json.decode(event))


@contextmanager
def provider_errors() -> Iterator[None]:
    """Give errors of a provider's HTTP API their meaning for retries.

    Refused requests are not sent again, and a provider's ``Retry-After`` (in seconds) is kept. The client libraries of
    OpenAI, Anthropic and others have the attributes ``status_code`` and ``response``.
    """
    try:
        yield
    except Exception as error:
        status = getattr(error, "status_code", None)
        if not isinstance(status, int):
            raise
        after = getattr(getattr(error, "response", None), "headers", {}).get("retry-after", "")
        if after.isdecimal():
            raise RetryAfterError(str(error), int(after) * 1000) from error
        if 400 <= status < 500 and status not in (408, 409, 429):
            raise NonRetriableError(str(error)) from error
        raise


@asynccontextmanager
async def time_limit(seconds: float | None, what: str) -> AsyncIterator[None]:
    """``asyncio.timeout`` in a step's handler, with an error that names what has taken too long."""
    clock = asyncio.timeout(seconds)
    try:
        async with clock:
            yield
    except TimeoutError as error:
        if clock.expired():
            raise TimeoutError(f"{what} has not ended within {seconds:g} s") from error
        raise
