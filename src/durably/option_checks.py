"""Checks of cron schedules and expressions when a function is created.

The engine's own check is used if the engine is installed (``durably.embedded`` registers it: the SDK does not import an
engine). Without it schedules get a light check, which accepts everything that an engine may accept.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from durably.errors import FunctionConfigInvalidError

Check = Callable[[Mapping[str, Any]], str | None]
"""Takes a function's entry in the sync payload. Returns its fault, which names the function."""

_check: Check | None = None

_PLAIN = frozenset(("id", "name", "steps", "triggers"))
_ZONE = re.compile(r"(?:CRON_)?TZ=\S+\s+", re.ASCII)
_FIELD = re.compile(r"[A-Za-z0-9*?,/-]+", re.ASCII)


def register(check: Check) -> None:
    """Have all functions checked by the engine that is installed."""
    global _check
    _check = check


def check_config(config: Mapping[str, Any]) -> None:
    """Raises ``FunctionConfigInvalidError``."""
    for trigger in config["triggers"]:
        if (cron := trigger.get("cron")) is not None and (problem := cron_problem(cron)) is not None:
            raise FunctionConfigInvalidError(f"function {config['id']!r}: triggers.cron {cron!r} {problem}")
    needs_engine = not _PLAIN.issuperset(config) or any(
        "cron" in trigger or "expression" in trigger for trigger in config["triggers"]
    )
    if needs_engine and _check is not None and (problem := _check(config)) is not None:
        raise FunctionConfigInvalidError(problem)


def cron_problem(text: str) -> str | None:
    """The certain fault of a schedule. The engine checks schedules that start with ``@``."""
    text = text.strip()
    if text.startswith("@"):
        return None
    fields = _ZONE.sub("", text, count=1).split()
    if len(fields) != 5:
        return f"has {len(fields)} fields; it must have five: minute, hour, day of month, month, day of week"
    if not all(_FIELD.fullmatch(field) for field in fields):
        return "is not valid; fields are made of numbers, names like MON or JAN, and * , - /"
    return None
