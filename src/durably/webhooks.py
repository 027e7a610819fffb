"""Webhooks of other services: endpoints that verify them, and send each as an event.

``durably.fast_api.webhook(app, client, Stripe(secret))``, and the same in each framework, adds the endpoint of a
source. The event's id is the id of the delivery, so that repeated deliveries are one event.
"""

import base64
import binascii
import hashlib
import hmac
import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs

import msgspec

from .client import Client
from .comm import CommRequest, CommResponse
from .comm.mounts import Mount
from .errors import (
    BodyInvalidError,
    BodyTooLargeError,
    Error,
    FunctionConfigInvalidError,
    MethodUnsupportedError,
    SendEventsError,
    SignatureError,
)
from .events import Event
from .execution import drive
from .protocol.limits import MAX_FORM_BYTES, SIGNATURE_TOLERANCE
from .protocol.options import check_type
from .protocol.signatures import SignatureMismatchError
from .protocol.text import printable
from .settings import check_serve_path

__all__ = ["GitHub", "Slack", "Source", "StandardWebhooks", "Stripe"]


class Source(ABC):
    """A service that sends webhooks.

    - ``secrets``: The secret of the endpoint, or several while the service changes from one to another.
    - ``name``: The first part of the events' names, and the last part of the endpoint's default path.

    A subclass is the source of another service. Raises ``FunctionConfigInvalidError`` without a secret.
    """

    name = "webhook"

    def __init__(self, *secrets: str, name: str | None = None) -> None:
        what = f"durably.webhooks.{type(self).__name__}"
        for secret in secrets or (None,):
            if not isinstance(secret, str) or not secret.strip().removeprefix("whsec_"):
                raise FunctionConfigInvalidError(
                    f"{what} needs the secret of the endpoint, which the service shows, and it is empty or missing: "
                    "is the environment variable with it set?"
                )
        try:
            self._keys = [self.key_of(secret.strip()) for secret in secrets]
        except ValueError:
            raise FunctionConfigInvalidError(
                f"the secret of {what} is malformed: give it as the service shows it"
            ) from None
        self.name = check_serve_path(name or self.name, f"{what}(name=…)")

    def key_of(self, secret: str) -> bytes:
        """The key of signatures. Raises ``ValueError`` for a malformed secret."""
        return secret.encode()

    @abstractmethod
    def verify(self, headers: Mapping[str, str], body: bytes, now: float) -> None:
        """Check the signature of a request.

        Names of ``headers`` are in lower case; ``now`` is unix seconds. Raises ``SignatureError``.
        """

    @abstractmethod
    def read(self, headers: Mapping[str, str], body: bytes) -> Event | str:
        """The event of a verified request, or the text that answers it, without an event.

        Raises ``BodyInvalidError``.
        """

    def check(
        self, signed: bytes, signatures: Iterable[str], encode: Callable[[bytes], bytes] = binascii.hexlify
    ) -> None:
        """Compare signatures with the HMAC-SHA256 of ``signed``, in constant time.

        ``encode`` makes the text of a digest. Raises ``SignatureMismatchError`` if none is right.
        """
        expected = [encode(hmac.digest(key, signed, "sha256")) for key in self._keys]
        given = [signature.encode(errors="replace") for signature in signatures]
        if not any(hmac.compare_digest(*pair) for pair in itertools.product(expected, given)):
            raise SignatureMismatchError(
                f"the signature of {self.name} does not match: is the secret that of this endpoint, and does no proxy "
                "change the body?"
            )


class Stripe(Source):
    """Events ``stripe/customer.created``, whose data is Stripe's event. The secret is ``whsec_…``."""

    name = "stripe"

    def verify(self, headers: Mapping[str, str], body: bytes, now: float) -> None:
        parts = [part.partition("=") for part in _header(headers, "stripe-signature").split(",")]
        timestamp = next((value for name, _, value in parts if name.strip() == "t"), "")
        _check_age(timestamp, now)
        self.check(b"%b.%b" % (timestamp.encode(), body), [value for name, _, value in parts if name.strip() == "v1"])

    def read(self, headers: Mapping[str, str], body: bytes) -> Event:
        payload = _object(body)
        return Event(name=f"{self.name}/{_text(payload, 'type')}", data=payload, id=_text(payload, "id"))


