"""Prints each file of the package with the first line of its docstring: ``make files``."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]


def purposes(folder: Path) -> Iterator[tuple[str, str]]:
    """The modules below a folder, in the order of the tree."""
    for file in sorted(folder.rglob("*.py"), key=lambda file: (file.parent, file.name)):
        docstring = ast.get_docstring(ast.parse(file.read_text())) or ""
        if docstring:
            yield str(file.relative_to(ROOT)), docstring.splitlines()[0]


if __name__ == "__main__":
    folder = ROOT / (sys.argv[1] if len(sys.argv) > 1 else "src/durably")
    for name, purpose in purposes(folder):
        print(f"{name:<60} {purpose}")
