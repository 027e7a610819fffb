"""Cases of a test that ``make test`` runs. ``make test-slow`` runs the others, and CI both."""

from collections.abc import Callable, Container, Iterable
from typing import Any, TypeVar

import pytest

T = TypeVar("T")


def variants(cases: Iterable[T], quick: Container[T], *, name: Callable[[T], str] | None = None) -> list[Any]:
    """Parameters for the cases of a test. Cases that are not ``quick`` get the mark ``slow``.

    A tuple has several arguments.
    """
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)),
            marks=() if case in quick else pytest.mark.slow,
            id=name and name(case),
        )
        for case in cases
    ]
