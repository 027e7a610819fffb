"""The command line: ``durably dev``, ``start``, ``send``, ``runs`` and ``invoke``.

``dev`` and ``start`` run an engine; the other commands talk to a running one over HTTP. Modules here that run an
engine, or serve an app, are imported by the command that needs them, so that the others start at once.
"""

import sys


def main() -> None:
    """Entry point of the ``durably`` command."""
    try:
        from .commands import durably
    except ModuleNotFoundError as error:
        if error.name != "click":
            raise
        sys.exit('Error: the durably command needs the "engine" extra: pip install "durably[engine]"')
    durably(prog_name="durably")