class GitHub(Source):
    """Events ``github/push`` or, with an action, ``github/issues.opened``. Their data is the payload.

    GitHub signs neither a time nor the delivery's id: nothing but HTTPS protects from a replay after 24 hours.
    """

    name = "github"

    def verify(self, headers: Mapping[str, str], body: bytes, now: float) -> None:
        self.check(body, [_header(headers, "x-hub-signature-256").removeprefix("sha256=")])

    def read(self, headers: Mapping[str, str], body: bytes) -> Event:
        payload = _object(_form(body).get("payload", "").encode() if _is_form(headers) else body)
        action = payload.get("action")
        kind = _header(headers, "x-github-event") + (f".{action}" if isinstance(action, str) else "")
        return Event(name=f"{self.name}/{kind}", data=payload, id=_header(headers, "x-github-delivery"))


class Slack(Source):
    """Events ``slack/app_mention``, ``slack/command.deploy`` and ``slack/interaction.block_actions``.

    Their data is Slack's payload; that of the Events API has its event as ``data["event"]``. Slack shows no answer of
    the endpoint: a function answers at ``response_url``. The challenge of ``url_verification`` is answered. The secret
    is the app's signing secret.
    """

    name = "slack"

    def verify(self, headers: Mapping[str, str], body: bytes, now: float) -> None:
        timestamp = _header(headers, "x-slack-request-timestamp")
        _check_age(timestamp, now)
        version, _, signature = _header(headers, "x-slack-signature").partition("=")
        self.check(b"v0:%b:%b" % (timestamp.encode(), body), [signature] if version == "v0" else [])

    def read(self, headers: Mapping[str, str], body: bytes) -> Event | str:
        if not _is_form(headers):
            payload = _object(body)
            if payload.get("type") == "url_verification":
                return _text(payload, "challenge")
            inner = payload.get("event")
            kind = _text(inner if isinstance(inner, dict) else payload, "type")
            return Event(name=f"{self.name}/{kind}", data=payload, id=_text(payload, "event_id"))
        form: dict[str, Any] = _form(body)
        # The same for a repeated request only, because it is signed together with the time.
        delivery = hashlib.sha256(_header(headers, "x-slack-signature").encode()).hexdigest()
        if "payload" in form:
            payload = _object(form["payload"].encode())
            return Event(name=f"{self.name}/interaction.{_text(payload, 'type')}", data=payload, id=delivery)
        command = _text(form, "command").removeprefix("/")
        return Event(name=f"{self.name}/command.{command}", data=form, id=delivery)


class StandardWebhooks(Source):
    """Events ``NAME/user.created`` of any service that follows the Standard Webhooks specification, or uses Svix.

    ``name`` is that of the service. The data is the payload, whose ``type`` is the second part of the event's name, or
    ``message`` without one. The secret is ``whsec_…``.
    """

    def __init__(self, *secrets: str, name: str) -> None:
        super().__init__(*secrets, name=name)

    def key_of(self, secret: str) -> bytes:
        return base64.b64decode(secret.removeprefix("whsec_"), validate=True)

    def verify(self, headers: Mapping[str, str], body: bytes, now: float) -> None:
        sent = [_header(headers, f"webhook-{part}", f"svix-{part}") for part in ("id", "timestamp", "signature")]
        _check_age(sent[1], now)
        signatures = [each.removeprefix("v1,") for each in sent[2].split() if each.startswith("v1,")]
        self.check(
            b"%b.%b.%b" % (sent[0].encode(errors="replace"), sent[1].encode(), body), signatures, base64.b64encode
        )

    def read(self, headers: Mapping[str, str], body: bytes) -> Event:
        payload = _object(body)
        kind = _text(payload, "type") if "type" in payload else "message"
        return Event(name=f"{self.name}/{kind}", data=payload, id=_header(headers, "webhook-id", "svix-id"))


# -- the endpoint


def check_size(size: int) -> None:
    """Raises ``BodyTooLargeError``. ``size`` is in bytes."""
    if size > MAX_FORM_BYTES:
        raise BodyTooLargeError(f"the webhook is larger than {MAX_FORM_BYTES} bytes")


