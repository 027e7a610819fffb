"""``create_function``: the function of a handler, its config for engines, and the errors."""

from typing import Any

import pytest

import durably
from durably import Client, Context, ContextSync, TriggerEvent
from durably.errors import FunctionConfigInvalidError

from ..execution.engine import FakeEngine, Run
from ..ids import stable_id

CLIENT = Client(app_id="app", is_production=False)
TRIGGER = TriggerEvent(event="e")


async def handler(ctx: Context) -> None:
    """The purpose of the function."""


def configs(**options: Any) -> list[dict[str, Any]]:
    return CLIENT.create_function(**{"fn_id": "fn", "trigger": TRIGGER} | options)(handler).configs("http://app/x")


def test_minimal_function_has_the_default_configuration() -> None:
    assert configs() == [
        {
            "id": "app-fn",
            "name": "fn",
            "triggers": [{"event": "e"}],
            "steps": {
                "step": {
                    "id": "step",
                    "name": "step",
                    "runtime": {"type": "http", "url": "http://app/x?fnId=app-fn&stepId=step"},
                }
            },
        }
    ]


def test_a_failure_handler_is_a_second_function() -> None:
    own, failure = configs(on_failure=handler, name="Fulfil")
    assert (own["id"], failure["id"], failure["name"]) == ("app-fn", "app-fn-failure", "Fulfil (failure)")
    assert failure["triggers"] == [
        {"event": "inngest/function.failed", "expression": "event.data.function_id == 'app-fn'"}
    ]
    assert failure["steps"]["step"]["retries"] == {"attempts": 0}


@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_failure_handler_has_steps_and_the_failure(kind: str, blocking: bool) -> None:
    async def on_failure(ctx: Context) -> Any:
        return await ctx.step.run("note", str, ctx.event.data["error"]["message"])  # type: ignore[index]

    def on_failure_sync(ctx: ContextSync) -> Any:
        return ctx.step.run("note", str, ctx.event.data["error"]["message"])  # type: ignore[index]

    function = CLIENT.create_function(
        fn_id="fn", trigger=TRIGGER, on_failure=on_failure if kind == "async" else on_failure_sync
    )(handler)
    engine = FakeEngine(CLIENT, [function], blocking=blocking)
    event = {"name": "inngest/function.failed", "data": {"error": {"message": "boom"}}, "id": "1", "ts": 1}
    answer = await engine.call(Run(event), function.on_failure_fn_id)
    assert answer.ops[0]["data"] == "boom"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fn_id": ""}, "fn_id must be a string that names the function, without control characters, not ''"),
        ({"fn_id": "ship\norder"}, r"without control characters, not 'ship\norder'"),
        ({"fn_id": 7}, "fn_id must be a string"),
        ({"fn_id": " "}, "without control characters, not ' '"),
        ({"name": 5}, 'function "fn": name takes str, not 5'),
        ({"on_failure": 5}, 'function "fn": on_failure must be a function, not 5'),
        ({"trigger": [TRIGGER] * 11}, 'function "fn": trigger takes at most 10, not 11'),
        ({"trigger": [TRIGGER, TRIGGER]}, "trigger has TriggerEvent(event='e', if_exp=None) twice"),
        ({"trigger": "e"}, "trigger takes TriggerEvent, TriggerCron and TriggerDeferred, not 'e'"),
        ({"retries": 21}, "retries must be 0 to 20, not 21"),
        ({"retries": -1}, "retries must be 0 to 20, not -1"),
        ({"retries": True}, "retries must be 0 to 20, not True"),
        ({"retries": "3"}, "retries must be 0 to 20, not '3'"),
        ({"idempotency": 7}, "idempotency takes str, not 7"),
        ({"debounce": 1000}, "debounce takes Debounce, not 1000"),
        ({"throttle": durably.RateLimit(limit=1, period=60_000)}, "throttle takes Throttle"),
        ({"cancel": durably.Cancel(event="c")}, "cancel takes a list of Cancel"),
        ({"cancel": [durably.Cancel(event="c")] * 6}, "cancel has 6 entries; at most 5 are allowed"),
        ({"concurrency": [durably.Concurrency(limit=1)] * 3}, "concurrency has 3 entries; at most 2 are allowed"),
    ],
    ids=stable_id,
)
def test_mistakes_name_the_option(options: dict[str, Any], message: str) -> None:
    with pytest.raises(FunctionConfigInvalidError) as raised:
        configs(**options)
    assert message in str(raised.value)


def test_only_functions_can_be_decorated() -> None:
    with pytest.raises(FunctionConfigInvalidError, match='"fn" decorates 7'):
        CLIENT.create_function(fn_id="fn", trigger=TRIGGER)(7)  # type: ignore[arg-type]


def test_function_has_its_ids_name_and_docstring() -> None:
    function = CLIENT.create_function(fn_id="fn", trigger=TRIGGER, name="Fn", on_failure=handler)(handler)
    assert (function.id, function.local_id, function.name) == ("app-fn", "fn", "Fn")
    assert (function.is_handler_async, function.is_on_failure_handler_async) == (True, True)
    assert function.on_failure_fn_id == "app-fn-failure"
    assert function.__doc__ == "The purpose of the function."
    assert repr(function) == "Function('app-fn')"
