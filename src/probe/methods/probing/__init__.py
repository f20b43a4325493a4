"""What can be read from activations, and whether the model reads it too."""
