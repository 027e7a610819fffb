"""Helpers for testing apps."""

from .digital_ocean import DigitalOceanSimulator

__all__ = ["DigitalOceanSimulator"]
