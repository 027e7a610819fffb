"""Options that the engine on Temporal refuses, because it cannot apply them exactly."""

from typing import Any

import pytest

from durably.engine.model.functions import SyncedFunction
from durably.engine.temporal.support import check_support
from durably.protocol.engine_errors import ConfigInvalidError

from ..core.flow.configs import config_of

LIMIT = {"limit": 1}
SHARED = {"limit": 2, "scope": "account", "key": "event.data.user"}


def check(**options: Any) -> None:
    check_support([SyncedFunction.from_config(config_of(**options), "shop")])


@pytest.mark.parametrize(
    ("options", "place"),
    [
        ({"priority": {"run": "event.data.n"}}, "priority orders calls"),
        ({"concurrency": [LIMIT, SHARED]}, r"concurrency\[1\] counts calls of several functions"),
        ({"concurrency": [SHARED], "throttle": {"limit": 1, "period": "1s"}}, r"concurrency\[0\] counts calls"),
        ({"triggers": [{"event": "a/" * 17 + "*"}]}, r"triggers\[0\] has a wildcard after 17 slashes and dots"),
        ({"concurrency": [SHARED | {"key": "'a'"}, SHARED]}, r"concurrency\[1\] is a second limit"),
    ],
)
def test_unsupported_option_is_refused(options: dict[str, Any], place: str) -> None:
    with pytest.raises(ConfigInvalidError, match=f"function 'shop-fn': {place}"):
        check(**options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"priority": {"run": "event.data.n"}, "concurrency": [LIMIT]},
        {"priority": {"run": "event.data.n"}, "throttle": {"limit": 1, "period": "1s"}},
        {"triggers": [{"event": "a/" * 16 + "*"}, {"event": "a/" * 17}]},
        {"concurrency": [SHARED]},
        {"concurrency": [LIMIT, SHARED | {"key": "'payments'"}]},
        {"concurrency": [LIMIT | {"key": "event.data.user"}, SHARED]},
        {"concurrency": [LIMIT, LIMIT | {"key": "event.data.user"}], "throttle": {"limit": 1, "period": "1s"}},
    ],
)
def test_options_that_are_exact_are_accepted(options: dict[str, Any]) -> None:
    check(**options)
