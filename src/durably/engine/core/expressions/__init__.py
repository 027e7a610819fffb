"""Expressions: CEL over ``event`` and ``async`` in a tolerant dialect.

The dialect is the protocol's. ``compile_expression`` parses a string (``syntax``) and compiles it (``compiler``, over
``functions`` and ``values``) into an ``Expression``, which evaluates conditions and keys, and has the equalities that
index waits.
"""

from .expression import Equality, Expression, Kind, compile_expression
from .syntax import ExpressionInvalidError

__all__ = ["Equality", "Expression", "ExpressionInvalidError", "Kind", "compile_expression"]
