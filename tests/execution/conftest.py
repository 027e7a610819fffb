"""Calls in these tests never lose their patience, so that one which waits for what never comes is noticed."""

from collections.abc import Iterator

import pytest

from durably.execution import idle_detection


@pytest.fixture(autouse=True, scope="module")
def strict_calls() -> Iterator[None]:
    """A replay that is wrongly said to diverge fails its run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DURABLY_STRICT_REPLAY", "1")
        patch.setattr(idle_detection, "_STALL_SECONDS", 3600.0)
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(__file__.rpartition("/")[0]) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(60))
