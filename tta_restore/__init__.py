"""Restoration components that keep working when the camera, lens or scene changes."""

__version__ = "0.1.0"
