"""gunicorn's settings for the tests. In a file, options that a version does not know are ignored."""

import gc

worker_class = "gthread"
threads = 8
loglevel = "error"
graceful_timeout = 1
control_socket_disable = True


def when_ready(server: object) -> None:
    """Otherwise the garbage collection at a preloaded worker's end copies all pages that it shares with the others."""
    gc.freeze()
