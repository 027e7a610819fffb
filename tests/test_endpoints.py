"""Durable endpoints: the app's own authentication, wrong arguments, and the page of the docs.

``tests/frameworks/test_endpoints.py`` has the requests in each framework, ``tests/handle_stories.py`` each engine.
"""

import re
from pathlib import Path
from types import ModuleType
from typing import Any

import fastapi
import fastapi.testclient
import flask
import pytest
import quart
import tornado.testing
import tornado.web

import durably
import durably.aws_lambda
import durably.fast_api
import durably.flask
import durably.quart
import durably.tornado
from durably.comm import CommHandler
from durably.endpoints import mount_endpoint
from durably.errors import DurationInvalidError, FunctionConfigInvalidError

from .docs.pages import DOCS, blocks

JSON = {"content-type": "application/json"}


def make_function(engine: durably.Embedded | None = None) -> durably.Function[Any]:
    client = durably.Client(app_id="shop", engine=engine, is_production=False)

    @client.create_function(fn_id="checkout", trigger=[])
    async def checkout(ctx: durably.Context) -> str:
        return "paid"

    CommHandler(client=client, framework="test", functions=[checkout])
    return checkout


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({}, "needs a policy"),
        ({"authorize": lambda request, data: True, "allow_anonymous": True}, "needs a policy"),
        ({"authorize": "no"}, "authorize= must be a function"),
        ({"path": "https://example.com/", "allow_anonymous": True}, r"path=…"),
        ({"path": 1, "allow_anonymous": True}, r"path=…"),
        ({"function": "checkout", "allow_anonymous": True}, "takes a function"),
        ({"wait": 10, "allow_anonymous": True}, r"wait=…"),
        ({"expires": "soon", "allow_anonymous": True}, r"expires=…"),
    ],
)
def test_wrong_arguments_are_refused(given: dict[str, Any], problem: str) -> None:
    arguments = {"function": make_function(), "path": "/go", "caller": "flask.endpoint", **given}
    with pytest.raises((FunctionConfigInvalidError, DurationInvalidError), match=rf"flask\.endpoint.*{problem}"):
        mount_endpoint(**arguments)


def test_an_engine_in_process_is_refused_on_platforms() -> None:
    function = make_function(durably.Embedded("unused.db"))
    with pytest.raises(FunctionConfigInvalidError, match="AWS Lambda"):
        durably.aws_lambda.endpoint(function, allow_anonymous=True)


def sign_in(request: fastapi.Request) -> None:
    if request.headers.get("x-user") != "ada":
        raise fastapi.HTTPException(401, "who is there?")


SIGN_IN = fastapi.Depends(sign_in)


def test_dependencies_of_fast_api_apply(tmp_path: Path) -> None:
    engine = durably.Embedded(tmp_path / "durably.db")
    checkout = make_function(engine)
    of_app, of_router, of_route = fastapi.FastAPI(dependencies=[SIGN_IN]), fastapi.FastAPI(), fastapi.FastAPI()
    durably.fast_api.endpoint(of_app, checkout, "/shop/go", allow_anonymous=True)
    router = fastapi.APIRouter(prefix="/shop", dependencies=[SIGN_IN])
    durably.fast_api.endpoint(router, checkout, "/go", allow_anonymous=True)
    of_router.include_router(router)
    durably.fast_api.endpoint(of_route, checkout, "/shop/go", dependencies=[SIGN_IN])
    engine.start_sync()
    try:
        for app in (of_app, of_router, of_route):
            web = fastapi.testclient.TestClient(app)
            refused = web.post("/shop/go", json={})
            assert (refused.status_code, refused.json()) == (401, {"detail": "who is there?"})
            assert web.get("/shop/go?token=x").status_code == 401
            answer = web.post("/shop/go", json={}, headers={"x-user": "ada"})
            assert (answer.status_code, answer.json()) == (200, "paid")
    finally:
        engine.stop_sync()


