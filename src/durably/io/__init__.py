"""Input and output for sync and async code: event loops in threads, worker threads, HTTP, request bodies."""
