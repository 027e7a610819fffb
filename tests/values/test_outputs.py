"""Steps return values of their handlers' return types; values that cannot be stored are refused."""

import asyncio
import dataclasses
import datetime as dt
import enum
import functools
import logging
import pathlib
import uuid
import zoneinfo
from collections.abc import Awaitable, Callable, Coroutine
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Generic, NamedTuple, NotRequired, TypedDict, TypeVar

import attrs
import msgspec
import pydantic
import pytest

import durably
from durably import Client, Context, ContextSync
from durably.testing import TestEngine
from durably.values import outputs
from durably.values.outputs import declared_type

from ..execution.engine import complete, engine_for, fail
from ..ids import stable_id

if TYPE_CHECKING:
    from collections.abc import Hashable as OnlyForTypeCheckers

T = TypeVar("T")


@pytest.fixture(autouse=True)
def _nothing_was_told() -> None:
    outputs._warned.clear()


class Colour(enum.Enum):
    RED = "red"


class Size(enum.Enum):
    """With values of two types, which msgspec refuses."""

    SMALL = 1
    OTHER = "other"


@dataclasses.dataclass
class Charge:
    id: uuid.UUID
    amount: Decimal
    at: dt.datetime
    colour: Colour = Colour.RED


@dataclasses.dataclass
class Page(Generic[T]):
    items: list[T]


class Order(pydantic.BaseModel):
    number: int = pydantic.Field(alias="no")
    placed: dt.datetime
    tags: set[str] = set()


class Odd(pydantic.BaseModel):
    """Strict, with an alias that it does not read, a private attribute and a computed field."""

    model_config = pydantic.ConfigDict(strict=True, extra="forbid")

    number: int = pydantic.Field(serialization_alias="no")
    placed: dt.datetime
    tags: set[str] = set()
    _cache: int = pydantic.PrivateAttr(default=3)

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def next(self) -> int:
        return self.number + 1


class Account(pydantic.BaseModel):
    password: pydantic.SecretStr


class Note(pydantic.BaseModel):
    at: dt.datetime


class Row(msgspec.Struct):
    key: bytes
    kept: dt.timedelta


@attrs.define
class Point:
    x: int
    when: dt.date


class Item(TypedDict):
    price: Decimal
    sizes: NotRequired[frozenset[int]]


class Pair(NamedTuple):
    left: int
    right: dt.time


@dataclasses.dataclass
class Cat:
    name: str


@dataclasses.dataclass
class Bird:
    name: str
    wings: int


CHARGE = Charge(uuid.UUID(int=7), Decimal("1.10"), dt.datetime(2030, 1, 2, tzinfo=dt.UTC))
NOTE = Note(at=dt.datetime(2030, 1, 2, tzinfo=dt.UTC))
ORDER = Order(no=7, placed=dt.datetime(2030, 1, 2, tzinfo=dt.UTC), tags={"a"})

TYPED: list[tuple[Any, Any]] = [
    (Charge, CHARGE),
    (list[Charge], [CHARGE, CHARGE]),
    (dict[str, Charge] | None, {"a": CHARGE}),
    (dict[str, Charge] | None, None),
    (Page[Charge], Page([CHARGE])),
    (Order, ORDER),
    (list[Order], [ORDER]),
    (Page[Order], Page([ORDER])),
    (Odd, Odd(number=1, placed=dt.datetime(2030, 1, 2, tzinfo=dt.UTC), tags={"a"})),
    (Order | Cat, Cat("Tom")),
    (Row, Row(b"\x00", dt.timedelta(days=400, microseconds=1))),
    (Point, Point(1, dt.date(2030, 1, 2))),
    (Item, {"price": Decimal("1.10"), "sizes": frozenset((1,))}),
    (Pair, Pair(1, dt.time(1, 2, 3))),
    (Cat | Bird, Bird("Tweety", 2)),
    (str | dt.datetime, "text"),
    (int | Decimal, Decimal("0.1")),
    (Colour, Colour.RED),
    (Size, Size.SMALL),
    (list[Size], [Size.OTHER]),
    (dt.datetime, dt.datetime(2030, 1, 2, 3, 4, 5, 6)),  # noqa: DTZ001
    (dt.date, dt.date(2030, 1, 2)),
    (dt.time, dt.time(1, 2)),
    (dt.timedelta, dt.timedelta(minutes=3)),
    (Decimal, Decimal("1.10")),
    (uuid.UUID, uuid.UUID(int=1)),
    (bytes, b"\xff\x00"),
    (pathlib.Path, pathlib.Path("a/b")),
    (set[int], {1, 2}),
    (frozenset[str], frozenset("ab")),
    (tuple[int, str], (1, "a")),
    (tuple[int, ...], (1, 2)),
    (dict[int, Decimal], {1: Decimal(2)}),
    (dict[dt.date, int], {dt.date(2030, 1, 2): 1}),
    (Annotated[Decimal, "EUR"], Decimal(1)),
]


