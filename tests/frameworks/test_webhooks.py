"""Webhooks that become events, in each framework: with a valid signature, and with none."""

import json
import logging
from urllib.parse import urlencode

import pytest

from durably.protocol.limits import MAX_FORM_BYTES

from ..fake_engine import FakeEngine
from . import app_calls
from .servers import Server
from .webhooks import OLD_SECRET, SECRET, SOURCES, payload_of, signed

EVENTS = f"/e/{app_calls.EVENT_KEY}"
FORM = "Application/X-WWW-Form-urlencoded"


def send(server: Server, source: str, body: bytes, headers: dict[str, str], method: str = "POST") -> app_calls.Answer:
    return app_calls.request(method, f"{server.origin}/webhooks/{source}", body, headers)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("secret", [SECRET, OLD_SECRET], ids=["new", "old"])
def test_a_webhook_is_sent_as_an_event_with_the_id_of_the_delivery(
    server: Server, engine: FakeEngine, source: str, secret: str
) -> None:
    body, name, event_id = payload_of(source)
    for _ in range(2):
        answer = send(server, source, body, signed(source, body, secret=secret))
        assert (answer.status, answer.body) == (200, b"")
    for request in engine.to(EVENTS):
        [event] = request.json
        assert (event["name"], event["id"], event["data"]) == (name, event_id, json.loads(body))
    assert len(engine.to(EVENTS)) == 2


def test_slacks_challenge_is_answered(server: Server, engine: FakeEngine) -> None:
    body = json.dumps({"type": "url_verification", "challenge": "3eZbrw1aBm2r"}).encode()
    answer = send(server, "slack", body, signed("slack", body))
    assert (answer.status, answer.body) == (200, b"3eZbrw1aBm2r")
    assert send(server, "slack", body, signed("slack", body, secret="x")).status == 401
    assert engine.to(EVENTS) == []


@pytest.mark.parametrize(
    ("fields", "name", "data"),
    [
        ({"command": "/deploy", "text": ""}, "slack/command.deploy", {"command": "/deploy", "text": ""}),
        ({"payload": '{"type":"block_actions"}'}, "slack/interaction.block_actions", {"type": "block_actions"}),
    ],
)
def test_slacks_forms_are_events(
    server: Server, engine: FakeEngine, fields: dict[str, str], name: str, data: object
) -> None:
    body = urlencode(fields).encode()
    headers = {"content-type": FORM, **signed("slack", body)}
    later = {"content-type": FORM, **signed("slack", body, age=5)}
    answers = [send(server, "slack", body, each) for each in (headers, headers, later)]
    assert [(each.status, each.body) for each in answers] == [(200, b"")] * 3
    [first], [repeated], [other] = (request.json for request in engine.to(EVENTS))
    assert (first["name"], first["data"]) == (name, data)
    assert first["id"] == repeated["id"] != other["id"]


def test_githubs_forms_are_events(server: Server, engine: FakeEngine) -> None:
    body = urlencode({"payload": '{"zen": "é"}'}).encode()
    assert send(server, "github", body, {"content-type": FORM, **signed("github", body)}).status == 200
    [[event]] = (request.json for request in engine.to(EVENTS))
    assert (event["name"], event["data"]) == ("github/issues", {"zen": "é"})


@pytest.mark.parametrize("source", SOURCES)
def test_a_webhook_without_a_valid_signature_is_refused(
    server: Server, engine: FakeEngine, source: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    body, _, _ = payload_of(source)
    right = signed(source, body)
    wrong = [
        (body, {}),
        (body + b" ", right),
        (b"", right),
        (body, signed(source, body, secret="whsec_AAAA")),
        *((body, {**right, name: text}) for name in right for text in ("", "x", "\xff", ",=") if "GitHub" not in name),
        *((body, {name: text for name, text in right.items() if name != gone}) for gone in right),
    ]
    if source != "github":  # It signs no time.
        wrong += [(body, signed(source, body, age=age)) for age in (330, -330)]
    for content, headers in wrong:
        answer = send(server, source, content, headers)
        assert answer.status == 401, (headers, answer.body)
        assert b"Traceback" not in answer.body
        app_texts = [caplog.text, answer.body.decode(), str(answer.headers)]
        assert not [text for text in app_texts for secret in (SECRET, OLD_SECRET) if secret[6:] in text]
    assert engine.to(EVENTS) == []


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b"{}", b'{"type": 1}', b"[" * 100_000])
def test_a_signed_body_that_is_no_event_is_refused(server: Server, engine: FakeEngine, body: bytes) -> None:
    answer = send(server, "stripe", body, signed("stripe", body))
    assert (answer.status, answer.json["code"]) == (400, "body_invalid")
    assert engine.to(EVENTS) == []


def test_a_body_that_is_too_large_is_refused(server: Server, engine: FakeEngine) -> None:
    body = b" " * (MAX_FORM_BYTES + 1)
    assert send(server, "stripe", body, signed("stripe", body)).status == 413
    assert engine.to(EVENTS) == []


def test_other_methods_are_405(server: Server, engine: FakeEngine) -> None:
    body, _, _ = payload_of("stripe")
    for method in ("GET", "PUT", "DELETE"):
        assert send(server, "stripe", body, signed("stripe", body), method).status == 405
    assert engine.to(EVENTS) == []


@pytest.mark.parametrize(
    ("source", "engines", "status"),
    [("stripe", 401, 503), ("away", 0, 503), ("stripe", 400, 400), ("stripe", 413, 413)],
)
def test_a_service_repeats_a_webhook_that_the_engine_may_store_later(
    server: Server, engine: FakeEngine, source: str, engines: int, status: int
) -> None:
    engine.answers[EVENTS] = engines, {"error": f"nothing at {EVENTS}"}
    body, _, _ = payload_of(source)
    answer = send(server, source, body, signed(source, body))
    assert answer.status == status
    assert app_calls.EVENT_KEY.encode() not in answer.body
    assert b"127.0.0.1" not in answer.body
