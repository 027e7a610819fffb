"""What is compared: each module does the same work with one package, in a process of its own (see ``children``)."""
