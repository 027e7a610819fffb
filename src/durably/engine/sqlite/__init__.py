"""Storage in one SQLite file.

Schema, tables, queries, the writer's thread, backup and check.
"""
