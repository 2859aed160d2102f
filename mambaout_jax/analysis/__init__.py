"""What answers a question about a model rather than trains it."""
