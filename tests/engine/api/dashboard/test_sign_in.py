"""Signing in to the dashboard of an engine in production, with a key or by a proxy."""

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

import aiohttp
import pytest

from durably.engine.api.dashboard.dashboard import Dashboard
from durably.engine.api.dashboard.messages import CSRF_COOKIE, CSRF_FIELD, DashboardRequest, DashboardResponse
from durably.engine.api.dashboard.sign_in import (
    MAX_WRONG_KEYS,
    SESSION_SECONDS,
    WRONG_KEY_SECONDS,
    DashboardServer,
    KeySignIn,
    ProxySignIn,
    SignInConfigError,
    check_header,
    local_path,
    read_network,
)
from durably.engine.api.interface import Engine
from durably.engine.model.settings import EngineSettings
from durably.engine.sqlite.server import serve_database
from durably.protocol.headers import ServerKind

KEY = "a key of the dashboard"
FORM = "application/x-www-form-urlencoded"
TOKEN = "t" * 43


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Browser:
    """Keeps the cookies of a dashboard's answers."""

    server: DashboardServer
    peer: str = "192.0.2.1"
    is_secure: bool = False
    forwarded: str = ""

    def __post_init__(self) -> None:
        self.cookies = {CSRF_COOKIE: TOKEN}
        self.last: DashboardResponse | None = None

    async def ask(self, method: str, path: str, query: str = "", **form: str) -> DashboardResponse:
        cookie = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        headers = {"host": "engine.example.com", "cookie": cookie, "content-type": FORM}
        headers |= {"x-forwarded-for": self.forwarded} if self.forwarded else {}
        body = urlencode(form).encode()
        request = DashboardRequest(
            method=method,
            path=path,
            mount="",
            headers=headers,
            query=query,
            body=body,
            peer=self.peer,
            is_secure=self.is_secure,
        )
        response = await self.server.handle(request)
        for name, value in response.headers:
            if name == "set-cookie":
                key, _, rest = value.partition("=")
                self.cookies[key] = rest.partition(";")[0]
        return response

    async def sign_in(self, key: str = KEY, query: str = "", token: str = TOKEN) -> DashboardResponse:
        return await self.ask("POST", "/sign-in", query, key=key, **{CSRF_FIELD: token})

    async def is_signed_in(self) -> bool:
        """A page that does not exist is not found, and needs no data of the engine."""
        return (await self.ask("GET", "/nothing")).status_code == 404


def header(response: DashboardResponse, name: str) -> str:
    return next((value for each, value in response.headers if each == name), "")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def dashboard() -> Dashboard:
    return Dashboard(Engine(), allow_anonymous=True)


@pytest.fixture
def server(dashboard: Dashboard, clock: Clock) -> KeySignIn:
    return KeySignIn(dashboard, KEY, clock=clock)


async def test_a_visitor_is_led_to_the_form_and_back(server: KeySignIn) -> None:
    browser = Browser(server)
    away = await browser.ask("GET", "/runs", "status=failed&x=1")
    assert (away.status_code, header(away, "location")) == (303, "/sign-in?next=%2Fruns%3Fstatus%3Dfailed%26x%3D1")
    query = header(away, "location").partition("?")[2]
    form = await browser.ask("GET", "/sign-in", query)
    assert form.status_code == 200
    assert header(form, "cache-control") == "no-store"
    assert "frame-ancestors 'none'" in header(form, "content-security-policy")
    [action] = re.findall(r'action="([^"]+)"', form.body.decode())
    assert action == "/sign-in?" + query.replace("&", "&amp;")
    back = await browser.sign_in(query=query)
    assert (back.status_code, header(back, "location")) == (303, "/runs?status=failed&x=1")
    assert await browser.is_signed_in()


async def test_the_cookie_is_for_the_server_alone_and_expires(server: KeySignIn, clock: Clock) -> None:
    browser = Browser(server)
    cookie = header(await browser.sign_in(), "set-cookie")
    assert cookie.endswith(f"; Path=/; HttpOnly; SameSite=Lax; Max-Age={SESSION_SECONDS}")
    assert KEY not in cookie
    secure = Browser(server, is_secure=True)
    assert header(await secure.sign_in(), "set-cookie").endswith("; Secure")
    clock.now += SESSION_SECONDS - 1
    assert await browser.is_signed_in()
    clock.now += 1
    assert not await browser.is_signed_in()


