"""What synchronous and asynchronous code share: a background event loop, worker threads, HTTP."""
