"""Payloads that the server cannot read, and keys that are replaced while workflows run."""

import uuid

import pytest
from temporalio.api.common.v1 import Payload
from temporalio.client import WorkflowFailureError
from temporalio.worker import Worker

from durably.temporal import Temporal, TemporalSettingsError
from durably.temporal.encryption import EncryptionCodec, EncryptionKey, PayloadEncryptionError

from .dev_server import DevServer
from .workflows import ACTIVITIES, WORKFLOWS, Order, OrderWorkflow, Receipt

OLD, NEW = EncryptionKey.generate("2025"), EncryptionKey.generate("2026")
PLAIN = Payload(metadata={"encoding": b"json/plain"}, data=b'"in the clear"')


async def test_the_server_sees_nothing_of_what_workflows_take_and_give(server: DevServer) -> None:
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


async def test_a_replaced_key_still_reads_what_it_wrote() -> None:
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


async def test_what_was_written_before_encryption_is_read_unless_it_is_required() -> None:
    assert await EncryptionCodec(OLD).decode([PLAIN]) == [PLAIN]
    with pytest.raises(PayloadEncryptionError, match="not encrypted"):
        await EncryptionCodec(OLD, require_encrypted=True).decode([PLAIN])


def test_keys_are_written_and_read_and_not_shown() -> None:
    assert EncryptionKey.parse(NEW.export()) == NEW
    assert NEW.export().partition(":")[2] not in repr(NEW)
    for text in ("no-colon", "id:???", "id:AAAA"):
        with pytest.raises(TemporalSettingsError):
            EncryptionKey.parse(text)
