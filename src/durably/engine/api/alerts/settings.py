"""``Alerts``, the setting: who gets alerts, by which channel, and how often."""

import datetime as dt
import ipaddress
from email.utils import parseaddr
from urllib.parse import SplitResult, unquote, urlsplit

import msgspec

from durably.protocol.options import check_text, check_texts, check_type

DEFAULT_INTERVAL = dt.timedelta(minutes=15)
_SHORTEST_INTERVAL = dt.timedelta(seconds=1)
_SMTP_PORTS = {"smtp": 587, "smtps": 465}


class AlertsInvalidError(ValueError):
    """A setting of alerts is wrong, or one is missing."""


class MailServer(msgspec.Struct, frozen=True):
    """An SMTP server.

    ``is_tls``: TLS from the first byte, otherwise by STARTTLS if the server offers it.
    """

    host: str
    port: int
    is_tls: bool
    user: str | None
    password: str | None

    @property
    def is_local(self) -> bool:
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __repr__(self) -> str:
        """Without user and password."""
        return f"MailServer({self.host!r}, {self.port})"


class Alerts(msgspec.Struct, frozen=True, kw_only=True):
    """Alerts about runs that have finally failed.

    Give them to the engine: ``EngineSettings(alerts=Alerts(url=…))``.

    The first failure of a function is reported at once. Further ones are counted, and reported together after
    ``interval``. A message is sent at most every 10 s.

    - ``url``: a webhook that gets a POST with JSON: ``text``, as Slack and similar show it, and ``alert``.
    - ``emails``: addresses that get the same by e-mail.
    - ``smtp_url``: the server for e-mail, such as ``smtp://user:password@smtp.example.com:587`` or ``smtps://…``.
    - ``email_from``: the sender of e-mails; by default the first address of ``emails``.
    - ``interval``: the time between two reports of one function.
    - ``dashboard_url``: the address of the dashboard's overview as users reach it. Alerts then link to pages of runs.

    The URLs are the operator's, so they may have private addresses. Redirects are not followed. Raises
    ``AlertsInvalidError``, and ``TypeError`` for a value of another type.
    """

    url: str | None = None
    emails: tuple[str, ...] = ()
    smtp_url: str | None = None
    email_from: str | None = None
    interval: dt.timedelta = DEFAULT_INTERVAL
    dashboard_url: str | None = None

    def __post_init__(self) -> None:
        check_texts(self.emails, "Alerts.emails", '("ops@example.com",)')
        check_type(
            self.interval, "Alerts.interval", dt.timedelta, "a datetime.timedelta, such as timedelta(minutes=15)"
        )
        for name in ("url", "smtp_url", "email_from", "dashboard_url"):
            check_text(getattr(self, name), f"Alerts.{name}")
        if not self.emails and (self.smtp_url is not None or self.email_from is not None):
            raise AlertsInvalidError("alerts have an SMTP server or a sender, and no e-mail address to send to")
        if self.url is None and not self.emails:
            raise AlertsInvalidError("alerts need a webhook's URL, or the addresses of e-mails")
        if self.url is not None:
            _check_webhook(self.url)
        if self.dashboard_url is not None:
            _split(self.dashboard_url, "the dashboard's URL", "https://durably.example.com", ("http", "https"))
        for address in (*self.emails, *([] if self.email_from is None else [self.email_from])):
            _check_address(address)
        if self.emails and self.smtp_url is None:
            raise AlertsInvalidError("alerts by e-mail need the URL of an SMTP server, such as smtp://localhost:25")
        if self.smtp_url is not None:
            _ = self.mail_server
        if self.interval < _SHORTEST_INTERVAL:
            raise AlertsInvalidError(f"the interval of alerts must be 1 s or more, not {self.interval}")

    @property
    def mail_server(self) -> MailServer:
        assert self.smtp_url is not None
        parts = _split(self.smtp_url, "the URL of the SMTP server", "smtp://localhost:25", tuple(_SMTP_PORTS))
        assert parts.hostname is not None
        return MailServer(
            parts.hostname,
            parts.port or _SMTP_PORTS[parts.scheme],
            parts.scheme == "smtps",
            None if parts.username is None else unquote(parts.username),
            None if parts.password is None else unquote(parts.password),
        )

    def __repr__(self) -> str:
        """Without URLs: they hold tokens and passwords."""
        return f"Alerts(has_url={self.url is not None}, emails={len(self.emails)})"


def _check_webhook(url: str) -> None:
    _split(url, "the webhook's URL", "https://hooks.example.com/…", ("http", "https"))


def _split(url: str, what: str, example: str, schemes: tuple[str, ...]) -> SplitResult:
    """The parts of a URL. The error does not quote it, because it holds secrets."""
    try:
        parts = urlsplit(url)
        if parts.scheme in schemes and parts.hostname and parts.port != 0 and url.isprintable() and " " not in url:
            return parts
    except ValueError:
        pass
    raise AlertsInvalidError(f"{what} for alerts must be an absolute URL like {example} ({' or '.join(schemes)})")


def _check_address(address: str) -> None:
    _, plain = parseaddr(address)
    local, _, host = plain.rpartition("@")
    if not (local and host and address.isprintable()):
        raise AlertsInvalidError(f"{address!r} is not an e-mail address")