@pytest.mark.parametrize("key", ["", "another key of the dashboard", KEY[:-1], KEY + " x", KEY.upper(), "\udcff"])
async def test_a_wrong_key_is_refused(server: KeySignIn, key: str) -> None:
    browser = Browser(server)
    refused = await browser.ask("POST", "/sign-in", key=key.encode(errors="replace").decode(), **{CSRF_FIELD: TOKEN})
    assert refused.status_code == 403
    assert "durably-session" not in browser.cookies
    assert not await browser.is_signed_in()


async def test_changed_and_foreign_sessions_are_refused(server: KeySignIn, dashboard: Dashboard, clock: Clock) -> None:
    browser = Browser(server)
    await browser.sign_in()
    session = browser.cookies["durably-session"]
    expiry, name, signature = session.split(".")
    other = Browser(KeySignIn(dashboard, KEY + "!", clock=clock))
    await other.sign_in(KEY + "!")
    changed = [
        f"{int(expiry) + 1}.{name}.{signature}",
        f"{expiry}.{'0' * 32}.{signature}",
        f"{expiry}.{name}.{'0' * 64}",
        f"{expiry}.{name}.",
        f"{session}.{signature}",
        session.upper(),
        other.cookies["durably-session"],
        "x" * 100_000,
    ]
    for text in changed:
        browser.cookies["durably-session"] = text
        assert not await browser.is_signed_in(), text[:200]
    browser.cookies["durably-session"] = session
    assert await browser.is_signed_in()


async def test_sessions_survive_a_restart(server: KeySignIn, dashboard: Dashboard, clock: Clock) -> None:
    browser = Browser(server)
    await browser.sign_in()
    browser.server = KeySignIn(dashboard, KEY, clock=clock)
    assert await browser.is_signed_in()


async def test_signing_out_ends_the_session_also_for_a_copy_of_its_cookie(server: KeySignIn) -> None:
    browser, thief, other = Browser(server), Browser(server), Browser(server)
    await browser.sign_in()
    await other.sign_in()
    thief.cookies["durably-session"] = browser.cookies["durably-session"]
    assert await thief.is_signed_in()
    forged = await browser.ask("POST", "/sign-out", **{CSRF_FIELD: "wrong"})
    assert forged.status_code == 403
    assert await browser.is_signed_in()
    page = await browser.ask("GET", "/nothing")
    assert 'action="/sign-out"' in page.body.decode()
    out = await browser.ask("POST", "/sign-out", **{CSRF_FIELD: TOKEN})
    assert (out.status_code, header(out, "location")) == (303, "/sign-in")
    assert "Max-Age=0" in header(out, "set-cookie")
    assert not await browser.is_signed_in()
    assert not await thief.is_signed_in()
    assert await other.is_signed_in()


async def test_wrong_keys_of_an_address_are_limited(server: KeySignIn, clock: Clock) -> None:
    browser = Browser(server, "2001:db8:1:2::1")
    for _ in range(MAX_WRONG_KEYS):
        assert (await browser.sign_in("x")).status_code == 403
    neighbour = Browser(server, "2001:db8:1:2:ffff::9")  # of the same client
    for limited in (await browser.sign_in(KEY), await neighbour.sign_in(KEY)):
        assert limited.status_code == 429
        assert header(limited, "retry-after") == f"{WRONG_KEY_SECONDS:.0f}"
    assert (await Browser(server, "2001:db8:1:3::1").sign_in(KEY)).status_code == 303
    assert (await Browser(server, "192.0.2.9").sign_in(KEY)).status_code == 303
    clock.now += WRONG_KEY_SECONDS
    assert (await browser.sign_in(KEY)).status_code == 303


