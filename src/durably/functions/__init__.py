"""Functions: user code plus its configuration.

A function is called once for each request of the engine.
"""
