"""Loops: streams, evaluation, reports, the demo, restoring files, and training."""
