"""Activations → sparse dictionaries → their evaluation → their features, one by one."""
