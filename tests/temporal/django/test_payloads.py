"""Inputs and results as the admin shows them: decrypted, bounded, and never an error."""

import asyncio

from temporalio.api.common.v1 import Payload
from temporalio.converter import DataConverter

from durably.temporal import Temporal
from durably.temporal.django.workflow_pages import MAX_BYTES, MAX_CHARACTERS, PayloadText, payload_text
from durably.temporal.encryption import EncryptionCodec, EncryptionKey


def converter(*keys: EncryptionKey) -> DataConverter:
    return Temporal(encryption=EncryptionCodec(*keys)).data_converter


def encode(converter: DataConverter, value: object) -> Payload:
    [payload] = asyncio.run(converter.encode([value]))
    return payload


def show(converter: DataConverter, payload: Payload) -> PayloadText:
    return asyncio.run(payload_text(converter, payload))


def test_payloads_are_decrypted_and_unknown_keys_are_reported() -> None:
    own, other = (EncryptionKey.generate(name) for name in ("own", "other"))
    payload = encode(converter(own), {"card": "é"})
    assert b"card" not in payload.data
    assert show(converter(own), payload) == PayloadText('{\n  "card": "é"\n}')
    unreadable = show(converter(other), payload)
    assert (unreadable.text, "it cannot be decoded: PayloadEncryptionError" in str(unreadable.note)) == ("", True)


def test_sizes_of_shown_payloads_are_bounded() -> None:
    plain = Temporal().data_converter
    large = show(plain, encode(plain, "x" * MAX_BYTES))
    assert (large.text, str(large.note).endswith("bytes: too large to show")) == ("", True)
    long = show(plain, encode(plain, "x" * MAX_CHARACTERS))
    assert (len(long.text), long.note) == (MAX_CHARACTERS, "the first 10,000 of 10,002 characters")


def test_any_payload_has_a_text() -> None:
    plain = Temporal().data_converter
    assert show(plain, encode(plain, None)) == PayloadText("null")
    assert show(plain, encode(plain, b"abc")) == PayloadText("3 bytes")
    assert "KeyError" in str(show(plain, Payload(metadata={"encoding": b"of/unknown"}, data=b"x")).note)
