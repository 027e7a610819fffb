"""The texts of alerts: JSON for webhooks, and e-mails. Pure."""

from email.message import EmailMessage
from typing import Any

import msgspec

from durably.engine.views import to_datetime
from durably.protocol.text import printable, redact_urls

from .grouping import Alert, FunctionFailures

_MOST_CHARACTERS = 300
_MOST_SHOWN = 20
"""Functions in the text; the JSON has all."""
_MARKUP = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "@": "@\u200b"})
"""Slack calls everyone by ``<!channel>``, Mattermost by ``@channel``, which a space without width breaks."""


def clip_error(error: str) -> str:
    """An error in one short printable line, without the secrets of URLs."""
    text = redact_urls(" ".join(error[: 4 * _MOST_CHARACTERS].split()))
    return text if len(text) <= _MOST_CHARACTERS else text[: _MOST_CHARACTERS - 1] + "…"


def webhook_body(alert: Alert, dashboard_url: str | None = None) -> bytes:
    """``{"text", "alert": {"kind", "count", "functions", "others"}}``.

    ``dashboard_url`` gives each function the ``url`` of its run's page. ``text`` is what Slack, Mattermost and Teams
    show. Times are RFC 3339.
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
    """The alert in lines of text."""
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
