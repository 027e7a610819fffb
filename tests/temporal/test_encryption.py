"""Payloads that the server cannot read, and keys that are replaced while workflows run."""

import traceback
import uuid
from typing import Any

import flask
import pytest
from click.testing import CliRunner
from temporalio.api.common.v1 import Payload
from temporalio.client import WorkflowFailureError
from temporalio.worker import Worker

from durably.cli.temporal import temporal as temporal_commands
from durably.temporal import Temporal, TemporalSettingsError
from durably.temporal.encryption import EncryptionCodec, EncryptionKey, PayloadEncryptionError
from durably.temporal.flask import init_app

from .dev_server import DevServer
from .workflows import ACTIVITIES, WORKFLOWS, Order, OrderWorkflow, Receipt

OLD, NEW = EncryptionKey.generate("2025"), EncryptionKey.generate("2026")
PLAIN = Payload(metadata={"encoding": b"json/plain"}, data=b'"in the clear"')


async def test_server_sees_no_inputs_and_results(server: DevServer) -> None:
    temporal = Temporal(server.address, encryption=EncryptionCodec(NEW, OLD))
    client = await temporal.client()
    queue, workflow_id = str(uuid.uuid4()), str(uuid.uuid4())
    async with Worker(client, task_queue=queue, workflows=WORKFLOWS, activities=ACTIVITIES):
        order = Order(order_id="hidden", amount=5)
        receipt = await client.execute_workflow(OrderWorkflow.run, order, id=workflow_id, task_queue=queue)
        assert receipt == Receipt(order_id="hidden", paid=5)
        history = await client.get_workflow_handle(workflow_id).fetch_history()
        assert b"hidden" not in b"".join(event.SerializeToString() for event in history.events)
        declined = order.model_copy(update={"lines": ["decline"]})
        handle = await client.start_workflow(OrderWorkflow.run, declined, id=workflow_id, task_queue=queue)
        with pytest.raises(WorkflowFailureError) as failure:
            await handle.result()
        assert "declined" in str(failure.value.cause.__cause__)
        history = await handle.fetch_history()
        assert b"declined" not in b"".join(event.SerializeToString() for event in history.events)


async def test_replaced_key_still_decrypts_its_payloads() -> None:
    before, after = EncryptionCodec(OLD), EncryptionCodec(NEW, OLD)
    [sealed] = await before.encode([PLAIN])
    assert await after.decode([sealed]) == [PLAIN]
    [sealed] = await after.encode([PLAIN])
    assert sealed.metadata["encryption-key-id"] == b"2026"
    with pytest.raises(PayloadEncryptionError, match='key "2026"; known are 2025'):
        await before.decode([sealed])


async def test_a_changed_payload_is_refused() -> None:
    codec = EncryptionCodec(OLD)
    [sealed] = await codec.encode([PLAIN])
    sealed.data = sealed.data[:-1] + bytes([sealed.data[-1] ^ 1])
    with pytest.raises(PayloadEncryptionError, match="cannot be decrypted"):
        await codec.decode([sealed])
    sealed.data = b"short"
    with pytest.raises(PayloadEncryptionError, match="cannot be decrypted"):
        await codec.decode([sealed])


async def test_unencrypted_payloads_are_read_unless_encryption_is_required() -> None:
    assert await EncryptionCodec(OLD).decode([PLAIN]) == [PLAIN]
    with pytest.raises(PayloadEncryptionError, match="not encrypted"):
        await EncryptionCodec(OLD, require_encrypted=True).decode([PLAIN])


def test_keys_are_written_and_read_and_not_shown() -> None:
    assert EncryptionKey.parse(NEW.export()) == NEW
    assert EncryptionKey.parse_all(f"{NEW.export()}, {OLD.export()}\n") == [NEW, OLD]
    assert NEW.export().partition(":")[2] not in repr(NEW)


SECRET = NEW.export().partition(":")[2]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "encryption key 1 of 1: an encryption key is written id:key"),
        (SECRET, "written id:key"),
        (f":{SECRET}", "written id:key"),
        (f"{SECRET}:2026", "has 3 bytes, not 16, 24 or 32"),
        (f"{SECRET}:the id", "is not Base64"),
        (f"2026:{SECRET}é", "is not Base64"),
        (f"2026:{SECRET},{SECRET}", "encryption key 2 of 2: an encryption key is written id:key"),
        (f"2026:{SECRET},2026:{SECRET}", "two encryption keys have the same id"),
        ({"2026": SECRET}, "a list of strings"),
        ([f"2026:{SECRET}".encode()], "a list of strings"),
    ],
    ids=lambda value: str(value).replace(SECRET, "SECRET"),
)
def test_error_of_a_key_does_not_contain_the_key(text: Any, words: str, caplog: pytest.LogCaptureFixture) -> None:
    temporal = Temporal()
    temporal.configure(lambda: {"ENCRYPTION_KEYS": text} if text else {"ENCRYPTION_KEYS": [""]})
    with pytest.raises(TemporalSettingsError, match=words) as raised:
        temporal.data_converter  # noqa: B018
    shown = "".join(traceback.format_exception(raised.value)) + repr(temporal.settings) + caplog.text
    assert SECRET not in shown


async def encrypted_with(temporal: Temporal) -> bytes:
    [payload] = await temporal.data_converter.encode(["text"])
    assert await temporal.data_converter.decode([payload]) == ["text"]
    return payload.metadata.get("encryption-key-id", b"")


async def test_keys_are_taken_from_the_environment_and_from_frameworks(monkeypatch: pytest.MonkeyPatch) -> None:
    def configured() -> Temporal:
        app = flask.Flask("shop")
        app.config["TEMPORAL_ENCRYPTION_KEYS"] = [OLD.export(), NEW.export()]
        init_app(app, temporal := Temporal())
        return temporal

    temporal = configured()
    assert await encrypted_with(temporal) == b"2025"
    assert await encrypted_with(Temporal()) == b""
    monkeypatch.setenv("TEMPORAL_ENCRYPTION_KEYS", f"{NEW.export()},{OLD.export()}")
    from_environment = configured()
    assert await encrypted_with(from_environment) == b"2026"
    assert await encrypted_with(Temporal(encryption=EncryptionCodec(OLD))) == b"2025"


def test_a_command_makes_a_key() -> None:
    made = CliRunner().invoke(temporal_commands, ["encryption-key", "2027"])
    assert EncryptionKey.parse(made.output).id == "2027"
    assert EncryptionKey.parse(CliRunner().invoke(temporal_commands, ["encryption-key"]).output).id.startswith("20")
    assert CliRunner().invoke(temporal_commands, ["encryption-key", "a:b"]).exit_code == 1
