"""The files and names that CONTRIBUTING.md gives to newcomers exist."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PLACES = re.findall(r"`([a-z_/]+\.py)(?::([A-Za-z_.]+))?`", (ROOT / "CONTRIBUTING.md").read_text())


def defined(tree: ast.AST, prefix: str = "") -> set[str]:
    """Functions and classes, and the methods of classes, as ``Class.method``."""
    names = set[str]()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(prefix + node.name)
            if isinstance(node, ast.ClassDef):
                names |= defined(node, f"{node.name}.")
    return names


@pytest.mark.parametrize(("file", "name"), sorted({place for place in PLACES if not place[0].startswith("tests/")}))
def test_a_place_of_the_page_exists(file: str, name: str) -> None:
    source = ROOT / "src" / "durably" / file
    assert source.is_file()
    assert not name or name in defined(ast.parse(source.read_text()))


def test_each_file_states_its_purpose() -> None:
    """``make files`` prints the first line of each file."""
    listed = subprocess.run(["make", "-s", "files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    modules = (file for file in (ROOT / "src" / "durably").rglob("*.py") if file.read_text().strip())
    assert {str(file.relative_to(ROOT)) for file in modules} - {
        line.split()[0] for line in listed.splitlines()
    } == set()
