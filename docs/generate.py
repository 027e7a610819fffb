"""Writes what the docs have from the code: the list of settings. ``make docs`` runs it, and a test compares."""

import textwrap
from pathlib import Path

from durably.settings import SETTINGS

PAGE = Path(__file__).parent / "reference" / "settings.md"
BEGIN, END = "<!-- generated: begin -->\n", "<!-- generated: end -->\n"


def settings() -> str:
    """A section for each setting of the SDK."""
    sections = []
    for each in SETTINGS:
        argument = f" Argument: {each.argument}." if each.argument else ""
        meaning = each.meaning[0].upper() + each.meaning[1:] + "."
        text = textwrap.fill(meaning, 120, break_long_words=False, break_on_hyphens=False)
        sections.append(f"### `{each.name}`\n\n{text}\n\nAlso read: `{each.inngest}`.{argument}\n")
    return "\n".join(sections)


def page(text: str) -> str:
    """The page with its generated part replaced."""
    head, _, rest = text.partition(BEGIN)
    return f"{head}{BEGIN}\n{settings()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
