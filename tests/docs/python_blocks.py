"""Checks all blocks of Python in a process of its own, because Django is configured once in a process.

Each block is compiled, its use of APIs is compared with the real signatures, and what it defines is executed:
imports, functions with their decorators, classes, and objects that are made of them.
"""

import ast
import builtins
import importlib.util
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import django
from django.conf import settings

from .api_use import Checker
from .pages import ALL_PAGES, ROOT, Block, blocks, prose

ONLY_COMPILED = {
    "# settings.py": "settings of a Django project, which need its apps",
    "class ReportTest(django.test.TestCase)": "a test that needs the database of a Django project",
    "class SignUpTest(TransactionTestCase)": "the same",
    "# myproject/": "a file of the project that test_django_page.py runs",
    "# shop/": "the same",
    "prefix, _, secret = os.environ": "a signing key in the environment warns of unsigned development",
    "from shop.celery import app": "the reader's Celery app; tests/integrations/test_celery.py has such a module",
}
"""Beginnings of lines in blocks that are not executed, and the reasons."""


def configure() -> None:
    os.environ |= {"DURABLY_DEV": "1", "APP_ENCRYPTION_KEY": "key", "TEMPORAL_API_KEY": "key"}
    os.environ |= {"OPENAI_API_KEY": "key", "OPENAI_AGENTS_DISABLE_TRACING": "1"}
    os.environ["GITHUB_WEBHOOK_SECRET"] = "key"
    os.environ["DURABLY_LOG"] = "postgresql://localhost/shop"
    contributed = ["admin", "auth", "contenttypes", "messages", "sessions"]
    apps = [*(f"django.contrib.{name}" for name in contributed), "durably.temporal.django"]
    of_pages = {"TEMPORAL_TASK_QUEUE": "orders", "BASE_DIR": ROOT, "METRICS_TOKEN": None}
    settings.configure(INSTALLED_APPS=apps, SECRET_KEY="x", ROOT_URLCONF="django.urls", **of_pages)
    django.setup()


class Names(dict[str, Any]):
    """The names of a block. What the page leaves to the reader is taken from the context, or else a mock."""

    def __init__(self, context: Mapping[str, Any]) -> None:
        super().__init__(__name__="page")
        self._context = context

    def __missing__(self, name: str) -> Any:
        if hasattr(builtins, name):
            return getattr(builtins, name)
        return self.setdefault(name, self._context.get(name) or MagicMock(name=name, __name__=name))


def is_of_the_reader(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is None
    except ModuleNotFoundError:
        return True


def definitions(tree: ast.Module, names: Names, known: Mapping[str, object]) -> Iterator[ast.stmt]:
    """The statements that define something. Imports of the reader's own modules become names."""
    for node in tree.body:
        match node:
            case ast.ImportFrom(module=module, level=level) if level or is_of_the_reader(module or ""):
                for alias in node.names:
                    names[alias.asname or alias.name] = names[alias.name]
            case ast.Import() | ast.ImportFrom() | ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node
            case ast.Assign(value=value) | ast.AnnAssign(value=ast.expr() as value):
                parts = list(ast.walk(value))
                acts = any(isinstance(each, ast.Call) and root(each.func) in {*known, "handle"} for each in parts)
                if not acts and not any(isinstance(each, ast.Await) for each in parts):
                    yield node
            case _:
                pass


def root(node: ast.expr) -> str | None:
    """The name of the object on which a method is called: ``temporal`` of ``temporal.sync.start_workflow``."""
    if not isinstance(node, ast.Attribute):
        return None
    owner: ast.expr = node
    while isinstance(owner, ast.Attribute):
        owner = owner.value
    return owner.id if isinstance(owner, ast.Name) else None


def execute(block: Block, tree: ast.Module) -> None:
    from . import context

    made = context.make()
    names, scope = Names(made), {**made, "__name__": "page"}
    for node in definitions(tree, names, context.KNOWN):
        code = compile(ast.Module([node], []), block.place, "exec")
        exec(code, scope, names)
        scope.update(names)


def problems(block: Block) -> Iterator[str]:
    from . import context

    try:
        tree = compile(block.text, block.place, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST)
    except SyntaxError as error:
        yield f"{error.msg}: {error.text}"
        return
    own = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    own |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    checker = Checker({name: types for name, types in context.KNOWN.items() if name == "ctx" or name not in own})
    checker.visit(tree)
    yield from checker.wrong
    if any(line.startswith(tuple(ONLY_COMPILED)) for line in block.text.splitlines()):
        return
    try:
        execute(block, tree)
    except Exception as error:
        yield f"{type(error).__name__}: {error}"


def problems_of_text(page: Path) -> Iterator[str]:
    """Wrong uses in pieces of code within the text, such as ``Client(env=…)``."""
    from . import context

    # In pages on Temporal ``client`` is that of temporalio.
    known = {name: types for name, types in context.KNOWN.items() if name != "client" or "temporal" not in page.parts}
    for match in re.finditer(r"(?<!`)`([^`]+)`(?!`)", prose(page)):
        try:
            tree = ast.parse(match[1].replace("…", "..."))
        except SyntaxError:
            continue
        if not any(isinstance(node, ast.Call) for node in ast.walk(tree)):
            continue
        checker = Checker(known, context.public())
        checker.is_partial = True
        checker.visit(tree)
        yield from (f"`{match[1]}`: {problem}" for problem in checker.wrong)


def main() -> None:
    warnings.simplefilter("ignore")
    configure()
    found = [
        f"{block.place}: {problem}"
        for page in ALL_PAGES
        for block in blocks(page)
        if block.language == "python"
        for problem in problems(block)
    ]
    found += [f"{page.relative_to(ROOT)}: {problem}" for page in ALL_PAGES for problem in problems_of_text(page)]
    sys.exit("\n".join(found) or None)


if __name__ == "__main__":
    main()
