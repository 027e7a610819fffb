"""An app's namespace: schedules, search attributes, stuck workflows."""
