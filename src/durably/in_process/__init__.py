"""In-process mode: the engine in the web app's own processes. ``embedded.Embedded`` is its public class."""
