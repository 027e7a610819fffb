"""Temporal's examples by the one command that their READMEs say, on the real server; the demo that plays it; and the
snippets of the documentation, word for word."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import urllib3

from ..cli.conftest import Command
from ..variants import variants
from ..waiting import eventually

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
STAFF_TOKEN = "open-sesame"
TOKENS = {"STAFF_TOKEN": STAFF_TOKEN, "CUSTOMER_TOKENS": '{"ada": "token-of-ada", "bob": "token-of-bob"}'}
BEARER = {"authorization": f"Bearer {STAFF_TOKEN}"}


@contextmanager
def serving(project: Path, database: Path, working: str, *target: str) -> Iterator[str]:
    """``durably temporal dev {target}`` in a project; gives the app's origin once its worker says ``working``."""
    ports = ("--port", "0", "--ui-port", "0", "--app-port", "0")
    arguments = ("temporal", "dev", *target, *ports, "--db", str(database), "--no-reload")
    command = Command(arguments, project, {**os.environ, **TOKENS})
    try:
        command.until(working)
        yield command.until(r"(?:\w+:app|runserver) is up at (http://[\d.:]+)")[1]
    finally:
        command.stop()


@dataclass(frozen=True)
class Shop:
    """An example that is up. ``staff`` are the headers of who may use its gateway, ``invalid`` is the status of a
    malformed order, ``started`` and ``described`` are the members of its answers."""

    name: str
    origin: str
    staff: dict[str, str]
    project: Path
    invalid: int
    started: set[str]
    described: set[str]


IDS, STATUS, RUN = "workflow_id", "status", "run_id"


@contextmanager
def fastapi_shop(directory: Path) -> Iterator[Shop]:
    project, working = EXAMPLES / "temporal_fastapi", "working on order-queue: OrderWorkflow; process_order, restock"
    with serving(project, directory / "temporal.db", working, "main:app") as origin:
        yield Shop("fastapi", origin, BEARER, project, 422, {IDS, STATUS, RUN}, {IDS, STATUS, RUN})


@contextmanager
def flask_shop(directory: Path) -> Iterator[Shop]:
    project, working = EXAMPLES / "temporal_flask", "working on order-queue: OrderWorkflow; process_order"
    with serving(project, directory / "temporal.db", working, "app:app") as origin:
        yield Shop("flask", origin, BEARER, project, 400, {IDS, STATUS}, {IDS, STATUS})


@contextmanager
def django_shop(directory: Path) -> Iterator[Shop]:
    """A copy, since the project keeps its database beside its code."""
    project = directory / "temporal_django"
    ignored = shutil.ignore_patterns("__pycache__", "*.sqlite3", ".durably")
    shutil.copytree(EXAMPLES / "temporal_django", project, ignore=ignored)
    working = "working on django-queue: UserSignupWorkflow, OrderWorkflow, ForgottenOrdersWorkflow; "
    target = ("--django", "manage.py", "--migrate")
    with serving(project, directory / "temporal.db", working, *target) as origin:
        manage(project, "createsuperuser", "--no-input", "--username", "root", "--email", "root@example.com")
        yield Shop("django", origin, log_in(origin, "root"), project, 400, {IDS, STATUS}, {IDS, STATUS, RUN})


def manage(project: Path, *arguments: str) -> str:
    environment = {**os.environ, "DJANGO_SUPERUSER_PASSWORD": "secret"}
    done = subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def log_in(origin: str, username: str) -> dict[str, str]:
    """The headers of requests of a browser in which somebody has logged in to the admin."""
    with httpx.Client(base_url=origin, headers={"referer": origin}) as browser:
        page = browser.get("/admin/login/").text
        token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', page)
        assert token is not None
        form = {"csrfmiddlewaretoken": token[1], "username": username, "password": "secret"}
        assert browser.post("/admin/login/", data=form).status_code == 302
        cookies = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
        return {"cookie": cookies, "x-csrftoken": browser.cookies["csrftoken"], "origin": origin}


SHOPS: dict[str, Callable[[Path], Any]] = {"fastapi": fastapi_shop, "django": django_shop, "flask": flask_shop}
WITH_SIGNALS = ["fastapi", "django"]


@pytest.fixture(scope="module")
def shops(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Shop]]:
    """The examples by name, each started when a test first asks for it."""
    started: dict[str, Shop] = {}
    with ExitStack() as stack:

        def get(name: str) -> Shop:
            if name not in started:
                started[name] = stack.enter_context(SHOPS[name](tmp_path_factory.mktemp(name)))
            return started[name]

        yield get