def test_hooks_of_flask_and_errors_that_authorize_raises_apply() -> None:
    app = flask.Flask(__name__)

    @app.before_request
    def sign_in() -> flask.Response | None:
        return None if flask.request.headers.get("x-user") else flask.make_response("who is there?", 401)

    def authorize(request: flask.Request, data: dict[str, Any]) -> bool:
        flask.abort(404 if flask.request.headers["x-user"] == data["user"] else 410)

    durably.flask.endpoint(app, make_function(), "/go", authorize=authorize)
    web = app.test_client()
    assert web.post("/go", json={}).status_code == 401
    assert web.post("/go", json={"user": "ada"}, headers={"x-user": "ada"}).status_code == 404
    assert web.post("/go", json={"user": "eve"}, headers={"x-user": "ada"}).status_code == 410


async def test_hooks_of_quart_and_errors_that_authorize_raises_apply() -> None:
    app = quart.Quart(__name__)

    @app.before_request
    async def sign_in() -> quart.Response | None:
        return None if quart.request.headers.get("x-user") else await quart.make_response("who is there?", 401)

    async def authorize(request: quart.Request, data: dict[str, Any]) -> bool:
        quart.abort(404 if quart.request.headers["x-user"] == data["user"] else 410)

    durably.quart.endpoint(app, make_function(), "/go", authorize=authorize)
    web = app.test_client()
    assert (await web.post("/go", json={})).status_code == 401
    assert (await web.post("/go", json={"user": "ada"}, headers={"x-user": "ada"})).status_code == 404
    assert (await web.post("/go", json={"user": "eve"}, headers={"x-user": "ada"})).status_code == 410


class TornadosHandler(tornado.testing.AsyncHTTPTestCase):
    def get_app(self) -> tornado.web.Application:
        class Handler(tornado.web.RequestHandler):
            def get_current_user(self) -> str | None:
                return self.request.headers.get("x-user")

            async def prepare(self) -> None:
                if self.current_user is None:
                    raise tornado.web.HTTPError(401)

        def authorize(handler: tornado.web.RequestHandler, data: dict[str, Any]) -> bool:
            if handler.current_user != data["user"]:
                raise tornado.web.HTTPError(402)
            return False

        app = tornado.web.Application(xsrf_cookies=True)
        durably.tornado.endpoint(app, make_function(), "/go", base=Handler, authorize=authorize)
        return app

    def post(self, **headers: str) -> int:
        sent = JSON | {name.replace("_", "-"): text for name, text in headers.items()}
        return self.fetch("/go", method="POST", body=b'{"user": "ada"}', headers=sent).code

    def test_the_handler_of_the_app_applies(self) -> None:
        assert (self.post(), self.post(x_user="eve"), self.post(x_user="ada")) == (401, 402, 403)


def test_the_app_of_the_docs_answers_with_a_result_or_a_link(tmp_path: Path) -> None:
    [code] = [block.text for block in blocks(DOCS / "how-to/durable-endpoints.md") if "# main.py" in block.text]
    module = ModuleType("main")
    code, changes = re.subn(r'Embedded\("durably.db"\)', f"Embedded({str(tmp_path / 'durably.db')!r})", code)
    code, more = re.subn(r"authorize=may_order\)", 'authorize=may_order, wait="60s")', code)
    assert (changes, more) == (1, 1)
    exec(compile(code, "main.py", "exec"), module.__dict__)
    app, ada = module.app, {"x-user": "ada"}
    durably.fast_api.endpoint(app, module.checkout, "/quick", authorize=module.may_order, wait="10ms")
    module.client.engine.start_sync()
    try:
        with fastapi.testclient.TestClient(app, headers=ada) as web:
            answer = web.post("/checkout", json={"card": "visa"})
            assert (answer.status_code, answer.json()) == (200, {"paid": "visa is charged"})
            assert web.post("/checkout", json={"card": "visa"}, headers={"x-user": ""}).status_code == 403
            gift = web.post("/quick", json={"card": "visa", "gift": True})
            assert gift.status_code == 202
            assert web.get(gift.headers["location"]).status_code == 202
    finally:
        module.client.engine.stop_sync()
