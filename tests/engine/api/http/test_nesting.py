"""Deeply nested bodies: each gets a clear answer, and none causes an internal error."""

import pytest

from durably.protocol.limits import MAX_NESTING

from .conftest import Harness

ACCEPTED, REFUSED = [100, MAX_NESTING], [MAX_NESTING + 11, 400, *range(900, 1100, 50), 5_000, 50_000]


def nested(depth: int, kind: str) -> str:
    return "[" * depth + "]" * depth if kind == "list" else '{"a":' * depth + "1" + "}" * depth


BODIES = {
    "/e/any": '{{"name":"a","data":{{"x":{}}}}}',
    "/fn/register": '{{"url":"http://x.test","appName":"a","functions":[],"capabilities":{}}}',
    "/v1/checkpoint/01ARZ3NDEKTSV4RRFFQ69G5FAV/async": '{{"steps":[{{"id":"a","op":"StepRun","data":{}}}]}}',
    "/v1/signals": '{{"signal":"s","data":{}}}',
    "/invoke/shop-a": '{{"data":{{"x":{}}}}}',
    "/v1/cancellations": '{{"function_id":"a","started_before":{}}}',
    "/v1/apps/sync": '{{"url":{}}}',
}


@pytest.mark.parametrize("kind", ["list", "object"])
@pytest.mark.parametrize("path", BODIES)
async def test_a_deeply_nested_body_has_one_clear_answer(dev: Harness, path: str, kind: str) -> None:
    for depth in (*ACCEPTED, *REFUSED):
        body = BODIES[path].format(nested(depth, kind)).encode()
        status, answer = await dev.json("POST", path, data=body, headers={"content-type": "application/json"})
        assert status < 500, (depth, answer)
        assert (status == 400 and "nested too deeply: at most 200" in answer["error"]) is (depth in REFUSED), answer


async def test_accepted_body_can_be_read(dev: Harness) -> None:
    """A stored event is shown, triggers its functions, and does not block other events."""
    for depth in (*ACCEPTED, *REFUSED):
        body = BODIES["/e/any"].format(nested(depth, "object")).encode()
        status, answer = await dev.json("POST", "/e/any", data=body, headers={"content-type": "application/json"})
        assert (status == 200) is (depth in ACCEPTED)
        if status == 200:
            shown, found = await dev.json("GET", f"/v1/events/{answer['ids'][0]}")
            assert shown == 200, (depth, found)
    status, answer = await dev.json("GET", "/v1/events?limit=50")
    assert status == 200
