"""The codec server in each framework, with requests of Temporal's web UI and CLI."""

import base64
import json
import subprocess
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf import json_format
from temporalio.api.common.v1 import Payload, Payloads

from durably.temporal import Temporal
from durably.temporal.codec_server import CodecServer
from durably.temporal.encryption import EncryptionCodec, EncryptionKey
from durably.temporal.errors import TemporalSettingsError
from durably.temporal.gateway import GatewayRequest

from ..wire import Answer
from .app_server import AppServer
from .apps import CODEC, OTHER_UI, STRANGER, UI
from .dev_server import DevServer
from .serve import SERVERS
from .workflows import SleepingWorkflow

OWNER = {"X-User": "owner", "X-Namespace": "default"}
PLAIN = {"metadata": {"encoding": base64.b64encode(b"json/plain").decode()}, "data": base64.b64encode(b'"hi"').decode()}
PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type,x-namespace"}
ALLOWS = "Access-Control-Allow-Origin"


@pytest.fixture(params=[*SERVERS, "starlette"])
def app(request: pytest.FixtureRequest, apps: Callable[..., AppServer]) -> AppServer:
    return apps(request.param)


def kind(answer: Answer) -> str:
    return str(answer.json["type"]).removeprefix("urn:durably:problem:")


def test_payloads_are_encoded_and_decoded(app: AppServer) -> None:
    encoded = app.post("/codec/encode", {"payloads": [PLAIN, PLAIN]}, OWNER)
    assert (encoded.status, encoded.headers["Cache-Control"]) == (200, "no-store"), encoded.body
    assert [base64.b64decode(each["metadata"]["encoding"]) for each in encoded.json["payloads"]] == [
        b"binary/encrypted",
        b"binary/encrypted",
    ]
    assert app.post("/codec/decode", encoded.json, OWNER).json == {"payloads": [PLAIN, PLAIN]}
    assert app.post("/codec/decode", {"payloads": []}, OWNER).json == {"payloads": []}


def test_only_pages_of_the_web_ui_are_allowed(app: AppServer) -> None:
    for origin in (UI, OTHER_UI):
        preflight = app.ask("OPTIONS", "/codec/decode", None, {**PREFLIGHT, "Origin": origin})
        assert (preflight.status, preflight.body) == (204, b"")
        assert preflight.headers[ALLOWS] == origin
        assert preflight.headers["Access-Control-Allow-Credentials"] == "true"
        assert preflight.headers["Access-Control-Allow-Methods"] == "POST"
        assert preflight.headers["Access-Control-Allow-Headers"] == "content-type,x-namespace"
        assert preflight.headers["Vary"] == "Origin"
        assert app.post("/codec/decode", {"payloads": [PLAIN]}, {**OWNER, "Origin": origin}).headers[ALLOWS] == origin
        refused = app.post("/codec/decode", {"payloads": [PLAIN]}, {"Origin": origin})
        assert (refused.status, refused.headers[ALLOWS]) == (401, origin)
    for headers in ({**PREFLIGHT, "Origin": STRANGER}, {**PREFLIGHT, "Origin": "null"}):
        refused = app.ask("OPTIONS", "/codec/decode", None, headers)
        assert (refused.status, kind(refused), refused.headers.get(ALLOWS)) == (403, "forbidden-origin", None)
    strange = app.post("/codec/decode", {"payloads": [PLAIN]}, {**OWNER, "Origin": STRANGER})
    assert (strange.status, strange.headers.get(ALLOWS)) == (403, None)
    own = {**OWNER, "Origin": app.origin, "Sec-Fetch-Site": "same-origin"}
    assert app.post("/codec/decode", {"payloads": [PLAIN]}, own).status == 200


FOREIGN = EncryptionCodec(EncryptionKey("secret-id", b"f" * 32))._encrypt(Payload(data=b"x"))
UNREADABLE = json_format.MessageToDict(Payloads(payloads=[FOREIGN]))

AS_JSON = {"Content-Type": "application/json"}

REFUSALS: list[tuple[str, str, Any, dict[str, str], int, str]] = [
    ("POST", "decode", {"payloads": [PLAIN]}, {"X-Namespace": "default"}, 401, "unauthenticated"),
    ("POST", "decode", {"payloads": [PLAIN]}, {**OWNER, "X-User": "reader"}, 403, "forbidden"),
    ("POST", "decode", {"payloads": [PLAIN]}, {**OWNER, "X-Namespace": "other"}, 404, "not-found"),
    ("POST", "decode", {"payloads": [PLAIN]}, {"X-User": "owner"}, 404, "not-found"),
    ("GET", "decode", None, OWNER, 405, "method-not-allowed"),
    ("POST", "decode", b"{}", {**OWNER, "Content-Type": "text/plain"}, 415, "no-json"),
    ("POST", "decode", b" " * 100_001, {**OWNER, "Content-Type": "application/json"}, 413, "too-large"),
    ("POST", "decode", b"{", {**OWNER, "Content-Type": "application/json"}, 400, "bad-request"),
    ("POST", "decode", b"[" * 50_000, {**OWNER, "Content-Type": "application/json"}, 400, "bad-request"),
    ("POST", "decode", [], OWNER, 400, "bad-request"),
    ("POST", "decode", {"payloads": {}}, OWNER, 400, "bad-request"),
    ("POST", "decode", {"payloads": [PLAIN] * 10_001}, OWNER, 413, "too-large"),
    ("POST", "decode", {"payloads": [{}] * 10_001}, OWNER, 400, "bad-request"),
    ("POST", "decode", {"payloads": [{"data": "a"}]}, OWNER, 400, "bad-request"),
    ("POST", "decode", {"payloads": [{"metadata": []}]}, OWNER, 400, "bad-request"),
    ("POST", "decode", {"payloads": [PLAIN], "more": 1}, OWNER, 400, "bad-request"),
    ("POST", "decode", b'{"payloads": [%s]}' % (b"," * 95_000), {**OWNER, **AS_JSON}, 400, "bad-request"),
    ("POST", "decode", UNREADABLE, OWNER, 400, "bad-request"),
]


