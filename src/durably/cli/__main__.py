"""``python -m durably.cli``: the ``durably`` command, of this very interpreter."""

from . import main

main()
