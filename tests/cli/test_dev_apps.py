"""``durably dev`` with an app of each kind: served, synced, called, and its runs printed."""

from pathlib import Path

import pytest

from ..variants import variants
from . import apps
from .conftest import Run, Start, write

KINDS = {
    "fastapi": apps.FASTAPI,
    "flask": apps.FLASK,
    "django-asgi": apps.DJANGO_ASGI,
    "django-wsgi": apps.DJANGO_WSGI,
    "tornado": apps.TORNADO,
    "digital-ocean": apps.DIGITAL_OCEAN,
    "aws-lambda": apps.AWS_LAMBDA,
    "google-cloud": apps.GOOGLE_CLOUD,
}


OFFICIAL = ("fastapi", "tornado")
"""Served with the official SDK too."""


@pytest.mark.parametrize(
    ("kind", "sdk"),
    variants(
        [*((kind, "durably") for kind in KINDS), *((kind, "inngest") for kind in OFFICIAL)],
        [("django-wsgi", "durably"), ("aws-lambda", "durably"), ("fastapi", "inngest")],
    ),
)
def test_an_app_of_each_kind_runs(start: Start, run: Run, directory: Path, kind: str, sdk: str) -> None:
    write(directory / "shop.py", KINDS[kind].format(sdk=sdk))
    dev = start("dev", "shop:app", "--port", "0", "--app-port", "0", "--no-reload")
    dev.until("synced shop: shop-place")
    dev.until("shop:app is up at http://127.0.0.1")
    sent = run("send", "order/placed", "--data", '{"total": 3}', "--url", dev.origin)
    assert sent.status == 0, sent.stderr
    started = dev.until(r"(\w{6})  shop-place +▶  run started +(\w{26})")
    assert started[2].endswith(started[1])
    if sdk == "durably":
        dev.until(r"INFO \[shop-place " + started[2] + r"\] order of 3")
    dev.until(started[1] + r'  shop-place +✓  charge .*\{"charged": ?3\}')
    dev.until(started[1] + r'  shop-place +■  run completed .*\+[\d.]+ s +\{"charged": 3\}')
    assert dev.stop() == 0, dev.output
