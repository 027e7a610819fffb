"""Features of FastAPI: dependencies, their overrides, and the app's documentation."""

import json
from collections.abc import AsyncIterator
from typing import Annotated, Any, ClassVar

import fastapi
import httpx
import pydantic
import pytest
from fastapi.security import APIKeyQuery
from temporalio.client import Client

from durably.temporal import Temporal
from durably.temporal.fast_api import router
from durably.temporal.gateway import Action, Gateway, expose

from .workflows import OrderWorkflow, SleepingWorkflow

TOKEN = {"Authorization": "Bearer right"}


def client_of(app: fastapi.FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


def check_token(authorization: Annotated[str, fastapi.Header()] = "") -> None:
    if authorization != TOKEN["Authorization"]:
        raise fastapi.HTTPException(401, "no token")


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("place", ["router", "include_router"])
async def test_dependencies_guard_all_endpoints(temporal: Temporal, place: str) -> None:
    gateway = Gateway(temporal, [expose(SleepingWorkflow)], allow_anonymous=True)
    app = fastapi.FastAPI()
    inner, outer = ([fastapi.Depends(check_token)] if place == name else [] for name in ("router", "include_router"))
    app.include_router(router(gateway, dependencies=inner, tags=["workflows"]), prefix="/api", dependencies=outer)
    async with client_of(app) as client:
        assert (await client.post("/api/sleeping")).status_code == 401
        started = await client.post("/api/sleeping", headers=TOKEN)
        assert (started.status_code, started.headers["Location"][:14]) == (202, "/api/sleeping/")
        assert (await client.get(started.headers["Location"], headers=TOKEN)).json()["status"] == "running"
    operation = app.openapi()["paths"]["/api/sleeping"]["post"]
    assert (operation["tags"], operation["summary"]) == (["workflows"], "Start SleepingWorkflow")


async def test_a_dependency_override_replaces_the_client(temporal: Temporal) -> None:
    elsewhere = Temporal("127.0.0.1:1")
    app = fastapi.FastAPI()

    @app.get("/namespace")
    async def namespace(client: Annotated[Client, fastapi.Depends(elsewhere.client)]) -> Any:
        return client.namespace

    test_client = await temporal.client()
    app.dependency_overrides[elsewhere.client] = lambda: test_client
    async with client_of(app) as client:
        assert (await client.get("/namespace")).json() == "default"


async def test_a_mounted_app_links_to_itself(temporal: Temporal) -> None:
    gateway = Gateway(temporal, [expose(SleepingWorkflow)], allow_anonymous=True)
    inner, outer = fastapi.FastAPI(), fastapi.FastAPI()
    inner.include_router(router(gateway, prefix="/workflows"))
    outer.mount("/v1", inner)
    async with client_of(outer) as client:
        started = await client.post("/v1/workflows/sleeping")
        assert started.headers["Location"].startswith("/v1/workflows/sleeping/sleeping-")


@pytest.mark.parametrize("inner", ["", "/api"])
async def test_unknown_paths_are_problems_and_the_apps_own_endpoints_precede(inner: str) -> None:
    """The prefix is the router's own, or the app's."""
    gateway = Gateway(Temporal("127.0.0.1:1", task_queue="q"), [expose(SleepingWorkflow)], allow_anonymous=True)
    app = fastapi.FastAPI()
    app.include_router(router(gateway, prefix=inner), prefix="" if inner else "/api")

    @app.get("/api/sleeping/{id}/invoice")
    async def invoice(id: str) -> str:
        return f"invoice of {id}"

    async with client_of(app) as client:
        for method, path, status in [
            ("GET", "/api/sleeping/x/nothing", 404),
            ("GET", "/api/sleeping/x/y/z/", 404),
            ("DELETE", "/api/sleeping", 405),
            ("GET", "/api/sleeping/x/cancel", 405),
            ("POST", "/api/sleeping/x", 405),
        ]:
            answer = await client.request(method, path)
            assert (answer.status_code, answer.headers["Content-Type"]) == (status, "application/problem+json")
        assert (await client.delete("/api/sleeping")).headers["Allow"] == "OPTIONS, POST"
        assert (await client.get("/api/sleeping/7/invoice")).json() == "invoice of 7"
        assert (await client.get("/elsewhere")).json() == {"detail": "Not Found"}
    assert not any("rest" in path for path in app.openapi()["paths"])


async def test_dependencies_guard_unknown_paths_too() -> None:
    gateway = Gateway(Temporal("127.0.0.1:1", task_queue="q"), [expose(SleepingWorkflow)], allow_anonymous=True)
    app = fastapi.FastAPI()
    app.include_router(router(gateway, prefix="/api", dependencies=[fastapi.Depends(check_token)]))
    async with client_of(app) as client:
        for path in ("/api/sleeping/", "/api/sleeping/x/nothing", "/api/nothing"):
            assert (await client.post(path)).status_code == 401
            assert (await client.post(path, headers=TOKEN)).status_code in (404, 405, 503)


async def test_dependencies_and_authorize_can_read_the_body() -> None:
    seen: list[Any] = []

    async def sign(request: fastapi.Request) -> None:
        seen.append(await request.json())

    async def authorize(action: Action) -> bool:
        seen.append(await action.request.json())
        return False

    gateway = Gateway(Temporal("127.0.0.1:1", task_queue="q"), [expose(OrderWorkflow)], authorize=authorize)
    app = fastapi.FastAPI()
    app.include_router(router(gateway, principal=lambda: "ada", dependencies=[fastapi.Depends(sign)]))
    order = {"order_id": "1", "amount": 2}
    async with client_of(app) as client:
        assert (await client.post("/order", json=order)).status_code == 403

        async def chunks() -> AsyncIterator[bytes]:
            yield json.dumps(order).encode()

        headers = {"Content-Type": "application/json"}
        assert (await client.post("/order", content=chunks(), headers=headers)).status_code == 403
    assert seen == [order] * 4


class Counted(pydantic.BaseModel):
    validated: ClassVar[int] = 0
    seconds: float = 0

    @pydantic.model_validator(mode="after")
    def count(self) -> "Counted":
        Counted.validated += 1
        return self


async def test_an_input_is_validated_once_and_documented() -> None:
    exposure = expose(SleepingWorkflow, input=Counted)
    gateway = Gateway(Temporal("127.0.0.1:1", task_queue="q"), [exposure], authorize=lambda action: False)
    app = fastapi.FastAPI()
    app.include_router(router(gateway))
    async with client_of(app) as client:
        assert (await client.post("/sleeping", json={"seconds": 1})).status_code == 401
    assert Counted.validated == 1
    body = app.openapi()["paths"]["/sleeping"]["post"]["requestBody"]
    assert "Counted" in str(body)


async def test_query_parameters_of_dependencies_and_of_the_app_are_known() -> None:
    class Filters(pydantic.BaseModel):
        tenant: str = ""
        shown_to: str = pydantic.Field("", alias="for")

    def user(locale: str = "en") -> str:
        return "ada"

    def check(
        filters: Annotated[Filters, fastapi.Query()], key: Annotated[str, fastapi.Security(APIKeyQuery(name="key"))]
    ) -> None: ...

    temporal = Temporal("127.0.0.1:1", task_queue="none")
    gateway = Gateway(
        temporal, [expose(SleepingWorkflow, name="sleeping")], authorize=lambda _: True, app_parameters=["utm"]
    )
    app = fastapi.FastAPI()
    dependencies = [fastapi.Depends(check)]
    app.include_router(router(gateway, prefix="/api", principal=user, dependencies=dependencies))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        known = "key=k&locale=de&tenant=a&for=b&utm=1"
        for method in ("GET", "HEAD"):
            assert (await client.request(method, f"/api/sleeping/x?{known}")).status_code == 503
            assert (await client.request(method, f"/api/sleeping/x?{known}&other=1")).status_code == 400
