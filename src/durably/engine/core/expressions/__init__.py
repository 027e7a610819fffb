"""Expressions: CEL over ``event`` and ``async`` in the protocol's tolerant dialect.

``compile_expression`` parses (``syntax``) and compiles (``compiler``, over ``functions`` and ``values``) a text into an
``Expression``, which says whether events match, what key they give, and by which equalities waits may be indexed.
"""

from .analysis import Equality, Kind
from .expression import Expression, compile_expression
from .syntax import ExpressionInvalidError

__all__ = ["Equality", "Expression", "ExpressionInvalidError", "Kind", "compile_expression"]
