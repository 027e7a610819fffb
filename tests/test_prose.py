"""Phrases that this project does not use, in the code and the docs; the list is short, and each has its reason.

Names, comments, docstrings and texts are checked alike. A phrase may go over the end of a line. To list what is left:

    python tests/test_no_phrase_of_the_list_is_used.py [folder]
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
MAX_LINE = 120
MAX_FIRST_LINE = 80
THIS = Path(__file__)

RELATIVE = 'a relative clause without a noun: begin with the noun ("processes that wait")'
OLD = "an old-fashioned or translated phrase: use the plain one"
PERSON = "code is no person: name the part and what it does"
METAPHOR = "a metaphor of our own: use the field's word"

# Phrases (regular expressions, in any case) and the reasons. A space stands for any white space.
PHRASES = {
    r"\bthose who\b": RELATIVE,
    r"\bwho(m)?ever\b": RELATIVE,
    r"\bwhat is none\b": RELATIVE,
    r"\bof which\b": RELATIVE + "; or split the sentence",
    r"\banew\b": OLD + ' ("again", "new")',
    r"\b(?<!there\s)is no (?!longer\b|more than\b|such\b)\w": OLD + ' ("is not a", "must be a")',
    r"\bc[ao]me[s]? to (?!(the |this |that |an )?(page|site|app)\b)": OLD + ' ("is", "becomes", "reaches")',
    r"\bmeanwhile\b": OLD + " (name the interval)",
    r"\bnobody\b": PERSON + ' ("no caller", "no process")',
    r"\b(tells?|told|telling)\b": PERSON + ' ("reports", "says whether", "distinguishes")',
    r"\bin vain\b": OLD + ' ("without a result")',
    r"\b(there|where)(of|by|in|upon)\b": OLD,
    r"\bbe of (use|effect)\b": OLD,
    r"\b(which|that) (is|are) none\b": RELATIVE + ' ("invalid", "absent")',
    r"\bin (its|their) stead\b": OLD + ' ("instead")',
}

# Words of an earlier vocabulary, in names and in prose, and what they are called today.
WORDS = {
    r"ledgers?": "transaction",
    r"rosters?": "the app's processes",
    r"guests?": "follower",
    r"pulses?": "heartbeat",
    r"shy|is_shy": "startup delay",
    r"sweeps?": "bulk operation",
    r"surroundings": "request context",
    r"freshen|is_fresh": "start_new_code, is_replaying",
    r"carry_out": "dispatch_after_commit",
    r"handover": "checkpoint",
    r"is_doubtful": "may_be_stale",
    r"restraints?": "pause, limit",
    r"(?<!at\sthe\s)moments?": "timestamp, time",
}

# First words of docstrings.
FIRST_WORDS = r"(What|Who|Which|Where|How|Why|Those)"

RULES = [(re.compile(phrase.replace(" ", r"[\s#*]+"), re.IGNORECASE), reason) for phrase, reason in PHRASES.items()]
# An underscore ends a word, so that parts of names are found too.
RULES += [
    (re.compile(rf"(?<![A-Za-z])(?:{word})(?![a-z])", re.IGNORECASE), f"{METAPHOR}: {today}")
    for word, today in WORDS.items()
]

RULES.append(
    (re.compile(rf'"""{FIRST_WORDS} '), "begin a docstring with a noun or a verb: what it is, or what it does")
)

# What a folder or a file may still have. The numbers may only fall; one that is not named has none.
LEFT: dict[str, int] = {
    # The names of tables stay.
    "src/durably/engine/sqlite": 9,
    "tests/app_and_engine/flow_control": 1,
    # Former names, which users have to replace.
    "CHANGELOG.md": 4,
}


class Found(NamedTuple):
    file: Path
    line: int
    text: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line}: {self.text!r}: {self.reason}"


def files() -> Iterator[Path]:
    for folder, endings in (
        ("src", (".py", ".html", ".js")),
        ("docs", (".md", ".py")),
        ("examples", (".md", ".py", ".service")),
        ("tests", (".md", ".py", ".mjs")),
        ("benchmarks", (".md", ".py")),
    ):
        for file in sorted((ROOT / folder).rglob("*")):
            if file.suffix in endings and file != THIS and "node_modules" not in file.parts:
                yield file
    yield from (ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"))


def findings(file: Path) -> Iterator[Found]:
    text = file.read_text()
    for rule, reason in RULES:
        for match in rule.finditer(text):
            words = " ".join(match[0].split())
            yield Found(file, text.count("\n", 0, match.start()) + 1, words, reason)


def long_first_lines(file: Path) -> Iterator[Found]:
    """Docstrings whose first line is too long to be one statement of what the thing is or does."""
    if file.suffix != ".py":
        return
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = (ast.get_docstring(node) or "").partition("\n")[0]
            if len(first) > MAX_FIRST_LINE:
                line = getattr(node, "lineno", 1)
                yield Found(file, line, first, f"{len(first)} characters; the limit is {MAX_FIRST_LINE}")


def long_lines(file: Path) -> Iterator[Found]:
    """Lines of prose that are too long; ruff checks the code's."""
    if file.suffix != ".md":
        return
    for number, line in enumerate(file.read_text().splitlines(), 1):
        is_table = line.startswith("|")
        if len(line) > MAX_LINE and not is_table and "http" not in line:
            yield Found(file, number, line[:60], f"{len(line)} characters; the limit is {MAX_LINE}")


def folder_of(file: Path) -> str:
    """The folder or file of ``LEFT`` that a file counts for: the innermost that is named."""
    parents = [str(parent.relative_to(ROOT)) for parent in file.parents if parent.is_relative_to(ROOT)]
    return next((each for each in (str(file.relative_to(ROOT)), *parents) if each in LEFT), parents[0])


def by_folder() -> dict[str, list[Found]]:
    result: dict[str, list[Found]] = {folder: [] for folder in LEFT}
    for file in files():
        result.setdefault(folder_of(file), []).extend(findings(file))
    return result


def test_no_phrase_of_the_list_is_used() -> None:
    worse = {folder: found for folder, found in by_folder().items() if len(found) > LEFT.get(folder, 0)}
    listing = [
        f"{folder} has {len(found)}, {LEFT.get(folder, 0)} at most:\n" + "\n".join(f"  {each}" for each in found)
        for folder, found in worse.items()
    ]
    assert not worse, "\n".join(listing)


def test_first_lines_of_docstrings_are_short() -> None:
    found = [each for file in files() if file.is_relative_to(ROOT / "src") for each in long_first_lines(file)]
    assert not found, "\n".join(map(str, found))


def test_a_long_first_line_is_found(tmp_path: Path) -> None:
    file = tmp_path / "file.py"
    file.write_text(f'def f():\n    """{"x" * 81}\n\n    More.\n    """\n')
    assert [each.line for each in long_first_lines(file)] == [1]


@pytest.mark.parametrize(
    "sentence", ["Those who\n    wait", "x is no number", "it comes to # an end", "surroundings_of"]
)
def test_a_phrase_is_found(sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "file.py"
    file.write_text(sentence)
    assert len(list(findings(file))) == 1


@pytest.mark.parametrize(
    "sentence", ["there is no number", "is no longer used", "at the moment", '"""Whether it is."""']
)
def test_a_plain_phrase_is_not_found(sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "file.py"
    file.write_text(sentence)
    assert list(findings(file)) == []


if __name__ == "__main__":
    wanted = [ROOT / folder for folder in sys.argv[1:]] or [ROOT]
    for file in files():
        if any(file.is_relative_to(folder) for folder in wanted):
            print(*findings(file), *long_lines(file), *long_first_lines(file), sep="\n")
