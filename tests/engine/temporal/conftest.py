"""One development server for the tests of a process, with the engine's search attributes."""

from collections.abc import Iterator

import pytest

from ...temporal.dev_server import DevServer


@pytest.fixture(scope="session")
def server() -> Iterator[DevServer]:
    with DevServer() as server:
        yield server
