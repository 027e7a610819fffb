"""The engine: it stores events and runs, and decides when to call which function.

``core`` decides (pure), ``model`` has what every engine shares, ``sqlite`` and ``temporal`` are the engines, and
``api`` is their interface with HTTP, metrics and dashboard. An engine knows apps only through ``durably.protocol``. It
never imports the SDK, a web framework or user code.
"""

from importlib.util import find_spec

_PACKAGES = ("aiohttp", "jinja2", "lark", "prometheus_client", "re2", "ulid", "yarl")


def check_packages() -> None:
    """Raises ``ModuleNotFoundError``, which names the extra, unless the packages of an engine are installed.

    The packages that need them call this. The declarations of operations (``api/codec.py``) do not: an app whose
    engine runs elsewhere uses them too.
    """
    missing = [package for package in _PACKAGES if _is_missing(package)]
    if missing:
        message = f'durably.engine needs {", ".join(missing)}: pip install "durably[engine]"'
        raise ModuleNotFoundError(message, name=missing[0])


def _is_missing(package: str) -> bool:
    try:
        return find_spec(package) is None
    except ImportError:
        return True