def returning(value: Any, annotation: Any) -> Callable[..., Any]:
    def handler() -> Any:
        return value

    handler.__annotations__["return"] = annotation
    return handler


@pytest.mark.parametrize(("annotation", "value"), TYPED, ids=stable_id)
async def test_step_returns_its_annotated_type(annotation: Any, value: Any) -> None:
    returned = []

    async def function(ctx: Context) -> None:
        returned.append(await ctx.step.run("it", returning(value, annotation)))

    def function_sync(ctx: ContextSync) -> None:
        returned.append(ctx.step.run("it", returning(value, annotation)))

    await complete(function)
    await complete(function_sync)
    assert returned == [value, value]
    assert [type(one) for one in returned] == [type(value)] * 2


@pytest.mark.parametrize("fold", [0, 1])
async def test_time_in_a_repeated_hour_is_kept(fold: int) -> None:
    """Python treats it as unequal to each time of another zone."""
    value = dt.datetime(2026, 10, 25, 2, 30, fold=fold, tzinfo=zoneinfo.ZoneInfo("Europe/Paris"))

    async def function(ctx: Context) -> Any:
        one = await ctx.step.run("one", returning(value, dt.datetime))
        [listed] = await ctx.step.run("listed", returning([value], list[dt.datetime]))
        return [one.timestamp(), listed.timestamp()]

    assert await complete(function) == [value.timestamp()] * 2


@pytest.mark.parametrize("client", [{}, {"serializer": durably.PydanticSerializer()}], ids=["plain", "serializer"])
@pytest.mark.parametrize(("output_type", "value"), [(Charge, CHARGE), (list[Note], [NOTE])], ids=["charge", "notes"])
async def test_output_type_replaces_the_annotation(output_type: Any, value: Any, client: Any) -> None:
    returned = []

    async def function(ctx: Context) -> None:
        returned.append(await ctx.step.run("it", lambda: value, output_type=output_type))
        returned.append(await ctx.step.run("it", returning(value, int), output_type=output_type))

    await complete(function, client=Client(app_id="app", is_production=False, **client))
    assert returned[-2:] == [value, value]


async def test_first_execution_and_replay_return_the_same() -> None:
    """With checkpoints a function continues with a new value, decoded from the stored JSON."""
    mine = Page([Charge(uuid.UUID(int=1), Decimal(1), dt.datetime(2030, 1, 2, tzinfo=dt.timezone(dt.timedelta(0))))])
    seen: list[Any] = []
    client = Client(app_id="app", is_production=False)

    @client.create_function(fn_id="function", trigger=durably.TriggerEvent(event="go"), checkpointing=True)
    async def function(ctx: Context) -> Page[Charge]:
        def made() -> Page[Charge]:
            return mine

        page = await ctx.step.run("it", made)
        seen.append(page)
        page.items.append(CHARGE)  # changes nothing but the function's own object
        plain = await ctx.step.run("plain", lambda: {"a": [1]})
        seen.append(plain)
        await ctx.step.sleep("sleep", 60_000)
        return page

    async with TestEngine(client, [function]) as engine:
        run = await (await engine.send(durably.Event(name="go"))).wait()
        assert run.output["items"][0]["amount"] == "1"
    assert len(seen) == 4, "once alive, once replayed"
    alive, plain, replayed, plain_replayed = seen
    assert alive is not mine
    assert alive.items[0] == replayed.items[0] == mine.items[0]
    assert (plain, plain_replayed) == ({"a": [1]}, {"a": [1]})


async def test_the_output_of_an_invoked_function_has_the_type_of_its_annotation() -> None:
    client = Client(app_id="app", is_production=False)
    got = []

    @client.create_function(fn_id="callee", trigger=[])
    async def callee(ctx: Context) -> Charge:
        return CHARGE

    @client.create_function(fn_id="sync-callee", trigger=[])
    def sync_callee(ctx: ContextSync) -> list[Order]:
        return [ORDER]

    @client.create_function(fn_id="caller", trigger=durably.TriggerEvent(event="go"))
    async def caller(ctx: Context) -> None:
        got.append(await ctx.step.invoke("it", function=callee))
        got.append(await ctx.step.invoke("list", function=sync_callee))

    async with TestEngine(client, [callee, sync_callee, caller]) as engine:
        await (await engine.send(durably.Event(name="go"))).wait()
        assert got[0] == CHARGE
        assert got[-1] == [ORDER]
        got.clear()
        engine.mock_step("it", returns=CHARGE)
        engine.mock_step("list", returns=[ORDER])
        await (await engine.send(durably.Event(name="go"))).wait()
    assert (got[0], got[-1]) == (CHARGE, [ORDER])


