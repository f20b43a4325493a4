"""What heads attend to, and what they move when they do."""
