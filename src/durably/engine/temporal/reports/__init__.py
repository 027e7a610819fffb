"""Reports of runs, functions and events on Temporal, and bulk operations."""
