"""Each test that takes ``server`` runs on every server; each server starts once."""

from collections.abc import Iterator

import pytest

from ..fake_engine import FakeEngine, serving_fake_engine
from .servers import SERVER_NAMES, Server, running


@pytest.fixture(scope="session")
def _engine() -> Iterator[FakeEngine]:
    with serving_fake_engine() as engine:
        yield engine


@pytest.fixture
def engine(_engine: FakeEngine) -> FakeEngine:
    _engine.forget()
    return _engine


@pytest.fixture(scope="session", params=SERVER_NAMES)
def server(request: pytest.FixtureRequest, _engine: FakeEngine) -> Iterator[Server]:
    with running(request.param, _engine.origin) as server:
        yield server


@pytest.fixture(params=("async", "sync"))
def kind(request: pytest.FixtureRequest) -> str:
    """The kind of the called function."""
    return str(request.param)