async def test_visitors_behind_a_trusted_proxy_are_distinguished(dashboard: Dashboard, clock: Clock) -> None:
    server = KeySignIn(dashboard, KEY, proxies=[read_network("10.0.0.0/8")], clock=clock)
    attacker = Browser(server, "10.0.0.1", forwarded="198.51.100.7, 203.0.113.5, 10.0.0.2")
    for _ in range(MAX_WRONG_KEYS):
        assert (await attacker.sign_in("x")).status_code == 403
    attacker.forwarded = "a made up one, 192.0.2.77, 203.0.113.5, 10.0.0.2"
    assert (await attacker.sign_in(KEY)).status_code == 429, "what the client wrote itself does not count"
    assert (await Browser(server, "10.0.0.1", forwarded="203.0.113.6").sign_in(KEY)).status_code == 303
    direct = Browser(server, "203.0.113.5", forwarded="203.0.113.6")
    assert (await direct.sign_in(KEY)).status_code == 429, "only proxies are believed"
    assert (await Browser(server, "10.0.0.1", forwarded="no address").sign_in(KEY)).status_code == 303


async def test_viewers_have_a_key_of_their_own_and_change_nothing(dashboard: Dashboard, clock: Clock) -> None:
    viewer_key = "a key of the viewers"
    server = KeySignIn(dashboard, KEY, viewer_key=viewer_key, clock=clock)
    viewer, operator = Browser(server), Browser(server)
    assert (await viewer.sign_in(viewer_key)).status_code == 303
    assert (await operator.sign_in(KEY)).status_code == 303
    assert await viewer.is_signed_in()
    refused = await viewer.ask("POST", "/runs/x/cancel", **{CSRF_FIELD: TOKEN})
    assert (refused.status_code, b"the key of operators, for the action cancel_run" in refused.body) == (403, True)
    assert (await operator.ask("POST", "/runs/x/cancel", **{CSRF_FIELD: TOKEN})).status_code != 403
    expiry, name, _ = viewer.cookies["durably-session"].split(".")
    viewer.cookies["durably-session"] = ".".join((expiry, name, operator.cookies["durably-session"].split(".")[2]))
    assert not await viewer.is_signed_in(), "a signature is of one session"
    gone = Browser(KeySignIn(dashboard, KEY, clock=clock))
    assert (await gone.sign_in(viewer_key)).status_code == 403
    for key in (KEY, "short"):
        with pytest.raises(SignInConfigError):
            KeySignIn(dashboard, KEY, viewer_key=key)


async def test_a_request_with_too_many_fields_is_refused(server: KeySignIn) -> None:
    many = "&".join(["a=1"] * 1000)
    assert (await Browser(server).ask("GET", "/sign-in", many)).status_code == 400
    assert (await Browser(server).sign_in(query=many)).status_code == 400


async def test_a_form_of_another_site_does_not_sign_in(server: KeySignIn) -> None:
    browser = Browser(server)
    assert (await browser.sign_in(token="wrong")).status_code == 403
    assert not await browser.is_signed_in()


async def test_nothing_but_files_is_shown_before_the_sign_in(server: KeySignIn) -> None:
    browser = Browser(server)
    for path in ("/", "/runs", "/runs/x", "/live", "/sign-in/x", "/SIGN-IN", "//runs", "/assets/../runs"):
        response = await browser.ask("GET", path)
        assert response.status_code in (303, 404), path
    for method, path in (("POST", "/runs/x/cancel"), ("DELETE", "/runs"), ("GET", "/sign-out")):
        assert (await browser.ask(method, path, **{CSRF_FIELD: TOKEN})).status_code == 403, path
    [style, *_] = re.findall(r'href="(/assets/[^"]+\.css)"', (await browser.ask("GET", "/sign-in")).body.decode())
    assert (await browser.ask("GET", style)).status_code == 200


@pytest.mark.parametrize(
    "text",
    [
        "//evil.example.com",
        "https://evil.example.com",
        "/\\evil.example.com",
        "\\\\evil.example.com",
        "/x\r\nset-cookie: a=b",
        "/ x",
        "javascript:alert(1)",
        "",
        None,
        "/é",
    ],
)
def test_a_redirect_stays_in_the_dashboard(text: str | None) -> None:
    assert local_path(text) == "/"


def test_a_key_that_could_be_guessed_is_refused(dashboard: Dashboard) -> None:
    with pytest.raises(SignInConfigError, match="16 characters") as raised:
        KeySignIn(dashboard, "hunter2")
    assert "hunter2" not in str(raised.value)
    assert KEY not in repr(KeySignIn(dashboard, KEY))


# a proxy


