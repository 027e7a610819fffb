"""Style sheets: a class has one meaning."""

import re
from collections import defaultdict
from importlib.resources import files

_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_CLASS = re.compile(r"\.([\w-]+)(::?[\w-]+(\([^)]*\))?)*")


def test_no_class_is_declared_in_two_files() -> None:
    declared = defaultdict(set)
    for sheet in (files("durably.engine.api.dashboard") / "static").iterdir():
        if sheet.name.endswith(".css"):
            text = _COMMENT.sub("", sheet.read_text())
            selectors = (one.strip() for group in re.findall(r"([^{}]+)\{", text) for one in group.split(","))
            for found in filter(None, map(_CLASS.fullmatch, selectors)):
                declared[found[1]].add(sheet.name)
    assert len(declared) > 100
    assert {name: sheets for name, sheets in declared.items() if len(sheets) > 1} == {}
