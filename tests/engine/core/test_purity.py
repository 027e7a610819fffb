"""The core of the engine is pure: read from its imports and calls.

Time, randomness, settings and limits are arguments. Storage, files, threads and the network belong to the engines.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

CORE = Path(__file__).parents[3] / "src" / "durably" / "engine" / "core"
FILES = sorted(CORE.rglob("*.py"))
MODULES = {
    "aiohttp",
    "asyncio",
    "glob",
    "io",
    "logging",
    "multiprocessing",
    "os",
    "random",
    "secrets",
    "shutil",
    "socket",
    "sqlite3",
    "subprocess",
    "sys",
    "tempfile",
    "threading",
    "time",
    "ulid",
    "urllib",
    "uuid",
}
"""Modules by which code reaches a clock, randomness, settings, files, threads or the network."""
CALLS = {"now", "utcnow", "today", "localtime", "time_ns", "monotonic", "getenv", "urandom", "uuid4", "randint"}
"""Methods and functions of those modules, and of ``datetime``."""
BUILTINS = {"open", "input", "print", "exec", "eval", "breakpoint"}
FILE_METHODS = {"read_text", "read_bytes", "write_text", "write_bytes"}
GRAMMAR = "Path(__file__).with_name('grammar.lark').read_text"
"""The grammar of expressions is a file of the package, which the parser reads once."""


def impurities(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names if alias.name.partition(".")[0] in MODULES)
            case ast.ImportFrom(module=str(module), level=0) if module.partition(".")[0] in MODULES:
                yield module
            case ast.Call(func=ast.Name(name)) if name in BUILTINS | CALLS:
                yield f"{name}()"
            case ast.Call(func=ast.Attribute(attr=name) as function) if name in CALLS | FILE_METHODS:
                if ast.unparse(function) != GRAMMAR:
                    yield f"{ast.unparse(function)}()"
            # The time zone of the machine.
            case ast.Call(func=ast.Attribute(attr="fromtimestamp"), args=[_], keywords=[]):
                yield f"{ast.unparse(node)} without a time zone"
            case ast.Call(func=ast.Attribute(attr="astimezone"), args=[], keywords=[]):
                yield f"{ast.unparse(node)} without a time zone"


def limits_inside_functions(tree: ast.AST) -> Iterator[str]:
    """Limits of the protocol that a function reads, other than as the default of a parameter."""
    limits = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "durably.protocol.limits"
        for alias in node.names
        if alias.name.startswith("MAX_")
    }
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            read = {
                node.id for statement in function.body for node in ast.walk(statement) if isinstance(node, ast.Name)
            }
            yield from (f"{function.name} reads {name}" for name in sorted(read & limits))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(CORE)))
def test_the_core_reaches_nothing_outside(file: Path) -> None:
    assert list(impurities(ast.parse(file.read_text()))) == []


@pytest.mark.parametrize(
    "file", [file for file in FILES if file.name != "config.py"], ids=lambda file: str(file.relative_to(CORE))
)
def test_the_core_takes_its_limits_as_arguments(file: Path) -> None:
    """``flow/config.py`` checks syncs, by the figures of the protocol."""
    assert list(limits_inside_functions(ast.parse(file.read_text()))) == []


@pytest.mark.parametrize(
    "code",
    [
        "import time",
        "from os import environ",
        "import urllib.request",
        "dt.datetime.now(dt.UTC)",
        "dt.date.today()",
        "dt.datetime.fromtimestamp(1)",
        "at.astimezone()",
        "open('file')",
        "Path('file').read_text()",
        "uuid4()",
    ],
)
def test_an_impurity_is_found(code: str) -> None:
    assert list(impurities(ast.parse(code)))


def test_a_limit_inside_a_function_is_found() -> None:
    code = "from durably.protocol.limits import MAX_STEPS\ndef f(most=MAX_STEPS):\n    return most > {}"
    assert list(limits_inside_functions(ast.parse(code.format("MAX_STEPS")))) == ["f reads MAX_STEPS"]
    assert list(limits_inside_functions(ast.parse(code.format("1")))) == []