@pytest.fixture(params=variants(WITH_SIGNALS, ["fastapi"]))
def shop(request: pytest.FixtureRequest, shops: Callable[[str], Shop]) -> Shop:
    """Customers whose orders wait to be shipped."""
    return shops(request.param)


@pytest.fixture(params=variants(SHOPS, ["fastapi"]))
def any_shop(request: pytest.FixtureRequest, shops: Callable[[str], Shop]) -> Shop:
    return shops(request.param)


class Answer:
    def __init__(self, response: urllib3.BaseHTTPResponse) -> None:
        self.status, self.type = response.status, str(response.headers.get("content-type"))
        self.body: Any = response.json() if "json" in self.type else response.data.decode()


def call(method: str, url: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
    return Answer(urllib3.request(method, url, json=body, headers=headers or {}, timeout=30, retries=False))


def place(shop: Shop) -> str:
    """An order: its workflow's id."""
    placed = call("POST", f"{shop.origin}/orders", {"order_id": uuid.uuid4().hex})
    assert placed.status == 200, placed.body
    return str(placed.body["workflow_id"])


def test_an_order_is_placed_and_described(any_shop: Shop) -> None:
    order_id = uuid.uuid4().hex
    placed = call("POST", f"{any_shop.origin}/orders", {"order_id": order_id})
    assert (placed.status, set(placed.body)) == (200, any_shop.started)
    assert (placed.body[IDS], placed.body[STATUS]) == (f"order-{order_id}", "started")
    described = call("GET", f"{any_shop.origin}/orders/order-{order_id}")
    assert (described.status, set(described.body)) == (200, any_shop.described)
    assert described.body[IDS] == f"order-{order_id}"
    assert described.body[STATUS] in ({"RUNNING", "COMPLETED"} if any_shop.name == "flask" else {"RUNNING"})
    if RUN in any_shop.started:
        assert placed.body[RUN] == described.body[RUN] is not None


def test_each_error_has_its_status(any_shop: Shop) -> None:
    origin, missing = any_shop.origin, f"order-{uuid.uuid4().hex}"
    for method, path in (("GET", missing), ("POST", f"{missing}/cancel")):
        if any_shop.name != "flask" or method == "GET":
            answer = call(method, f"{origin}/orders/{path}")
            assert (answer.status, answer.type) == (404, "application/problem+json")
    assert call("GET", f"{origin}/orders/payroll").status == 404
    for body in ({"order_id": ""}, {"order_id": "a b"}, {}, ["1"]):
        assert call("POST", f"{origin}/orders", body).status == any_shop.invalid


@pytest.mark.slow
def test_an_order_is_placed_once(shop: Shop) -> None:
    again = call("POST", f"{shop.origin}/orders", {"order_id": place(shop).removeprefix("order-")})
    assert (again.status, again.type) == (409, "application/problem+json")


def test_the_gateway_is_for_the_staff(any_shop: Shop) -> None:
    order = place(any_shop)
    url = f"{any_shop.origin}/api/orders/{order}/result?wait=0"
    for token in ("", "guessed", "ohne-Schlüssel".encode().decode("latin-1")):
        refused = call("GET", url, headers={"authorization": f"Bearer {token}"} if token else {})
        assert (refused.status, refused.body["title"]) == (401, "Unauthenticated")
    assert call("GET", url, headers=any_shop.staff).status in (200, 202)


@pytest.mark.slow
def test_an_order_is_shipped(shop: Shop) -> None:
    order = place(shop)
    api = f"{shop.origin}/api/orders/{order}"
    assert call("POST", f"{api}/signals/hold", {"reason": "no address"}, shop.staff).status == 202
    assert call("POST", f"{api}/signals/ship", headers=shop.staff).status == 202
    result = call("GET", f"{api}/result?wait=20", headers=shop.staff)
    assert (result.status, result.body["result"]) == (200, f"Processed order {order.removeprefix('order-')}")
    # The endpoints written by hand say what the SDK says, the gateway what its document says.
    assert call("GET", f"{shop.origin}/orders/{order}").body[STATUS] == "COMPLETED"
    assert call("GET", api, headers=shop.staff).body[STATUS] == "completed"


@pytest.mark.slow
def test_an_order_is_cancelled(shop: Shop) -> None:
    order = place(shop)
    cancelled = call("POST", f"{shop.origin}/orders/{order}/cancel")
    assert (cancelled.status, cancelled.body) == (200, {"status": "cancelled"})
    result = call("GET", f"{shop.origin}/api/orders/{order}/result?wait=20", headers=shop.staff)
    assert (result.status, result.body["workflow_status"]) == (424, "cancelled")
    assert call("GET", f"{shop.origin}/orders/{order}").body[STATUS] == "CANCELED"


@pytest.mark.slow
@pytest.mark.parametrize("event", ["activity_task_scheduled", "activity_task_completed"])
def test_cancelled_order_releases_its_reservation(event: str, shop: Shop) -> None:
    order = place(shop)
    wait_for_event(shop, order, event)
    call("POST", f"{shop.origin}/orders/{order}/cancel")
    api = f"{shop.origin}/api/orders/{order}"
    assert call("GET", f"{api}/result?wait=20", headers=shop.staff).status == 424
    history = call("GET", f"{api}/history", headers=shop.staff).body["events"]
    activities = [event["name"] for event in history if event["type"] == "activity_task_completed"]
    assert "restock" in activities


def wait_for_event(shop: Shop, order: str, event: str) -> None:
    url = f"{shop.origin}/api/orders/{order}/events"
    with httpx.stream("GET", url, headers=shop.staff, timeout=30) as stream:
        for line in stream.iter_lines():
            if line == f"event: {event}":
                return
    raise AssertionError(f"the order ended without {event}")


@pytest.mark.slow
@pytest.mark.parametrize("framework", ["fastapi", "flask"])
def test_customers_reach_their_own_orders(framework: str, shops: Callable[[str], Shop]) -> None:
    shop, order_id = shops(framework), uuid.uuid4().hex
    api = f"{shop.origin}/api/orders"
    ada, bob = ({"authorization": f"Bearer token-of-{name}"} for name in ("ada", "bob"))
    started = call("POST", api, {"order_id": order_id}, ada)
    assert (started.status, started.body[IDS]) == (202, f"customer_ada-{order_id}")
    order, by_hand = f"{api}/{started.body[IDS]}", f"{api}/{place(shop)}"
    assert [call("GET", order, headers=user).status for user in (ada, bob, shop.staff)] == [200, 404, 200]
    assert [call("GET", by_hand, headers=user).status for user in (ada, bob, shop.staff)] == [404, 404, 200]
    assert call("POST", f"{order}/cancel", headers=bob).status == 404
    # The endpoints written by hand are for everybody, so these orders are out of their reach.
    assert call("GET", f"{shop.origin}/orders/{started.body[IDS]}").status == 404
    assert call("POST", f"{order}/terminate", headers=ada).status == 403
    until_listed(api, ada, started.body[IDS])
    until_listed(api, shop.staff, started.body[IDS])
    assert call("GET", api, headers=bob).body["workflows"] == []


def test_fastapis_gateway_checks_an_orders_id(shops: Callable[[str], Shop]) -> None:
    shop = shops("fastapi")
    assert call("POST", f"{shop.origin}/api/orders", {"order_id": "a b"}, shop.staff).status == 400


def test_one_document_describes_all_of_fastapi(shops: Callable[[str], Shop]) -> None:
    shop = shops("fastapi")
    paths = call("GET", f"{shop.origin}/openapi.json").body["paths"]
    assert {"/orders", "/orders/{workflow_id}", "/orders/{workflow_id}/cancel"} <= paths.keys()
    assert {
        "/api/orders",
        "/api/orders/{workflow_id}/signals/ship",
        "/api/orders/{workflow_id}/queries/status",
    } <= paths.keys()


def test_fastapi_shows_its_documentation(shops: Callable[[str], Shop]) -> None:
    page = call("GET", f"{shops('fastapi').origin}/docs")
    assert (page.status, "swagger-ui" in page.body, "/openapi.json" in page.body) == (200, True, True)


def test_documented_layouts_match_the_projects() -> None:
    app = ["apps", "models", "views", "urls", "workflows", "activities", "gateway", "admin", "tests"]
    layouts = {
        "temporal_fastapi": ["main", "workflows", "activities", "worker"],
        "temporal_flask": ["app", "workflows", "activities"],
        "temporal_django": ["manage", "myproject/settings", "myproject/urls", "myproject/wsgi", "myproject/asgi"],
        "temporal_django/temporal_app": app,
    }
    for directory, modules in layouts.items():
        missing = [each for each in modules if not (EXAMPLES / directory / f"{each}.py").exists()]
        assert (directory, missing) == (directory, [])


def test_documented_extras_exist() -> None:
    """Each extra that a page installs is one of the package's."""
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *EXAMPLES.glob("*/README.md")]
    named = {
        extra
        for page in pages
        for found in re.findall(r"durably\[([^\]]+)\]", page.read_text())
        for extra in found.split(",")
    }
    assert {"temporal", "fast-api", "flask", "django"} <= named <= extras