def test_refusals_are_problem_documents(app: AppServer) -> None:
    for method, path, body, headers, status, expected in REFUSALS:
        answer = app.ask(method, f"/codec/{path}", body, headers)
        case = f"{method} {str(body)[:60]} {headers}"
        assert (answer.status, expected in answer.json.get("type", "")) == (status, True), (case, answer.body)
        assert answer.headers["Content-Type"] == "application/problem+json", case
        assert b"secret-id" not in answer.body, case
    assert app.ask("GET", "/codec/decode").headers["Allow"] == "OPTIONS, POST"
    assert app.post("/codec/other", {}, OWNER).status == 404


def asked(body: bytes, principal: Any = None, **headers: str) -> GatewayRequest:
    headers = {"Content-Type": "application/json", **headers}
    return GatewayRequest(
        method="POST",
        path="/decode",
        mount="",
        headers=headers,
        query_params={},
        body=body,
        raw_request=None,
        principal=principal,
    )


async def test_each_of_several_connections_serves_its_own_namespace() -> None:
    first, second = (Temporal("127.0.0.1:1", namespace=name, encryption=CODEC) for name in ("default", "billing"))
    server = CodecServer([first, second], allow_anonymous=True)
    for headers, status in (({}, 200), ({"X-Namespace": "billing"}, 200), ({"X-Namespace": "other"}, 404)):
        response = await server.handle(asked(b'{"payloads": []}', **headers))
        assert response.status_code == status
    assert json.loads((await server.handle(asked(b'{"payloads": []}'))).body) == {"payloads": []}


async def test_a_connection_without_encryption_is_named_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    first = Temporal("127.0.0.1:1", encryption=CODEC)
    server = CodecServer([first, Temporal("127.0.0.1:1", name="billing", namespace="b")], allow_anonymous=True)
    response = await server.handle(asked(b'{"payloads": []}', **{"X-Namespace": "b"}))
    assert response.status_code == 500
    assert (
        'the connection "billing" to the namespace "b" has no codec. Set TEMPORAL_BILLING_ENCRYPTION_KEYS'
        in caplog.text
    )


async def test_a_body_with_many_entries_is_refused_before_it_is_parsed() -> None:
    """8 MiB of metadata would block the event loop for seconds."""
    entries = {f"k{number}": "" for number in range(50)}
    body = json.dumps({"payloads": [{"metadata": entries}] * 20}).encode()
    for most, status in ((19, 413), (50, 413), (100, 200)):
        server = CodecServer(CODEC, allow_anonymous=True, max_payloads=most)
        response = await server.handle(asked(body))
        assert (most, response.status_code) == (most, status), response.body


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "allow_anonymous=True"),
        ({"authorize": lambda action: True, "allow_anonymous": True}, "cannot be combined"),
        ({"allow_anonymous": True, "origins": ["https://a.example/"]}, "is not an origin"),
        ({"allow_anonymous": True, "origins": ["*"]}, "is not an origin"),
        ({"allow_anonymous": True, "origins": ["https://*.example"]}, "must name one host"),
    ],
    ids=["open", "both", "path", "any", "wildcard"],
)
def test_a_codec_server_needs_authorize_or_allow_anonymous(options: dict[str, Any], words: str) -> None:
    with pytest.raises(TemporalSettingsError, match=words):
        CodecServer(CODEC, **options)


@pytest.mark.slow
def test_temporals_command_line_reads_encrypted_payloads(
    apps: Callable[..., AppServer], server: DevServer, temporal: Temporal
) -> None:
    encrypted = Temporal(server.address, encryption=CODEC)
    memo = {"customer": "a name that the server does not see"}
    id = f"encrypted-{uuid.uuid4()}"
    handle = encrypted.sync.start_workflow(SleepingWorkflow.run, id=id, task_queue="unpolled", memo=memo)
    show = ["workflow", "describe", "--workflow-id", id, "--output", "json"]
    codec = ["--codec-endpoint", f"{apps('flask').origin}/codec", "--codec-header", "X-User=owner"]
    try:
        assert "binary/encrypted" in base64_decoded(server.run(*show))
        assert memo["customer"] in base64_decoded(server.run(*show, *codec))
        with pytest.raises(subprocess.CalledProcessError):
            server.run(*show, *codec[:2])
    finally:
        handle.terminate()


def base64_decoded(text: str) -> str:
    """The output, followed by its decoded Base64."""
    found = [word for word in text.split('"') if len(word) % 4 == 0 and word.replace("=", "").isalnum()]
    return text + "".join(base64.b64decode(word).decode(errors="replace") for word in found)
