"""Counts, overviews and changes for users; no run depends on them."""
