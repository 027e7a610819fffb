"""Adapters of the dashboard without a server: policies, prefixes, errors, engines."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import fastapi
import flask
import httpx
import pytest
import quart
import sanic
import tornado.httpclient
import tornado.httputil
import tornado.web
import werkzeug.test
from aiohttp import web
from aiohttp.test_utils import TestServer
from litestar import Litestar
from litestar.exceptions import NotAuthorizedException
from starlette.routing import Match
from werkzeug.exceptions import Unauthorized
from werkzeug.middleware.proxy_fix import ProxyFix

import durably
import durably.aiohttp
import durably.fast_api
import durably.flask
import durably.litestar
import durably.quart
import durably.sanic
import durably.tornado
import durably.wsgi
from durably.dashboard import Action, DashboardRequest, MountedDashboard
from durably.engine.api.dashboard.dashboard import Dashboard, DashboardConfigError
from durably.engine.api.dashboard.messages import DashboardResponse, at_address_of
from durably.engine.model.settings import EngineSettings
from durably.engine.sqlite.server import serve_database
from durably.errors import FunctionConfigInvalidError
from durably.protocol.headers import ServerKind
from durably.testing.engine import TestEngine

from ..ports import free_port, listening_socket

Policy = Callable[[Action], bool]
Ask = Callable[..., Awaitable[httpx.Response]]
SIGNING_KEY = "signkey-prod-" + "ab" * 32


async def ask(app: fastapi.FastAPI, path: str, root_path: str = "") -> httpx.Response:
    transport = httpx.ASGITransport(app=app, root_path=root_path)
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as http:
        return await http.get(path)


@pytest.fixture
def client(tmp_path: Path) -> durably.Client:
    """Its engine is not started: pages say so, with all else that they have."""
    return durably.Client(app_id="shop", engine=durably.Embedded(tmp_path / "durably.db"), is_production=False)


APPS: dict[str, tuple[Callable[[], Any], Callable[..., Any]]] = {
    "fast_api": (fastapi.FastAPI, durably.fast_api.dashboard),
    "flask": (lambda: flask.Flask(__name__), durably.flask.dashboard),
    "tornado": (tornado.web.Application, durably.tornado.dashboard),
    "litestar": (lambda: None, lambda _, *args, **options: durably.litestar.dashboard(*args, **options)),
    "quart": (lambda: quart.Quart(__name__), durably.quart.dashboard),
    "aiohttp": (web.Application, durably.aiohttp.dashboard),
    "sanic": (lambda: sanic.Sanic("dashboard", configure_logging=False), durably.sanic.dashboard),
    "wsgi": (lambda: None, durably.wsgi.dashboard),
}


@pytest.mark.parametrize("framework", APPS)
def test_a_dashboard_needs_a_policy(framework: str, client: durably.Client) -> None:
    make, dashboard = APPS[framework]
    with pytest.raises(DashboardConfigError, match=r"dashboard .*authorize=.*allow_anonymous=True"):
        dashboard(make(), client)
    with pytest.raises(DashboardConfigError, match="policy"):
        dashboard(make(), client, authorize=lambda action: True, allow_anonymous=True)
    with pytest.raises(FunctionConfigInvalidError, match="takes a durably"):
        dashboard(make(), "shop", allow_anonymous=True)
    with pytest.raises(FunctionConfigInvalidError, match=r"dashboard\(path=…\)"):
        dashboard(make(), client, "https://app.example.com/durably", allow_anonymous=True)


@pytest.mark.parametrize(("is_production", "longest"), [(False, 2.0), (True, 10.0)])
async def test_streams_end_soon_while_an_app_is_developed(
    is_production: bool, longest: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that reloads waits for them, and runs old code until then."""
    seconds = list[float]()

    async def handle(dashboard: Dashboard, request: DashboardRequest) -> DashboardResponse:
        seconds.append(request.stream_seconds)
        return DashboardResponse(status_code=200)

    monkeypatch.setattr(Dashboard, "handle", handle)
    client = durably.Client(app_id="shop", engine=durably.Embedded(tmp_path / "a.db"), is_production=is_production)
    mounted = MountedDashboard(client, "/durably", authorize=None, allow_anonymous=True, caller="dashboard")
    await mounted.handle(DashboardRequest(method="GET", path="/live", mount="/durably", headers={}))
    assert 0 < seconds[0] <= longest
    assert (seconds[0] > 2.0) is is_production


