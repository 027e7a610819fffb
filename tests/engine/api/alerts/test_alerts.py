"""Alerts about failed runs: to a real HTTP receiver and a real SMTP server, grouped, repeated, harmless."""

import asyncio
import contextlib
import datetime as dt
import json
import ssl
import threading
from collections.abc import AsyncIterator, Mapping
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, Session
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from msgspec.structs import replace

from durably import Alerts
from durably.engine.api.alerts.alert import (
    MAX_FUNCTIONS,
    Alert,
    FailureGroups,
    FunctionFailures,
    clip_error,
    describe,
    email_message,
    webhook_body,
)
from durably.engine.api.alerts.delivery import TIMEOUT_SECONDS, DeliveryError, Email, Webhook
from durably.engine.api.alerts.failure_alerts import FailureAlerts
from durably.engine.api.alerts.settings import AlertsInvalidError
from durably.engine.model.runs import RunStatus
from durably.engine.model.settings import SystemClock
from durably.engine.sqlite.engine import SqliteEngine

from ....waiting import async_eventually
from ...conftest import QUICK, opened, run_to_end
from ...small_app import SmallApp, Steps

ALERT = Alert((FunctionFailures("shop-pay", 3, "01RUN", "ValueError: no", 0, 1000),))


class Receiver:
    """A webhook. It answers with the next of ``statuses``, the last one again and again."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses) or [200]
        self.bodies: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        self.bodies.put_nowait(await request.json())
        return web.Response(status=status, headers={"location": "/elsewhere"} if 300 <= status < 400 else {})


@contextlib.asynccontextmanager
async def receiving(*statuses: int) -> AsyncIterator[Receiver]:
    receiver, app = Receiver(*statuses), web.Application()
    app.router.add_post("/hook", receiver.answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    try:
        yield receiver
    finally:
        await runner.cleanup()


class Mailbox:
    def __init__(self) -> None:
        self.mails: asyncio.Queue[tuple[Envelope, EmailMessage]] = asyncio.Queue()
        self.refused: set[str] = set()
        self.logins: list[tuple[bytes, bytes]] = []

    async def handle_RCPT(self, server: SMTP, session: Session, envelope: Envelope, to: str, options: list[str]) -> str:
        if to in self.refused:
            return "550 no such mailbox"
        envelope.rcpt_tos.append(to)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        assert isinstance(envelope.content, bytes)
        message = message_from_bytes(envelope.content, policy=policy.default)
        assert isinstance(message, EmailMessage)
        self.mails.put_nowait((envelope, message))
        return "250 OK"

    def log_in(self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: Any) -> AuthResult:
        self.logins.append((data.login, data.password))
        return AuthResult(success=data.password == b"se cret/", handled=False)


@contextlib.asynccontextmanager
async def mail_server(mailbox: Mailbox, tls: Mapping[str, Any] = {}, **options: Any) -> AsyncIterator[int]:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: SMTP(mailbox, authenticator=mailbox.log_in, auth_require_tls=False, **options), "127.0.0.1", 0, **tls
    )
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def soon(queue: asyncio.Queue[Any]) -> Any:
    async with asyncio.timeout(60):
        return await queue.get()


@contextlib.asynccontextmanager
async def engine_with(path: Path, alerts: Alerts, app: SmallApp) -> AsyncIterator[SqliteEngine]:
    @app.function("pay", retries=0)
    def pay(steps: Steps) -> object:
        raise ValueError("card declined <!channel> @channel at https://shop.example/pay?token=s3cret")

    async with opened(path, replace(QUICK, alerts=alerts)) as engine:
        await engine.sync_app(app.sync_request())
        yield engine


async def sent(engine: SqliteEngine) -> dict[tuple[str, ...], float]:
    (metric,) = [each for each in await engine.read_metrics() if each.name == "alerts"]
    return {each.labels: each.value for each in metric.samples}


async def test_the_first_failure_is_reported_at_once_and_further_ones_together(path: Path, app: SmallApp) -> None:
    async with receiving() as receiver:
        async with engine_with(path, Alerts(url=receiver.url, interval=dt.timedelta(hours=1)), app) as engine:
            first = await run_to_end(engine, "pay")
            body = await soon(receiver.bodies)
            assert body["text"].startswith("1 run of app-pay failed\napp-pay: 1 run failed, first at ")
            assert f"(durably runs show {first.id})" in body["text"]
            (function,) = body["alert"]["functions"]
            assert (function["function_id"], function["count"], function["run_id"]) == ("app-pay", 1, first.id)
            for _ in range(3):
                await run_to_end(engine, "pay")
        # The engine has closed, and reports what waits for the end of the hour.
        assert (await soon(receiver.bodies))["alert"]["count"] == 3
        assert receiver.bodies.empty()


async def test_further_failures_are_reported_after_the_interval(path: Path, app: SmallApp) -> None:
    interval = dt.timedelta(seconds=1)
    async with receiving() as receiver, engine_with(path, Alerts(url=receiver.url, interval=interval), app) as engine:
        for _ in range(3):
            await run_to_end(engine, "pay")
        reported, alerts = 0, 0
        while reported < 3:
            reported += (await soon(receiver.bodies))["alert"]["count"]
            alerts += 1
        counts = await async_eventually(
            lambda: sent(engine), "each alert is counted", is_right=lambda counts: counts["webhook", "sent"] >= alerts
        )
        assert counts == {("webhook", "sent"): alerts, ("webhook", "failed"): 0}


async def test_markup_and_secrets_of_errors_are_not_sent(path: Path, app: SmallApp) -> None:
    async with receiving() as receiver, engine_with(path, Alerts(url=receiver.url), app) as engine:
        await run_to_end(engine, "pay")
        body = await soon(receiver.bodies)
    assert "&lt;!channel&gt;" in body["text"]
    assert "<!channel>" not in body["text"]
    assert "@\u200bchannel" in body["text"]
    assert "@channel" not in body["text"]
    assert "s3cret" not in json.dumps(body)


async def test_an_alert_by_email_arrives(path: Path, app: SmallApp) -> None:
    mailbox = Mailbox()
    async with mail_server(mailbox) as port:
        alerts = Alerts(
            emails=("ops@shop.example", "dev@shop.example"), smtp_url=f"smtp://me:se%20cret%2F@localhost:{port}"
        )
        async with engine_with(path, alerts, app) as engine:
            await run_to_end(engine, "pay")
            envelope, message = await soon(mailbox.mails)
    assert mailbox.logins == [(b"me", b"se cret/")]
    assert envelope.mail_from == "ops@shop.example"
    assert envelope.rcpt_tos == ["ops@shop.example", "dev@shop.example"]
    assert message["subject"] == "1 run of app-pay failed"
    assert message["auto-submitted"] == "auto-generated"
    assert "ValueError: card declined" in message.get_content()


async def test_a_failed_delivery_is_repeated(path: Path, app: SmallApp, caplog: pytest.LogCaptureFixture) -> None:
    async with receiving(500, 200) as receiver, engine_with(path, Alerts(url=receiver.url), app) as engine:
        run = await run_to_end(engine, "pay")
        assert run.status is RunStatus.FAILED
        first, second = await soon(receiver.bodies), await soon(receiver.bodies)
    assert first == second
    assert "answered with status 500; trying again in 1.0 s" in caplog.text
    assert "the webhook at http://127.0.0.1 answered" in caplog.text
    assert "/hook" not in caplog.text


@pytest.mark.slow
async def test_a_mail_server_that_hangs_does_not_delay_the_webhook(path: Path, app: SmallApp) -> None:
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(60)

    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    smtp_url = f"smtp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with receiving() as receiver:
        options = {"emails": ("ops@example.com",), "smtp_url": smtp_url, "interval": dt.timedelta(seconds=1)}
        async with engine_with(path, Alerts(url=receiver.url, **options), app) as engine:  # type: ignore[arg-type]
            await run_to_end(engine, "pay")
            await soon(receiver.bodies)
            await run_to_end(engine, "pay")
            async with asyncio.timeout(TIMEOUT_SECONDS + 5):  # Two messages are 10 s apart.
                await receiver.bodies.get()
    server.close()


@pytest.mark.parametrize("status", [302, 404])
async def test_redirect_or_error_counts_as_failed_delivery(status: int) -> None:
    async with receiving(status) as receiver:
        with pytest.raises(DeliveryError, match=f"answered with status {status}"):
            await Webhook(receiver.url).deliver(ALERT)
        assert receiver.bodies.qsize() == 1


async def test_a_lost_alert_is_logged_without_the_secrets_of_the_url(caplog: pytest.LogCaptureFixture) -> None:
    url = "http://user:hunter2@127.0.0.1:9/services/T0AbCdEfGhIj1234567890?token=s3cret"
    alerts = FailureAlerts(Webhook(url), 1000, SystemClock(), retry_seconds=())
    await alerts._deliver(ALERT)
    assert "an alert about 3 failed runs was lost: the webhook at http://" in caplog.text
    for secret in ("hunter2", "s3cret", "T0AbCdEfGhIj1234567890"):
        assert secret not in caplog.text
    assert [(each.labels, each.value) for each in alerts.read()] == [
        (("webhook", "sent"), 0),
        (("webhook", "failed"), 1),
    ]


async def test_refused_recipients_and_passwords_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    mailbox = Mailbox()
    mailbox.refused = {"gone@shop.example"}
    async with mail_server(mailbox) as port:
        emails = ("ops@shop.example", "gone@shop.example")
        some = Alerts(emails=emails, smtp_url=f"smtp://127.0.0.1:{port}")
        with pytest.raises(DeliveryError, match=r"refused 1 of the recipients: gone@shop\.example"):
            await Email(some.mail_server, emails[0], emails).deliver(ALERT)
        wrong = Alerts(emails=emails, smtp_url=f"smtp://me:wr0ng@127.0.0.1:{port}")
        with pytest.raises(DeliveryError, match="status 535") as refused:
            await Email(wrong.mail_server, emails[0], emails).deliver(ALERT)
    assert "wr0ng" not in str(refused.value)


async def test_a_mail_server_that_hangs_does_not_hold_back_the_end_of_the_engine(
    path: Path, app: SmallApp, caplog: pytest.LogCaptureFixture
) -> None:
    connected, may_end = asyncio.Event(), asyncio.Event()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        await may_end.wait()
        writer.close()

    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        alerts = Alerts(emails=("ops@shop.example",), smtp_url=f"smtp://127.0.0.1:{port}")
        async with engine_with(path, alerts, app) as engine:
            await run_to_end(engine, "pay")
            await connected.wait()
        (thread,) = [thread for thread in threading.enumerate() if thread.name == "durably-alert"]
        assert thread.daemon
        assert "the engine has closed before its last alert about failed runs was delivered" in caplog.text
        may_end.set()
        await asyncio.to_thread(thread.join)


@pytest.fixture
def certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A server's certificate for ``localhost`` and ``127.1``, which this process trusts."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = dt.datetime.now(dt.UTC)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.DNSName("127.1")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path / "server.pem"
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    file.write_bytes(private + signed.public_bytes(Encoding.PEM))
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context


@pytest.mark.parametrize("scheme", ["smtps", "smtp"])
async def test_mail_goes_over_tls(scheme: str, certificate: ssl.SSLContext) -> None:
    """By TLS from the start, and by STARTTLS."""
    mailbox = Mailbox()
    tls = {"ssl": certificate} if scheme == "smtps" else {}
    starttls = {"tls_context": certificate, "require_starttls": True} if scheme == "smtp" else {}
    async with mail_server(mailbox, tls, **starttls) as port:
        host = "localhost" if scheme == "smtps" else "127.1"
        alerts = Alerts(emails=("ops@shop.example",), smtp_url=f"{scheme}://me:se%20cret%2F@{host}:{port}")
        await Email(alerts.mail_server, "ops@shop.example", alerts.emails).deliver(ALERT)
    assert mailbox.logins == [(b"me", b"se cret/")]
    assert mailbox.mails.qsize() == 1


@pytest.mark.parametrize("scheme", ["smtps", "smtp"])
async def test_an_unknown_certificate_is_refused(
    scheme: str, certificate: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    mailbox = Mailbox()
    tls = {"ssl": certificate} if scheme == "smtps" else {}
    starttls = {"tls_context": certificate} if scheme == "smtp" else {}
    async with mail_server(mailbox, tls, **starttls) as port:
        alerts = Alerts(emails=("ops@shop.example",), smtp_url=f"{scheme}://me:s3cret@127.1:{port}")
        with pytest.raises(DeliveryError, match="was not reached"):
            await Email(alerts.mail_server, "ops@shop.example", alerts.emails).deliver(ALERT)
    assert (mailbox.logins, mailbox.mails.qsize()) == ([], 0)


async def test_a_password_is_not_sent_without_tls_to_another_machine() -> None:
    mailbox = Mailbox()
    async with mail_server(mailbox) as port:
        alerts = Alerts(emails=("ops@shop.example",), smtp_url=f"smtp://me:s3cret@127.1:{port}")
        assert not alerts.mail_server.is_local, "an unusual spelling is not taken for this machine"
        with pytest.raises(DeliveryError, match="offers no TLS"):
            await Email(alerts.mail_server, "ops@shop.example", alerts.emails).deliver(ALERT)
    assert mailbox.logins == []


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({}, "need a webhook's URL"),
        ({"url": "hooks.example.com/s3cret"}, "must be an absolute URL"),
        ({"url": "ftp://hooks.example.com/s3cret"}, "must be an absolute URL"),
        ({"emails": ("ops@shop.example",)}, "need the URL of an SMTP server"),
        ({"emails": ("ops",), "smtp_url": "smtp://localhost"}, "'ops' is not an e-mail address"),
        ({"emails": ("a@b\r\nBcc: x@y.example",), "smtp_url": "smtp://localhost"}, "is not an e-mail address"),
        ({"emails": ("ops@shop.example",), "smtp_url": "https://s3cret@mail"}, "smtp or smtps"),
        ({"url": "https://hooks.example.com", "smtp_url": "smtp://localhost"}, "no e-mail address to send to"),
        ({"url": "https://hooks.example.com", "interval": dt.timedelta(0)}, "1 s or more"),
    ],
)
def test_wrong_settings_are_errors(options: dict[str, Any], pattern: str) -> None:
    with pytest.raises(AlertsInvalidError, match=pattern) as raised:
        Alerts(**options)
    assert "s3cret" not in str(raised.value)


def test_settings_do_not_show_secrets() -> None:
    alerts = Alerts(url="https://hooks.example.com/s3cret", emails=("a@b.c",), smtp_url="smtp://u:s3cret@mail.example")
    assert "s3cret" not in repr(alerts)
    assert "s3cret" not in repr(alerts.mail_server)


# grouping


def test_failures_are_grouped_by_function_and_alerts_are_spaced() -> None:
    groups = FailureGroups(interval=900_000)
    groups.add("a", "run-1", "E: 1", 1000)
    assert groups.next_at() == 0
    alert = groups.take(1000)
    assert alert is not None
    assert [each.function_id for each in alert.failures] == ["a"]
    groups.add("a", "run-2", "E: 2", 2000)
    groups.add("a", "run-3", "E: 3", 3000)
    assert groups.next_at() == 901_000
    groups.add("b", "run-4", "E: 4", 4000)
    assert groups.next_at() == 11_000, "another function's first failure, 10 s after the last alert"
    assert groups.take(10_999) is None
    assert groups.take(11_000) == Alert((FunctionFailures("b", 1, "run-4", "E: 4", 4000, 4000),))
    assert groups.take(901_000) == Alert((FunctionFailures("a", 2, "run-2", "E: 2", 2000, 3000),))
    assert groups.next_at() is None


def test_groups_are_bounded_and_count_the_rest() -> None:
    groups = FailureGroups(interval=900_000)
    for number in range(5 * MAX_FUNCTIONS):
        groups.add(f"f{number}", "run", "E", 1)
    assert not groups.wants_error("another")
    alert = groups.take(1)
    assert alert is not None
    assert (len(alert.failures), alert.others, alert.count) == (MAX_FUNCTIONS, 4 * MAX_FUNCTIONS, 5 * MAX_FUNCTIONS)
    assert describe(alert).endswith(f"and {5 * MAX_FUNCTIONS - 20} runs of other functions")
    for number in range(50 * MAX_FUNCTIONS):
        groups.add(f"g{number}", "run", "E", number)
        groups.take(number * 10_000)
    assert len(groups._quiet_until) <= 11 * MAX_FUNCTIONS


def test_hostile_names_and_long_errors_stay_in_their_places() -> None:
    error = clip_error("Error: " + "\x1b[31m\n" + "x" * 5_000_000)
    assert len(error) <= 300
    assert error.isprintable()
    alert = Alert((FunctionFailures("shop\r\nBcc: all@shop.example", 1, "01R", error, 0, 0),))
    message = email_message(alert, "a@b.example", ("c@d.example",))
    assert message["bcc"] is None
    assert "\n" not in message["subject"]
    assert json.loads(webhook_body(alert))["alert"]["functions"][0]["function_id"].startswith("shop")


def test_alerts_link_to_the_pages_of_runs() -> None:
    alert = Alert((FunctionFailures("shop-pay", 2, "01R", "ValueError: no", 0, 0),))
    body = json.loads(webhook_body(alert, "https://durably.example.com/"))
    assert body["alert"]["functions"][0]["url"] == "https://durably.example.com/runs/01R"
    assert body["text"].endswith("(https://durably.example.com/runs/01R)")
    assert describe(alert).endswith("(durably runs show 01R)")
    message = email_message(alert, "a@b.example", ("c@d.example",), "https://durably.example.com")
    assert "https://durably.example.com/runs/01R" in message.get_content()


@pytest.mark.parametrize("url", ["durably.example.com", "javascript:alert(1)", "https://"])
def test_an_invalid_url_of_the_dashboard_is_refused(url: str) -> None:
    with pytest.raises(AlertsInvalidError, match="the dashboard's URL"):
        Alerts(url="https://hooks.example.com/x", dashboard_url=url)
