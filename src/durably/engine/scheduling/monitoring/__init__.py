"""Counts, overviews and changes for display. Runs do not depend on them."""
