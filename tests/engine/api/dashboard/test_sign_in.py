"""The keys of the dashboard of an engine in production."""

import base64
import re
from pathlib import Path

import aiohttp
import pytest

from durably.engine.api.dashboard.dashboard import DashboardConfigError, DashboardKeys, KeySignIn
from durably.engine.api.dashboard.messages import CSRF_COOKIE, CSRF_FIELD, DashboardRequest, DashboardResponse, Finding
from durably.engine.api.interface import Engine
from durably.engine.model.settings import EngineSettings
from durably.engine.sqlite.server import serve_database
from durably.protocol.headers import ServerKind

KEY, VIEWER_KEY = "a kéy of the dashboard", "a key of the viewers"
TOKEN = "t" * 43
SIGNING_KEY = "signkey-prod-" + "ab" * 32
PRODUCTION = EngineSettings(server_kind=ServerKind.CLOUD, signing_key=SIGNING_KEY)


def basic(key: str, user: str = "ada") -> str:
    return "Basic " + base64.b64encode(f"{user}:{key}".encode()).decode()


async def ask(method: str, path: str, authorization: str | None, viewer_key: str | None = None) -> DashboardResponse:
    headers = {"host": "engine.example.com", "cookie": f"{CSRF_COOKIE}={TOKEN}"}
    headers |= {"content-type": "application/x-www-form-urlencoded"}
    headers |= {} if authorization is None else {"authorization": authorization}
    body = f"{CSRF_FIELD}={TOKEN}".encode() if method == "POST" else b""
    server = KeySignIn(Engine(), DashboardKeys(KEY, viewer_key), lambda request: Finding())
    return await server.handle(DashboardRequest(method=method, path=path, mount="", headers=headers, body=body))


@pytest.mark.parametrize("authorization", [basic(KEY), basic(KEY, user=""), basic(KEY).replace("Basic", "basic")])
async def test_a_visitor_with_the_key_is_signed_in(authorization: str) -> None:
    # A page that does not exist needs no data of the engine.
    assert (await ask("GET", "/nothing", authorization)).status_code == 404


async def test_wrong_keys_are_logged_sparsely(caplog: pytest.LogCaptureFixture) -> None:
    server = KeySignIn(Engine(), DashboardKeys(KEY), lambda request: Finding())
    request = DashboardRequest(
        method="GET", path="/", mount="", headers={"authorization": basic("a wrong one")}, body=b""
    )
    assert {(await server.handle(request)).status_code for _ in range(20)} == {401}
    assert [record.getMessage().partition(",")[0] for record in caplog.records if "wrong key" in record.msg] == [
        "a wrong key was given to the dashboard"
    ]


@pytest.mark.parametrize(
    "authorization",
    [
        *(None, "", "Basic", "Basic !", "Basic " + base64.b64encode(KEY.encode()).decode(), f"Bearer {KEY}"),
        *(basic(key) for key in ("", "another key of the dashboard", KEY[:-1], KEY + " ", KEY.upper(), VIEWER_KEY)),
        "Basic " + base64.b64encode(b":\xff").decode(),
    ],
)
async def test_others_are_asked_for_it_and_see_only_files(authorization: str | None) -> None:
    for method, path in (
        *(("GET", path) for path in ("/", "/runs", "/runs/x", "/live", "//runs", "/assets/../runs")),
        ("POST", "/runs/x/cancel"),
        ("DELETE", "/runs"),
    ):
        refused = await ask(method, path, authorization)
        assert refused.status_code in (401, 404), (method, path)
        assert refused.status_code == 404 or dict(refused.headers)["www-authenticate"].startswith("Basic realm=")
    [style, *_] = re.findall(r'href="(/assets/[^"]+\.css)"', refused.body.decode())
    assert (await ask("GET", style, authorization)).status_code == 200


async def test_nothing_of_a_body_is_read_without_the_key(tmp_path: Path) -> None:
    """A few kilobytes may decompress to a large form."""
    opened = serve_database(
        tmp_path / "engine.db", PRODUCTION, event_keys=["an event key"], port=0, dashboard_keys=DashboardKeys(KEY)
    )
    server = await opened
    try:
        async with aiohttp.ClientSession() as http:
            for authorization, status in (("", 401), (basic("wrong"), 401), (basic(KEY), 415)):
                headers = {"content-encoding": "unknown", "authorization": authorization}
                async with http.post(f"{server.origin}/events/send", data=b"body", headers=headers) as response:
                    assert response.status == status, authorization
    finally:
        await server.close()


async def test_viewers_have_a_key_of_their_own_and_change_nothing() -> None:
    assert (await ask("GET", "/nothing", basic(VIEWER_KEY), VIEWER_KEY)).status_code == 404
    refused = await ask("POST", "/runs/x/cancel", basic(VIEWER_KEY), VIEWER_KEY)
    assert (refused.status_code, b"the key of operators, for the action cancel_run" in refused.body) == (403, True)
    assert (await ask("POST", "/runs/x/cancel", basic(KEY), VIEWER_KEY)).status_code not in (401, 403)


@pytest.mark.parametrize("keys", [("hunter2",), (KEY, "hunter2"), ("hunter2" + " " * 20,)])
def test_a_key_that_could_be_guessed_is_refused(keys: tuple[str, ...]) -> None:
    with pytest.raises(DashboardConfigError, match="16 characters") as raised:
        DashboardKeys(*keys)
    assert "hunter2" not in str(raised.value)


async def test_an_engine_in_production_has_no_dashboard_unless_it_is_configured(tmp_path: Path) -> None:
    server = await serve_database(tmp_path / "engine.db", PRODUCTION, event_keys=["e"], port=0)
    async with server, aiohttp.ClientSession(server.origin) as session:
        for path in ("/", "/runs", "/assets/x/app.js"):
            async with session.get(path, headers={"authorization": basic(KEY)}) as response:
                assert response.status in (401, 404)
                assert "www-authenticate" not in response.headers


async def test_the_key_opens_the_dashboard_and_not_the_api(tmp_path: Path) -> None:
    path, keys = tmp_path / "engine.db", DashboardKeys(KEY)
    server = await serve_database(path, PRODUCTION, event_keys=["e"], port=0, dashboard_keys=keys)
    async with server, aiohttp.ClientSession(server.origin) as session:
        for path, authorization, status in (
            ("/runs", None, 401),
            ("/runs", basic(KEY), 200),
            ("/v1/runs", basic(KEY), 401),
        ):
            async with session.get(path, headers={"authorization": authorization or ""}) as response:
                assert response.status == status
                page = await response.text()
            for secret in (KEY, SIGNING_KEY, "ab" * 32):
                assert secret not in page + str(response.headers)
