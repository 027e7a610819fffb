"""Sending events and reading them back."""

import base64
import json

import pytest

from durably.engine.model.events import check_event
from durably.protocol.events import Event
from durably.protocol.limits import MAX_DEV_EVENT_BYTES, MAX_EVENT_BYTES, MAX_EVENTS_PER_POST

from .conftest import Harness


async def test_one_event_is_stored(dev: Harness) -> None:
    status, body = await dev.json(
        "POST", "/e/any", json={"name": "order/placed", "data": {"total": 3}, "ts": 1700000000000}
    )
    assert (status, body["status"], len(body["ids"])) == (200, 200, 1)

    status, answer = await dev.json("GET", f"/v1/events/{body['ids'][0]}")
    event = answer["data"]
    assert status == 200
    assert (event["internal_id"], event["name"], event["data"]) == (body["ids"][0], "order/placed", {"total": 3})
    assert event["ts"] == 1700000000000
    assert event["received_at"].endswith("Z")
    assert answer["metadata"]["fetched_at"].endswith("Z")


async def test_a_list_of_events_gets_ids_in_its_order(dev: Harness) -> None:
    sent = [{"name": "counted", "data": {"n": n}} for n in range(20)]
    _, body = await dev.json("POST", "/e/any", json=sent)
    for n, event_id in enumerate(body["ids"]):
        _, answer = await dev.json("GET", f"/v1/events/{event_id}")
        assert answer["data"]["data"] == {"n": n}


async def test_the_same_seed_gives_the_same_ids(dev: Harness) -> None:
    seed = f"1743130137367,{base64.b64encode(b'0123456789').decode()}"
    answers = [
        await dev.json("POST", "/e/any", json=[{"name": "a"}, {"name": "b"}], headers={"x-inngest-event-id-seed": seed})
        for _ in range(2)
    ]
    assert answers[0] == answers[1]
    assert len(set(answers[0][1]["ids"])) == 2
    _, stored = await dev.json("GET", "/v1/events", params={"received_after": "2020-01-01T00:00:00Z"})
    assert len(stored["data"]) == 2


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"name": "a",\n "data": {"x": }}', "line 2, column 16"),
        (b'{"name": "a"', "it ends too early at line 1, column 13"),
        (b"", "the body is empty"),
        (b"3", "Expected `object`"),
        (b'{"data": {}}', "missing required field `name`"),
        (b'[{"name": "a"}, {"name": 3}]', "$[1].name"),
        (b'{"name": "a", "data": [1]}', "$.data"),
        (b'{"name": ""}', "name"),
        (b'{"name": "a", "data": {"x":' + b"[" * 100_000, "nested too deeply"),
        (b'{"name": "\xff"}', "UTF-8"),
    ],
)
async def test_bad_bodies_are_refused_with_the_reason(dev: Harness, body: bytes, reason: str) -> None:
    status, answer = await dev.json("POST", "/e/any", data=body)
    assert (status, answer["status"]) == (400, 400)
    assert reason in answer["error"]


async def test_one_bad_event_keeps_all_from_being_stored(dev: Harness) -> None:
    status, _ = await dev.json("POST", "/e/any", json=[{"name": "good"}, {"name": ""}])
    assert status == 400
    _, stored = await dev.json("GET", "/v1/events")
    assert stored["data"] == []


async def test_too_many_events_are_refused(dev: Harness) -> None:
    status, answer = await dev.json("POST", "/e/any", json=[{"name": "a"}] * (MAX_EVENTS_PER_POST + 1))
    assert status == 400
    assert "5001 events are too many" in answer["error"]


@pytest.mark.parametrize("is_list", [True, False])
async def test_an_event_that_is_too_large_is_refused_and_named(dev: Harness, is_list: bool) -> None:
    large = {"name": "large", "data": {"text": "x" * MAX_EVENT_BYTES}}
    body = json.dumps([{"name": "small"}, large] if is_list else large)
    status, answer = await dev.json("POST", "/e/any", data=body)
    assert status == 413
    assert ("the event at index 1" if is_list else "the event is") in answer["error"]
    assert "any" not in json.dumps(answer["data"])  # the event key


def test_a_development_server_warns_of_an_event_that_is_too_large_for_production(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for size in (10, MAX_EVENT_BYTES):
        check_event(Event(name=f"has-{size}", data={"text": "x" * size}), MAX_DEV_EVENT_BYTES)
    [warning] = caplog.messages
    assert "has-524288" in warning


async def test_events_are_listed_newest_first_and_filtered(dev: Harness) -> None:
    ids = [await dev.send(name) for name in ("a", "b", "a")]
    _, every = await dev.json("GET", "/v1/events")
    assert [event["internal_id"] for event in every["data"]] == ids[::-1]
    _, named = await dev.json("GET", "/v1/events", params={"name": "a", "limit": 1})
    assert [event["internal_id"] for event in named["data"]] == [ids[2]]
    _, rest = await dev.json("GET", "/v1/events", params={"name": "a", "cursor": ids[2]})
    assert [event["internal_id"] for event in rest["data"]] == [ids[0]]
    received = every["data"][0]["received_at"]
    _, later = await dev.json("GET", "/v1/events", params={"received_after": received.replace("Z", "+00:00")})
    assert ids[0] not in [event["internal_id"] for event in later["data"]] or len(later["data"]) == 3
    _, none = await dev.json("GET", "/v1/events", params={"received_before": "2020-01-01T00:00:00Z"})
    assert none["data"] == []


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("received_after=yesterday", "received_after"),
        ("limit=0", "limit"),
        ("limit=ten", "limit"),
        ("limit=101", "limit"),
    ],
)
async def test_bad_queries_name_the_parameter(dev: Harness, query: str, reason: str) -> None:
    status, answer = await dev.json("GET", f"/v1/events?{query}")
    assert status == 400
    assert reason in answer["error"]


async def test_unknown_events_are_not_found(dev: Harness) -> None:
    for path in ("/v1/events/01ARZ3NDEKTSV4RRFFQ69G5FAV", "/v1/events/nonsense/runs"):
        status, answer = await dev.json("GET", path)
        assert (status, answer["status"]) == (404, 404)
