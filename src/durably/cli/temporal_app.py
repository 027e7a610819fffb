"""Finding the ``Temporal`` that ``module:temporal`` names."""

import logging
import os
import sys
from typing import TYPE_CHECKING

from .app_import import AppImportError, import_app
from .failures import CliError

if TYPE_CHECKING:
    from durably.temporal import Temporal

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

    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = import_app(target, USUAL_NAMES)
    except AppImportError as error:
        raise CliError(str(error)) from None
    if not isinstance(found, Temporal):
        kind = type(found)
        raise CliError(
            f"{target} is an object of type {kind.__module__}.{kind.__qualname__}, not a durably.temporal.Temporal"
        )
    return found


def log_plain_lines(level: str) -> None:
    """Have what workflows, activities and the SDK log written to stderr, unless the app has set up its own logging."""
    logging.basicConfig(level=level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
