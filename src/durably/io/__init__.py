"""Input and output for sync and async code.

The package has event loops in threads, worker threads, HTTP and request bodies.
"""
