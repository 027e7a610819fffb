"""A new database for each URL."""

import itertools
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from ..postgres import PostgresServer

MakeUrl = Callable[[str], str]


@pytest.fixture
def make_url(request: pytest.FixtureRequest, tmp_path: Path) -> MakeUrl:
    """Makes the URL of an empty database for a driver of SQLAlchemy, such as "sqlite" or "postgresql+asyncpg"."""
    numbers = itertools.count()

    def make(driver: str) -> str:
        number = next(numbers)
        if driver.startswith("sqlite"):
            return f"{driver}:///{tmp_path / f'{number}.sqlite3'}"
        server: PostgresServer = request.getfixturevalue("postgres")
        name = f"test_{abs(hash(tmp_path))}_{number}"
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"'.encode())
        return f"{driver}://postgres@127.0.0.1:{server.port}/{name}"

    return make
