"""In-process mode: the engine in the web app's own processes. ``Embedded`` is its public class."""

from .embedded import Embedded

__all__ = ["Embedded"]
