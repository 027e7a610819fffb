"""Errors that users can catch are importable from ``durably.errors``."""

import inspect

from durably import errors
from durably.protocol import engine_errors


def test_engine_errors_are_public() -> None:
    kinds = {
        name
        for name, value in vars(engine_errors).items()
        if inspect.isclass(value) and issubclass(value, engine_errors.EngineError)
    }
    assert all(getattr(errors, name) is getattr(engine_errors, name) for name in kinds)
