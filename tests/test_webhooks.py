"""Sources of webhooks: the examples in the documents of the services, secrets, and the page of the docs.

``tests/frameworks/test_webhooks.py`` has the endpoint in each framework.
"""

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import urllib3

import durably
from durably.comm import CommRequest
from durably.errors import FunctionConfigInvalidError, SignatureError
from durably.protocol.limits import MAX_EVENT_BYTES
from durably.webhooks import GitHub, Receiver, Slack, Source, StandardWebhooks, Stripe, mount_webhook

from .docs.pages import ROOT, blocks
from .frameworks.webhooks import SECRET, payload_of, signed
from .ports import listening_socket
from .waiting import eventually

SLACK_BODY = (
    b"token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id=G8PSS9T3V&"
    b"channel_name=foobar&user_id=U2CERLKJA&user_name=roadrunner&command=%2Fwebhook-collect&text=&"
    b"response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN&"
    b"trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c"
)
EXAMPLES: list[tuple[Source, dict[str, str], bytes, float]] = [
    (  # https://docs.github.com/webhooks/using-webhooks/validating-webhook-deliveries
        GitHub("It's a Secret to Everybody"),
        {"x-hub-signature-256": "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"},
        b"Hello, World!",
        0,
    ),
    (  # https://docs.slack.dev/authentication/verifying-requests-from-slack
        Slack("8f742231b10e8888abcd99yyyzzz85a5"),
        {
            "x-slack-signature": "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503",
            "x-slack-request-timestamp": "1531420618",
        },
        SLACK_BODY,
        1531420618,
    ),
    (  # https://docs.svix.com/receiving/verifying-payloads/how-manual
        StandardWebhooks("whsec_plJ3nmyCDGBKInavdOK15jsl", name="svix"),
        {
            "svix-id": "msg_loFOjxBNrRLzqYUf",
            "svix-timestamp": "1731705121",
            "svix-signature": "v1,rAvfW3dJ/X/qxhsaXPOyyCGmRKsaKWcsNccKXlIktD0=",
        },
        b'{"event_type":"ping","data":{"success":true}}',
        1731705121,
    ),
    (  # https://github.com/standard-webhooks/standard-webhooks, its libraries
        StandardWebhooks("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", name="standard"),
        {
            "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
            "webhook-timestamp": "1614265330",
            "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
        },
        b'{"test": 2432232314}',
        1614265330,
    ),
]


@pytest.mark.parametrize(("source", "headers", "body", "now"), EXAMPLES, ids=lambda value: getattr(value, "name", ""))
def test_the_example_of_the_service_is_verified(source: Source, headers: dict[str, str], body: bytes, now: int) -> None:
    source.verify(headers, body, now)
    with pytest.raises(SignatureError):
        source.verify(headers, body + b"\n", now)


def test_a_signature_of_slack_has_one_form() -> None:
    """The id of a command's event is a hash of it."""
    source, headers, body, now = EXAMPLES[1]
    signature = headers["x-slack-signature"]
    for form in (signature.removeprefix("v0="), signature.replace("v0", "v1"), "v0=" + signature):
        with pytest.raises(SignatureError, match="does not match"):
            source.verify(headers | {"x-slack-signature": form}, body, now)


@pytest.mark.parametrize("kind", [Stripe, GitHub, Slack, functools.partial(StandardWebhooks, name="svix")])
@pytest.mark.parametrize("secrets", [(), ("",), (" ",), (None,), ("whsec_",), ("right", ""), ("right", " whsec_ ")])
def test_a_missing_secret_is_refused(kind: Callable[..., Source], secrets: tuple[str, ...]) -> None:
    with pytest.raises(FunctionConfigInvalidError, match=r"durably\.webhooks\.\w+ needs the secret"):
        kind(*secrets)


def test_a_malformed_secret_is_refused_and_not_shown() -> None:
    with pytest.raises(FunctionConfigInvalidError, match="malformed") as caught:
        StandardWebhooks("whsec_no base64!", name="clerk")
    assert "no base64" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert SECRET not in repr(Stripe(SECRET)) + repr(vars(Stripe))


def test_a_wrong_mount_is_refused() -> None:
    client = durably.Client(app_id="shop", is_production=False)
    with pytest.raises(FunctionConfigInvalidError, match="takes a source"):
        mount_webhook(client, SECRET, None, "webhook")  # type: ignore[arg-type]
    with pytest.raises(FunctionConfigInvalidError, match="path"):
        mount_webhook(client, Stripe(SECRET), "https://example.com/x", "webhook")
    with pytest.raises(FunctionConfigInvalidError, match="name"):
        Stripe(SECRET, name="a b")


async def test_a_webhook_beyond_the_limit_of_events_is_413_unless_a_source_selects_its_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("GITHUB_WEBHOOK_SECRET", SECRET)
    [code] = [block.text for block in blocks(ROOT / "docs/how-to/receive-webhooks.md") if "SmallPushes" in block.text]
    names: dict[str, Any] = {}
    exec(code, names)
    engine = durably.Embedded(tmp_path / "durably.db")
    client = durably.Client(app_id="shop", engine=engine, is_production=False)
    body = b'{"ref": "main", "commits": "%b"}' % (b"x" * MAX_EVENT_BYTES)
    headers = {name.lower(): value for name, value in signed("github", body).items()}
    request = CommRequest(body=body, headers=headers, query_params={}, raw_request=None, request_url="")
    await engine.start()
    try:
        answers = [
            await Receiver(client, source).handle("POST", request) for source in (GitHub(SECRET), names["source"])
        ]
    finally:
        await engine.stop()
    assert [answer.status_code for answer in answers] == [413, 200]
    assert "max_event_bytes" in caplog.text


def test_the_app_of_the_docs_starts_one_run_for_a_webhook_that_arrives_twice(tmp_path: Path) -> None:
    [code] = [block.text for block in blocks(ROOT / "docs/how-to/receive-webhooks.md") if "# main.py" in block.text]
    (tmp_path / "main.py").write_text(code)
    body, _, _ = payload_of("stripe")
    body = body.replace(b"customer.created", b"checkout.session.completed")
    body = body.replace(b'"n": 1.0', b'"object": {"customer": "cus_1"}')
    with listening_socket() as (listener, origin):
        command = [sys.executable, "-m", "uvicorn", "main:app", "--fd", str(listener.fileno())]
        environ = {**os.environ, "DURABLY_DEV": "1", "STRIPE_WEBHOOK_SECRET": SECRET}
        with subprocess.Popen(command, cwd=tmp_path, env=environ, pass_fds=[listener.fileno()]) as server:
            try:
                for _ in range(2):
                    url = f"{origin}/webhooks/stripe"
                    assert (
                        urllib3.request("POST", url, body=body, headers=signed("stripe", body), timeout=60).status
                        == 200
                    )
                engine = durably.Embedded(tmp_path / "durably.db")
                engine.start_sync()
                client = durably.Client(app_id="shop", engine=engine, is_production=False)
                [run] = eventually(
                    client.runs_sync, "the run has ended", is_right=lambda runs: runs and runs[0].status.has_ended
                )
                assert (run.function_id, client.run(run.id).result_sync()) == ("shop-ship", "a label for cus_1")
                engine.stop_sync()
            finally:
                server.terminate()
