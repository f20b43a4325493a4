"""What the model would say, and who made it say so: reading the residual stream as tokens."""
