"""Finding the ``Temporal`` that ``module:temporal`` names."""

import logging
import os
import sys
from typing import TYPE_CHECKING

from .app_import import AppImportError, import_app
from .failures import CliError

if TYPE_CHECKING:
    from durably.temporal import Temporal
    from durably.temporal.gateway import Gateway

USUAL_NAMES = ("temporal",)
"""What the documentation calls it."""


def require_temporal() -> None:
    """Raises ``CliError``, which names the extra, where ``temporalio`` is not installed."""
    try:
        import durably.temporal  # noqa: F401
    except ImportError as error:
        raise CliError(str(error)) from error


def load_temporal(target: str) -> "Temporal":
    """``target`` is ``module:name``, or ``module`` for one called ``temporal``. Raises ``CliError``."""
    require_temporal()
    from durably.temporal import Temporal

    found = _load(target, USUAL_NAMES)
    if not isinstance(found, Temporal):
        raise _unexpected(target, found, "a durably.temporal.Temporal")
    return found


def load_gateway_or_temporal(target: str) -> "Gateway | Temporal":
    """``target`` is ``module:name``, or ``module`` for one called ``gateway`` or ``temporal``. Raises ``CliError``."""
    require_temporal()
    from durably.temporal import Temporal
    from durably.temporal.gateway import Gateway

    found = _load(target, ("gateway", *USUAL_NAMES))
    if not isinstance(found, Gateway | Temporal):
        raise _unexpected(target, found, "a Gateway or a durably.temporal.Temporal")
    return found


def _load(target: str, usual_names: tuple[str, ...]) -> object:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return import_app(target, usual_names)
    except AppImportError as error:
        raise CliError(str(error)) from None


def _unexpected(target: str, found: object, wanted: str) -> CliError:
    kind = type(found)
    return CliError(f"{target} is an object of type {kind.__module__}.{kind.__qualname__}, not {wanted}")


def log_plain_lines(level: str) -> None:
    """Have what workflows, activities and the SDK log written to stderr, unless the app has set up its own logging."""
    logging.basicConfig(level=level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
