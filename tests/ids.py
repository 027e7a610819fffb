"""Ids of parametrised tests, the same in each process that collects them: pytest-xdist requires that."""

import re

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_LONGEST = 60


def stable_id(value: object) -> str:
    """A short text of a value, without addresses, and with the members of sets in order."""
    if isinstance(value, set | frozenset):
        return f"{type(value).__name__}({', '.join(sorted(map(stable_id, value)))})"
    return _ADDRESS.sub("", str(value))[:_LONGEST]
