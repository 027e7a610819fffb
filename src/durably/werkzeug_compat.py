"""The parts of Werkzeug that have no public name, for Flask's adapters.

Checked with Werkzeug 3.1.9. ``LocalProxy._get_current_object`` is documented, despite its name. ``flask run`` uses
``werkzeug._reloader``. ``tests/frameworks/test_compat.py`` fails if a version of Werkzeug changes either.
"""

from collections.abc import Callable
from typing import Any


def current_object(proxy: Any) -> Any:
    """The object behind a ``LocalProxy`` such as ``flask.request``.

    Other threads can use it.
    """
    return proxy._get_current_object()


def run_with_reloader(run: Callable[[], None]) -> None:
    """Call ``run``, and restart the process when source changes.

    Raises ``RuntimeError``.
    """
    try:
        from werkzeug._reloader import run_with_reloader as run_reloaded
    except ImportError as error:
        raise RuntimeError(
            "--reload does not work with this version of Werkzeug, which has no werkzeug._reloader.run_with_reloader: "
            "run the command without it"
        ) from error
    run_reloaded(run)
