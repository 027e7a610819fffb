"""The command line. ``durably --help`` lists the commands.

``dev`` and ``start`` run an engine; ``backup`` and ``check`` read a database; other commands use the HTTP API of a
running engine. Commands import the modules that run an engine or serve an app when they need them, so that the others
start quickly.
"""

import gc
import sys


def main() -> None:
    """Entry point of the ``durably`` command."""
    gc.disable()  # Imports leave no garbage, and garbage collections would take a fifth of the time.
    try:
        from .group import durably
    except ModuleNotFoundError as error:
        if error.name != "click":
            raise
        sys.exit(
            'Error: the durably command needs click: pip install "durably[engine]", or "durably[temporal]" for '
            "Temporal workflows without the embedded engine"
        )
    gc.freeze()
    gc.enable()
    durably(prog_name="durably")
