"""Each row of ``reference_list.md``, the requirements for Temporal in web frameworks, names tests."""

import ast
import functools
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
LIST = Path(__file__).with_name("reference_list.md").read_text()
ROWS = re.findall(r"^\| (✓ [^|]+?) \|[^|]*\| ([^|]+) \|$", LIST, re.MULTILINE)


@functools.cache
def functions_of(file: str) -> set[str]:
    tree = ast.parse((TESTS / file).read_text())
    return {each.name for each in tree.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_no_row_is_left_out() -> None:
    assert len(ROWS) == LIST.count("\n| ") - LIST.count("\n| asked for |") > 80


@pytest.mark.parametrize(("row", "shown_by"), ROWS)
def test_each_row_names_existing_tests(row: str, shown_by: str) -> None:
    named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", shown_by)
    assert len(named) == len(shown_by.split(", ")) > 0
    for file, name in named:
        assert name in functions_of(file), f"{row}: {file} has no {name}"
