"""The project's connection to Temporal, from Django's settings.

``TEMPORAL_SERVER``, ``TEMPORAL_NAMESPACE`` and ``TEMPORAL_TASK_QUEUE`` stand by themselves; the dictionary ``TEMPORAL``
has the rest: the keys of ``durably.temporal.settings.FRAMEWORK_KEYS``, and ``OPTIONS``, further arguments of
``durably.temporal.Temporal``. The environment comes before them.
"""

import functools
from typing import Any, cast

from django.conf import settings
from django.utils.functional import SimpleLazyObject

from durably.temporal.connection import Temporal
from durably.temporal.errors import TemporalSettingsError
from durably.temporal.settings import FRAMEWORK_KEYS

_PLAIN = ("SERVER", "NAMESPACE", "TASK_QUEUE")
_OTHER_KEYS = frozenset({"OPTIONS"})


def configuration() -> dict[str, Any]:
    """What Django's settings say of the connection."""
    given = {name: getattr(settings, f"TEMPORAL_{name}", None) for name in _PLAIN}
    rest = {name: value for name, value in _dictionary().items() if name in FRAMEWORK_KEYS}
    return {name: value for name, value in {**given, **rest}.items() if value is not None}


def _dictionary() -> dict[str, Any]:
    rest = getattr(settings, "TEMPORAL", {})
    if unknown := sorted(set(rest) - FRAMEWORK_KEYS - _OTHER_KEYS):
        known = ", ".join(sorted(FRAMEWORK_KEYS | _OTHER_KEYS))
        raise TemporalSettingsError(f"settings.TEMPORAL has an unknown key {unknown[0]!r}; known are {known}")
    return dict(rest)


def project_secrets() -> list[str]:
    """The project's secret key, and former ones that are still accepted."""
    return [settings.SECRET_KEY, *getattr(settings, "SECRET_KEY_FALLBACKS", ())]


@functools.cache
def get_temporal() -> Temporal:
    """The project's connection; connects when it is first used. Raises ``TemporalSettingsError``."""
    return Temporal(configuration=configuration, **_dictionary().get("OPTIONS", {}))


temporal = cast(Temporal, SimpleLazyObject(get_temporal))
"""``get_temporal()``, for import at the top of a module, where settings may not be read yet."""
