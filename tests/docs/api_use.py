"""Checks the use of an API in code that is not run: names exist, and arguments fit the signatures."""

import ast
import functools
import importlib
import inspect
import textwrap
import typing
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

Types = tuple[type, ...]
"""The possible values of a name: an example may use the synchronous or the asynchronous class of a pair."""


class Instance(typing.NamedTuple):
    types: Types


class Checker(ast.NodeVisitor):
    """Collects the wrong uses in a block.

    ``known`` has the classes of names that the block does not define, ``names`` what other names mean. With
    ``is_partial`` calls may lack arguments.
    """

    is_partial = False

    def __init__(self, known: Mapping[str, Types], names: Mapping[str, Any] | None = None) -> None:
        self.names: dict[str, Any] = {name: Instance(types) for name, types in known.items()} | dict(names or {})
        self.wrong: list[str] = []

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            module = self._import(alias.name)
            if module is not None:
                self.names[alias.asname or alias.name.partition(".")[0]] = (
                    module if alias.asname else importlib.import_module(alias.name.partition(".")[0])
                )

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        module = self._import(node.module or "") if not node.level else None
        for alias in node.names:
            name = alias.asname or alias.name
            if module is None:
                continue
            if hasattr(module, alias.name):
                self.names[name] = getattr(module, alias.name)
            elif (submodule := self._import(f"{module.__name__}.{alias.name}")) is not None:
                self.names[name] = submodule
            else:
                self.wrong.append(f"{module.__name__} has no {alias.name}")

    def _import(self, name: str) -> ModuleType | None:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            if name.partition(".")[0] == "durably":
                self.wrong.append(f"there is no module {name}")
            return None

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.generic_visit(node)
        if isinstance(node.ctx, ast.Store):
            return
        owner = self.resolve(node.value)
        if owner is not None and not list(members(owner, node.attr)):
            self.wrong.append(f"{ast.unparse(node.value)} has no {node.attr}")

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        candidates = self.resolve_all(node.func)
        if not candidates or any(isinstance(each, ast.Starred) for each in node.args):
            return
        keywords = {each.arg: None for each in node.keywords if each.arg is not None}
        # ``…`` in the text of a page stands for arguments that are left out.
        given = [each for each in node.args if not (isinstance(each, ast.Constant) and each.value is ...)]
        has_more = len(keywords) < len(node.keywords) or self.is_partial or len(given) < len(node.args)
        errors = [error for each in candidates if (error := misfit(each, len(given), keywords, has_more))]
        if len(errors) == len(candidates):
            self.wrong.append(f"{ast.unparse(node.func)}: {errors[0]}")

    def resolve(self, node: ast.expr) -> Any:
        return next(iter(self.resolve_all(node)), None)

    def resolve_all(self, node: ast.expr) -> list[Any]:
        if isinstance(node, ast.Name):
            return [self.names[node.id]] if node.id in self.names else []
        if isinstance(node, ast.Attribute):
            return [found for owner in self.resolve_all(node.value) for found in members(owner, node.attr)]
        return []


def members(owner: Any, name: str) -> Iterator[Any]:
    """The possible values of ``owner.name``; methods of instances without ``self``."""
    if not isinstance(owner, Instance):
        try:
            yield getattr(owner, name)
            return
        except AttributeError:
            pass
        except Exception:  # A proxy outside of its context, such as flask.request.
            yield UNKNOWN
            return
        if isinstance(owner, ModuleType):
            try:
                yield importlib.import_module(f"{owner.__name__}.{name}")
            except ModuleNotFoundError:
                return
        return
    for cls in owner.types:
        member = inspect.getattr_static(cls, name, None)
        hint = None
        if isinstance(member, property):
            hint = typing.get_type_hints(member.fget).get("return")
        elif callable(member) or isinstance(member, classmethod | staticmethod):
            yield BoundMethod(getattr(cls, name), not isinstance(member, classmethod | staticmethod))
            continue
        else:
            hint = hints(cls).get(name)
        if hint is not None or member is not None or name in attributes(cls) or hasattr(cls, "__getattr__"):
            yield Instance((hint,)) if inspect.isclass(hint) and hint.__module__.startswith("durably") else UNKNOWN


class BoundMethod(typing.NamedTuple):
    function: Any
    has_self: bool


UNKNOWN = Instance((type("Unknown", (), {"__getattr__": lambda self, name: None, "__call__": lambda self: None}),))


def hints(cls: type) -> Mapping[str, Any]:
    try:
        return typing.get_type_hints(cls)
    except NameError:
        return {name: None for base in cls.__mro__ for name in vars(base).get("__annotations__", {})}


def attributes(cls: type) -> set[str]:
    """Attributes that the methods of a class assign."""
    return {attribute for base in cls.__mro__[:-1] for attribute in _own_attributes(base)}


@functools.cache
def _own_attributes(cls: type) -> frozenset[str]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, TypeError, SyntaxError):
        return frozenset()
    nodes = ast.walk(tree)
    return frozenset(node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store))


def misfit(function: Any, count: int, keywords: Mapping[str, None], has_more: bool) -> str | None:
    """The reason why the arguments do not fit the signature."""
    has_self = isinstance(function, BoundMethod) and function.has_self
    target = function.function if isinstance(function, BoundMethod) else function
    if isinstance(target, Instance):
        return None
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError):
        return None
    for parameter in signature.parameters.values():
        if typing.get_origin(parameter.annotation) is typing.Unpack:
            [options] = typing.get_args(parameter.annotation)
            options = typing.get_origin(options) or options  # ``Options[Request]``
            if unknown := set(keywords) - set(signature.parameters) - set(options.__annotations__):
                return f"got an unexpected keyword argument {unknown.pop()!r}"
    positional = [None] * (count + has_self)
    try:
        (signature.bind_partial if has_more else signature.bind)(*positional, **keywords)
    except TypeError as error:
        return str(error)
    return None