def make_greet(client: durably.Client) -> durably.Function[Any]:
    @client.create_function(fn_id="greet", trigger=durably.TriggerEvent(event="came"))
    def greet(ctx: durably.ContextSync) -> str:
        return ctx.step.run("greet", lambda: "Hello!")

    return greet


async def test_an_open_test_engine_shows_its_runs(client: durably.Client) -> None:
    app = fastapi.FastAPI()
    durably.fast_api.dashboard(app, client, allow_anonymous=True)
    async with TestEngine(client, [make_greet(client)]) as engine:
        run = await engine.send(durably.Event(name="came"))
        page = await ask(app, f"/durably/runs/{run.id}")
        assert page.status_code == 200
        assert "Completed" in page.text
        assert "durably.db" not in (await ask(app, "/durably/events?name=none")).text
    assert (await ask(app, f"/durably/runs/{run.id}")).status_code == 503


@pytest.mark.parametrize("is_embedded", [True, False])
def test_an_open_sync_test_engine_shows_its_runs(is_embedded: bool, client: durably.Client) -> None:
    """Also if the app is loaded while it is open, and if its engine is at a URL."""
    client = client if is_embedded else durably.Client(app_id="shop", is_production=False)
    with TestEngine(client, [make_greet(client)]).sync() as engine:
        app = flask.Flask(__name__)
        durably.flask.dashboard(app, client, allow_anonymous=True)
        run = engine.send(durably.Event(name="came"))
        browser = app.test_client()
        page = browser.get(f"/durably/runs/{run.id}")
        assert (page.status_code, "Completed" in page.text) == (200, True)
        assert browser.get("/durably/live").status_code == 200
        form = browser.get("/durably/events/send")
        [token] = set(re.findall(r'name="csrf" value="([^"]+)"', form.text))
        assert browser.post("/durably/events/send", data={"csrf": token, "name": "came"}).status_code == 303
        assert len(engine.runs()) == 2


async def test_a_sync_dashboard_does_not_block_the_loop_of_a_test_engine(client: durably.Client) -> None:
    app = flask.Flask(__name__)
    app.testing = True
    durably.flask.dashboard(app, client, allow_anonymous=True)
    async with TestEngine(client, [make_greet(client)]):
        with pytest.raises(RuntimeError, match=r"TestEngine\(…\)\.sync\(\)"):
            app.test_client().get("/durably/runs")


async def test_commands_of_an_empty_dashboard_find_its_engine(client: durably.Client) -> None:
    app = fastapi.FastAPI()
    durably.fast_api.dashboard(app, client, allow_anonymous=True)
    assert isinstance(client.engine, durably.Embedded)
    await client.engine.start()
    empty = (await ask(app, "/durably/")).text
    assert "durably.fast_api.serve(app, client, [a_function])" in empty
    assert "DURABLY_DEV" not in empty
    assert f"--db {client.engine.path}</pre>" in (await ask(app, "/durably/events")).text
    await client.engine.stop()


@pytest.mark.parametrize(
    ("is_dev", "host", "mount", "option", "variable"),
    [
        (True, "127.0.0.1:8288", "", "", "DURABLY_DEV=1"),
        (True, "localhost:9000", "", " --url http://localhost:9000", "DURABLY_DEV=http://localhost:9000"),
        (
            False,
            "127.0.0.1:8288",
            "/ops",
            " --url http://127.0.0.1:8288/ops",
            "DURABLY_ENGINE_URL=http://127.0.0.1:8288/ops",
        ),
        (True, "a;reboot", "", " --url 'http://a;reboot'", "DURABLY_DEV='http://a;reboot'"),
    ],
)
def test_commands_find_the_engine_at_the_address_of_its_dashboard(
    is_dev: bool, host: str, mount: str, option: str, variable: str
) -> None:
    request = DashboardRequest(method="GET", path="/", mount=mount, headers={"host": host})
    finding = at_address_of(request, is_dev=is_dev)
    assert (finding.option, finding.variable, finding.needs_keys) == (option, variable, not is_dev)


PATHS = {"/durably": "/durably", "tools/durably/": "/tools/durably", "/": "", "": ""}


