"""gunicorn as the tests want it. A file, because options that a version does not know are passed over only here."""

worker_class = "gthread"
threads = 8
loglevel = "error"
graceful_timeout = 1
control_socket_disable = True
