"""Messages for runs: ``RunHandle.ask`` and ``answer`` deliver them once, over any engine; and answers from links."""

import hashlib
import secrets
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from durably.functions.middleware import MiddlewareFactory, MiddlewareStack, TransformStepInput
from durably.io.http_client import IO
from durably.protocol.durations import DurationWithUnit, to_seconds
from durably.protocol.opcodes import Opcode
from durably.protocol.tokens import derive_key, read_token, sign_token

from .app import App
from .engine_client import execute, may_help
from .errors import AnswerTokenError, AskTimeoutError, EngineError, SigningKeyMissingError, TransportError
from .questions import encode_message
from .settings import SIGNING_KEY

if TYPE_CHECKING:
    from durably.engine.model.questions import OpenQuestion

_POLL_SECONDS = 20.0
_GRACE_SECONDS = 10.0
"""Seconds for the answer to a request after its wait."""
_RETRY_SECONDS = 0.5


async def ask(
    app: App,
    run_id: str,
    name: str,
    data: Any,
    io: IO,
    *,
    timeout: DurationWithUnit,
    ask_id: str | None = None,
    middleware: Sequence[MiddlewareFactory] | None = None,
    **options: Any,
) -> msgspec.Raw | None:
    """Deliver a message to a run, and return the reply as JSON.

    ``options`` are those of the operation ``ask_run``. A request whose answer is lost is repeated: the message has an
    id, so the run gets it once. Raises ``AskTimeoutError``, and the errors of the operation.
    """
    seconds = to_seconds(timeout, "timeout")
    ask_id = ask_id or secrets.token_hex(10)
    message = await prepare_message(app, name, data, io, app.middleware if middleware is None else middleware)
    arguments = {"run_id": run_id, "name": name, "data": message, "id": ask_id, **options}
    state, left = "unknown", seconds
    failure: Exception | None = None
    while True:
        within = min(left, _POLL_SECONDS)
        try:
            asked = await execute(app, "ask_run", {**arguments, "within": within}, io, within + _GRACE_SECONDS)
        except (TransportError, EngineError) as error:
            if not may_help(error):
                raise
            # The engine may have delivered it. The next answer says so.
            state, failure = "unknown" if state == "waiting" else state, error
            within = min(_RETRY_SECONDS, left)
            await io.sleep(within)
        else:
            state, failure = asked.state.value, None
            if asked.is_final(needs_reply=options.get("needs_reply", True)):
                reply: msgspec.Raw | None = asked.reply
                return reply
        left -= within
        if left <= 0:
            explained = _explain(run_id, name, ask_id, seconds, state)
            raise AskTimeoutError(ask_id, f"{explained} ({failure})" if failure else explained) from failure


async def prepare_message(app: App, name: str, data: Any, io: IO, middleware: Sequence[MiddlewareFactory]) -> Any:
    """A message as it is sent: JSON values, which middleware may have transformed."""
    message = encode_message(name, data, app)
    if not middleware:
        return message
    step = TransformStepInput(name, Opcode.WAIT_FOR_SIGNAL, {"message": message})
    await MiddlewareStack(middleware, app, None, io).call("transform_step_input", step)
    return (step.opts or {}).get("message")


def _explain(run_id: str, name: str, ask_id: str, seconds: float, state: str) -> str:
    again = f"ask again with id={ask_id!r}"
    match state:
        case "waiting":
            return (
                f"the run {run_id} has not received a message {name!r} within {seconds:g} s, so this one is not "
                f'delivered: ctx.step.receive("{name}") waits for it'
            )
        case "delivered":
            return f"the run {run_id} has received {name!r}, but has not replied within {seconds:g} s: {again}"
        case _:
            return f"the engine did not say within {seconds:g} s whether the run {run_id} received {name!r}: {again}"


# answers from links

_CONTEXT = b"durably: tokens of answers, 1"


class AnswerGrant(msgspec.Struct, frozen=True, array_like=True):
    """What a token allows: one answer to a question of a run, until ``expires`` (unix seconds)."""

    run_id: str
    name: str
    expires: int


_decode_grant = msgspec.json.Decoder(AnswerGrant).decode


def make_answer_token(app: App, run_id: str, name: str, expires: DurationWithUnit) -> str:
    """See ``Client.answer_token``."""
    ends = time.time() + to_seconds(expires, "answer_token(expires=…)")
    for argument, value in {"run_id": run_id, "name": name}.items():
        if not isinstance(value, str) or not value:
            raise TypeError(f"answer_token({argument}) must be a text, not {value!r}")
    grant = AnswerGrant(run_id, name, int(ends))
    return sign_token(msgspec.json.encode(grant), _keys(app)[0])


def read_answer_token(app: App, token: str) -> AnswerGrant:
    """What a token allows. Raises ``AnswerTokenError``."""
    payload = read_token(token, _keys(app)) if isinstance(token, str) else None
    if payload is None:
        raise AnswerTokenError("the link is not valid: it is damaged, or this app did not make it")
    grant = _decode_grant(payload)
    if time.time() >= grant.expires:
        raise AnswerTokenError("the link has expired")
    return grant


def _keys(app: App) -> list[bytes]:
    secrets_of_app = [key for key in app.signing_keys if key]
    if not secrets_of_app:
        raise SigningKeyMissingError(
            f"the app {app.app_id!r} has no signing key, which signs the tokens of answers: set {SIGNING_KEY.name} "
            "(`durably keys` makes one)"
        )
    return [derive_key(key, _CONTEXT) for key in secrets_of_app]


async def answer_by_token(app: App, token: str, data: Any, timeout: DurationWithUnit, io: IO) -> None:
    """See ``Client.answer``."""
    grant = read_answer_token(app, token)
    message = encode_message(grant.name, data, app)
    # The same answer, sent twice, is one message. Of different ones the run accepts the first.
    ask_id = "link-" + hashlib.sha256(token.encode() + msgspec.json.encode(message, order="sorted")).hexdigest()[:20]
    await ask(
        app, grant.run_id, grant.name, message, io, timeout=timeout, ask_id=ask_id, is_only=True, needs_reply=False
    )


async def find_question(app: App, token: str, io: IO) -> "OpenQuestion | None":
    """See ``Client.question``."""
    grant = read_answer_token(app, token)
    found: list[OpenQuestion] = await execute(app, "list_questions", {"run_id": grant.run_id, "limit": 500}, io)
    return next((each for each in found if each.name == grant.name), None)
