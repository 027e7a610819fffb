"""The adapters that users write themselves: the documentation shows the files that the tests serve."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(
    r"```python\n(.*?)```", (ROOT / "docs" / "how-to" / "temporal" / "other-frameworks.md").read_text(), re.DOTALL
)
FILES = sorted((ROOT / "examples" / "other_frameworks").glob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_documentation_shows_the_example(file: Path) -> None:
    code = file.read_text().partition('"""\n\n')[2]
    assert code in BLOCKS


def test_an_adapter_is_about_thirty_lines() -> None:
    functions = {file.stem: file.read_text().partition("\ndef ")[2].splitlines() for file in FILES}
    assert {name: len(lines) for name, lines in functions.items() if not 20 < len(lines) < 40} == {}
