"""Several connections in one app: their settings, gateways, workers and commands."""

import re
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from durably.io.background_loop import get_background_loop
from durably.temporal import Temporal, TemporalSettingsError, TemporalUnreachableError
from durably.temporal.gateway import Gateway, expose
from durably.temporal.settings import resolve

from ...ports import free_port
from ..dev_server import BILLING, DevServer
from ..worker_thread import working
from ..workflows import ACTIVITIES, WORKFLOWS, OrderWorkflow, SumWorkflow

PATIENCE = timedelta(seconds=90)
ENVIRONMENT = {
    "TEMPORAL_ADDRESS": "default:1",
    "TEMPORAL_API_KEY": "of default",
    "TEMPORAL_NAMESPACE": "default-namespace",
    "TEMPORAL_TASK_QUEUE": "default-queue",
    "TEMPORAL_ENCRYPTION_KEYS": "default-keys",
}


@pytest.fixture(autouse=True)
def no_profile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "empty.toml").touch()
    monkeypatch.setenv("TEMPORAL_CONFIG_FILE", str(tmp_path / "empty.toml"))


def settings_of(framework: dict[str, Any], **variables: str) -> Any:
    """Settings of ``billing`` beside a default connection that the environment configures."""
    environment = {**ENVIRONMENT, **{f"TEMPORAL_BILLING_{name}": value for name, value in variables.items()}}
    default = resolve({}, {}, environment=environment)
    return resolve({}, framework, environment=environment, name="billing", same_server_as=default)


def test_named_connection_uses_the_same_server_with_its_own_namespace_and_queue() -> None:
    settings = settings_of({"NAMESPACE": "b"})
    assert (settings.address, settings.api_key, settings.encryption_keys) == ("default:1", "of default", "default-keys")
    assert (settings.namespace, settings.task_queue) == ("b", None)
    settings = settings_of({"NAMESPACE": "b"}, NAMESPACE="variable", TASK_QUEUE="q", API_KEY="own", ENCRYPTION_KEYS="k")
    assert (settings.namespace, settings.task_queue) == ("variable", "q")
    assert (settings.address, settings.api_key, settings.encryption_keys) == ("default:1", "own", "k")


@pytest.mark.parametrize(
    ("framework", "variables"),
    [({"SERVER": "own:1"}, {}), ({"ADDRESS": "x:1"}, {"ADDRESS": "own:1"}), ({}, {"ADDRESS": "own:1"})],
)
def test_credentials_do_not_go_to_another_server(framework: dict[str, Any], variables: dict[str, str]) -> None:
    settings = settings_of(framework, **variables)
    assert (settings.address, settings.api_key, settings.namespace) == ("own:1", None, "default")
    assert settings.encryption_keys == "default-keys"  # Encryption must not be lost unnoticed.


def test_without_another_connection_a_named_one_reads_its_own_variables_only(tmp_path: Path) -> None:
    file = tmp_path / "temporal.toml"
    file.write_text('[profile.default]\nnamespace = "d"\napi_key = "hush"\n[profile.b]\nnamespace = "b"\n')
    environment = {**ENVIRONMENT, "TEMPORAL_CONFIG_FILE": str(file)}
    settings = resolve({}, {}, environment=environment, name="billing")
    assert (settings.address, settings.api_key, settings.namespace) == ("localhost:7233", None, "default")
    own = {"TEMPORAL_BILLING_CONFIG_FILE": str(file), "TEMPORAL_BILLING_PROFILE": "b"}
    assert resolve({}, {}, environment={**environment, **own}, name="billing").namespace == "b"


@pytest.mark.parametrize("name", ["", "tls", "API-prod", "two words", "task_queue", "namespace", "ä"])
def test_a_name_whose_variables_would_be_ambiguous_is_refused(name: str) -> None:
    with pytest.raises(TemporalSettingsError, match="cannot be the name of a connection"):
        Temporal(name=name)


def test_errors_name_the_variables_of_the_connection() -> None:
    billing = Temporal(f"127.0.0.1:{free_port()}", name="eu-billing", connect_timeout=timedelta(seconds=1))
    with pytest.raises(TemporalUnreachableError, match=r"\(TEMPORAL_EU_BILLING_ADDRESS\)"):
        _ = billing.sync.client