@pytest.mark.slow
def test_django_starts_workflows_of_committed_rows_only(shops: Callable[[str], Shop]) -> None:
    shop = shops("django")
    ada = {"username": uuid.uuid4().hex, "email": "ada@example.com"}
    signed_up = call("POST", f"{shop.origin}/signup/", ada)
    assert (signed_up.status, set(signed_up.body)) == (200, {IDS, STATUS})
    assert call("POST", f"{shop.origin}/signup/", ada).status == 400  # There is that user.
    assert call("GET", f"{shop.origin}/signup/").status == 405


@pytest.mark.slow
def test_djangos_admin_leads_from_an_order_to_its_workflow(shops: Callable[[str], Shop]) -> None:
    shop = shops("django")
    order = place(shop)
    orders = call("GET", f"{shop.origin}/admin/temporal_app/order/", headers=shop.staff)
    link = re.search(rf'<a href="([^"]+)">{order}</a>', orders.body)
    assert link is not None
    workflow = call("GET", f"{shop.origin}{link[1]}", headers=shop.staff)
    assert "Terminate…" in workflow.body


@pytest.mark.slow
def test_djangos_permissions_open_the_gateway(shops: Callable[[str], Shop]) -> None:
    shop = shops("django")
    code = """
from django.contrib.auth.models import Permission, User
clerk = User.objects.create_user("clerk", password="secret", is_staff=True)
clerk.user_permissions.add(Permission.objects.get(codename="view_order"))
"""
    manage(shop.project, "shell", "--command", code)
    clerk, api = log_in(shop.origin, "clerk"), f"{shop.origin}/api/orders/{place(shop)}"
    assert call("GET", api, headers=clerk).status == 200
    assert call("POST", f"{api}/signals/ship", headers=clerk).status == 403
    assert call("POST", f"{shop.origin}/api/orders", {"order_id": "1"}, shop.staff).status in (403, 404, 405)