# -- which annotation counts


async def awaited() -> Charge:
    return CHARGE


def quoted() -> "Charge":
    return CHARGE


def sync_with_coroutine() -> Coroutine[Any, Any, Charge]:
    return awaited()


class Service:
    async def charge(self) -> Charge:
        return CHARGE

    async def __call__(self) -> Charge:
        return CHARGE


@functools.wraps(awaited)
async def wrapped(*args: Any) -> Any:
    return await awaited()


HANDLERS = [
    awaited,
    quoted,
    sync_with_coroutine,
    Service().charge,
    Service(),
    functools.partial(awaited),
    functools.partial(Service().charge),
    functools.lru_cache(quoted),
    wrapped,
]


@pytest.mark.parametrize("handler", HANDLERS, ids=stable_id)
async def test_handlers_of_all_kinds(handler: Callable[[], Any]) -> None:
    async def function(ctx: Context) -> bool:
        return bool(await ctx.step.run("it", handler) == CHARGE)

    assert await complete(function) is True


async def test_classes_and_to_thread_as_handlers() -> None:
    async def function(ctx: Context) -> list[bool]:
        bird = await ctx.step.run("class", Bird, "Tweety", wings=2)
        charge = await ctx.step.run("thread", asyncio.to_thread, quoted)
        return [bird == Bird("Tweety", 2), charge == CHARGE]

    assert await complete(function) == [True, True]


def declared(annotation: Any) -> Any:
    return declared_type(returning(None, annotation))


def test_awaitable_annotations_are_unwrapped() -> None:
    for annotation in (Awaitable[Charge], Coroutine[Any, Any, Charge], "asyncio.Future[Charge]"):
        assert declared(annotation) is Charge


def untyped_because_unresolved() -> "OnlyForTypeCheckers":
    return CHARGE.id.int


async def test_unresolvable_annotation_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    async def function(ctx: Context) -> list[Any]:
        return [await ctx.step.run("it", untyped_because_unresolved) for _ in range(2)]

    assert await complete(function) == [7, 7]
    (message,) = [line for line in caplog.messages if "cannot be resolved" in line]
    assert "untyped_because_unresolved: the return annotation cannot be resolved" in message
    assert "OnlyForTypeCheckers" in message


class Custom:
    pass


async def test_unusable_annotation_fails_before_the_handler_runs() -> None:
    ran = []

    def handler() -> Custom:
        ran.append(1)
        return Custom()

    async def function(ctx: Context) -> None:
        await ctx.step.run("it", handler)

    error = await fail(function)
    assert error["code"] == "output_unserializable"
    assert error["message"].startswith('step "it" would return unserializable data: the return annotation of')
    assert "JSON cannot be converted to Custom" in error["message"]
    assert ran == []

    async def escaped(ctx: Context) -> Any:
        return await ctx.step.run("it", returning({"a": 1}, Custom), output_type=Any)

    assert await complete(escaped) == {"a": 1}


async def test_a_serializer_converts_types_that_are_not_known_otherwise() -> None:
    class Knows:
        def serialize(self, obj: object, typ: Any) -> object:
            return "custom"

        def deserialize(self, obj: object, typ: Any) -> object:
            return typ()

    async def function(ctx: Context) -> bool:
        return isinstance(await ctx.step.run("it", returning(Custom(), Custom)), Custom)

    client = Client(app_id="app", is_production=False, serializer=Knows())
    assert await complete(function, client=client) is True


# -- what cannot be stored


@dataclasses.dataclass
class Loose:
    data: Any
    price: float = 0.0


class Kitten(Cat):
    pass


PARIS = zoneinfo.ZoneInfo("Europe/Paris")


