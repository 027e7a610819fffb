"""Workers of Temporal: what they run, their sandbox, their log, their process, and their versions."""
