"""Deeply nested bodies: each gets a clear answer, and none causes an internal error."""

import pytest

from .conftest import Harness

DEPTHS = [100, 400, *range(900, 1100, 20), 5_000, 50_000]


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
    for depth in DEPTHS:
        body = BODIES[path].format(nested(depth, kind)).encode()
        status, answer = await dev.json("POST", path, data=body, headers={"content-type": "application/json"})
        assert status < 500, (depth, answer)
        if depth == DEPTHS[-1]:
            assert status == 400
            assert "nested too deeply" in answer["error"] or "Expected" in answer["error"]


async def test_what_was_accepted_can_be_read(dev: Harness) -> None:
    """A stored event is shown, triggers its functions, and does not block other events."""
    for depth in DEPTHS:
        body = BODIES["/e/any"].format(nested(depth, "object")).encode()
        status, answer = await dev.json("POST", "/e/any", data=body, headers={"content-type": "application/json"})
        if status == 200:
            shown, found = await dev.json("GET", f"/v1/events/{answer['ids'][0]}")
            assert shown == 200, (depth, found)
    status, answer = await dev.json("GET", "/v1/events?limit=50")
    assert status == 200
