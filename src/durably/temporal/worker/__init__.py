"""Workers of Temporal.

The modules run them, and have their sandbox, log, process and versions.
"""
