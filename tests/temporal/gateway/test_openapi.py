"""The OpenAPI document: names of types, security schemes, and the page that shows it."""

import re
from collections.abc import Callable
from typing import Any

import fastapi
import pytest
from pydantic import create_model
from temporalio import workflow

from durably.temporal import Temporal
from durably.temporal.fast_api import router
from durably.temporal.gateway import Gateway, expose
from durably.temporal.gateway.openapi import openapi, swagger_page

from ...variants import variants
from ..app_server import AppServer
from ..serve import SERVERS
from ..workflows import OrderWorkflow

SCHEMES = {
    "token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
    "session": {"type": "apiKey", "in": "cookie", "name": "sessionid"},
}
TEMPORAL = Temporal("127.0.0.1:1")

One: Any = create_model("Same", left=(int, ...))
Other: Any = create_model("Same", right=(str, ...))


@workflow.defn
class SameNamesWorkflow:
    @workflow.run
    async def run(self, one: One) -> Other: ...


def gateway(**options: Any) -> Gateway:
    exposures = [
        expose(OrderWorkflow, name="orders", queries="all", updates="all", signals="all"),
        expose(OrderWorkflow, name="old-orders", queries="all", updates="all", signals="all"),
        expose(SameNamesWorkflow),
    ]
    return Gateway(TEMPORAL, exposures, authorize=lambda action: True, **options)


def documents(made: Gateway) -> list[dict[str, Any]]:
    """The gateway's own document, and FastAPI's."""
    app = fastapi.FastAPI()
    app.include_router(router(made))
    own = openapi(made.endpoints, mount="", title="", version="", security_schemes=made.security_schemes)
    return [own, app.openapi()]


@pytest.mark.parametrize("number", variants([0, 1], [0], name=["own", "fastapi"].__getitem__))
def test_names_of_types_are_good_stable_and_unique(number: int) -> None:
    document = documents(gateway())[number]
    names = document["components"]["schemas"].keys()
    expected = {"OrdersResult", "OldOrdersResult", "OrdersNoteAnswer", "OldOrdersNoteInput", "OrdersChangeAddressDone"}
    assert expected <= names
    assert [name for name in names if re.search(r"[\[\]]|_$|^(Completed|QueryAnswer|UpdateDone)", name)] == []
    assert documents(gateway())[number]["components"] == document["components"]
    same = [schema for name, schema in document["components"]["schemas"].items() if schema.get("title") == "Same"]
    assert sorted(list(schema["properties"]) for schema in same) == [["left"], ["right"]]


@pytest.mark.parametrize("number", variants([0, 1], [0], name=["own", "fastapi"].__getitem__))
def test_security_schemes_are_documented(number: int) -> None:
    document = documents(gateway(security_schemes=SCHEMES))[number]
    assert document["components"]["securitySchemes"] == SCHEMES
    for operations in document["paths"].values():
        for operation in operations.values():
            assert operation["security"] == [{"token": []}, {"session": []}]
            assert {"401", "403"} <= operation["responses"].keys()
    assert "securitySchemes" not in documents(gateway())[number]["components"]


@pytest.mark.parametrize("name", variants([*SERVERS, "starlette"], ["flask"]))
def test_the_docs_page_shows_the_document(name: str, apps: Callable[..., AppServer]) -> None:
    app = apps(name)
    page = app.get("/open/docs")
    assert (page.status, page.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert b'"url": "openapi.json"' in page.body
    scripts = re.findall(rb'(?:src|href)="(https://[^"]+)"([^>]*)>', page.body)
    assert len(scripts) == 2
    assert all(b'integrity="sha384-' in rest and b"crossorigin" in rest for _, rest in scripts)
    assert app.ask("HEAD", "/open/docs").headers["Content-Length"] == str(len(page.body))
    assert app.post("/open/docs", {}).status == 405
    assert app.get("/guarded/docs").status == 404


def test_the_docs_page_loads_the_apps_own_copy() -> None:
    page = swagger_page(title="<b>", assets="/static/swagger-ui/").decode()
    assert '<script src="/static/swagger-ui/swagger-ui-bundle.js"></script>' in page
    assert "https://" not in page
    assert "<title>&lt;b&gt;</title>" in page
