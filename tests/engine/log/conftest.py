"""Stores of commit logs: a PostgreSQL server, and moto's server for S3."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer
from tests.postgres import PostgresServer

MakeUrl = Callable[[str], str]
"""The URL of a new log, by a name."""


@pytest.fixture(scope="session")
def s3_bucket() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "id",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        }.items():
            patch.setitem(os.environ, name, value)
        boto3.client("s3").create_bucket(Bucket="bucket")
        yield "bucket"
    server.stop()


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
