"""Questions about a model's features: each a method, like those of ``probe.methods``."""