@pytest.mark.parametrize("path", PATHS)
async def test_links_begin_with_the_mount_point_and_the_prefix(path: str, client: durably.Client) -> None:
    mount = PATHS[path]
    app = fastapi.FastAPI()
    durably.fast_api.dashboard(app, client, path, allow_anonymous=True)
    flask_app = flask.Flask(__name__)
    durably.flask.dashboard(flask_app, client, path, allow_anonymous=True)
    flask_app.wsgi_app = ProxyFix(flask_app.wsgi_app, x_prefix=1)  # type: ignore[method-assign]
    asked = f"{mount}/runs/no/such/page"
    plain = (await ask(app, asked)).text, flask_app.test_client().get(asked).text
    for text in plain:
        assert f'href="{mount}/assets/' in text
    behind = flask_app.test_client().get(asked, headers={"x-forwarded-prefix": "/shop"}).text
    rooted = (await ask(app, f"/shop{asked}", root_path="/shop")).text
    outer = fastapi.FastAPI()
    outer.mount("/shop", app)
    inner = (await ask(outer, f"/shop{asked}")).text
    for text in (behind, rooted, inner):
        assert f'href="/shop{mount}/assets/' in text
        assert f'href="{mount}/assets/' not in text


def test_links_with_a_prefix_of_two_slashes_stay_on_the_site(client: durably.Client) -> None:
    app = flask.Flask(__name__)
    durably.flask.dashboard(app, client, allow_anonymous=True)
    app.wsgi_app = ProxyFix(app.wsgi_app, x_prefix=1)  # type: ignore[method-assign]
    answer = app.test_client().get("/durably/nothing", headers={"x-forwarded-prefix": "//evil.example/a;b"})
    assert 'href="/evil.example/a%3Bb/durably/assets/' in answer.text
    assert 'href="//' not in answer.text


def test_cookies_are_secure_behind_a_proxy_with_https(client: durably.Client) -> None:
    app = flask.Flask(__name__)
    durably.flask.dashboard(app, client, allow_anonymous=True)
    app.wsgi_app = ProxyFix(app.wsgi_app)  # type: ignore[method-assign]
    assert isinstance(client.engine, durably.Embedded)
    client.engine.start_sync()
    for scheme in ("http", "https"):
        answer = app.test_client().get("/durably/events/send", headers={"x-forwarded-proto": scheme})
        cookie = answer.headers.get("set-cookie", "")
        assert cookie.startswith("durably-csrf=")
        assert "; Path=/durably; HttpOnly; SameSite=Lax" in cookie
        assert cookie.endswith("; Secure") is (scheme == "https")
    client.engine.stop_sync()


@asynccontextmanager
async def asking_litestar(client: durably.Client, path: str, authorize: Policy) -> AsyncIterator[Ask]:
    app = Litestar(plugins=[durably.litestar.dashboard(client, path, authorize=authorize)], logging_config=None)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://app") as http:
        yield http.get


@asynccontextmanager
async def asking_quart(client: durably.Client, path: str, authorize: Policy) -> AsyncIterator[Ask]:
    app = quart.Quart(__name__)
    durably.quart.dashboard(app, client, path, authorize=authorize)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://app") as http:
        yield http.get


@asynccontextmanager
async def asking_aiohttp(client: durably.Client, path: str, authorize: Policy) -> AsyncIterator[Ask]:
    app = web.Application()
    durably.aiohttp.dashboard(app, client, path, authorize=authorize)
    async with TestServer(app) as server, httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}") as http:
        yield http.get


@asynccontextmanager
async def asking_sanic(client: durably.Client, path: str, authorize: Policy) -> AsyncIterator[Ask]:
    app: Any = sanic.Sanic("dashboard", configure_logging=False)
    durably.sanic.dashboard(app, client, path, authorize=authorize)
    with listening_socket() as (listener, origin):
        server = await app.create_server(sock=listener, return_asyncio_server=True, access_log=False)
        await server.startup()
        async with httpx.AsyncClient(base_url=origin) as http:
            yield http.get
        await server.close()


@asynccontextmanager
async def asking_wsgi(client: durably.Client, path: str, authorize: Policy) -> AsyncIterator[Ask]:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("404 Not Found", [])
        return [b""]

    http: Any = werkzeug.test.Client(durably.wsgi.dashboard(app, client, path, authorize=authorize))
    yield lambda *args, **options: asyncio.to_thread(http.get, *args, **options)


