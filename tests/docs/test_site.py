"""The pages fit together: kinds, links, anchors, and the parts that are generated from the code."""

import importlib
import importlib.util
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import click
import pytest

from durably.cli.group import durably

from .pages import ALL_PAGES, DOCS, PAGES, ROOT, anchors, prose

KINDS = {"tutorial": "Tutorial", "how-to": "How-to", "reference": "Reference", "explanation": "Explanation"}
LINKING = [
    *ALL_PAGES,
    ROOT / "CHANGELOG.md",
    *(ROOT / "examples").rglob("README.md"),
    *(ROOT / "benchmarks").glob("*.md"),
]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "index.md"], ids=name)
def test_a_page_says_its_kind(page: Path) -> None:
    title, blank, about = page.read_text().splitlines()[:3]
    assert title.startswith("# ")
    assert not blank
    assert about.startswith(f"**{KINDS[page.relative_to(DOCS).parts[0]]}.** ")


@pytest.mark.parametrize("page", LINKING, ids=name)
def test_links_have_a_target(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        file = page.parent / path if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


def test_the_index_lists_each_page() -> None:
    listed = set[Path]()
    for index in DOCS.rglob("index.md"):
        for names in re.findall(r"```\{toctree\}\n(.*?)```", index.read_text(), re.DOTALL):
            listed |= {index.parent / f"{line}.md" for line in names.splitlines() if line and not line.startswith(":")}
    assert listed == set(PAGES) - {DOCS / "index.md"}


def test_generated_parts_are_current() -> None:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    for file, make in generate.GENERATED.items():
        text = file.read_text()
        assert generate.page(text, make()) == text, "run: python docs/generate.py"


def test_generated_pages_exist() -> None:
    """Modules and the command whose documentation Sphinx makes from the code."""
    for page in PAGES:
        for module in re.findall(r"\.\. automodule:: (\S+)", page.read_text()):
            assert importlib.import_module(module).__doc__
        for module, command in re.findall(r"\.\. click:: (\S+):(\w+)", page.read_text()):
            assert isinstance(getattr(importlib.import_module(module), command), click.Group)


def test_the_site_reads_no_links_into_the_help_of_commands() -> None:
    """Sphinx reads the help as reStructuredText, in which ``NAME_`` is a link to a place that must exist."""
    helps = dict(helps_of(durably))
    assert len(helps) > 100
    assert {name: text for name, text in helps.items() if re.search(r"\w_(?![\w*`])|``?_", text)} == {}


def helps_of(command: click.Command, name: str = "durably") -> Iterator[tuple[str, str]]:
    """The names of a command, its options and its commands, each with its help."""
    yield name, command.help or ""
    for option in command.params:
        yield f"{name} {option.name}", getattr(option, "help", None) or ""
    if isinstance(command, click.Group):
        context = click.Context(command)
        for inner in map(partial(command.get_command, context), command.list_commands(context)):
            assert inner is not None
            yield from helps_of(inner, f"{name} {inner.name}")


@pytest.mark.parametrize("page", [ROOT / "README.md", DOCS / "explanation" / "comparison.md"], ids=name)
def test_figures_are_those_of_the_results(page: Path) -> None:
    """Throughput: relations such as ``26.3 ×``, and steps a second such as ``3,488``."""
    results = (ROOT / "benchmarks" / "RESULTS.md").read_text()
    figures = re.findall(r"\d+\.\d+ ×|\d,\d{3}(?= small)|\d,\d{3}(?= over)", page.read_text())
    assert figures
    assert [figure for figure in figures if figure not in results] == []
