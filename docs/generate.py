"""Writes what the docs have from the code: settings, options of functions, metrics, and operations of the HTTP API.

``make docs`` runs it, and a test compares. After a change of the code: ``python docs/generate.py``.
"""

import datetime as dt
import enum
import inspect
import re
import textwrap
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from durably.engine.api.interface import Engine
from durably.engine.api.metrics import CATALOGUE
from durably.engine.api.operations import REQUIRED, Access, Argument, ArgumentLocation, Operation, operations_of
from durably.engine.model.settings import EngineSettings
from durably.engine.temporal.support import SUPPORT, UNUSED_SETTINGS
from durably.protocol.durations import format_duration
from durably.protocol.options import Batch, Choice, Count, Expression, Option, Period, Text
from durably.settings import SETTINGS

REFERENCE = Path(__file__).parent / "reference"
BEGIN, END = "<!-- generated: begin -->\n", "<!-- generated: end -->\n"
REQUIRED_OPTIONS: dict[type[Option], tuple[str, ...]] = {Batch: ("timeout",)}
"""Fields with a default for compatibility with other SDKs, which `create_function` needs."""
KEYS = {Access.OPEN: "none", Access.EVENT_KEY: "event key, in the path", Access.DEVELOPMENT: "none; only in dev mode"}


def settings() -> str:
    """A section for each setting of the SDK."""
    return "\n".join(
        f"### `{each.name}`\n\n{fill(each.meaning[0].upper() + each.meaning[1:] + '.')}\n\n"
        f"Also read: `{each.inngest}`.{f' Argument: {each.argument}.' if each.argument else ''}\n"
        for each in SETTINGS
    )


def engine_settings() -> str:
    """A section for each setting of ``EngineSettings``."""
    return fields_of(EngineSettings, UNUSED_SETTINGS)


def fields_of(declared: type[msgspec.Struct], unused_on_temporal: dict[str, str]) -> str:
    """A section for each field of a struct, by the list in its docstring."""
    meanings = dict(re.findall(r"^- ``(\w+)``: (.+(?:\n  .+)*)", inspect.getdoc(declared) or "", re.MULTILINE))
    sections = []
    for each in msgspec.structs.fields(declared):
        meaning = " ".join(meanings.pop(each.name).split()).replace("``", "`")
        refusal = unused_on_temporal.get(each.name)
        note = "" if refusal is None else f"\n\n{fill(f'Refused on Temporal: {refusal}.')}"
        sections.append(
            f"### `{each.name}`\n\n{fill(meaning[0].upper() + meaning[1:])}\n\n"
            f"Default: {default_of_field(each)}.{note}\n"
        )
    assert not meanings, f"{declared.__name__} has no field {', '.join(meanings)}"
    return "\n".join(sections)


def default_of_field(field: msgspec.structs.FieldInfo) -> str:
    if field.default_factory is not msgspec.NODEFAULT:
        return f"`{getattr(field.default_factory, '__name__', field.default_factory)}()`"
    match field.default:
        case dt.timedelta() as duration:
            return format_duration(duration)
        case bool() as switch:
            return f"`{switch}`"
        case int() as count:
            return f"{count:,}"
        case function if callable(function):
            return f"`{function.__name__}`"
        case frozenset():
            return "none"
        case enum.Enum() as member:
            return f"`{type(member).__name__}.{member.name}`"
        case default:
            return f"`{default!r}`"


def options() -> str:
    """A section for each option of functions, with its fields."""
    return "\n".join(option(each) for each in sorted(Option.__subclasses__(), key=lambda each: each.__name__))


def option(declared: type[Option]) -> str:
    fields = [
        f"| `{each.name}` | {values(typing.get_args(each.type)[1])} | {default_of(declared, each)} |"
        for each in msgspec.structs.fields(declared)
    ]
    table = "\n".join(["| field | value | default |", "|---|---|---|", *fields])
    return "\n\n".join([f"### `durably.{declared.__name__}`", *paragraphs(declared), table]) + "\n"


def values(check: Any) -> str:
    """The values that the check of a field accepts."""
    match check:
        case Count():
            return f"{check.least:,} to {check.most:,}"
        case Period():
            date = "; or a date" if check.may_be_date else ""
            return f"duration, {format_duration(check.least)} to {format_duration(check.most)}{date}"
        case Choice():
            return ", ".join(f'`"{name}"`' for name in check.names)
        case Expression():
            kind = {None: "expression", "bool": "condition", "number": "expression of a number"}[check.gives]
            return f"{kind} over `event` and `async`" if check.has_async else f"{kind} over `event`"
        case Text():
            return "text" if check.longest is None else f"text, at most {check.longest} characters"
    raise TypeError(f"{type(check).__name__} has no description here")


def default_of(declared: type[Option], field: msgspec.structs.FieldInfo) -> str:
    if field.required or field.name in REQUIRED_OPTIONS.get(declared, ()):
        return "required"
    return "" if field.default is None else f"`{field.default}`"