sanic.Sanic.test_mode = True  # Each test has an app of the same name.
ASKING = {
    "litestar": asking_litestar,
    "quart": asking_quart,
    "aiohttp": asking_aiohttp,
    "sanic": asking_sanic,
    "wsgi": asking_wsgi,
}
REFUSALS: dict[str, Exception] = {
    "litestar": NotAuthorizedException(),
    "quart": Unauthorized(),
    "aiohttp": web.HTTPUnauthorized(),
    "sanic": sanic.Unauthorized(),
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("framework", ASKING)
async def test_other_frameworks_answer_below_the_mount_point(framework: str, path: str, client: durably.Client) -> None:
    async with ASKING[framework](client, path, lambda action: True) as ask:
        page = (await ask(f"{PATHS[path]}/runs/no/such/page")).text
        [style, *_] = re.findall(rf'href="({PATHS[path]}/assets/[^"]+[.]css)"', page)
        assert (await ask(style)).headers["content-type"] == "text/css; charset=utf-8"
        assert (await ask(f"{PATHS[path]}/")).status_code == 503  # The engine is not started.
        assert (await ask(f"{PATHS[path]}/runs/%E2%98%83?q=%2F")).status_code == 503
        assert (await ask("/nothing/of/it")).status_code == 404


@pytest.mark.parametrize("framework", REFUSALS)
async def test_an_http_exception_of_the_policy_is_the_answer_in_other_frameworks(
    framework: str, client: durably.Client
) -> None:
    def authorize(action: Action) -> bool:
        assert action.request.headers["x-user"] == "ada"
        raise REFUSALS[framework]

    async with ASKING[framework](client, "/durably", authorize) as ask:
        assert (await ask("/durably/runs", headers={"x-user": "ada"})).status_code == 401


async def test_an_http_exception_of_the_policy_is_the_answer(client: durably.Client) -> None:
    def ask_who(action: Action) -> bool:
        raise fastapi.HTTPException(401, "Who is it?", {"www-authenticate": "Basic"})

    app = fastapi.FastAPI()
    durably.fast_api.dashboard(app, client, authorize=ask_who)
    answer = await ask(app, "/durably/runs")
    assert (answer.status_code, answer.headers["www-authenticate"], answer.json()["detail"]) == (
        401,
        "Basic",
        "Who is it?",
    )

    def to_login(action: Action) -> bool:
        flask.abort(flask.redirect("/login"))

    flask_app = flask.Flask(__name__)
    durably.flask.dashboard(flask_app, client, authorize=to_login)
    redirect = flask_app.test_client().get("/durably/runs")
    assert (redirect.status_code, redirect.headers["location"]) == (302, "/login")


def test_a_policy_in_flask_has_the_context_of_the_request(client: durably.Client) -> None:
    seen = []

    def authorize(action: Action) -> bool:
        seen.append((flask.session.get("user"), flask.request.path, flask.g.mark, action.request.path))
        return False

    app = flask.Flask(__name__)
    app.secret_key = "for tests only"

    @app.before_request
    def mark() -> None:
        flask.g.mark = 7

    durably.flask.dashboard(app, client, authorize=authorize)
    with app.test_client() as browser:
        with browser.session_transaction() as session:
            session["user"] = "ada"
        assert browser.get("/durably/runs").status_code == 403
    assert seen == [("ada", "/durably/runs", 7, "/durably/runs")]


async def test_tornado_has_the_apps_own_handler_and_its_errors(client: durably.Client) -> None:
    class Base(tornado.web.RequestHandler):
        async def prepare(self) -> None:
            self.current_user = self.request.headers.get("x-token")

    def authorize(action: Action) -> bool:
        match action.request.current_user:
            case None:
                action.request.redirect("/login")
                raise tornado.web.Finish
            case "eve":
                raise tornado.web.HTTPError(418)
            case user:
                return bool(user == "ada")

    app = tornado.web.Application(xsrf_cookies=True)
    durably.tornado.dashboard(app, client, authorize=authorize, base=Base)
    port = free_port()
    server = app.listen(port, "127.0.0.1")
    http = tornado.httpclient.AsyncHTTPClient(force_instance=True)
    url = f"http://127.0.0.1:{port}/durably/runs"
    expected = {"ada": 503, "grace": 403, "eve": 418, None: 302}  # the engine is not started
    for user, status in expected.items():
        headers = {} if user is None else {"x-token": user}
        answer = await http.fetch(url, headers=headers, raise_error=False, follow_redirects=False)
        assert answer.code == status, user
    http.close()
    server.stop()


def test_a_dashboard_at_the_root_leaves_other_paths_to_the_app(client: durably.Client) -> None:
    async def home(request: Any) -> Any: ...

    function = client.create_function(fn_id="f", trigger=durably.TriggerEvent(event="f"))(lambda ctx: None)
    fast_api, flask_app = fastapi.FastAPI(), flask.Flask(__name__)
    app = tornado.web.Application([("/own", tornado.web.RequestHandler)], static_path="/tmp")
    durably.fast_api.dashboard(fast_api, client, "/", allow_anonymous=True)
    durably.flask.dashboard(flask_app, client, "/", allow_anonymous=True)
    durably.tornado.dashboard(app, client, "/", allow_anonymous=True)
    durably.fast_api.serve(fast_api, client, [function])
    durably.tornado.serve(app, client, [function])
    fast_api.add_route("/static/own.css", home)

    def handler_in_tornado(path: str) -> str:
        start = tornado.httputil.RequestStartLine("GET", path, "HTTP/1.1")
        headers = tornado.httputil.HTTPHeaders({"Host": "app"})
        request = tornado.httputil.HTTPServerRequest(start_line=start, headers=headers, connection=NotConnected())
        return app.find_handler(request).handler_class.__name__  # type: ignore[attr-defined]

    def route_in_fast_api(path: str) -> str:
        scope = {"type": "http", "path": path, "method": "GET"}
        return next(route.name for route in fast_api.routes if route.matches(scope)[0] is Match.FULL)

    ours = ("/", "/runs", "/runs/x", "/assets/1/app.js")
    assert [handler_in_tornado(path) for path in ours] == ["DashboardHandler"] * 4
    assert [route_in_fast_api(path) for path in ours] == ["durably-dashboard"] * 4
    theirs = ("/own", "/api/inngest", "/static/own.css")
    assert [handler_in_tornado(path) for path in theirs] == ["RequestHandler", "DurablyHandler", "StaticFileHandler"]
    assert [route_in_fast_api(path) for path in theirs[1:]] == ["durably", "home"]
    page = flask_app.test_client().get("/runs").text
    style = next(part for part in page.split('"') if part.endswith(".css"))
    assert flask_app.test_client().get(style).headers["content-type"] == "text/css; charset=utf-8"


class NotConnected:
    """The connection of a Tornado request, without a socket."""

    context = None

    def set_close_callback(self, callback: object) -> None: ...


async def test_the_apps_own_routes_come_first(client: durably.Client) -> None:
    app = fastapi.FastAPI()

    @app.get("/durably/own")
    def own() -> str:
        return "mine"

    durably.fast_api.dashboard(app, client, allow_anonymous=True)
    assert (await ask(app, "/durably/own")).json() == "mine"
    assert next(route.path for route in app.routes if "durably" in getattr(route, "path", "")) == "/durably/own"
    assert "/durably" not in json.dumps(app.openapi()).replace("/durably/own", "")


async def test_the_dashboard_of_an_engine_at_a_url_asks_with_the_signing_key(tmp_path: Path) -> None:
    settings = EngineSettings(server_kind=ServerKind.CLOUD, signing_key=SIGNING_KEY)
    server = await serve_database(tmp_path / "engine.db", settings, event_keys=["an event key"], port=0)
    async with server:
        for key, status in ((SIGNING_KEY, 200), ("signkey-prod-" + "cd" * 32, 400)):
            client = durably.Client(
                app_id="shop", engine=server.origin, signing_key=key, event_key="an event key", is_production=True
            )
            app = fastapi.FastAPI()
            durably.fast_api.dashboard(app, client, allow_anonymous=True)
            answer = await ask(app, "/durably/runs")
            assert answer.status_code == status, answer.text
            assert key not in answer.text


async def test_an_engine_that_does_not_answer_is_a_page_with_503() -> None:
    client = durably.Client(app_id="shop", engine="http://127.0.0.1:9", is_production=True)
    app = fastapi.FastAPI()
    durably.fast_api.dashboard(app, client, allow_anonymous=True)
    answer = await ask(app, "/durably/runs")
    assert (answer.status_code, "cannot reach http://127.0.0.1:9" in answer.text) == (503, True)
