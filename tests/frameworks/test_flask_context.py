"""Flask's own: what it binds to a request is there in functions, streamed or not, in whatever thread they run."""

import flask
import pytest

import durably
import durably.flask
from durably import Client, Context, ContextSync, Streaming

from . import app_calls


@pytest.fixture(params=[None, Streaming.FORCE])
def app(request: pytest.FixtureRequest) -> flask.Flask:
    app = flask.Flask("shop")
    client = Client(app_id="app", is_production=False)
    event = durably.TriggerEvent(event="test/event")

    @client.create_function(fn_id="see-async", trigger=event)
    async def see_async(ctx: Context) -> list[str]:
        return [flask.current_app.name, flask.request.headers["x-name"], flask.g.user]

    @client.create_function(fn_id="see-sync", trigger=event)
    def see_sync(ctx: ContextSync) -> list[str]:
        return [flask.current_app.name, flask.request.headers["x-name"], flask.g.user]

    @app.before_request
    def log_in() -> None:
        flask.g.user = "Ada"

    durably.flask.serve(app, client, [see_async, see_sync], streaming=request.param)
    return app


def test_flasks_request_context_is_bound_in_functions(app: flask.Flask, kind: str) -> None:
    url = f"/api/inngest?fnId=app-see-{kind}&stepId=step"
    response = app.test_client().post(url, data=app_calls.canonical(app_calls.call_body()), headers={"x-name": "mine"})
    answer = app_calls.Answer(response.status_code, response.headers, response.data)
    if answer.status == 201:
        answer = answer.inner
    assert answer.json == ["shop", "mine", "Ada"]
