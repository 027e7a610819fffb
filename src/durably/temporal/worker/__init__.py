"""Workers of Temporal: their start, sandbox, log, process and versions."""
