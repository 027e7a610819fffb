"""The simulator does to requests and results what the platform does."""

import base64
import io
import json
from typing import Any

import pytest

from durably.testing import DigitalOceanSimulator


def run(result: Any, body: bytes = b"", **environ: str) -> tuple[str, dict[str, str], bytes, dict[str, Any]]:
    """Status line, headers and body of the answer, and the event that the function got."""
    seen: dict[str, Any] = {}

    def main(event: dict[str, Any], context: Any) -> Any:
        seen.update(event["http"], api_host=context.api_host, function_name=context.function_name)
        return result

    def start_response(status: str, headers: list[tuple[str, str]]) -> None:
        seen["status"], seen["answer_headers"] = status, dict(headers)

    chunks = DigitalOceanSimulator(main)(
        {
            "REQUEST_METHOD": "PUT",
            "PATH_INFO": "/anything",
            "QUERY_STRING": "a=b",
            "HTTP_HOST": "127.0.0.1:8000",
            "HTTP_X_INNGEST_SDK": "engine",
            "CONTENT_TYPE": "application/json",
            "CONTENT_LENGTH": str(len(body)),
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(body),
            **environ,
        },
        start_response,
    )
    return seen["status"], seen["answer_headers"], b"".join(chunks), seen


def test_a_request_as_an_event() -> None:
    *_, event = run({}, b'{"x": 1}')
    assert (event["method"], event["path"], event["queryString"]) == ("PUT", "", "a=b")
    assert event["headers"]["x-inngest-sdk"] == "engine"
    assert event["headers"]["content-type"] == "application/json"
    assert (event["body"], event["isBase64Encoded"]) == ('{"x": 1}', False)
    assert (event["api_host"], event["function_name"]) == ("http://127.0.0.1:8000", "/fn-00000000/default/app")


def test_body_that_is_not_utf_8_is_base64() -> None:
    *_, event = run({}, b"\xff\xfe")
    assert (event["body"], event["isBase64Encoded"]) == (base64.b64encode(b"\xff\xfe").decode(), True)


@pytest.mark.parametrize(
    ("result", "status", "body"),
    [
        ({"statusCode": 206, "body": "text", "headers": {"a": "b"}}, "206 Partial Content", b"text"),
        ({"body": {"x": 1}}, "200 OK", json.dumps({"x": 1}).encode()),
        ({}, "200 OK", b""),
        (None, "204 No Content", b""),
    ],
)
def test_a_result_as_an_answer(result: Any, status: str, body: bytes) -> None:
    assert run(result)[:3] == (
        status,
        {**((result or {}).get("headers") or {}), "content-length": str(len(body))},
        body,
    )


@pytest.mark.parametrize("length", ["ten", "-1", "9" * 5000])
def test_non_numeric_content_length_is_refused(length: str) -> None:
    started: list[str] = []
    simulator = DigitalOceanSimulator(lambda event, context: pytest.fail("called"))
    answer = simulator({"CONTENT_LENGTH": length}, lambda status, headers: started.append(status))
    assert (started, list(answer)) == (["400 Bad Request"], [b""])
