"""Circuits: which edges do the work, and how well a set of them accounts for it."""
