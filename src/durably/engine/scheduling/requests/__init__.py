"""Requests that the engine makes.

Calls to apps, and requests of the steps fetch and infer.
"""
