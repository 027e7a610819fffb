"""Functions: user code plus its configuration, called once for each request of the engine."""
