"""The statements of each group of tables, used in the writer's thread."""
