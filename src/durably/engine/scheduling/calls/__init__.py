"""Calls to apps: their queue, their bodies, and the requests that make them."""
