"""Reading what a model could do from its weights."""
