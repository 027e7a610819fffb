"""Settings of the machine that the tests run on must not reach them."""

import os
from collections.abc import Iterator

import pytest

from ..fake_engine import FakeEngine, serving_fake_engine


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(("DURABLY_", "INNGEST_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def _comm_engine() -> Iterator[FakeEngine]:
    with serving_fake_engine() as engine:
        yield engine


@pytest.fixture
def engine(_comm_engine: FakeEngine) -> FakeEngine:
    _comm_engine.forget()
    return _comm_engine
