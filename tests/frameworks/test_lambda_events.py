"""Events of AWS Lambda in the shapes of its documentation: of an HTTP API (payload format 2.0), of a function URL."""

import base64
import io
import json
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest

import durably.aws_lambda
from durably import Client, Context, TriggerEvent
from durably.testing import LambdaSimulator

from ..fake_engine import FakeEngine
from . import app_calls
from .functions import SeesRequest, SeesRequestSync

HTTP_API: dict[str, Any] = {
    "version": "2.0",
    "routeKey": "ANY /{proxy+}",
    "rawPath": "/prod/api/inngest",
    "rawQueryString": "fnId=shop%2Dgreet&stepId=step&tag=a&tag=b",
    "cookies": ["session=abc", "theme=dark"],
    "headers": {
        "accept": "application/json,text/plain",
        "content-type": "application/json",
        "host": "a1b2c3d4e5.execute-api.eu-central-1.amazonaws.com",
        "user-agent": "durably",
        "x-amzn-trace-id": "Root=1-67000000-000000000000000000000000",
        "x-forwarded-for": "192.0.2.1,198.51.100.7",
        "x-forwarded-port": "443",
        "x-forwarded-proto": "https",
        "x-name": "Ada,Grace",
    },
    "queryStringParameters": {"fnId": "shop-greet", "stepId": "step", "tag": "a,b"},
    "requestContext": {
        "accountId": "000000000000",
        "apiId": "a1b2c3d4e5",
        "authorizer": {"jwt": {"claims": {"sub": "engine"}, "scopes": None}},
        "domainName": "a1b2c3d4e5.execute-api.eu-central-1.amazonaws.com",
        "domainPrefix": "a1b2c3d4e5",
        "http": {
            "method": "POST",
            "path": "/prod/api/inngest",
            "protocol": "HTTP/1.1",
            "sourceIp": "198.51.100.7",
            "userAgent": "durably",
        },
        "requestId": "JKJaXmPLvHcESHA=",
        "routeKey": "ANY /{proxy+}",
        "stage": "prod",
        "time": "25/Nov/2026:12:00:00 +0000",
        "timeEpoch": 1795608000000,
    },
    "pathParameters": {"proxy": "api/inngest"},
    "stageVariables": {"colour": "blue"},
    "body": "",
    "isBase64Encoded": False,
}

FUNCTION_URL: dict[str, Any] = {
    "version": "2.0",
    "routeKey": "$default",
    "rawPath": "/api/inngest",
    "rawQueryString": "fnId=shop-greet&stepId=step",
    "cookies": ["session=abc"],
    "headers": {
        "content-type": "application/json",
        "host": "abcdefgh01234567.lambda-url.eu-central-1.on.aws",
        "x-amzn-tls-version": "TLSv1.3",
        "x-forwarded-for": "198.51.100.7",
        "x-forwarded-port": "443",
        "x-forwarded-proto": "https",
        "x-name": "Ada,Grace",
    },
    "queryStringParameters": {"fnId": "shop-greet", "stepId": "step"},
    "requestContext": {
        "accountId": "anonymous",
        "apiId": "abcdefgh01234567",
        "domainName": "abcdefgh01234567.lambda-url.eu-central-1.on.aws",
        "domainPrefix": "abcdefgh01234567",
        "http": {
            "method": "POST",
            "path": "/api/inngest",
            "protocol": "HTTP/1.1",
            "sourceIp": "198.51.100.7",
            "userAgent": "durably",
        },
        "requestId": "e1506fd5-9e7b-434f-bd42-4f8fa224b599",
        "routeKey": "$default",
        "stage": "$default",
        "time": "25/Nov/2026:12:00:00 +0000",
        "timeEpoch": 1795608000000,
    },
    "body": "",
    "isBase64Encoded": False,
}

URLS = {
    "HTTP API": "https://a1b2c3d4e5.execute-api.eu-central-1.amazonaws.com/prod/api/inngest",
    "function URL": "https://abcdefgh01234567.lambda-url.eu-central-1.on.aws/api/inngest",
}

Handler = Callable[..., dict[str, Any]]


