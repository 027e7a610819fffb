"""The function of ``how-to/monitor.md`` that reports failed runs, as it is printed."""

import datetime
from email.message import EmailMessage
from types import TracebackType
from typing import Any, Self

import pytest

import durably
from durably.testing import TestEngine

from .pages import DOCS, blocks


class MailServer:
    """Stands for ``smtplib.SMTP``."""

    def __init__(self, host: str) -> None:
        assert host == "mail.example.com"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def send_message(self, mail: EmailMessage) -> None:
        SENT.append(mail)


SENT: list[EmailMessage] = []


def test_a_failed_run_is_reported_by_mail(monkeypatch: pytest.MonkeyPatch) -> None:
    [code] = [block.text for block in blocks(DOCS / "how-to" / "monitor.md") if "report-failure" in block.text]
    client = durably.Client(app_id="shop")

    @client.create_function(fn_id="pay", trigger=durably.TriggerEvent(event="pay"), retries=0)
    def pay(ctx: durably.ContextSync) -> None:
        raise ValueError("declined")

    names: dict[str, Any] = {"client": client, "datetime": datetime}
    exec(code, names)
    monkeypatch.setattr("smtplib.SMTP", MailServer)
    monkeypatch.setenv("SMTP_HOST", "mail.example.com")
    SENT.clear()
    with TestEngine(client, [pay, names["report_failure"]]).sync() as engine:
        failed, _ = engine.invoke(pay), engine.invoke(pay)
    [mail] = SENT
    assert mail["Subject"] == "shop-pay has failed"
    assert failed.id in mail.get_content()
    assert "ValueError: declined" in mail.get_content()