REFUSED: list[tuple[Any, Any, str, str]] = [
    (Any, {"price": float("nan")}, "$.price", "nan"),
    (Any, [1.0, float("-inf")], "$[1]", "-inf"),
    (Any, {"tags": {1}}, "$.tags", "a set"),
    (Any, {"a": {1: 2, "1": 3}}, "$.a[1]", "the same string"),
    (Any, {"text": "\ud800"}, "$.text", "surrogate"),
    (Any, {"deep": [object()]}, "$.deep[0]", "object"),
    (Any, Loose({1}), "$.data", "a set"),
    (Loose, Loose({"tags": {1}}), "$.data.tags", "a set"),
    (Loose, Loose(None, float("nan")), "$.price", "nan"),
    (Loose, Loose(object()), "$.data", "object"),
    (float | None, float("nan"), "$", "nan"),
    (list[Decimal | None], {"a": 1}, "$", "Expected `array`"),
    (Charge, {"id": 1}, "$.id", "Expected"),
    (Cat, {"name": "Tom", "wings": 2}, "$.wings", "no such field"),
    (list[Cat], [Kitten("Tom")], "$[0]", "a Kitten"),
    (frozenset[int], [1, 1], "$", "a list"),
    (Order, {"no": "x"}, "$.no", "valid integer"),
    (Account, Account(password=pydantic.SecretStr("hidden")), "$.password", "another SecretStr"),
    (Decimal, Decimal("NaN"), "$", "a Decimal"),
    (dt.time, dt.time(1, 2, tzinfo=PARIS), "$", "another time"),
    (dt.datetime, dt.datetime(1900, 1, 1, tzinfo=PARIS), "$", "another datetime"),
    (dt.date, dt.datetime(2030, 1, 2, tzinfo=dt.UTC), "$", "it is a datetime"),
]


@pytest.mark.parametrize(("annotation", "value", "path", "what"), REFUSED, ids=stable_id)
async def test_unstorable_value_is_refused_with_its_place(annotation: Any, value: Any, path: str, what: str) -> None:
    async def function(ctx: Context) -> None:
        await ctx.step.run("it", returning(value, annotation))

    def function_sync(ctx: ContextSync) -> None:
        ctx.step.run("it", returning(value, annotation))

    for handler in (function, function_sync):
        run = await engine_for(handler).run()
        (op,) = run.answers[0].ops
        assert (op["op"], op["error"]["code"]) == ("StepFailed", "output_unserializable")
        message = op["error"]["message"]
        assert message.startswith('step "it" returned unserializable data')
        assert f"`{path}`" in message
        assert what in message


@pytest.mark.parametrize("annotation", [Any, Loose], ids=stable_id)
async def test_the_output_of_a_function_is_held_to_the_same(annotation: Any) -> None:
    async def function(ctx: Context) -> Any:
        return Loose({"tags": {1}})

    function.__annotations__["return"] = annotation
    error = await fail(function)
    assert error["code"] == "output_unserializable"
    assert error["message"].startswith('function "app-function" returned unserializable data')
    assert "$.data.tags" in error["message"]


CHANGED: list[tuple[Any, Any, str, Any]] = [
    (Any, {"pair": (1, 2)}, "a tuple at `$.pair`, which is stored as a list", {"pair": [1, 2]}),
    (Any, [{1: 2}], "a key of type int at `$[0][1]`", [{"1": 2}]),
    (Any, [Cat("Tom")], "a Cat at `$[0]`, which is stored as a dict", [{"name": "Tom"}]),
    (Any, dt.date(2030, 1, 2), "a date at `$`", "2030-01-02"),
    (Loose, Loose(Decimal(1)), "a Decimal at `$.data`", Loose("1")),
]


async def test_the_report_names_the_function_and_each_function_has_its_own(caplog: pytest.LogCaptureFixture) -> None:
    async def one(ctx: Context) -> None:
        await ctx.step.run("of two functions", lambda: (1,))

    def two(ctx: ContextSync) -> None:
        ctx.step.run("of two functions", lambda: (1,))

    await complete(one)
    await complete(two)
    lines = [line for line in caplog.messages if line.startswith('step "of two functions" of function "app-')]
    assert [line.partition(" returned")[0].rpartition("app-")[2] for line in lines] == ['one"', 'two"']


@pytest.mark.parametrize(("annotation", "value", "message", "returned"), CHANGED, ids=stable_id)
async def test_value_that_changes_in_json_is_reported_once(
    annotation: Any, value: Any, message: str, returned: Any, caplog: pytest.LogCaptureFixture
) -> None:
    got = []
    step_id = f"changed {message}"

    async def function(ctx: Context) -> None:
        for _ in range(2):
            got.append(await ctx.step.run(step_id, returning(value, annotation)))

    with caplog.at_level(logging.WARNING):
        await complete(function)
    assert got[-2:] == [returned, returned]
    (line,) = [line for line in caplog.messages if step_id in line]
    assert message in line
    assert "output_type" in line


