"""Alerts of failed runs: their times, and their messages. Pure.

Failures of functions are grouped into few alerts. Messages are JSON for webhooks, and e-mails. Times are in
milliseconds.
"""

from email.message import EmailMessage
from typing import Any, Final

import msgspec

from durably.engine.model.runs import to_datetime
from durably.protocol.text import printable, redact_urls

SPACING_MILLISECONDS: Final = 10_000
"""Minimum time between two messages, whatever the number of failing functions."""
MAX_FUNCTIONS: Final = 100
"""Maximum number of functions that one alert names. Failures of others are counted together."""
_MOST_CHARACTERS = 300
_MOST_SHOWN = 20
"""Maximum number of functions in the message; the JSON has all."""
_MARKUP = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "@": "@\u200b"})
"""Slack notifies everyone for ``<!channel>``, Mattermost for ``@channel``. A zero-width space prevents it."""


class FunctionFailures(msgspec.Struct, frozen=True):
    """Failed runs of one function. ``run_id`` and ``error`` are those of the first."""

    function_id: str
    count: int
    run_id: str
    error: str
    first_at: int
    last_at: int


class Alert(msgspec.Struct, frozen=True):
    """Failures that are reported together.

    ``others`` is the number of failed runs of functions that it does not name.
    """

    failures: tuple[FunctionFailures, ...]
    others: int = 0

    @property
    def count(self) -> int:
        return sum(each.count for each in self.failures) + self.others


class FailureGroups:
    """Collects failures until they are to be reported.

    A function's first failure is to be reported at once, and further ones ``interval`` after the last report of the
    function. ``spacing`` is the minimum time between two alerts. It keeps at most ``MAX_FUNCTIONS`` functions.
    """

    def __init__(self, interval: int, spacing: int = SPACING_MILLISECONDS) -> None:
        self._interval = interval
        self._spacing = min(spacing, interval)
        self._waiting: dict[str, FunctionFailures] = {}
        self._quiet_until: dict[str, int] = {}
        self._others = 0
        self._may_send_at = 0

    def wants_error(self, function_id: str) -> bool:
        """Whether ``add`` uses the error of a failure, which is the first of its group."""
        return function_id not in self._waiting and len(self._waiting) < MAX_FUNCTIONS

    def add(self, function_id: str, run_id: str, error: str, at: int) -> None:
        known = self._waiting.get(function_id)
        if known is not None:
            self._waiting[function_id] = msgspec.structs.replace(known, count=known.count + 1, last_at=at)
        elif len(self._waiting) < MAX_FUNCTIONS:
            self._waiting[function_id] = FunctionFailures(function_id, 1, run_id, error, at, at)
        else:
            self._others += 1

    def next_at(self) -> int | None:
        """The time of the next alert; ``None`` if there is nothing to report."""
        if not self._waiting:
            return None
        return max(self._may_send_at, min(self._quiet_until.get(function_id, 0) for function_id in self._waiting))

    def take(self, now: int) -> Alert | None:
        """The failures to report now; ``None`` if there are none."""
        next_at = self.next_at()
        return None if next_at is None or next_at > now else self._take(now, everything=False)

    def take_all(self, now: int) -> Alert | None:
        """All failures that are not yet reported, at the end."""
        return self._take(now, everything=True) if self._waiting else None

    def _take(self, now: int, *, everything: bool) -> Alert:
        due = [each for name, each in self._waiting.items() if everything or self._quiet_until.get(name, 0) <= now]
        for each in due:
            del self._waiting[each.function_id]
        self._quiet_until = {name: until for name, until in self._quiet_until.items() if until > now}
        if len(self._quiet_until) < 10 * MAX_FUNCTIONS:  # Without an entry, a failure is reported at once.
            self._quiet_until.update({each.function_id: now + self._interval for each in due})
        others, self._others = self._others, 0
        self._may_send_at = now + self._spacing
        return Alert(tuple(due), others)


# messages


def clip_error(error: str) -> str:
    """An error in one short printable line, without the secrets of URLs."""
    text = redact_urls(" ".join(error[: 4 * _MOST_CHARACTERS].split()))
    return text if len(text) <= _MOST_CHARACTERS else text[: _MOST_CHARACTERS - 1] + "…"


def webhook_body(alert: Alert, dashboard_url: str | None = None) -> bytes:
    """``{"text", "alert": {"kind", "count", "functions", "others"}}``.

    ``dashboard_url`` gives each function the ``url`` of its run's page. ``text`` is the field that Slack, Mattermost
    and Teams show. Times are RFC 3339.
    """
    functions = [
        {
            "function_id": each.function_id,
            "count": each.count,
            "run_id": each.run_id,
            **({} if dashboard_url is None else {"url": _page_of(each.run_id, dashboard_url)}),
            "error": each.error,
            "first_at": to_datetime(each.first_at),
            "last_at": to_datetime(each.last_at),
        }
        for each in alert.failures
    ]
    details: dict[str, Any] = {"kind": "runs_failed", "count": alert.count, "functions": functions}
    body = {"text": describe(alert, dashboard_url).translate(_MARKUP), "alert": details | {"others": alert.others}}
    return msgspec.json.encode(body)


def email_message(
    alert: Alert, sender: str, recipients: tuple[str, ...], dashboard_url: str | None = None
) -> EmailMessage:
    message = EmailMessage()
    message["Subject"] = printable(_headline(alert))[:200]
    message["From"] = sender
    message["To"] = ", ".join(recipients)
    message["Date"] = to_datetime(max((each.last_at for each in alert.failures), default=0))
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no out-of-office answers
    message.set_content(describe(alert, dashboard_url) + "\n")
    return message


def describe(alert: Alert, dashboard_url: str | None = None) -> str:
    """The alert as lines of a message."""
    shown, hidden = alert.failures[:_MOST_SHOWN], alert.failures[_MOST_SHOWN:]
    lines = [_headline(alert), *(_describe_failures(each, dashboard_url) for each in shown)]
    others = sum(each.count for each in hidden) + alert.others
    if others:
        lines.append(f"and {_runs(others)} of other functions")
    return "\n".join(lines)


def _headline(alert: Alert) -> str:
    names = [printable(each.function_id) for each in alert.failures]
    where = names[0] if len(names) == 1 else f"{len(names)} functions"
    if alert.others:
        where += " and others"
    return f"{_runs(alert.count)} of {where} failed"


def _describe_failures(each: FunctionFailures, dashboard_url: str | None) -> str:
    """``shop-fulfil: 3 failed runs since 12:00:01 UTC, first 01J…: ValueError: …``."""
    since = to_datetime(each.first_at).strftime("%Y-%m-%d %H:%M:%S UTC")
    name = printable(each.function_id)
    where = f"durably runs show {each.run_id}" if dashboard_url is None else _page_of(each.run_id, dashboard_url)
    return f"{name}: {_runs(each.count)} failed, first at {since}: {each.error} ({where})"


def _page_of(run_id: str, dashboard_url: str) -> str:
    return f"{dashboard_url.rstrip('/')}/runs/{run_id}"


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"