def operations() -> str:
    """A section for each operation, in the order of their declarations."""
    order = list(vars(Engine))
    found = sorted(operations_of(Engine).values(), key=lambda each: order.index(each.name))
    return "\n".join(operation(each) for each in found)


LOCATIONS = {
    ArgumentLocation.QUERY: "Query",
    ArgumentLocation.FIELD: "Fields of the body",
    ArgumentLocation.BODY: "Body",
    ArgumentLocation.HEADER: "Headers",
}


def operation(declared: Operation) -> str:
    texts = paragraphs(getattr(Engine, declared.name))
    lines = [f"- Key: {KEYS[declared.access]}"] if declared.access in KEYS else []
    lines += arguments(declared)
    heading = f"### `{declared.http_method} {declared.path}`: `{declared.name}`"
    return "\n\n".join(part for part in (heading, *texts, "\n".join(lines)) if part) + "\n"


def arguments(declared: Operation) -> list[str]:
    """A line for each place of arguments, and one for each argument that is an object."""
    lines = []
    for location, name in LOCATIONS.items():
        found = [each for each in declared.arguments if each.location is location]
        if plain := [argument(each) for each in found if parts_of(each) is None]:
            lines.append(fill_item(f"- {name}: {', '.join(plain)}"))
        lines += [fill_item(f"- {name}: {argument(each)}: {parts}") for each in found if (parts := parts_of(each))]
    return lines


def metrics() -> str:
    """A table of the metrics, in the order of the catalogue."""
    rows = [
        f"| `{each.full_name}` | {each.kind} | {', '.join(f'`{label}`' for label in each.labels)} | {each.meaning} |"
        for each in CATALOGUE
    ]
    buckets = [
        f"- `{each.full_name}`: {', '.join(f'{bound:g}' for bound in each.buckets)}"
        for each in CATALOGUE
        if each.buckets
    ]
    missing = ", ".join(f"`{each.full_name}`" for each in CATALOGUE if each.is_sqlite_only)
    on_temporal = textwrap.fill(f"The engine on Temporal has all of them except {missing}.", 120)
    table = "\n".join(["| metric | kind | labels | meaning |", "|---|---|---|---|", *rows])
    return f"{table}\n\n{on_temporal}\n\nUpper bounds of the buckets:\n\n" + "\n".join(map(fill_item, buckets)) + "\n"


def fill_item(text: str) -> str:
    return textwrap.fill(text, 120, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def paragraphs(documented: object) -> list[str]:
    """The paragraphs of a docstring as Markdown."""
    docstring = inspect.getdoc(documented) or ""
    return [fill_list(part.replace("``", "`")) for part in docstring.split("\n\n")]


def fill_list(text: str) -> str:
    """A paragraph, or the items of a list."""
    items = [" ".join(item.split()) for item in f"\n{text}".split("\n- ")]
    return "\n".join([fill(item) for item in items[:1] if item] + [fill_item(f"- {item}") for item in items[1:]])


def argument(declared: Argument) -> str:
    default = declared.default if declared.http_default is None else declared.http_default
    if default is None:
        return f"`{declared.wire_name}`"
    if default is REQUIRED:
        return f"`{declared.wire_name}` (required)"
    values = [str(each) for each in default] if isinstance(default, tuple) else [str(default)]
    return f"`{declared.wire_name}` (default {', '.join(f'`{value}`' for value in values)})"


def parts_of(declared: Argument) -> str | None:
    """The fields of an argument that is an object or a list of objects, and what its docstring says of them."""
    is_list = typing.get_origin(declared.type) is list
    kind = typing.get_args(declared.type)[0] if is_list else declared.type
    if not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
        return None
    fields = [f"`{each.encode_name}`{' (required)' if each.required else ''}" for each in msgspec.structs.fields(kind)]
    _, *about = paragraphs(kind)
    named = f"{'a list of objects' if is_list else 'an object'} with {', '.join(fields)}."
    return " ".join(" ".join([named, *about]).split())


def fill(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def options_on_temporal() -> str:
    """A list of options with what is the same, different and refused on Temporal."""
    return (
        "\n".join(
            fill_item(f"- **{each.option}**: {each.support}{f'. {each.reason}' if each.reason else ''}.")
            for each in SUPPORT
        )
        + "\n"
    )


GENERATED: dict[Path, Callable[[], str]] = {
    REFERENCE / "options.md": options,
    REFERENCE / "settings.md": settings,
    REFERENCE / "engine-settings.md": engine_settings,
    REFERENCE / "http-api.md": operations,
    REFERENCE / "metrics.md": metrics,
    REFERENCE / "options-on-temporal.md": options_on_temporal,
}


def page(text: str, made: str) -> str:
    """The page with its generated part replaced."""
    head, _, rest = text.partition(BEGIN)
    return f"{head}{BEGIN}\n{made}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    for file, generate in GENERATED.items():
        file.write_text(page(file.read_text(), generate()))
