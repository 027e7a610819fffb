"""The engine on Temporal: the run machine inside workflows."""
