"""Which cases of a test are in ``make test``. ``make test-slow`` runs the others, and CI both."""

from collections.abc import Callable, Container, Iterable
from typing import TypeVar

import pytest
from _pytest.mark import ParameterSet

T = TypeVar("T")


def variants(cases: Iterable[T], quick: Container[T], *, name: Callable[[T], str] | None = None) -> list[ParameterSet]:
    """The cases of a test; those that are not ``quick`` have the mark ``slow``. A tuple is several arguments."""
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)),
            marks=() if case in quick else pytest.mark.slow,
            id=name and name(case),
        )
        for case in cases
    ]