@pytest.fixture(params=["HTTP API", "function URL"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def event(name: str) -> dict[str, Any]:
    return deepcopy(HTTP_API if name == "HTTP API" else FUNCTION_URL)


def make_handler(**settings: Any) -> Handler:
    client = Client(app_id="shop", **settings)

    @client.create_function(
        fn_id="greet", trigger=TriggerEvent(event="came"), middleware=[SeesRequest, SeesRequestSync, SeesCookies]
    )
    async def greet(ctx: Context) -> dict[str, Any]:
        return dict(ctx.event.data)

    return durably.aws_lambda.serve(client, [greet])


class SeesCookies(durably.MiddlewareSync):
    def transform_input(self, ctx: Any, function: Any, steps: Any) -> None:
        ctx.event.data["cookies"] = self.raw_request["event"]["cookies"]
        ctx.event.data["context"] = self.raw_request["context"]


def in_production(engine: FakeEngine) -> Handler:
    return make_handler(
        is_production=True,
        signing_key=app_calls.SIGNING_KEY,
        event_key=app_calls.EVENT_KEY,
        api_base_url=engine.origin,
    )


@pytest.mark.parametrize("is_base64", [False, True])
def test_a_signed_call(engine: FakeEngine, event: dict[str, Any], is_base64: bool) -> None:
    body = app_calls.canonical(app_calls.call_body({"text": "naïve ☃"}))
    event["headers"]["x-inngest-signature"] = app_calls.sign(body)
    event["body"] = base64.b64encode(body).decode() if is_base64 else body.decode()
    event["isBase64Encoded"] = is_base64
    result = json.loads(json.dumps(in_production(engine)(event, "the context")))
    assert set(result) == {"statusCode", "headers", "body"}
    assert result["statusCode"] == 200
    assert {type(value) for value in result["headers"].values()} == {str}
    output = json.loads(result["body"])
    assert output["text"] == "naïve ☃"
    assert output["async"] == output["sync"] == {"type": "event", "name": "Ada,Grace"}  # A header that was sent twice.
    assert (output["cookies"], output["context"]) == (event["cookies"], "the context")
    answer = app_calls.Answer(result["statusCode"], result["headers"], result["body"].encode())
    assert app_calls.is_signed(answer)


def test_an_inspection(event: dict[str, Any]) -> None:
    event["requestContext"]["http"]["method"] = "GET"
    del event["body"], event["cookies"], event["headers"]["content-type"]
    event["rawQueryString"] = ""
    result = make_handler(is_production=False)(event, None)
    assert (result["statusCode"], json.loads(result["body"])["function_count"]) == (200, 1)


def test_a_sync_registers_the_platforms_url(engine: FakeEngine, name: str, event: dict[str, Any]) -> None:
    """Its stage too, and not the ``Host`` of the request."""
    event["requestContext"]["http"]["method"] = "PUT"
    event["headers"]["host"] = "attacker.example"
    event["rawQueryString"] = ""
    engine.answers["/fn/register"] = 200, {"ok": True}
    assert in_production(engine)(event, None)["statusCode"] == 200
    [received] = engine.to("/fn/register")
    assert (received.json["url"], received.json["framework"]) == (URLS[name], "aws-lambda")


def test_wrong_base64_is_refused(event: dict[str, Any]) -> None:
    event |= {"body": "***", "isBase64Encoded": True}
    result = make_handler(is_production=False)(event, None)
    assert (result["statusCode"], json.loads(result["body"])["code"]) == (400, "body_invalid")


REST_API = {"version": "1.0", "httpMethod": "GET", "path": "/", "headers": {}, "requestContext": {"stage": "prod"}}
LOAD_BALANCER = {"httpMethod": "GET", "path": "/", "headers": {}, "requestContext": {"elb": {"targetGroupArn": "arn"}}}


@pytest.mark.parametrize("other", [REST_API, LOAD_BALANCER, {"source": "aws.events"}, {}, [1], None])
def test_events_of_other_formats_are_refused(other: Any) -> None:
    result = make_handler(is_production=False)(other, None)
    assert result["statusCode"] == 400
    assert "payload format 2.0" in json.loads(result["body"])["message"]
    assert "x-inngest-sdk" in result["headers"]


def test_simulated_events_have_the_platforms_shape() -> None:
    seen: dict[str, Any] = {}
    environ = {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": "/gr\xc3\xbc\xc3\x9fe",
        "QUERY_STRING": "a=b",
        "HTTP_HOST": "127.0.0.1:8000",
        "CONTENT_LENGTH": "2",
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(b"{}"),
    }
    simulator = LambdaSimulator(lambda event, context: seen.update(event) or {"statusCode": 204})  # type: ignore[func-returns-value]
    assert list(simulator(environ, lambda status, headers: None)) == [b""]
    assert (seen["rawPath"], seen["rawQueryString"], seen["body"]) == ("/gr%C3%BC%C3%9Fe", "a=b", "{}")
    for simulated, documented in (
        (seen, FUNCTION_URL),
        (seen["requestContext"], FUNCTION_URL["requestContext"]),
        (seen["requestContext"]["http"], FUNCTION_URL["requestContext"]["http"]),
    ):
        assert set(simulated) <= set(documented)
