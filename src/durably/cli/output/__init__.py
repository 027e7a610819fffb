"""The output of commands: text for terminals, and lines of logs."""
