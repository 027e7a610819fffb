"""The tables of the wire: each op, header, kind and route is in them, and each test that they name exists."""

import re

from durably.engine.api.http import platform
from durably.protocol.channels import MessageKind
from durably.protocol.headers import Header
from durably.protocol.opcodes import Opcode

from .pages import ROOT

PAGE = (ROOT / "docs/reference/wire.md").read_text()


def test_the_tables_of_the_wire_are_complete() -> None:
    named = set(re.findall(r"`([^`]+)`", PAGE[PAGE.index("## The whole protocol") :]))
    assert {each.value for names in (Opcode, Header, MessageKind) for each in names} <= named
    assert not [path for path in re.findall(r"`([\w/]+/test_\w+\.py)`", PAGE) if not (ROOT / "tests" / path).exists()]


def test_each_route_of_the_second_api_is_described() -> None:
    for _, path, _ in platform.ROUTES:
        named = re.sub(r"{(\w+)_id}", r"{\1}", path)
        assert f"/v2{named}`" in PAGE, path
