"""Arguments of a call, with the defaults of the parameters that are left out.

A worker reads arguments by the type hints of their parameters only if there are as many arguments as parameters. With
fewer, a model or dataclass arrives as a dictionary, and the workflow's task fails again and again.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def with_defaults(method: Callable[..., Any], arguments: Sequence[Any]) -> list[Any]:
    """``arguments`` for ``method``, which is a workflow's run, signal, query or update, without its ``self``.

    Raises ``TypeError`` for too many or too few.
    """
    parameters = list(inspect.signature(method).parameters.values())[1:]
    if any(each.kind not in _POSITIONAL for each in parameters):
        return list(arguments)
    name = getattr(method, "__qualname__", str(method))
    if len(arguments) > len(parameters):
        raise TypeError(f"{name}() takes {_count(len(parameters))}, and {len(arguments)} were given")
    left_out = parameters[len(arguments) :]
    if missing := [each.name for each in left_out if each.default is each.empty]:
        raise TypeError(f"{name}() needs an argument for {', '.join(missing)}")
    if not arguments:  # Then the worker reads nothing, and its own defaults count.
        return []
    return [*arguments, *(each.default for each in left_out)]


def fill_arguments(
    method: Any, arg: tuple[Any, ...], options: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """``with_defaults`` for a call of ``temporalio``'s client: arguments are in ``arg``, or in ``args`` of the options.

    A method that is given by its name is not known: its arguments are left as they are. Raises ``TypeError``.
    """
    changed = dict(options)
    if isinstance(method, str) or (arg and "args" in changed):  # The SDK refuses both.
        return arg, changed
    filled = with_defaults(method, arg or changed.pop("args", ()))
    return (tuple(filled), changed) if len(filled) < 2 else ((), {**changed, "args": filled})


def _count(number: int) -> str:
    return "no arguments" if number == 0 else f"{number} argument{'s' if number > 1 else ''}"
