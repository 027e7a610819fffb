"""Requests that the engine makes: calls to apps, and requests of the steps fetch and infer."""
