"""Tasks, functions and directions in activations."""
