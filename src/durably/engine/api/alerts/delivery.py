"""Delivery of alerts to a webhook or to an SMTP server."""

import asyncio
import contextlib
import smtplib
import ssl
import threading
from typing import Protocol
from urllib.parse import urlsplit

import aiohttp

from durably.protocol.text import describe_os_error, printable

from .alert import Alert, email_message, webhook_body
from .settings import Alerts, MailServer

TIMEOUT_SECONDS = 10.0


class DeliveryError(Exception):
    """An alert could not be delivered. The error contains no secrets."""


class Channel(Protocol):
    """A way to deliver alerts. ``name`` is a metric's label."""

    name: str

    async def deliver(self, alert: Alert) -> None:
        """Deliver an alert. Raises ``DeliveryError``."""
        ...


def channels_of(alerts: Alerts) -> list[Channel]:
    channels: list[Channel] = []
    if alerts.url is not None:
        channels.append(Webhook(alerts.url, alerts.dashboard_url))
    if alerts.emails:
        sender = alerts.email_from or alerts.emails[0]
        channels.append(Email(alerts.mail_server, sender, alerts.emails, alerts.dashboard_url))
    return channels


class Webhook:
    name = "webhook"

    def __init__(self, url: str, dashboard_url: str | None = None) -> None:
        self._url, self._dashboard_url = url, dashboard_url
        parts = urlsplit(url)
        # Paths and queries of webhooks are their keys.
        self._where = f"the webhook at {parts.scheme}://{parts.hostname}"

    async def deliver(self, alert: Alert) -> None:
        """POST the alert as JSON.

        Any status but 2xx is an error, and redirects are not followed.
        """
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
        headers = {"content-type": "application/json", "user-agent": "durably"}
        body = webhook_body(alert, self._dashboard_url)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout, auto_decompress=False) as session,
                session.post(self._url, data=body, headers=headers, allow_redirects=False) as response,
            ):
                status = response.status
        except TimeoutError:
            raise DeliveryError(f"{self._where} did not answer within {TIMEOUT_SECONDS:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            # Not chained: the messages of these exceptions quote the URL.
            raise DeliveryError(f"{self._where} was not reached: {type(error).__name__}") from None
        if not 200 <= status < 300:
            raise DeliveryError(f"{self._where} answered with status {status}")


def _resolve(sent: asyncio.Future[None], error: Exception | None) -> None:
    if sent.done():
        return
    if error is None:
        sent.set_result(None)
    else:
        sent.set_exception(error)


class Email:
    name = "email"

    def __init__(
        self, server: MailServer, sender: str, recipients: tuple[str, ...], dashboard_url: str | None = None
    ) -> None:
        self._server, self._sender, self._recipients = server, sender, recipients
        self._dashboard_url = dashboard_url

    async def deliver(self, alert: Alert) -> None:
        """Send an e-mail in a thread of its own.

        The end of the process does not wait for it, because a server may hang.
        """
        loop = asyncio.get_running_loop()
        sent: asyncio.Future[None] = loop.create_future()

        def send() -> None:
            error: Exception | None = None
            try:
                self._send(alert)
            except Exception as raised:
                error = raised
            with contextlib.suppress(RuntimeError):  # The loop has been closed.
                loop.call_soon_threadsafe(_resolve, sent, error)

        threading.Thread(target=send, name="durably-alert", daemon=True).start()
        await sent

    def _send(self, alert: Alert) -> None:
        server = self._server
        where = f"the SMTP server {server.host}:{server.port}"
        try:
            with self._connect() as smtp:
                if server.user is not None:
                    smtp.login(server.user, server.password or "")
                message = email_message(alert, self._sender, self._recipients, self._dashboard_url)
                refused = smtp.send_message(message)
        except smtplib.SMTPResponseException as error:
            raise DeliveryError(f"{where} answered with status {error.smtp_code}") from None
        except smtplib.SMTPException as error:
            raise DeliveryError(f"{where} refused the alert: {type(error).__name__}") from None
        except OSError as error:
            raise DeliveryError(f"{where} was not reached: {describe_os_error(error)}") from None
        if refused:
            raise DeliveryError(f"{where} refused {len(refused)} of the recipients: {printable(', '.join(refused))}")

    def _connect(self) -> smtplib.SMTP:
        """A connection, with TLS if the server offers it.

        A password is sent without TLS only to this machine. Raises ``DeliveryError``, ``OSError``,
        ``smtplib.SMTPException``.
        """
        server = self._server
        context = ssl.create_default_context()
        if server.is_tls:
            return smtplib.SMTP_SSL(server.host, server.port, timeout=TIMEOUT_SECONDS, context=context)
        smtp = smtplib.SMTP(server.host, server.port, timeout=TIMEOUT_SECONDS)
        try:
            smtp.ehlo()
            if smtp.has_extn("starttls") and not server.is_local:
                smtp.starttls(context=context)
                smtp.ehlo()
            elif server.user is not None and not server.is_local:
                raise DeliveryError(
                    f"the SMTP server {server.host}:{server.port} offers no TLS, so it does not get the password: use "
                    "smtps://, or a server with STARTTLS"
                )
        except BaseException:
            smtp.close()
            raise
        return smtp