async def status_of(server: ProxySignIn, peer: str | None, **headers: str) -> int:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    request = DashboardRequest(method="GET", path="/nothing", mount="", headers=given, peer=peer)
    return (await server.handle(request)).status_code


async def test_a_proxy_signs_visitors_in(dashboard: Dashboard) -> None:
    server = ProxySignIn(dashboard, "X-Forwarded-User")
    for peer in ("127.0.0.1", "127.0.0.9", "::1", "::ffff:127.0.0.1"):
        assert await status_of(server, peer, x_forwarded_user="ada") == 404
        assert await status_of(server, peer) == 403
        assert await status_of(server, peer, x_forwarded_user=" ") == 403
    for peer in ("192.0.2.1", "::ffff:192.0.2.1", "", None, "localhost", "unix"):
        assert await status_of(server, peer, x_forwarded_user="ada") == 403
        assert await status_of(server, peer, x_forwarded_user="ada", x_forwarded_for="127.0.0.1") == 403


async def test_only_the_proxies_that_are_named_sign_visitors_in(dashboard: Dashboard) -> None:
    server = ProxySignIn(dashboard, "X-User", [read_network("10.0.0.0/24"), read_network("2001:db8::1")])
    for peer, status in {"10.0.0.7": 404, "2001:db8::1": 404, "10.0.1.7": 403, "127.0.0.1": 403, "::1": 403}.items():
        assert await status_of(server, peer, x_user="ada") == status


@pytest.mark.parametrize("name", ["", "x user", "x:user", "Cookie", "user-agent", "Sec-Fetch-Site", "X-Forwarded-For"])
def test_a_header_that_browsers_set_is_refused(name: str) -> None:
    with pytest.raises(SignInConfigError, match="only the proxy sets"):
        check_header(name)


@pytest.mark.parametrize("text", ["", "proxy.example.com", "10.0.0.1:80", "10.0.0.0/33"])
def test_a_proxy_that_is_not_an_address_is_refused(text: str) -> None:
    with pytest.raises(SignInConfigError, match="not an address"):
        read_network(text)


# the engine's server

SIGNING_KEY = "signkey-prod-" + "ab" * 32


def production() -> EngineSettings:
    return EngineSettings(server_kind=ServerKind.CLOUD, signing_key=SIGNING_KEY)


async def test_an_engine_in_production_has_no_dashboard_unless_it_is_configured(tmp_path: Path) -> None:
    server = await serve_database(tmp_path / "engine.db", production(), event_keys=["e"], port=0)
    async with server, aiohttp.ClientSession(server.origin) as session:
        for path in ("/", "/runs", "/sign-in", "/assets/x/app.js"):
            async with session.get(path, allow_redirects=False) as response:
                assert response.status in (401, 404)


async def test_the_key_opens_the_dashboard_and_not_the_api(tmp_path: Path) -> None:
    server = await serve_database(
        tmp_path / "engine.db",
        production(),
        event_keys=["e"],
        port=0,
        sign_in=lambda dashboard: KeySignIn(dashboard, KEY),
    )
    jar = aiohttp.CookieJar(unsafe=True)  # for an address
    async with server, aiohttp.ClientSession(server.origin, cookie_jar=jar) as session:
        async with session.get("/runs") as response:
            form = await response.text()
            assert (response.status, response.url.path) == (200, "/sign-in")
        [token] = re.findall(rf'name="{CSRF_FIELD}" value="([^"]+)"', form)
        origin = {"origin": server.origin}
        async with session.post(
            "/sign-in?next=/runs", data={"key": KEY, CSRF_FIELD: token}, headers=origin
        ) as response:
            page = await response.text()
            assert (response.status, response.url.path) == (200, "/runs")
        for secret in (KEY, SIGNING_KEY, "ab" * 32):
            assert secret not in page + str(response.headers)
        async with session.get("/v1/runs") as response:
            assert response.status == 401
        async with session.post("/sign-in", data=b"x" * (10 * 1024**2 + 1)) as response:
            assert response.status == 413
        async with session.post("/sign-out", data={CSRF_FIELD: token}, headers=origin) as response:
            assert response.url.path == "/sign-in"
        async with session.get("/runs", allow_redirects=False) as response:
            assert response.status == 303