def flask_app(gateways: dict[str, Gateway]) -> Callable[[str, str, Any], tuple[int, Any]]:
    import flask

    from durably.temporal.flask import blueprint

    app = flask.Flask(__name__)
    for name, gateway in gateways.items():
        app.register_blueprint(blueprint(gateway, name=name), url_prefix=f"/{name}")
    client = app.test_client()

    def ask(method: str, path: str, body: Any = None) -> tuple[int, Any]:
        response = client.open(path, method=method, json=body)
        return response.status_code, response.get_json()

    return ask


def fast_api_app(gateways: dict[str, Gateway]) -> Callable[[str, str, Any], tuple[int, Any]]:
    from fastapi import FastAPI
    from fastapi.testclient import TestClient

    from durably.temporal.fast_api import router

    app = FastAPI()
    for name, gateway in gateways.items():
        app.include_router(router(gateway, prefix=f"/{name}"))
    client = TestClient(app)

    def ask(method: str, path: str, body: Any = None) -> tuple[int, Any]:
        response = client.request(method, path, json=body)
        return response.status_code, response.json()

    return ask


@pytest.fixture(scope="module")
def billing(temporal: Temporal) -> Iterator[Temporal]:
    billing = Temporal(namespace=BILLING, task_queue="billing", name="billing", same_server_as=temporal)
    with working(billing, "billing", workflows=WORKFLOWS, activities=ACTIVITIES):
        yield billing


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("make", [flask_app, fast_api_app])
def test_each_gateway_knows_the_workflows_of_its_namespace(
    temporal: Temporal, billing: Temporal, make: Callable[..., Any]
) -> None:
    exposed = [expose(SumWorkflow, name="sums")]
    gateways = {
        "shop": Gateway(temporal, exposed, allow_anonymous=True),
        "bills": Gateway(billing, exposed, allow_anonymous=True),
    }
    ask = make(gateways)
    status, started = ask("POST", "/bills/sums", {"pair": {"left": 1, "right": [2]}})
    assert status == 202, started
    id = started["workflow_id"]
    assert ask("GET", f"/bills/sums/{id}/result?wait=30")[0] == 200
    assert ask("GET", f"/shop/sums/{id}")[0] == 404
    assert ask("POST", "/shop/sums", {"pair": {"left": 1, "right": [2]}})[0] == 202
    assert billing.sync.get_workflow_handle(id).describe().namespace == BILLING
    health = get_background_loop().run(billing.check_health())
    assert (health.ok, health.namespace) == (True, BILLING)


def test_the_example_of_the_page(server: DevServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastapi import Header
    from fastapi.testclient import TestClient

    page = Path(__file__).parents[3] / "docs" / "how-to" / "temporal" / "connect.md"
    section = page.read_text().partition("### Several connections\n")[2].partition("\n### ")[0]
    [code] = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    users, workflows = ModuleType("users"), ModuleType("workflows")

    def current_user(x_user: str | None = Header(default=None)) -> str | None:
        return x_user

    vars(users).update(current_user=current_user, may=lambda action: action.principal in ("ada", "bob"))
    vars(workflows).update(OrderWorkflow=OrderWorkflow, InvoiceWorkflow=SumWorkflow)
    for module in (users, workflows):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setenv("TEMPORAL_ADDRESS", server.address)
    names: dict[str, Any] = {"__name__": "page"}
    exec(compile(code, str(page), "exec"), names)
    client = TestClient(names["app"])
    for place, body in (
        ("/shop/order", {"order_id": "1", "amount": 1}),
        ("/billing/sum-of-pair", {"pair": {"left": 1}}),
    ):
        started = client.post(place, json=body, headers={"X-User": "ada"})
        assert started.status_code == 202, started.json()
        where = started.headers["Location"]
        asked = {user: client.get(where, headers={"X-User": user}).status_code for user in ("ada", "bob", "eve")}
        assert asked == {"ada": 200, "bob": 404, "eve": 403}
        assert client.get(where).status_code == 401
        id = where.rpartition("/")[2]
        other = "/billing/sum-of-pair" if place == "/shop/order" else "/shop/order"
        assert client.get(f"{other}/{id}", headers={"X-User": "ada"}).status_code == 404


def test_two_connections_of_a_flask_app_need_names() -> None:
    import flask

    from durably.temporal.flask import init_app

    app = flask.Flask(__name__)
    init_app(app, Temporal())
    init_app(app, Temporal(name="billing"))
    assert {"temporal", "temporal-billing"} <= app.cli.commands.keys()
    with pytest.raises(TemporalSettingsError, match="give this one a name"):
        init_app(app, Temporal(namespace=BILLING))
