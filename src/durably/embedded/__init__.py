"""In-process mode: the engine inside of the web app's own processes, without HTTP between them.

``Embedded`` is what user code gives its client; importing it imports no engine. Each process that uses a
database is a *member*; one of them is its *owner* and runs the engine, the others follow it over a local
socket. The engine itself knows nothing of all this: it reaches functions by a ``Caller``, as always.
"""

from .handle import Embedded

__all__ = ["Embedded"]
