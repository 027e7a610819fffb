"""Sphinx builds the site: ``make docs``. Warnings are errors, so that a broken link or anchor fails the build."""

import importlib.metadata
import re
from pathlib import Path
from typing import Any

import django.conf
from sphinx.util import logging

# ``durably.temporal.django`` reads the settings of a project.
django.conf.settings.configure()

project = "Durably"
author = "The authors of Durably"
release = importlib.metadata.version("durably")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "sphinx_click", "sphinx_design"]
html_theme = "furo"
html_title = f"Durably {release}"
exclude_patterns = ["_build"]

# Headings have the anchors that GitHub gives them: one page, two readers.
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
myst_fence_as_directive: list[str] = []

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
autodoc_default_options = {"members": True}
python_use_unqualified_type_names = True
maximum_signature_line_length = 90

DOCS = Path(__file__).parent
_LINK = re.compile(r"\[([^\]]+)\]\((\.\./[^)#\s]+)(?:#[^)\s]*)?\)")
_log = logging.getLogger(__name__)


def name_files_of_the_repository(app: Any, page: str, source: list[str]) -> None:
    """Replace links that leave ``docs/``, such as those to examples: the site has no such pages."""

    def name(match: re.Match[str]) -> str:
        text, target = match[1], (DOCS / page).parent.joinpath(match[2]).resolve()
        if target.is_relative_to(DOCS):
            return match[0]
        if not target.exists():
            _log.warning("%s links to %s, which does not exist", page, match[2])
        path = f"`{target.relative_to(DOCS.parent)}`"
        return text if text == path else f"{text} ({path} in the repository)"

    source[0] = _LINK.sub(name, source[0])


def drop_metadata(app: Any, kind: str, name: str, value: Any, options: Any, signature: str, returns: str) -> Any:
    """Show ``Annotated[str, …]`` as ``str``: the metadata is for the checks."""
    return (_without_metadata(signature), returns) if signature and "Annotated[" in signature else None


def _without_metadata(signature: str) -> str:
    head, begin, rest = signature.partition("Annotated[")
    if not begin:
        return signature
    depth, comma = 1, None
    for place, character in enumerate(rest):
        depth += (character in "[({") - (character in "])}")
        if character == "," and depth == 1 and comma is None:
            comma = place
        if depth == 0:
            return head + rest[:comma] + _without_metadata(rest[place + 1 :])
    return signature


def shorten_docstrings_of_others(app: Any, kind: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Leave the first line of temporalio's docstrings, which ``temporal.sync`` derives its methods from."""
    if str(getattr(value, "__module__", "")).startswith("temporalio"):
        lines[1:] = []


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", shorten_docstrings_of_others)
    app.connect("autodoc-process-signature", drop_metadata)
    app.connect("source-read", name_files_of_the_repository)
