"""Durably: durable execution for Python web apps."""