def mount_webhook(client: Client, source: Source, path: str | None, caller: str) -> Mount:
    """The endpoint of a source, for the adapters. ``caller`` is the function that users call, for errors."""
    if not isinstance(client, Client):
        raise FunctionConfigInvalidError(f"{caller} takes a durably.Client as its client, not {client!r}")
    if not isinstance(source, Source):
        raise FunctionConfigInvalidError(
            f"{caller} takes a source of durably.webhooks, such as Stripe(secret), not {type(source).__name__}"
        )
    path = f"/webhooks/{source.name}" if path is None else path
    check_type(path, f"{caller}(path=…)", str, 'a string, such as "/webhooks/stripe"', FunctionConfigInvalidError)
    return Mount("/" + check_serve_path(path, f"{caller}(path=…)").strip("/"), Receiver(client, source), check_size)


_NOT_STORED = {
    HTTPStatus.BAD_REQUEST: "the engine refuses the event as invalid: see the app's log",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "the event is larger than the engine accepts: see the app's log",
    HTTPStatus.SERVICE_UNAVAILABLE: "the event could not be stored: see the app's log",
}
"""The answers for events that are not stored. The engine's own message is not for strangers."""


class Receiver:
    """Answers the requests of a source. A service repeats a delivery until the answer is 200."""

    def __init__(self, client: Client, source: Source) -> None:
        self._client, self._source = client, source

    async def handle(self, method: str, request: CommRequest) -> CommResponse:
        """The response, on an event loop."""
        return await self._answer(method, request, self._client.send)

    def handle_sync(self, method: str, request: CommRequest) -> CommResponse:
        """The response, in this thread."""

        async def send(event: Event) -> object:
            return self._client.send_sync(event)

        return drive(self._answer(method, request, send))

    def refuse(self, error: Exception) -> CommResponse:
        """The response to a request that is not accepted."""
        self._log("was refused", error)
        return CommResponse.from_error(error)

    async def _answer(
        self, method: str, request: CommRequest, send: Callable[[Event], Awaitable[object]]
    ) -> CommResponse:
        try:
            if method != "POST":
                raise MethodUnsupportedError(f"a webhook is sent by POST, not by {method}", "POST")
            check_size(len(request.body))
            self._source.verify(request.headers, request.body, time.time())
            received = self._source.read(request.headers, request.body)
        except Exception as error:
            return self.refuse(error)
        if isinstance(received, str):
            return _text_response(received)
        try:
            await send(received)
        except Exception as error:
            self._log("could not be stored", error)
            refusal = error.refusal if isinstance(error, SendEventsError) else None
            status = HTTPStatus(refusal or HTTPStatus.SERVICE_UNAVAILABLE)
            return _text_response(_NOT_STORED[status], status)
        return _text_response("")

    def _log(self, outcome: str, error: Exception) -> None:
        trace = None if isinstance(error, Error) else error
        self._client.logger.warning(
            "a webhook of %s %s: %s", self._source.name, outcome, printable(error), exc_info=trace
        )


def _text_response(text: str, status: HTTPStatus = HTTPStatus.OK) -> CommResponse:
    return CommResponse(body=text.encode(), headers={"content-type": "text/plain; charset=utf-8"}, status_code=status)


# -- parts of requests


def _header(headers: Mapping[str, str], *names: str) -> str:
    for name in names:
        if value := headers.get(name):
            return value
    raise SignatureError(f"the request has no header {names[0]}")


def _check_age(timestamp: str, now: float) -> None:
    is_number = timestamp.isascii() and timestamp.isdigit() and len(timestamp) < 20
    if not is_number or abs(now - int(timestamp)) > SIGNATURE_TOLERANCE.total_seconds():
        raise SignatureError(
            "the request was not signed within the last 5 minutes, or the clocks differ: it may be a repeated one"
        )


def _is_form(headers: Mapping[str, str]) -> bool:
    return headers.get("content-type", "").lower().startswith("application/x-www-form-urlencoded")


def _form(body: bytes) -> dict[str, str]:
    fields = parse_qs(body.decode(errors="replace"), keep_blank_values=True)
    return {name: values[0] for name, values in fields.items()}


def _object(body: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError):
        raise BodyInvalidError("the body of the webhook is not a JSON object") from None


def _text(payload: Mapping[str, Any], field: str) -> str:
    value = payload.get(field)
    if not isinstance(value, str) or not value:
        raise BodyInvalidError(f"the payload of the webhook has no {field}")
    return value
