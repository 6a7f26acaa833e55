"""Photographs in and out, simulated lenses, and the streams made of them."""
