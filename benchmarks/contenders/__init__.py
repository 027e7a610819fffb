"""Compared systems: each module does the same work with one package, in its own process (see ``children``)."""
