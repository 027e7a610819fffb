"""The pure core of an engine: the run machine, flow control and expressions."""
