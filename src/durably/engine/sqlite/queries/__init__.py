"""Queries for views, reports and searches; they only read."""
