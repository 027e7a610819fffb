"""Commands that register the search attributes that an app declares."""

import json
import sys
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from subprocess import CalledProcessError, CompletedProcess, run
from typing import Any

import pytest
from temporalio.common import SearchAttributeKey

from durably.temporal import SearchAttributeError, Temporal
from durably.temporal.namespace import declared_types

from .dev_server import PATIENCE, DevServer

DECLARED = """
from temporalio.common import SearchAttributeKey
from durably.temporal.gateway import Gateway, expose
from tests.temporal.workflows import SumWorkflow

def declare(temporal, mark):
    keys = {SearchAttributeKey.for_int(f"Size{mark}"): lambda pair: 1}
    temporal.add_search_attributes(SearchAttributeKey.for_datetime(f"Due{mark}"))
    exposed = expose(SumWorkflow, owner=str, search_attributes=keys)
    return Gateway(temporal, [exposed], authorize=lambda action: True, owner_attribute=f"Owner{mark}")
"""
SHOP = """
import json
import os
from declared import declare
from durably.temporal import Temporal
temporal = Temporal(os.environ["SERVER"], task_queue="shop")
gateway = declare(temporal, os.environ["MARK"])
"""
FLASK = """
import flask, shop, durably.temporal.flask
app = flask.Flask("flask_shop")
durably.temporal.flask.init_app(app, shop.temporal)
"""
DJANGO = """
import os, django
from django.conf import settings
settings.configure(INSTALLED_APPS=["durably.temporal.django"], ROOT_URLCONF="django_urls",
                   TEMPORAL_SERVER=os.environ["SERVER"], TEMPORAL_TASK_QUEUE="shop", SECRET_KEY="tests")
django.setup()
from django.core.management import execute_from_command_line
import sys
execute_from_command_line(sys.argv)
"""
URLS = """
import os
from declared import declare
from durably.temporal.django import temporal
gateway = declare(temporal, os.environ["MARK"])
urlpatterns = []
"""
COMMANDS = {
    "durably": ["-m", "durably.cli", "temporal", "register", "shop:temporal"],
    "gateway": ["-m", "durably.cli", "temporal", "register", "shop:gateway"],
    "flask": ["-m", "flask", "--app", "flask_shop", "temporal", "register"],
    "django": ["manage.py", "register_search_attributes"],
}


def ask(directory: Path, server: DevServer, mark: str, *arguments: str) -> CompletedProcess[str]:
    root = Path(__file__).parents[2]
    environment: dict[str, Any] = {"PYTHONPATH": f"{root}:{directory}", "SERVER": server.address, "MARK": mark}
    return run(
        [sys.executable, *arguments], cwd=directory, env=environment, capture_output=True, text=True, timeout=PATIENCE
    )


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    files = {"declared": DECLARED, "shop": SHOP, "flask_shop": FLASK, "manage": DJANGO, "django_urls": URLS}
    for name, text in files.items():
        (tmp_path / f"{name}.py").write_text(text)
    return tmp_path


@pytest.fixture
def mark(server: DevServer) -> Iterator[str]:
    """A mark in the names of attributes. The server's store has room for a few attributes only."""
    mark = uuid.uuid4().hex[:8]
    yield mark
    for name in ("Due", "Owner", "Size"):
        with suppress(CalledProcessError):
            server.run("operator", "search-attribute", "remove", "--name", f"{name}{mark}", "--yes")


@pytest.mark.slow
@pytest.mark.parametrize("kind", COMMANDS)
def test_missing_attributes_are_registered(kind: str, shop: Path, server: DevServer, mark: str) -> None:
    types = {f"Due{mark}": "Datetime", f"Owner{mark}": "Keyword", f"Size{mark}": "Int"}
    for expected in ("registered", "exists"):
        registered = ask(shop, server, mark, *COMMANDS[kind])
        assert registered.returncode == 0, registered.stderr
        assert {f"{name} ({of}): {expected}" for name, of in types.items()} == set(registered.stdout.splitlines())
    found = json.loads(ask(shop, server, mark, *COMMANDS[kind], "--json").stdout)
    assert {(each["name"], each["type"], each["state"]) for each in found} == {
        (*each, "exists") for each in types.items()
    }


@pytest.mark.slow
def test_another_type_is_refused(shop: Path, server: DevServer, mark: str) -> None:
    server.run("operator", "search-attribute", "create", "--name", f"Size{mark}", "--type", "Bool")
    refused = ask(shop, server, mark, *COMMANDS["durably"])
    assert refused.returncode == 1
    assert f"Size{mark}" in refused.stderr
    assert "Bool" in refused.stderr
    assert f"Due{mark}" not in server.run("operator", "search-attribute", "list")


def test_one_name_has_one_type() -> None:
    temporal = Temporal()
    temporal.add_search_attributes(SearchAttributeKey.for_int("Size"), where="here")
    temporal.add_search_attributes(SearchAttributeKey.for_text("Size"), where="there")
    with pytest.raises(SearchAttributeError, match="Size is declared as Int by here, and Text by there"):
        declared_types(temporal.search_attributes)
