"""An argument of ``Client`` or ``serve`` of a wrong type is an error that names it, at once."""

import re
from typing import Any

import pytest

import durably
from durably import PydanticSerializer
from durably.comm import CommHandler
from durably.errors import DurationInvalidError, FunctionConfigInvalidError, SigningKeyMissingError


def make_client(**arguments: Any) -> durably.Client:
    return durably.Client(**{"app_id": "shop", "is_production": False} | arguments)


@pytest.mark.parametrize(
    ("argument", "value", "text"),
    [
        ("is_production", "", "must be True or False, not ''"),
        ("is_production", 0, "must be True or False, not 0"),
        ("send_step_input", "false", "must be True or False"),
        ("strict_replay", "false", "must be True or False"),
        *(
            (argument, 5, "must be a string")
            for argument in ("api_base_url", "app_version", "env", "event_api_base_url")
        ),
        ("app_version", "\ud800", "it has half of a surrogate pair"),
        *((argument, " ", "is blank") for argument in ("api_base_url", "app_version", "env", "event_key")),
        ("event_key", b"key-5ec2e7", "must be a string, not a value of type bytes"),
        ("signing_key", b"signkey-prod-5ec2e7", "must be a string, not a value of type bytes"),
        ("serializer", {"key": "5ec2e7"}, "must be an object with serialize and deserialize"),
        ("serializer", PydanticSerializer, "not the class PydanticSerializer"),
        ("middleware", 5, "give a list, such as [MyMiddleware]"),
        ("middleware", durably.Middleware, "give a list, such as [MyMiddleware]"),
        ("request_timeout", 0, "must be more than 0"),
    ],
)
def test_a_wrong_argument_of_the_client_is_named(argument: str, value: Any, text: str) -> None:
    with pytest.raises(FunctionConfigInvalidError, match=re.escape(text)) as raised:
        make_client(**{argument: value})
    assert f"Client.{argument}" in str(raised.value)
    assert "5ec2e7" not in str(raised.value)


@pytest.mark.parametrize("value", ["soon", -1, True, 1.5])
def test_a_wrong_request_timeout_is_named(value: Any) -> None:
    with pytest.raises(DurationInvalidError, match=r"^Client\.request_timeout: "):
        make_client(request_timeout=value)


@pytest.mark.parametrize("value", [10, 2.5, True])
async def test_a_duration_of_a_web_app_has_a_unit(value: Any) -> None:
    client = make_client(signing_key="signkey-test-5ec2e7")
    handle, token = client.run("run"), client.answer_token("run", "approval", expires="1h")
    for call in (
        handle.result(timeout=value),
        handle.ask("approval", timeout=value),
        handle.answer("approval", timeout=value),
        client.answer(token, timeout=value),
    ):
        with pytest.raises(DurationInvalidError, match=rf'timeout: .*"10s".*{value}'):
            await call
    for make in (
        lambda: handle.result_sync(timeout=value),
        lambda: handle.ask_sync("approval", timeout=value),
        lambda: client.answer_token("run", "approval", expires=value),
        lambda: client.stream_token("run", expires=value),
    ):
        with pytest.raises(DurationInvalidError, match=rf'(timeout|expires=…\)): .*"10s".*{value}'):
            make()


def test_a_token_of_an_answer_needs_a_signing_key() -> None:
    with pytest.raises(SigningKeyMissingError, match="DURABLY_SIGNING_KEY"):
        make_client().answer_token("run", "approval")


def test_an_output_type_that_nothing_converts_is_refused() -> None:
    with pytest.raises(FunctionConfigInvalidError, match=re.escape('function "f": output_type cannot be used: ')):
        make_client().create_function(fn_id="f", trigger=[], output_type=5)


@pytest.mark.parametrize("argument", ["serve_origin", "serve_path", "public_path"])
def test_a_wrong_argument_of_serve_is_named(argument: str) -> None:
    with pytest.raises(FunctionConfigInvalidError, match=re.escape(f"serve({argument}=…) must be a string")):
        CommHandler(client=make_client(), framework="test", functions=[], **{argument: 5})  # type: ignore[arg-type]


def test_a_text_does_not_allow_unsigned_syncs() -> None:
    options: Any = {"enable_unauthed_sync": "false"}
    with pytest.raises(FunctionConfigInvalidError, match=re.escape("enable_unauthed_sync=…) must be True or False")):
        CommHandler(client=make_client(), framework="test", functions=[], **options)
