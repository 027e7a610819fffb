"""The commit log: where each group commit is appended, outside the machine, before it is acknowledged."""
