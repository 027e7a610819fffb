"""Counts, overviews and changes for people; no run depends on them."""
