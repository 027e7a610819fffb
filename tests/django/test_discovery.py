"""Functions of a project's ``durable.py`` files are found by what they are, not by their names."""

from types import ModuleType

import pytest

import durably
from durably.django import adapter


def test_functions_in_lists_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``durably.integrations.celery.functions`` makes them."""
    client = durably.Client(app_id="shop")

    def function(name: str) -> object:
        return client.create_function(fn_id=name, trigger=durably.TriggerEvent(event="go"))(lambda ctx: None)

    module = ModuleType("shop.durable")
    vars(module).update(client=client, one=function("one"), tasks=[function("two"), function("three"), "other"])
    monkeypatch.setattr(adapter, "_modules", lambda: [module])
    found = adapter.Discovered()
    found.find()
    assert [each.opts.local_id for each in found.functions_of(client)] == ["one", "two", "three"]