@pytest.mark.parametrize("value", [{"a": [1, None, True, 1.5, "é"]}, Colour.RED.value, 2**70, {}, "", [[]] * 3])
async def test_json_values_are_not_reported(value: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def function(ctx: Context) -> Any:
        return await ctx.step.run("it", lambda: value)

    assert await complete(function) == value
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize(
    ("data", "message"), [({"price": float("nan")}, "`$.payload.data.price`"), ({"x": object()}, "`$.payload.data.x`")]
)
async def test_data_for_another_function_is_held_to_the_same(data: Any, message: str) -> None:
    async def function(ctx: Context) -> None:
        await ctx.step.invoke_by_id("call", function_id="other", data=data)

    def function_sync(ctx: ContextSync) -> None:
        ctx.step.invoke_by_id("call", function_id="other", data=data)

    for handler in (function, function_sync):
        run = await engine_for(handler).run()
        assert (run.output["code"], len(run.answers)) == ("output_unserializable", 1)
        assert run.output["message"].startswith('step "call" was given data that JSON cannot express')
        assert message in run.output["message"]


@pytest.mark.parametrize(
    ("data", "message"),
    [({"price": float("nan")}, "nan at `$[0].data.price`"), ({"tags": {1}}, "a set at `$[0].data.tags`")],
)
async def test_data_of_events_is_held_to_the_same(data: Any, message: str) -> None:
    client = Client(app_id="app", is_production=False)
    with pytest.raises(durably.errors.SendEventsError) as refused:
        client.send_sync(durably.Event(name="e", data=data))
    assert message in str(refused.value)
    with pytest.raises(durably.errors.SendEventsError) as refused:
        await client.send(durably.Event(name="e", data=data))
    assert message in str(refused.value)


async def test_output_type_of_a_function_needs_no_serializer() -> None:
    async def function(ctx: Context) -> Any:
        return CHARGE

    assert (await complete(function, output_type=Charge))["amount"] == "1.10"
    error = await fail(returning_for_context(1), output_type=Charge)
    assert error["code"] == "output_unserializable"


def returning_for_context(value: Any) -> Callable[[Context], Any]:
    async def function(ctx: Context) -> Any:
        return value

    return function


# -- memos of an earlier version


async def test_a_memo_that_no_longer_fits_names_step_place_and_remedy() -> None:
    async def function(ctx: Context) -> str:
        try:
            await ctx.step.run("it", awaited)
        except durably.errors.MemoInvalidError as error:
            return str(error)
        return "no error"

    def function_sync(ctx: ContextSync) -> str:
        try:
            ctx.step.run("it", quoted)
        except durably.errors.MemoInvalidError as error:
            return str(error)
        return "no error"

    for handler in (function, function_sync):
        engine = engine_for(handler)
        run = await engine.run()
        assert run.output == "no error"
        stale = run.state_at(1)
        stale.memos[run.stack[0]]["data"].pop("amount")
        message = (await engine.call(stale)).json
        assert message.startswith('step "it": the stored result does not fit Charge: ')
        assert "missing required field `amount`" in message
        assert "another id" in message


# -- middleware and mocks


async def test_middleware_sees_json_values() -> None:
    seen = []

    class Watch(durably.MiddlewareSync):
        def transform_output(self, result: durably.TransformOutputResult) -> None:
            seen.append(result.output)

    async def function(ctx: Context) -> bool:
        return await ctx.step.run("it", awaited) == CHARGE

    client = Client(app_id="app", is_production=False, middleware=[Watch])
    assert await complete(function, client=client) is True
    stored = {"id": str(CHARGE.id), "amount": "1.10", "at": "2030-01-02T00:00:00Z", "colour": "red"}
    assert seen == [stored, True]


async def test_a_mock_may_return_the_object_or_its_json() -> None:
    client = Client(app_id="app", is_production=False)
    got = []

    @client.create_function(fn_id="function", trigger=durably.TriggerEvent(event="go"))
    async def function(ctx: Context) -> None:
        got.append(await ctx.step.run("it", awaited))

    async with TestEngine(client, [function]) as engine:
        for mock in (CHARGE, {"id": str(CHARGE.id), "amount": "1.10", "at": "2030-01-02T00:00:00Z"}):
            engine.mock_step("it", returns=mock)
            await (await engine.send(durably.Event(name="go"))).wait()
    assert got == [CHARGE, CHARGE]