@pytest.mark.slow
def test_djangos_own_tests_and_checks(tmp_path: Path) -> None:
    project = tmp_path / "project"
    shutil.copytree(EXAMPLES / "temporal_django", project, ignore=shutil.ignore_patterns("*.sqlite3", "__pycache__"))
    tested = manage(project, "test")
    assert "OK" in tested
    assert "no issues" in tested  # The checks come first.
    manage(project, "makemigrations", "--check")


@pytest.mark.slow
def test_the_demo_shows_it_and_exits_with_0() -> None:
    demo = subprocess.run(
        [sys.executable, "-m", "examples.demo_temporal"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert demo.returncode == 0, demo.stdout + demo.stderr
    for shown in ("attempt 2", "Processed order A-1", "on hold: the customer moves house", "restock", "CANCELED"):
        assert shown in demo.stdout, demo.stdout
    assert "Traceback" not in demo.stdout + demo.stderr


PAGE = (ROOT / "docs" / "how-to" / "temporal" / "connect.md").read_text()
SECTION = PAGE.partition("\n## An app in twenty lines\n")[2].partition("\n## ")[0]
SNIPPETS = {
    name.lower(): code
    for name, code in re.findall(r"^\*\*(\w+)\*\*.*?^```python\n(.*?)^```", SECTION, re.DOTALL | re.MULTILINE)
}
USER = """
from dataclasses import dataclass

@dataclass
class User:
    id: str
"""
AUTH = (
    USER
    + """
from typing import Annotated
from fastapi import Header

def current_user(authorization: Annotated[str | None, Header()] = None) -> User | None:
    return User(authorization) if authorization else None
"""
)
LOGIN = (
    USER
    + """
import flask

def current_user():
    name = flask.request.headers.get("authorization")
    return User(name) if name else None
"""
)
ACTIVITIES = """
from temporalio import activity

@activity.defn
async def process_order(order_id: str) -> str:
    return f"{order_id} is shipped"
"""
WORKFLOWS = """
from datetime import timedelta
from temporalio import workflow
from activities import process_order

@workflow.defn
class OrderWorkflow:
    def __init__(self) -> None:
        self.is_shipped = False

    @workflow.run
    async def run(self, order_id: str) -> str:
        await workflow.wait_condition(lambda: self.is_shipped)
        return await workflow.execute_activity(process_order, order_id, start_to_close_timeout=timedelta(minutes=1))

    @workflow.signal
    def ship(self) -> None:
        self.is_shipped = True
"""
OF_THE_PROJECT = {"workflows.py": WORKFLOWS, "activities.py": ACTIVITIES}
USERS = {name: {"authorization": name} for name in ("ada", "bob")}


def write_fastapi(project: Path) -> tuple[str, ...]:
    """A project with the snippet of the page added; returns the arguments of ``durably temporal dev``."""
    write(project, {"main.py": SNIPPETS["fastapi"], "auth.py": AUTH, **OF_THE_PROJECT})
    return ("main:app",)


def write_flask(project: Path) -> tuple[str, ...]:
    write(project, {"main.py": SNIPPETS["flask"], "login.py": LOGIN, **OF_THE_PROJECT})
    return ("main:app",)


def write_django(project: Path) -> tuple[str, ...]:
    subprocess.run([sys.executable, "-m", "django", "startproject", "site_", project], check=True)
    manage(project, "startapp", "shop")
    settings, urls = (f"# {part}" for part in SNIPPETS["django"].split("# ")[1:])
    settings_file, urls_file = project / "site_" / "settings.py", project / "site_" / "urls.py"
    settings_file.write_text(settings_file.read_text() + "INSTALLED_APPS += ['shop']\n" + settings)
    urls_file.write_text(urls_file.read_text() + urls)
    models = "from django.db import models\n\nclass Order(models.Model): ...\n"
    workflows = WORKFLOWS.replace("from activities", "from .activities")
    write(project / "shop", {"models.py": models, "workflows.py": workflows, "activities.py": ACTIVITIES})
    manage(project, "makemigrations", "shop")
    return ("--django", "manage.py", "--migrate")


def write(directory: Path, files: dict[str, str]) -> None:
    for name, source in files.items():
        (directory / name).write_text(source)


WRITE = {"fastapi": write_fastapi, "django": write_django, "flask": write_flask}


def test_the_page_shows_all_three_in_under_twenty_lines() -> None:
    assert set(SNIPPETS) == set(WRITE)
    assert all(len(code.splitlines()) < 20 for code in SNIPPETS.values())


@pytest.mark.slow
@pytest.mark.parametrize("framework", WRITE)
def test_the_endpoints_of_the_page(framework: str, tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    target = WRITE[framework](project)
    with serving(
        project, tmp_path / "temporal.db", "working on order-queue: OrderWorkflow; process_order", *target
    ) as origin:
        users = django_users(project, origin) if framework == "django" else USERS
        ada, bob, api = users["ada"], users["bob"], f"{origin}/api/orders"
        # Django checks the CSRF token before anything else.
        assert call("POST", api, {"order_id": "1"}).status in (401, 403)
        started = call("POST", api, {"order_id": "1"}, ada)
        assert started.status == 202
        order = f"{api}/{started.body[IDS]}"
        for method, path in (("GET", ""), ("GET", "/result"), ("POST", "/signals/ship"), ("POST", "/cancel")):
            assert call(method, order + path, headers=bob).status == 404
            assert call(method, order + path).status in (401, 403)
        bobs = call("POST", api, {"order_id": "1"}, bob).body[IDS]
        assert bobs != started.body[IDS]
        assert call("POST", f"{order}/signals/ship", headers=ada).status == 202
        result = call("GET", f"{order}/result?wait=20", headers=ada)
        assert (result.status, result.body["result"]) == (200, "1 is shipped")
        assert until_listed(api, ada, started.body[IDS]) == {started.body[IDS]}
        assert until_listed(api, bob, bobs) == {bobs}
        if framework == "django":
            assert until_listed(api, users["root"], bobs) <= {bobs, started.body[IDS]}


def django_users(project: Path, origin: str) -> dict[str, dict[str, str]]:
    """Two of the staff with permissions, who can log in at the admin, and a superuser."""
    code = """
from django.contrib.auth.models import Permission, User
for name in ("ada", "bob"):
    user = User.objects.create_user(name, password="secret", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=["view_order", "change_order"]))
User.objects.create_superuser("root", password="secret")
"""
    manage(project, "shell", "--command", code)
    return {name: log_in(origin, name) for name in ("ada", "bob", "root")}


def until_listed(api: str, user: dict[str, str], workflow_id: str) -> set[str]:
    """The ids of a user's list, once it has the workflow: the server's index lags."""

    def look() -> set[str]:
        page = call("GET", api, headers=user)
        assert page.status == 200, page.body
        return {each[IDS] for each in page.body["workflows"]}

    return eventually(look, f"{workflow_id} is listed", is_right=lambda ids: workflow_id in ids)
