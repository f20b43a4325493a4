"""What causes the behaviour: change an activation, see what the answer does."""
