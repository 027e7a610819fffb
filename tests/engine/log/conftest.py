"""Commit logs in each kind of store."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.postgres import PostgresServer

MakeUrl = Callable[[str], str]
"""The URL of a new log, by a name."""


@pytest.fixture(params=["postgres", "s3"])
def make_url(request: pytest.FixtureRequest) -> MakeUrl:
    if request.param == "postgres":
        server: PostgresServer = request.getfixturevalue("postgres")
        return lambda name: f"{server.url}?log={name}"
    bucket: str = request.getfixturevalue("s3_bucket")
    return lambda name: f"s3://{bucket}/{name}"


@pytest.fixture
def url(make_url: MakeUrl, tmp_path: Path) -> str:
    return make_url(tmp_path.name)
