"""Makers of damaged, lying and unusual files, by kind; each yields paths, and those that have to work."""
