"""Storage in one SQLite file: schema, tables, queries, the writer's thread, backup and check."""
