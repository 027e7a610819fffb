"""The command line. ``durably --help`` lists the commands.

``dev`` and ``start`` run an engine; ``backup`` and ``check`` read a database; the others talk to a running engine over
HTTP. Modules here that run an engine, or serve an app, are imported by the command that needs them, so that the others
start at once.
"""

import gc
import sys


def main() -> None:
    """Entry point of the ``durably`` command."""
    gc.disable()  # Imports leave no garbage, and looking for some takes a fifth of a command's time.
    try:
        from .commands import durably
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
