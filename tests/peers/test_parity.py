"""The public API of the ``inngest`` package, name by name and parameter by parameter, has to be there in ``durably``.

What is public there is what its ``__all__`` names, and what hangs on that without an underscore. Differences that are
deliberate are listed with their reason, and in ``examples/migrate/README.md`` for users; an entry that no longer
differs fails, too.
"""

import enum
import importlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any, Unpack, get_args, get_origin, get_type_hints

import inngest
import pydantic
import pytest
from inngest._internal import step_lib
from inngest._internal.step_lib import step_async, step_sync

import durably
from durably import steps

FRAMEWORKS = ("digital_ocean", "django", "fast_api", "flask", "tornado")
MADE_BY_THE_SDK = {"Context", "ContextSync", "Function", "Step", "StepMemos", "StepSync"}
"""Users receive these and do not construct them."""

_INTERNAL = "internal to the SDK, although no underscore says so"
DIFFERENCES = {
    "Function.call()": _INTERNAL,
    "Function.call_sync()": _INTERNAL,
    "Function.get_config": _INTERNAL,
    "StepMemos.from_raw": _INTERNAL,
}


def public(owner: Any) -> Iterator[str]:
    return (name for name in dir(owner) if not name.startswith("_") and not hasattr(Exception, name))


def is_data(owner: Any) -> bool:
    return inspect.isclass(owner) and issubclass(owner, pydantic.BaseModel)


def differences_of(theirs: Callable[..., Any], ours: Callable[..., Any]) -> Iterator[str]:
    """Calls of theirs that ours would not accept."""
    wanted, given = inspect.signature(theirs).parameters, dict(inspect.signature(ours).parameters)
    for parameter in list(given.values()):
        if get_origin(parameter.annotation) is Unpack:  # ``**options: Unpack[ServeOptions]``
            names = get_type_hints(get_args(parameter.annotation)[0])
            given |= {name: inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in names}
    takes_any = {parameter.kind for parameter in given.values()}
    places = [name for name, parameter in wanted.items() if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
    if places != list(given)[: len(places)]:
        yield f"takes {', '.join(places)} by position"
    for name, parameter in wanted.items():
        if parameter.kind is parameter.VAR_POSITIONAL:
            if inspect.Parameter.VAR_POSITIONAL not in takes_any:
                yield "takes any number of arguments"
        elif name not in given:
            yield f"takes {name}"
        elif parameter.default is parameter.empty:
            continue  # what they require, we may leave out
        elif not is_same_default(parameter.default, given[name].default):
            yield f"has {parameter.default!r} as the default of {name}"
    for name, parameter in given.items():
        is_required = parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_KEYWORD,
            parameter.VAR_POSITIONAL,
        )
        if is_required and name not in wanted:
            yield f"does not require {name}"


def is_same_default(theirs: Any, ours: Any) -> bool:
    if isinstance(theirs, enum.Enum):
        return bool(theirs.value == ours.value)
    is_sentinel = inspect.isclass(theirs) and theirs is not inspect.Parameter.empty
    return inspect.isclass(ours) if is_sentinel else theirs == ours


def all_differences() -> Iterator[str]:
    for name in inngest.__all__:
        if not hasattr(durably, name):
            yield name
            continue
        theirs, ours = getattr(inngest, name), getattr(durably, name)
        if inspect.isclass(theirs) and not is_data(theirs):
            yield from class_differences(name, theirs, ours)


def class_differences(name: str, theirs: type, ours: type) -> Iterator[str]:
    if "__init__" in vars(theirs) and name not in MADE_BY_THE_SDK:
        for difference in differences_of(theirs, ours):
            yield f"{name}() {difference}"
    for member in public(theirs):
        where = f"{name}.{member}"
        found = inspect.getattr_static(theirs, member)
        if isinstance(found, property):
            continue  # of instances; see test_instances_have_the_same_attributes
        if not hasattr(ours, member):
            yield where
        elif callable(getattr(theirs, member)) and list(differences_of(getattr(theirs, member), getattr(ours, member))):
            yield f"{where}()"


def test_every_public_name_can_be_used_alike() -> None:
    assert set(all_differences()) == set(DIFFERENCES)


@pytest.mark.parametrize("name", [name for name in inngest.__all__ if is_data(getattr(inngest, name))])
def test_options_and_events_have_the_same_fields(name: str) -> None:
    theirs, ours = getattr(inngest, name).model_fields, inspect.signature(getattr(durably, name)).parameters
    for field, info in theirs.items():
        assert field in ours, f"{name}.{field}"
        assert (ours[field].default is inspect.Parameter.empty) == info.is_required(), f"{name}.{field}"
        default = info.get_default(call_default_factory=True)
        assert info.is_required() or not default or ours[field].default == default, f"{name}.{field}"


def test_the_parts_of_steps_and_groups() -> None:
    """Attributes of a context: ``ctx.step.ai`` and ``ctx.group`` are not exported by name."""
    pairs = [
        (step_lib.Group, durably.Group),
        (step_lib.GroupSync, durably.GroupSync),
        (step_async.AI, steps.AI),
        (step_sync.AI, steps.AISync),
    ]
    for theirs, ours in pairs:
        for member in public(theirs):
            assert list(differences_of(getattr(theirs, member), getattr(ours, member))) == [], (theirs, member)


@pytest.mark.parametrize("name", ["Context", "ContextSync"])
def test_contexts_have_the_same_fields(name: str) -> None:
    assert set(getattr(inngest, name).__dataclass_fields__) <= set(getattr(durably, name).__dataclass_fields__)


@pytest.mark.parametrize("name", ["ParallelMode", "Streaming"])
def test_enums_have_the_same_members(name: str) -> None:
    theirs, ours = getattr(inngest, name), getattr(durably, name)
    assert {member.name: member.value for member in theirs} == {member.name: member.value for member in ours}


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_serve_takes_the_same_arguments(framework: str) -> None:
    theirs, ours = (importlib.import_module(f"{package}.{framework}") for package in ("inngest", "durably"))
    assert list(differences_of(theirs.serve, ours.serve)) == []


def test_instances_have_the_same_attributes() -> None:
    """Properties there, and attributes here, of the client, a function and errors."""

    def instances(package: Any) -> dict[str, Any]:
        client = package.Inngest(app_id="app", is_production=False, event_key="key")
        trigger = package.TriggerEvent(event="a")
        function = client.create_function(fn_id="fn", trigger=trigger)(lambda ctx: None)
        return {
            "client": client,
            "function": function,
            "non-retriable": package.NonRetriableError("message"),
            "retry-after": package.RetryAfterError("message", 1000, quiet=True),
            "step error": package.StepError("message", "Name", "stack"),
        }

    theirs, ours = instances(inngest), instances(durably)
    for kind, instance in theirs.items():
        for name in public(instance):
            if f"{type(instance).__name__}.{name}" in DIFFERENCES or name in ("retry_after", "stack", "logger"):
                assert hasattr(ours[kind], name) or name == "get_config"
                continue
            value = getattr(instance, name)
            assert hasattr(ours[kind], name), (kind, name)
            if value is None or isinstance(value, str | bool | int):
                assert _plain(getattr(ours[kind], name)) == _plain(value), (kind, name)


def _plain(value: Any) -> Any:
    """Enums are compared by value, origins without their last slash."""
    value = value.value if isinstance(value, enum.Enum) else value
    return value.rstrip("/") if isinstance(value, str) else value
