"""Every block of code of every page is checked. What a block may skip is listed with the reason.

``python_blocks.py`` checks Python. Commands are parsed by the real command lines, configuration by its parsers.
"""

import ast
import configparser
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import flask
import pytest
import yaml

from durably.cli.group import durably
from durably.temporal import Temporal
from durably.temporal.flask import init_app

from .api_use import Checker
from .context import KNOWN, public
from .pages import ALL_PAGES, ROOT, Block, blocks

BLOCKS = [block for page in ALL_PAGES for block in blocks(page)]
OUTPUT = {"", "text"}
DIRECTIVES = {"{toctree}", "{eval-rst}", "mermaid"}
"""Sphinx checks the first two; the third is a drawing."""
INCLUDED = "{literalinclude} "
"""Before the path of a file that a page shows, which other tests serve."""

OTHER_PROGRAMS = {
    *(".", "cd", "cp", "do", "done", "export", "for", "install", "mkdir", "mv", "set", "test", "useradd"),
    *(
        "celery",
        "curl",
        "django-admin",
        "docker",
        "git",
        "gunicorn",
        "node",
        "openssl",
        "pkill",
        "poetry",
        "python3",
        "systemctl",
        "tcld",
        "temporal",
    ),
    *("uv", "uvicorn"),
}
"""Programs that are not ours. Their options are not checked."""


def of(*languages: str) -> list[Block]:
    return [block for block in BLOCKS if block.language in languages]


def place(block: Block) -> str:
    return block.place


def test_each_block_is_of_a_kind_that_is_checked() -> None:
    # tests/outbox/test_docs.py executes the SQL, and tests/streams/test_page.py shows the HTML in a browser.
    kinds = {"python", "html", "console", "yaml", "ini", "json", "toml", "diff", "sql"} | OUTPUT | DIRECTIVES
    assert {block.language for block in BLOCKS if not block.language.startswith(INCLUDED)} - kinds == set()


@pytest.mark.slow
def test_blocks_of_python_are_valid() -> None:
    found = subprocess.run([sys.executable, "-m", "tests.docs.python_blocks"], cwd=ROOT, capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "")


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("ctx.step.rum('a', f)", "ctx.step has no rum"),
        ("ctx.step.sleep('a')", "ctx.step.sleep: missing a required argument: 'duration'"),
        ("import durably\ndurably.Throttle(limt=1)", "durably.Throttle"),
        ("from durably import Clyent", "durably has no Clyent"),
        ("import durably.flask\ndurably.flask.serve(app, client, [], serve_pat='/x')", "serve_pat"),
        ("import durably.fastapi", "there is no module durably.fastapi"),
    ],
)
def test_a_wrong_use_is_found(code: str, problem: str) -> None:
    checker = Checker(KNOWN)
    checker.visit(ast.parse(code))
    assert problem in " ".join(checker.wrong)


@pytest.mark.parametrize("code", ["Throttle(limt=...)", "TestEngine(..., clock=1)", "EngineSettings(steps=2)"])
def test_a_wrong_use_in_the_text_is_found(code: str) -> None:
    checker = Checker(KNOWN, public())
    checker.is_partial = True
    checker.visit(ast.parse(code))
    assert len(checker.wrong) == 1


# Commands.


def commands(text: str) -> Iterator[list[str]]:
    """The commands of a block of a console: lines that begin with ``$``, and what follows a backslash."""
    for line in re.findall(r"^\$ (.*(?:\\\n.*)*)", text, re.MULTILINE):
        lexer = shlex.shlex(line.replace("\\\n", " "), posix=True, punctuation_chars=";&|")
        lexer.whitespace_split = True
        command: list[str] = []
        for token in [*lexer, ";"]:
            if token in {";", "&&", "||", "|", "&"}:
                yield from unwrap(command)
                command = []
            else:
                command.append(token)


def unwrap(command: list[str]) -> Iterator[list[str]]:
    """The command without variables, ``sudo`` and ``sh -c`` before it."""
    while command and (re.match(r"[A-Z_]+=", command[0]) or command[0] == "sudo"):
        command = command[1:]
    if command[:2] == ["sh", "-c"]:
        yield from commands(f"$ {command[2]}")
    elif command:
        yield [command[0].rpartition("/")[2], *command[1:]]


def parse(group: click.Command, arguments: Sequence[str], parent: click.Context | None = None) -> None:
    """Parse the arguments as the command would, and run nothing. Raises ``click.UsageError``."""
    rest = list(arguments)
    context = group.make_context(group.name, rest, parent=parent)
    if isinstance(group, click.Group):
        _, command, rest = group.resolve_command(context, [*context._protected_args, *context.args])
        assert command is not None
        parse(command, rest, context)


def check(command: list[str]) -> None:
    program, *arguments = command
    match program:
        case "durably":
            parse(durably, arguments)
        case "flask":
            app = flask.Flask(__name__)
            init_app(app, Temporal(task_queue="orders"))
            if arguments[0] != "run":
                parse(app.cli, arguments)
        case "make":
            assert re.search(rf"^{arguments[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        case "python" if arguments[0] == "manage.py":
            check_manage(arguments[1:])
        case "python":
            # The pages call their app main.py.
            assert arguments[:2] == ["-m", "pytest"] or arguments == ["main.py"] or (ROOT / arguments[0]).exists()
        case "pip":
            assert arguments[0] == "install"
        case _:
            assert program in OTHER_PROGRAMS


def check_manage(arguments: list[str]) -> None:
    from django.core.management import load_command_class

    own = {file.stem for file in (ROOT / "src/durably/temporal/django/management/commands").glob("[a-z]*.py")}
    if arguments and arguments[0] in own:
        command = load_command_class("durably.temporal.django", arguments[0])
        command.create_parser("manage.py", arguments[0]).parse_args(arguments[1:])
    else:
        known = {"check", "createsuperuser", "makemigrations", "migrate", "runserver", "startapp", "test"}
        assert arguments[0] in known


@pytest.mark.parametrize("block", of("console"), ids=place)
def test_documented_commands_exist(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("manage.py", "durably.db"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    found = list(commands(block.text))
    assert found
    for command in found:
        check(command)


@pytest.mark.parametrize("text", ["$ durably runs lst", "$ durably dev main:app --prt 1", "$ make tset", "$ frob"])
def test_a_wrong_command_is_found(text: str) -> None:
    [command] = commands(text)
    with pytest.raises((click.UsageError, AssertionError)):
        check(command)


# Configuration.


@pytest.mark.parametrize("block", of("yaml", "json", "toml", "ini", "diff"), ids=place)
def test_configuration_is_well_formed(block: Block) -> None:
    match block.language:
        case "yaml":
            assert yaml.safe_load(block.text)
        case "json":
            json.loads(block.text)
        case "toml":
            tomllib.loads(block.text)
        case "ini":
            parser = configparser.ConfigParser(interpolation=None)
            parser.read_string(block.text)
            for section in parser.values():
                for name, value in section.items():
                    if name == "execstart" and "durably" in value:
                        check(["durably", *shlex.split(value.partition("durably ")[2])])
        case "diff":
            for sign in "+-":
                compile(
                    "\n".join(line[1:] for line in block.text.splitlines() if line.startswith(sign)), "diff", "exec"
                )
