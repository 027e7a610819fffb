"""Typed clients that openapi-python-client generates from the documents of apps: mypy checks and runs each."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ..app_server import AppServer
from ..serve import SERVERS

pytestmark = pytest.mark.usefixtures("worker")

TOUR = Path(__file__).parents[1] / "client_tour.py"
OTHERS = [name for name in (*SERVERS, "starlette") if name not in ("fastapi", "flask")]
"""Frameworks with the same document as Flask."""


def document_of(app: AppServer) -> Any:
    return app.get("/openapi.json" if app.name == "fastapi" else "/open/openapi.json").json


def untitled(document: Any) -> Any:
    return {**document, "info": {**document["info"], "title": ""}}


def run(directory: Path, *command: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(directory)}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def generate(app: AppServer, directory: Path) -> None:
    """A directory with the client ``made_client`` and a program that uses it. A warning is a failure."""
    directory.mkdir()
    (directory / "openapi.json").write_text(json.dumps(document_of(app)))
    (directory / "config.yaml").write_text("post_hooks: []\npackage_name_override: made_client\n")
    options = ("--path", "openapi.json", "--config", "config.yaml", "--meta", "none", "--fail-on-warning")
    run(directory, "-m", "openapi_python_client", "generate", *options, "--output-path", "made_client")
    shutil.copy(TOUR, directory)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "others"), [("fastapi", []), ("flask", OTHERS)], ids=["fastapi", "others"])
def test_a_generated_client_is_typed_and_takes_a_tour(
    name: str, others: list[str], apps: Callable[..., AppServer], tmp_path: Path
) -> None:
    app = apps(name)
    origins = [app.origin]
    for other in others:
        assert untitled(document_of(apps(other))) == untitled(document_of(app)), other
        origins.append(apps(other).origin)
    generate(app, tmp_path / name)
    assert run(tmp_path / name, TOUR.name, *origins).split() == origins
    cache = Path(__file__).parents[3] / ".mypy_cache" / "generated"
    run(tmp_path / name, "-m", "mypy", "--cache-dir", str(cache), TOUR.name)
