"""Expressions: CEL over ``event`` and ``async`` in the tolerant dialect.

The dialect is the protocol's. ``compile_expression`` parses a string (``syntax``) and compiles it (``compiler``, over
``functions`` and ``values``) into an ``Expression``. It has the methods for conditions and keys, and the equalities by
which waits are indexed.
"""

from .expression import Equality, Expression, Kind, compile_expression
from .syntax import ExpressionInvalidError

__all__ = ["Equality", "Expression", "ExpressionInvalidError", "Kind", "compile_expression"]
